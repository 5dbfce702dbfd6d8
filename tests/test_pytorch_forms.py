"""The ops without kernels: torch.library's checks, and gradients against autograd's own."""

import pytest
import torch

from fairseq_fwm.ops import FeatureSpec, library, recurrent, sequence
from fairseq_fwm.ops.dispatch import resolve_impl
from problems import Problem
from pytorch_forms import OPS, use
from recurrent_problems import OPS as RECURRENT
from recurrent_problems import Problem as RecurrentProblem
from recurrent_problems import same

TRACED = {"auto": "operator"}
CASES = [
    *(("sum", norm) for norm in ("none", "output")),
    *(("delta", norm) for norm in ("none", "output", "full")),
]


@pytest.fixture
def whole(monkeypatch):
    """Take the op as a whole, as a trace does."""
    use(monkeypatch)
    for module in (sequence, recurrent):
        monkeypatch.setattr(module, "resolve_impl", lambda impl, *_: TRACED.get(impl, impl))


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("rule,attn_norm", CASES)
def test_sequence_ops(rule, attn_norm, state, mask, whole):
    problem = Problem(rule, 2, 3, 7, 4, 5, FeatureSpec("dpfp", 2, True), attn_norm, state, mask)
    wanted = problem.run(torch.float64, "reference")
    for found, value in zip(problem.run(torch.float64, "auto"), wanted, strict=True):
        torch.testing.assert_close(found, value)
    arguments = [x.requires_grad_() for x in problem.inputs]
    arguments += [x.requires_grad_() for x in problem.state] + [None] * (2 - len(problem.state))
    options = (problem.mask, "dpfp", 2, True, attn_norm)
    op = getattr(OPS, f"causal_{rule}_fwd").default
    for final in (False, True):
        torch.library.opcheck(op, (*arguments, *options, final, True))


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("op", RECURRENT)
def test_recurrent_ops(op, mask, whole):
    problem = RecurrentProblem(op, 2, 2, 5, 4, mask)
    same(problem.run(), problem.run(impl="reference"), 1e-10)
    tensors = [x.requires_grad_() for x in (*problem.inputs, *problem.state)]
    torch.library.opcheck(getattr(OPS, f"{op}_fwd").default, (*tensors, problem.mask))


def test_feature_maps():
    x = torch.randn(3, 2, 7, requires_grad=True)
    torch.library.opcheck(OPS.feature_map.default, (x, "dpfp", 3, True))
    offset = torch.rand(3, 2, 1, requires_grad=True)
    torch.library.opcheck(OPS.favor_exp.default, (x, offset, 0.3, 1e-4, 0.5))
    assert torch.autograd.gradcheck(
        lambda u, v: OPS.favor_exp(u, v, 0.3, 1e-4, 0.5),
        (x.detach().double().requires_grad_(), offset.detach().double().requires_grad_()),
    )


def test_rescaled_rule():
    k, v = torch.randn(2, 3, 6, 4), torch.randn(2, 3, 6, 4, requires_grad=True)
    gram = (k @ k.mT).requires_grad_()
    beta = torch.rand(2, 3, 6, requires_grad=True)
    torch.library.opcheck(OPS.rescaled_fwd.default, (gram, v, beta))


def test_a_trace_takes_the_op_as_a_whole(monkeypatch):
    use(monkeypatch)
    chosen = []

    def choose(x):
        chosen.append(resolve_impl("auto", "causal_sum_fwd", x.device))
        return x + 1

    choose(torch.ones(2))
    torch.compile(choose, backend="eager")(torch.ones(2))
    assert chosen == ["chunked", TRACED["auto"]]
    assert library.sequence_op_of("sum", TRACED["auto"]) is OPS.causal_sum_fwd


@pytest.mark.parametrize("name", ["feature_map", "favor_exp", "rescaled"])
def test_these_ops_differentiate_by_their_own_pytorch_form(name, monkeypatch):
    called = []
    op = f"{name}_bwd"
    real = getattr(torch.ops.fwm, op)
    monkeypatch.setattr(torch.ops.fwm, op, lambda *a: called.append(op) or real(*a))
    x, offset = torch.randn(2, 2, 4, 4, requires_grad=True), torch.rand(2, 2, 4, 1)
    beta = torch.rand(2, 2, 4)
    run = {
        "feature_map": lambda ops: ops.feature_map(x, "dpfp", 1, True),
        "favor_exp": lambda ops: ops.favor_exp(x, offset, 0.3, 1e-4, 0.5),
        "rescaled": lambda ops: ops.rescaled_fwd((x @ x.mT).detach(), x, beta)[0],
    }[name]
    (found,) = torch.autograd.grad(run(OPS).square().sum(), x)
    assert not called
    (wanted,) = torch.autograd.grad(run(torch.ops.fwm).square().sum(), x)
    assert called or not library.COMPILED[op]
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("missing", [0, 1])
def test_half_a_state(missing):
    problem = Problem("delta", 2, 3, 7, 4, 5, FeatureSpec("elu"), "output", state=True)
    tensors = [x.requires_grad_() for x in (*problem.inputs, *problem.state)]
    tensors[4 + missing] = None
    torch.library.opcheck(
        OPS.causal_delta_fwd.default, (*tensors, None, "elu", 1, False, "output", True, True)
    )


OTHER_VERSION = """
import torch.library

define = torch.library.Library.define

def other(self, schema, *more, **named):
    return define(self, schema.replace("self_referential_bwd(", "self_referential_bwd(int i, "),
                  *more, **named)

torch.library.Library.define = other
from fairseq_fwm.ops import library

print(library.EXTENSION_PROBLEM)
print({op: keys for op, keys in library.COMPILED.items() if keys})
"""


@pytest.mark.skipif(not any(library.COMPILED.values()), reason=str(library.EXTENSION_PROBLEM))
def test_a_module_of_another_version_registers_nothing(run):
    problem, left = run("-c", OTHER_VERSION).stdout.splitlines()[-2:]
    assert problem.startswith("fairseq_fwm._C does not load: ") and left == "{}"
