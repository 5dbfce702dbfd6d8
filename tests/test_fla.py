"""The adapter of flash-linear-attention: a stand-in with its conventions, made of our reference.

Its kernels need a GPU and are run by no test; test_interop.py compares its signatures.
"""

import sys
import types

import pytest
import torch

from fairseq_fwm import ops
from fairseq_fwm.mixers import FastWeightConfig, FastWeightMixer
from fairseq_fwm.ops import FeatureSpec, dispatch, fla
from problems import FEATURES, NONE, Problem, check, equal_bits

SIZES = (2, 3, 5, 4, 6)  # N, H, T, d, V
NORMS = [("sum", "none"), ("sum", "output"), *(("delta", x) for x in ("none", "output", "full"))]


def of_reference(rule, q, k, v, *beta, scale, initial_state, output_final_state):
    """Its layout and its scale, around the reference recurrence."""
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    q, k, v, *beta = (x.transpose(1, 2) for x in (q, k, v, *beta))
    reference = {"sum": ops.causal_sum_reference, "delta": ops.causal_delta_reference}[rule]
    y, final = reference(q * scale, k, v, *beta, state=initial_state)
    return y.transpose(1, 2), final if output_final_state else None


def chunk_delta_rule(
    q, k, v, beta, scale=None, initial_state=None, output_final_state=False, **options
):
    assert not options and q.dtype == k.dtype == v.dtype
    return of_reference("delta", q, k, v, beta, scale=scale, initial_state=initial_state,
                        output_final_state=output_final_state)  # fmt: skip


def chunk_linear_attn(
    q, k, v, scale=None, initial_state=None, output_final_state=False, normalize=True
):
    assert not normalize, "it would divide by z.q itself, without our epsilon"
    return of_reference("sum", q, k, v, scale=scale, initial_state=initial_state,
                        output_final_state=output_final_state)  # fmt: skip


@pytest.fixture
def installed(monkeypatch):
    """Put the stand-in where the package would be, on the device that there is."""
    for name, content in {
        "fla": {},
        "fla.ops": {},
        "fla.ops.delta_rule": {"chunk_delta_rule": chunk_delta_rule},
        "fla.ops.linear_attn": {"chunk_linear_attn": chunk_linear_attn},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(fla, "DEVICE", "cpu")


@pytest.fixture
def any_dtype(monkeypatch):
    """Let the stand-in compute in fp32, where layout, masks and states show exactly."""
    wide = (torch.float32, torch.bfloat16, torch.float16)
    monkeypatch.setattr(fla, "DTYPES", {"sum": wide, "delta": wide})


@pytest.mark.parametrize("spec", FEATURES, ids=str)
@pytest.mark.parametrize("rule, attn_norm", NORMS)
@pytest.mark.parametrize("state", [False, True], ids=["empty", "state"])
def test_agrees_with_the_reference(installed, any_dtype, rule, attn_norm, spec, state):
    problem = Problem(rule, *SIZES, spec, attn_norm, state=state, mask=state)
    check(problem, torch.float32, "fla", 2e-5)


@pytest.mark.parametrize("rule", ["sum", "delta"])
def test_masked_garbage_stays_out(installed, any_dtype, rule):
    problem = Problem(rule, *SIZES, FeatureSpec("dpfp", 1, True), state=True, mask=True)
    clean = problem.run(torch.float32, "fla")
    problem.poison_masked()
    assert equal_bits(problem.run(torch.float32, "fla"), clean)


def test_bfloat16_goes_in_and_fp32_states_come_out(installed, monkeypatch):
    seen = {}

    def watched(*tensors, **options):
        seen.update(dtypes=[x.dtype for x in tensors], shapes=[tuple(x.shape) for x in tensors])
        return chunk_delta_rule(*tensors, **options)

    monkeypatch.setattr(sys.modules["fla.ops.delta_rule"], "chunk_delta_rule", watched)
    q, k, v = (torch.randn(2, 3, 5, 4).bfloat16() for _ in "qkv")
    y, S = ops.causal_delta(q, k, v, torch.rand(2, 3, 5), features=FeatureSpec("elu", 1, True),
                            impl="fla", output_final_state=True)  # fmt: skip
    assert y.dtype == torch.bfloat16 and S.dtype == torch.float32 and S.shape == (2, 3, 4, 4)
    assert seen["dtypes"] == [torch.bfloat16] * 3 + [torch.float32]
    assert seen["shapes"] == [(2, 5, 3, 4)] * 3 + [(2, 5, 3)]


def test_a_mixer_runs_it(installed, any_dtype):
    found, wanted = (
        FastWeightMixer(4, FastWeightConfig("delta", "dpfp", impl=impl))
        for impl in ("fla", "reference")
    )
    projected = torch.randn(2, 3, 5, found.projection_size)
    torch.testing.assert_close(found(projected)[0], wanted(projected)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "rule, dtype, attn_norm, d, spec, message",
    [
        ("delta", torch.float32, "none", 4, NONE, "takes bfloat16, float16 for the delta rule"),
        ("sum", torch.float64, "none", 4, NONE, "found torch.float64"),
        ("sum", torch.float16, "output", 4, NONE, "may leave the range"),
        ("delta", torch.bfloat16, "none", 5, NONE, "even K and V"),
        ("delta", torch.bfloat16, "none", 66, FeatureSpec("dpfp", 2), "up to 256 key features"),
    ],
)
def test_refuses_what_it_cannot_do(installed, rule, dtype, attn_norm, d, spec, message):
    problem = Problem(rule, 1, 1, 3, d, 4, spec, attn_norm)
    with pytest.raises(ValueError, match=message):
        problem.run(dtype, "fla")


def test_not_installed(monkeypatch):
    for name in ("fla", "fla.ops", "fla.ops.delta_rule", "fla.ops.linear_attn"):
        monkeypatch.setitem(sys.modules, name, None)
    x = torch.randn(1, 1, 3, 4)
    with pytest.raises(RuntimeError, match="cannot be loaded.*pip install 'flash-linear-attent"):
        ops.causal_sum(x, x, x, impl="fla")
    with pytest.raises(RuntimeError, match="cannot be loaded"):  # before anything is trained
        FastWeightMixer(4, FastWeightConfig("delta", "dpfp", impl="fla"))


def test_tensors_elsewhere_and_other_ops(installed, monkeypatch):
    monkeypatch.setattr(fla, "DEVICE", "cuda")
    x = torch.randn(1, 1, 3, 4)
    with pytest.raises(ValueError, match="needs tensors on cuda, found cpu: move them"):
        ops.causal_sum(x, x, x, impl="fla")
    with pytest.raises(RuntimeError, match="serves the sum and delta rules alone"):
        ops.recurrent_delta(torch.randn(1, 1, 3, 13), torch.randn(1, 4, 13), impl="fla")


def test_auto_never_takes_it(installed):
    assert dispatch.resolve_impl("auto", "causal_delta_fwd", torch.device("cpu")) != "fla"
