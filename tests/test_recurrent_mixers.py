"""Recurrent Delta and self-referential mixers: the contract of every mixer, published wiring."""

import copy

import pytest
import torch

from fairseq_fwm import ops
from fairseq_fwm.mixers import (
    RECURRENT_MIXERS,
    FastWeightConfig,
    SelfReferentialState,
    build_mixer,
    why_invalid,
)

N, H, T, D = 3, 2, 9, 6
MIXERS = list(RECURRENT_MIXERS)


def build(rule, **options):
    mixer = build_mixer(D, H, FastWeightConfig(rule, "elu", **options), "decoder_self").double()
    return mixer, torch.randn(N, H, T, mixer.projection_size, dtype=torch.float64)


@pytest.mark.parametrize("rule", MIXERS)
def test_sequence_segments_and_steps_agree(rule):
    mixer, projected = build(rule, scale=0.5)
    y, final = mixer(projected, output_final_state=True)
    assert y.shape == (N, H, T, D) and mixer(projected)[1] is None
    begin = mixer.init_state(N, H, device=torch.device("cpu"), dtype=torch.float64)
    torch.testing.assert_close(mixer(projected, begin)[0], y)
    first, state = mixer(projected[:, :, :4], output_final_state=True)
    second, state = mixer(projected[:, :, 4:], state, output_final_state=True)
    torch.testing.assert_close(torch.cat((first, second), 2), y)
    torch.testing.assert_close(tuple(state), tuple(final))
    state, outputs = begin, []
    for x in projected.unbind(2):
        y_t, state = mixer.step(x, state)
        outputs.append(y_t)
    torch.testing.assert_close(torch.stack(outputs, 2), y)
    torch.testing.assert_close(tuple(state), tuple(final))


@pytest.mark.parametrize("rule", MIXERS)
def test_a_step_gathers_rows_and_skips_masked_ones(rule):
    mixer, projected = build(rule)
    _, state = mixer(projected, output_final_state=True)
    rows, x = torch.tensor([2, 0, 0]), projected[:, :, 0]
    y, after = mixer.step(x, state, rows=rows)
    wanted_y, wanted = mixer.step(x, type(state)(*(s[rows] for s in state)))
    assert torch.equal(y, wanted_y) and all(map(torch.equal, after, wanted))
    mask = torch.tensor([True, False, True])
    y, after = mixer.step(x, state, mask=mask)
    assert not y[1].any() and y[0].any()
    for new, old in zip(after, state, strict=True):
        torch.testing.assert_close(new[1], old[1])


@pytest.mark.parametrize("rule", MIXERS)
def test_the_op_s_output_is_scaled_but_not_what_it_reads_again(rule):
    plain, projected = build(rule)
    scaled = copy.deepcopy(plain)
    scaled.scale = 0.25
    torch.testing.assert_close(scaled(projected)[0], 0.25 * plain(projected)[0])


def test_initial_matrices_as_published():
    torch.manual_seed(0)
    d = 64
    mixer = build_mixer(d, 8, FastWeightConfig("srwm", "elu"), "decoder_self")
    W = mixer.weights
    assert W.shape == (8, d, 3 * d + 4)
    parts = {"y": W[..., :d], "q": W[..., d : 2 * d], "k": W[..., 2 * d : 3 * d]}
    stds = {name: part.std().item() * d**0.5 for name, part in parts.items()}
    assert stds == pytest.approx({"y": 1, "q": 0.01, "k": 1}, rel=0.05)
    assert W[..., 3 * d :].mean().item() == pytest.approx(-1, abs=0.02)
    R = build_mixer(d, 8, FastWeightConfig("recurrent_delta", "elu"), "decoder_self").recurrent
    assert R.shape == (8, d, 3 * d + 1)
    assert R.std().item() * d**0.5 == pytest.approx(1, rel=0.05)


def test_initial_matrix_learns_in_a_segment_that_goes_on():
    mixer, projected = build("srwm")
    _, state = mixer(projected, output_final_state=True)
    y, _ = mixer(projected, SelfReferentialState(state.change.detach()))
    (grad,) = torch.autograd.grad(y.square().sum(), mixer.weights)
    assert grad.any()
    whole, _ = ops.self_referential(projected, mixer.weights + state.change)
    torch.testing.assert_close(y, whole)


@pytest.mark.parametrize("rule", MIXERS)
@pytest.mark.parametrize(
    ("options", "site", "reason"),
    [
        ({}, "encoder_self", "is causal"),
        ({}, "cross", "is causal"),
        ({"sum_norm": True}, "decoder_self", "sum to one already"),
        ({"attn_norm": "output"}, "decoder_self", "knows no attention normalisation"),
    ],
)
def test_what_makes_no_sense_is_refused(rule, options, site, reason):
    config = FastWeightConfig(rule, "elu", **options)
    assert reason in why_invalid(config, site)
    with pytest.raises(ValueError, match=reason):
        build_mixer(D, H, config, site)
    assert why_invalid(FastWeightConfig(rule, "elu", attn_norm="none")) is None
