"""FastWeightMixer: modes agree, padding writes nothing, nothing is ever NaN, for every variant."""

import dataclasses

import pytest
import torch

from fairseq_fwm.feature_maps import FEATURE_MAPS, FeatureMap, register_feature_map
from fairseq_fwm.mixers import (
    SITES,
    UPDATE_RULES,
    FastWeightConfig,
    FastWeightMixer,
    FastWeightState,
    register_update_rule,
    validity_table,
    why_invalid,
)
from fairseq_fwm.ops import chunked
from variants import DTYPES, assert_close, label, valid_configs

CAUSAL = pytest.mark.parametrize("config", valid_configs(), ids=label)
DEFAULTS = [FastWeightConfig(r, f, nu=2, m=8) for r in UPDATE_RULES for f in FEATURE_MAPS]
D = 6
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}


def build(config, site="decoder_self", training=False):
    return FastWeightMixer(D, config, site).train(training)


def draw(mixer, n=2, h=2, t=13, dtype=torch.float64, size=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (n, h, t, size or mixer.projection_size)
    x = 0.7 * torch.randn(shape, generator=generator, dtype=torch.float64)
    if mixer.config.feature_map == "elu" and mixer.rule.uses_beta and not mixer.sum_norm:
        # The delta rule grows without bound where beta |k|^2 > 2: keep these keys short.
        x[..., : 2 * D] -= 1.5
    return x.to(dtype)


LENGTHS = [(c, t) for c in DEFAULTS for t in (1, 2, 3, 31, 63, 100)] + [
    (c, 13) for c in valid_configs()
]
EVERY_LENGTH = pytest.mark.parametrize(
    "config,t", LENGTHS, ids=lambda x: str(x) if isinstance(x, int) else label(x)
)


def carried(mixer, dtype):
    """A state that something was written to, and its tensors as leaves."""
    _, state = mixer(draw(mixer, n=1, t=3, dtype=dtype, seed=1), output_final_state=True)
    leaves = [x.detach().requires_grad_() for x in state if x is not None]
    return FastWeightState(leaves[0], leaves[1] if len(leaves) > 1 else None), leaves


def in_steps(mixer, x, state):
    outputs = []
    for x_t in x.unbind(2):
        y, state = mixer.step(x_t, state)
        outputs.append(y)
    return torch.stack(outputs, 2), state


def in_segments(mixer, x, state):
    cut = x.shape[2] // 2
    first, state = mixer(x[:, :, :cut], state, output_final_state=True)
    second, state = mixer(x[:, :, cut:], state, output_final_state=True)
    return torch.cat((first, second), 2), state


def everything(y, state, inputs):
    """Output, final state, and the gradients of a scalar that all of them are part of."""
    outputs = [y, *(value for value in state if value is not None)]
    loss = sum((out * out.detach().cos()).sum() for out in outputs)
    names = ("y", "S", "z")[: len(outputs)]
    grads = {f"gradient {i}": g for i, g in enumerate(torch.autograd.grad(loss, inputs))}
    return dict(zip(names, outputs, strict=True)) | grads


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@EVERY_LENGTH
def test_all_forms_agree(config, t, dtype, monkeypatch):
    """Reference == chunks of any length == step by step == two segments, gradients included."""
    reference = FastWeightMixer(D, dataclasses.replace(config, impl="reference")).eval()
    mixer = FastWeightMixer(D, dataclasses.replace(config, impl="chunked")).eval()
    x = draw(mixer, n=1, t=t, dtype=dtype).requires_grad_()
    state, leaves = carried(mixer, dtype)
    inputs = [x, *leaves]
    wanted = everything(*reference(x, state, output_final_state=True), inputs)
    forms = {"steps": in_steps(mixer, x, state), "segments": in_segments(mixer, x, state)}
    for chunk_size in (1, 7, 64):
        monkeypatch.setattr(chunked, "DEFAULT_CHUNK_SIZE", chunk_size)
        forms[f"chunks of {chunk_size}"] = mixer(x, state, output_final_state=True)
    for form, (y, final) in forms.items():
        assert y.dtype == dtype
        for name, found in everything(y, final, inputs).items():
            assert_close(f"{form}: {name}", found, wanted[name], TOLERANCE[dtype])
    assert mixer(x)[1] is None


@CAUSAL
def test_autocast_changes_nothing(config):
    mixer = build(config)
    x = draw(mixer, dtype=torch.float32)
    wanted, final = mixer(x, output_final_state=True)
    stepped, _ = mixer.step(x[:, :, 0], final)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mixer(x)[0], wanted)
        assert torch.equal(mixer(projected=x)[0], wanted)
        assert torch.equal(mixer.step(x[:, :, 0], final)[0], stepped)
    assert mixer(x.to("meta"))[0].shape == wanted.shape


def test_no_steps_at_all():
    for config in DEFAULTS:
        mixer = build(config)
        state, _ = carried(mixer, torch.float64)
        y, final = mixer(draw(mixer, n=1, t=0), state, output_final_state=True)
        assert y.shape[2] == 0
        for found, wanted in zip(final, state, strict=True):
            assert found is wanted is None or torch.equal(found, wanted)


@pytest.mark.parametrize("rule", UPDATE_RULES)
def test_output_scale(rule):
    plain, scaled = (build(FastWeightConfig(rule, "elu", scale=s)) for s in (1.0, 0.25))
    x = draw(plain)
    assert_close("y", scaled(x)[0], 0.25 * plain(x)[0], 1e-12)


@CAUSAL
def test_gradcheck_including_the_initial_state(config):
    mixer = build(config)
    x = draw(mixer, n=1, h=1, t=4).requires_grad_()
    _, state = mixer(draw(mixer, n=1, h=1, t=3, seed=1), output_final_state=True)
    values = [value.detach().requires_grad_() for value in state if value is not None]

    def run(projected, *carried):
        start = FastWeightState(carried[0], carried[1] if len(carried) > 1 else None)
        return mixer(projected, start)[0]

    assert torch.autograd.gradcheck(run, (x, *values))


@pytest.mark.parametrize("side", ["left", "right"])
@CAUSAL
def test_padding_changes_nothing(config, side):
    mixer = build(config)
    x = draw(mixer, t=7)
    wanted, final = mixer(x, output_final_state=True)
    pad = torch.full_like(x[:, :, :3], 50.0)
    real = slice(3, None) if side == "left" else slice(0, 7)
    padded = torch.cat((pad, x) if side == "left" else (x, pad), 2)
    mask = torch.zeros(2, 10, dtype=torch.bool)
    mask[:, real] = True
    y, state = mixer(padded, mask=mask, output_final_state=True)
    assert_close("y", y[:, :, real], wanted, 1e-9)
    for name, value in final._asdict().items():
        if value is not None:
            assert_close(name, getattr(state, name), value, 1e-9)
    state = mixer.init_state(2, 2, device=x.device, dtype=x.dtype)
    for t in range(10):
        y, state = mixer.step(padded[:, :, t], state, mask[:, t])
    assert_close("state after steps", state.weights, final.weights, 1e-9)


@CAUSAL
def test_batch_order_and_causality(config):
    mixer = build(config)
    x = draw(mixer, n=3, dtype=torch.float32)
    y, _ = mixer(x)
    order = torch.tensor([2, 0, 1])
    assert_close("reordered", mixer(x[order])[0], y[order], 1e-5)
    changed = x.clone()
    changed[:, :, 8] += 1.0
    assert torch.equal(mixer(changed)[0][:, :, :8], y[:, :, :8])
    assert not torch.equal(mixer(changed)[0][:, :, 8:], y[:, :, 8:])


@CAUSAL
def test_nothing_is_nan(config):
    mixer = build(config)
    for x in (torch.zeros(2, 2, 5, mixer.projection_size), 30 * draw(mixer, t=5).float()):
        x = x.clone().requires_grad_()
        for mask in (None, torch.zeros(2, 5, dtype=torch.bool)):
            y, state = mixer(x, mask=mask, output_final_state=True)
            (gradient,) = torch.autograd.grad(y.sum(), x)
            assert torch.isfinite(y).all() and torch.isfinite(gradient).all()
            assert torch.isfinite(state.weights).all()
            if mask is not None:
                assert not state.weights.any(), "an all-padding row wrote something"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@CAUSAL
def test_half_precision_is_finite_and_close(config, dtype):
    mixer = build(config).to(dtype)
    x = draw(mixer, t=31).to(dtype)
    y, state = mixer(x, output_final_state=True)
    assert y.dtype == dtype and state.weights.dtype == torch.float32
    # The same mixer, so that random features rounded to half precision are the same ones.
    wanted, _ = mixer(x.float())
    assert_close("y", y.float(), wanted, 2e-2)


@pytest.mark.parametrize("config", valid_configs("encoder_self"), ids=label)
def test_non_causal_sees_everything_and_ignores_padding(config):
    mixer = build(config, "encoder_self")
    x = draw(mixer, t=7)
    y = mixer.forward_noncausal(x)
    changed = x.clone()
    changed[:, :, 6] += 1.0
    assert not torch.equal(mixer.forward_noncausal(changed)[:, :, 0], y[:, :, 0])
    padded = torch.cat((torch.full_like(x[:, :, :3], 9.0), x), 2)
    mask = torch.tensor([[False] * 3 + [True] * 7]).expand(2, -1)
    assert_close("y", mixer.forward_noncausal(padded, mask)[:, :, 3:], y, 1e-9)
    assert_close("reversed", mixer.forward_noncausal(x.flip(2)).flip(2), y, 1e-9)


@pytest.mark.parametrize("config", valid_configs("cross"), ids=label)
def test_cross_attention_is_the_last_step_of_the_causal_rule(config):
    mixer = build(config, "cross")
    source = draw(mixer, t=7, size=2 * D)
    query = draw(mixer, t=4, size=D, seed=1)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, :2] = False
    y = mixer.read(query, mixer.write(source, mask))
    whole = torch.cat((torch.zeros(2, 2, 7, D, dtype=torch.float64), source), -1)
    _, state = mixer(whole, mask=mask, output_final_state=True)
    asked = torch.cat((query, torch.zeros(2, 2, 4, 2 * D, dtype=torch.float64)), -1)
    no_write = torch.zeros(2, 4, dtype=torch.bool)
    assert_close("y", y, mixer(asked, state, no_write)[0], 1e-9)


@pytest.mark.parametrize("config", valid_configs("cross"), ids=label)
def test_a_source_of_padding_only_reads_as_zero(config):
    mixer = build(config, "cross")
    state = mixer.write(draw(mixer, t=4, size=2 * D), torch.zeros(2, 4, dtype=torch.bool))
    y = mixer.read(draw(mixer, t=3, size=D), state)
    assert torch.isfinite(y).all() and not y.any()


@pytest.mark.parametrize("d", [32, 64, 128, 256])
def test_attention_normalisation_cancels_whatever_the_size_of_favor_features(d):
    """A constant in the features must not drown them in the normaliser's eps."""
    mixer = FastWeightMixer(d, FastWeightConfig("sum", "favor", m=64)).eval()
    v = torch.ones(2, 2, 9, d)
    x = torch.cat((0.5 * torch.randn(2, 2, 9, 2 * d), v), -1)
    assert_close("a mean of ones", mixer(x)[0], v, 0.02)


def test_full_attention_normalisation_equals_the_papers_loop():
    """Eqs. 26-28 of arXiv 2102.11174, step by step."""
    mixer = build(FastWeightConfig("delta", "elu", attn_norm="full"))
    x = draw(mixer, n=1, h=1, t=9)
    y, _ = mixer(x)
    q, k, v, beta = mixer._split(x)
    q, k = mixer.fused(q), mixer.fused(k)
    S, z, eps = torch.zeros(D, D, dtype=x.dtype), torch.zeros(D, dtype=x.dtype), 1e-5
    for t in range(9):
        kt, qt = k[0, 0, t], q[0, 0, t]
        retrieved = S.T @ kt / (z @ kt + eps) if t else torch.zeros(D, dtype=x.dtype)
        S = S + torch.outer(kt, beta[0, 0, t] * (v[0, 0, t] - retrieved))
        z = z + kt
        assert_close(f"y_{t}", y[0, 0, t], S.T @ qt / (z @ qt + eps), 1e-9)


def test_delta_replaces_and_sum_adds_up():
    """Written twice under one key with beta = 1: delta keeps the last value, sum both."""
    k = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]], dtype=torch.float64)
    v = torch.tensor([[[[1.0, 0.0], [0.0, 5.0]]]], dtype=torch.float64)
    beta = torch.ones(1, 1, 2, dtype=torch.float64)
    y, _ = UPDATE_RULES["delta"].sequence(k, k, v, beta)
    assert torch.equal(y[0, 0, 1], v[0, 0, 1])
    y, _ = UPDATE_RULES["sum"].sequence(k, k, v, None)
    assert torch.equal(y[0, 0, 1], v[0, 0].sum(0))


@pytest.mark.parametrize(
    "config,site,reason",
    [
        (FastWeightConfig("sum", "tanh", sum_norm=True), "decoder_self", "can be zero"),
        (FastWeightConfig("sum", "tanh", attn_norm="output"), "decoder_self", "can be zero"),
        (FastWeightConfig("delta", "softmax_features", True), "decoder_self", "sums to one"),
        (FastWeightConfig("sum", "elu", attn_norm="full"), "decoder_self", "retrieves nothing"),
        (FastWeightConfig("delta", "dpfp"), "cross", "order of the writes"),
        (FastWeightConfig("gated", "dpfp"), "decoder_self", "unknown update rule"),
        (FastWeightConfig("sum", "relu"), "decoder_self", "unknown feature map"),
        (FastWeightConfig("sum", "elu"), "middle", "unknown site"),
        (FastWeightConfig("sum", "elu", attn_norm="half"), "decoder_self", "unknown attention"),
    ],
)
def test_invalid_combinations_are_refused_with_the_reason(config, site, reason):
    assert reason in why_invalid(config, site)
    with pytest.raises(ValueError, match=reason):
        FastWeightMixer(D, config, site)


@pytest.mark.parametrize("nu", [0, 2 * D])
def test_nu_out_of_range_is_refused(nu):
    with pytest.raises(ValueError, match=f"between 1 and 2 \\* head_dim - 1 = {2 * D - 1}"):
        FastWeightMixer(D, FastWeightConfig("sum", "dpfp", nu=nu))


def test_defaults_are_the_papers():
    assert FastWeightConfig("delta", "elu").resolved == (True, "none")
    assert FastWeightConfig("sum", "elu").resolved == (False, "output")
    assert FastWeightConfig("delta", "softmax_features").resolved == (False, "none")
    assert FastWeightConfig("sum", "tanh").resolved == (False, "none")
    for rule in UPDATE_RULES:
        for name in FEATURE_MAPS:
            for site in UPDATE_RULES[rule].sites:
                assert why_invalid(FastWeightConfig(rule, name), site) is None


def test_the_readme_prints_the_matrix_that_the_code_enforces(root):
    assert validity_table() in (root / "README.md").read_text()
    assert all(site in validity_table() for site in SITES)


def test_names_can_be_taken_once():
    with pytest.raises(ValueError, match="registered already"):
        register_feature_map("elu")(FeatureMap)
    with pytest.raises(ValueError, match="registered already"):
        register_update_rule(UPDATE_RULES["sum"])


@pytest.mark.parametrize("rule", ["sum", "delta"])
@pytest.mark.parametrize("name", ["elu", "dpfp", "tanh", "favor"])
def test_l2_norm_gives_features_of_length_one(name, rule):
    config = FastWeightConfig(rule, name, l2_norm=True, attn_norm="none", m=8)
    mixer = FastWeightMixer(D, config).eval().double()
    projected = torch.randn(2, 3, 7, mixer.projection_size, dtype=torch.float64)
    q, k, v, beta = mixer._split(projected)
    torch.testing.assert_close(k.norm(dim=-1), torch.ones(2, 3, 7, dtype=torch.float64))
    torch.testing.assert_close(q.norm(dim=-1), torch.ones(2, 3, 7, dtype=torch.float64))
    y, _ = mixer(projected)
    wanted, _ = UPDATE_RULES[rule].sequence(q, k, v, beta, impl="reference")
    torch.testing.assert_close(y, wanted)
    state = mixer.init_state(2, 3, device=torch.device("cpu"), dtype=torch.float64)
    outputs = []
    for x in projected.unbind(2):
        y_t, state = mixer.step(x, state)
        outputs.append(y_t)
    torch.testing.assert_close(torch.stack(outputs, 2), y)


def test_a_memory_with_negative_eigenvalues_can_change_its_sign():
    """One key, written with beta = 2 and value 0: the memory flips with every token (parity)."""
    mixer = FastWeightMixer(1, FastWeightConfig("delta", "elu", l2_norm=True, beta_max=2.0))
    ones = torch.tensor([0.0, 0.0, 0.0, 30.0]).expand(1, 1, 5, 4)  # q, k, v, beta
    state = mixer.init_state(1, 1, device=torch.device("cpu"))
    state.weights.fill_(1.0)
    y, _ = mixer(ones, state)
    torch.testing.assert_close(y.flatten(), torch.tensor([-1.0, 1.0, -1.0, 1.0, -1.0]))


@pytest.mark.parametrize(
    ("rule", "name", "options", "reason"),
    [
        ("delta", "elu", {"l2_norm": True, "sum_norm": True}, "not by both"),
        ("delta", "elu", {"beta_max": 2.5}, "beta_max must be above 0, 2 at most"),
        ("sum", "elu", {"beta_max": 2.0}, "and 1 without beta"),
        ("delta", "tanh", {"beta_max": 2.0}, "need keys of bounded length"),
    ],
)
def test_norms_and_write_strengths_that_make_no_sense(rule, name, options, reason):
    assert reason in why_invalid(FastWeightConfig(rule, name, **options))
