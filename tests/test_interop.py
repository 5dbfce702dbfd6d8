"""Our ops beside the pure-PyTorch references of other libraries: the same mathematics.

``flash-linear-attention``: its package ``fla.ops`` imports Triton, so the files ``naive.py`` of
its delta rule and linear attention, which are plain PyTorch, are loaded alone by their path.
``transformers``: the functions behind Qwen3-Next's layers, with a decay of one; if the package
has wrapped them to prefer a kernel, what was wrapped is taken. Both compute in fp32.

Their conventions: queries are scaled by ``K**-0.5``, which is undone here; time before heads, but
for the delta rule of ``fla``'s file. ``pip install fla-core transformers`` brings both and leaves
torch as it is.
"""

import importlib
import importlib.util
import inspect
import random
import sys
from pathlib import Path

import pytest
import torch

from fairseq_fwm import ops
from variants import assert_close

# N, H, T, K, V: odd ones that matter, and random ones.
SIZES = [(1, 1, 1, 1, 1), (2, 3, 7, 5, 4), (1, 2, 31, 8, 3), (2, 1, 63, 6, 9), (1, 2, 100, 16, 7)]
DRAW = random.Random(0)
SIZES += [tuple(DRAW.randint(1, most) for most in (3, 3, 130, 24, 24)) for _ in range(4)]
IMPLS = ["reference", "auto"]


def naive(rule):
    """The file of plain PyTorch that defines a rule in flash-linear-attention."""
    pytest.importorskip("einops", reason="einops, which flash-linear-attention uses, is missing")
    spec = importlib.util.find_spec("fla")
    if spec is None:
        pytest.skip("flash-linear-attention is not installed")
    files = (Path(x) / "ops" / rule / "naive.py" for x in spec.submodule_search_locations)
    path = next(path for path in files if path.is_file())
    spec = importlib.util.spec_from_file_location(f"fla_{rule}_naive", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def qwen():
    """The module of transformers that has the references."""
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    # fairseq brings torchaudio, of a CUDA build where torch is one for the CPU: importing it fails
    # there, and transformers tries wherever it finds it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchaudio", None)
        return importlib.import_module("transformers.models.qwen3_next.modeling_qwen3_next")


def swap(x):
    """Heads and time change places; a list of tensors changes as a whole."""
    return [swap(each) for each in x] if isinstance(x, list | tuple) else x.transpose(1, 2)


def draw(rule, n, h, t, k, v, state):
    """q, k of length one, v, beta; S_0 if asked for."""
    unit = torch.nn.functional.normalize
    tensors = [unit(torch.randn(n, h, t, k), dim=-1) for _ in "qk"] + [torch.randn(n, h, t, v)]
    tensors += [torch.rand(n, h, t)] if rule == "delta" else []
    return tensors + ([torch.randn(n, h, k, v)] if state else [])


def outputs_and_gradients(function, tensors, weights):
    leaves = [x.clone().requires_grad_() for x in tensors]
    outputs = function(*leaves)
    loss = sum((y * w).sum() for y, w in zip(outputs, weights, strict=True))
    return [*outputs, *torch.autograd.grad(loss, leaves)]


def compare(rule, theirs, sizes, state, impl, scale=None):
    """Hold outputs, final states and all gradients to theirs.

    ``theirs`` takes q, k, v (, beta), S_0 or None, in our layout, with q scaled back.
    """
    tensors = draw(rule, *sizes, state)
    number = len(tensors) - state
    op = {"sum": ops.causal_sum, "delta": ops.causal_delta}[rule]

    def ours(*leaves):
        S = leaves[number] if state else None
        return op(*leaves[:number], state=S, output_final_state=True, impl=impl)

    def others(q, *leaves):
        S = leaves[-1] if state else None
        return theirs(q * q.shape[-1] ** 0.5, *leaves[: number - 1], S)

    n, h, t, k, v = sizes
    weights = torch.randn(n, h, t, v), torch.randn(n, h, k, v)
    found = outputs_and_gradients(ours, tensors, weights)
    wanted = outputs_and_gradients(others, tensors, weights)
    names = ["y", "S", "dq", "dk", "dv", *(["dbeta"] if rule == "delta" else []), "dS_0"]
    for name, x, y in zip(names, found, wanted, strict=False):
        assert_close(name, x, y, 3e-5)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("state", [False, True], ids=["empty", "state"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_delta_rule_of_flash_linear_attention(sizes, state, impl):
    recurrence = naive("delta_rule").delta_rule_recurrence
    compare("delta", recurrence, sizes, state, impl)


@pytest.mark.parametrize("chunk", [16, 32])
def test_chunkwise_delta_rule_of_flash_linear_attention(chunk):
    chunkwise = naive("delta_rule").delta_rule_chunkwise  # whole chunks, from an empty state
    theirs = lambda q, k, v, beta, _: chunkwise(q, k, v, beta, chunk_size=chunk)  # noqa: E731
    compare("delta", theirs, (2, 2, 96, 8, 5), False, "auto")


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("state", [False, True], ids=["empty", "state"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_linear_attention_of_flash_linear_attention(sizes, state, impl):
    recurrent = naive("linear_attn").naive_recurrent_linear_attn

    def theirs(q, k, v, S):
        y, final = recurrent(*swap([q, k, v]), initial_state=S, output_final_state=True)
        return swap(y), final

    compare("sum", theirs, sizes, state, impl)


@pytest.mark.parametrize("sizes", SIZES[1:], ids=str)
def test_normalised_linear_attention_of_flash_linear_attention(sizes):
    """With positive features; their epsilon, 1e-10 for our 1e-5, is far below z.q then."""
    recurrent = naive("linear_attn").naive_recurrent_linear_attn
    n, h, t, k, v = sizes
    tensors = [1 + torch.rand(n, h, t, k), 1 + torch.rand(n, h, t, k), torch.randn(n, h, t, v)]
    state = torch.randn(n, h, k, v), 10 + torch.rand(n, h, k)

    def ours(q, k, v, S, z):
        y, final = ops.causal_sum(
            q, k, v, state=(S, z), attn_norm="output", output_final_state=True
        )
        return y, *final

    def theirs(q, k, v, S, z):
        y, (S, z) = recurrent(
            *swap([q, k, v]), initial_state=(S, z.unsqueeze(1)), normalize=True,
            output_final_state=True,
        )  # fmt: skip
        return swap(y), S, z.squeeze(1)

    weights = torch.randn(n, h, t, v), *(torch.randn_like(x) for x in state)
    found, wanted = (
        outputs_and_gradients(function, [*tensors, *state], weights) for function in (ours, theirs)
    )
    names = ["y", "S", "z", "dq", "dk", "dv", "dS", "dz"]
    for name, x, y in zip(names, found, wanted, strict=True):
        assert_close(name, x, y, 3e-5)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("state", [False, True], ids=["empty", "state"])
@pytest.mark.parametrize("form", ["chunk", "recurrent"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_gated_delta_rule_of_transformers(qwen, sizes, form, state, impl):
    function = inspect.unwrap(getattr(qwen, f"torch_{form}_gated_delta_rule"))

    def theirs(q, k, v, beta, S):
        y, final = function(
            *swap([q, k, v]), g=torch.zeros_like(swap(beta)), beta=swap(beta), initial_state=S,
            output_final_state=True,
        )  # fmt: skip
        return swap(y), final

    compare("delta", theirs, sizes, state, impl)


@pytest.mark.parametrize("rule, name", [("delta_rule", "chunk_delta_rule"),
                                        ("linear_attn", "chunk_linear_attn")])  # fmt: skip
def test_the_adapter_calls_what_the_package_has(rule, name):
    """Its kernels cannot be imported without Triton; their signatures can be read."""
    import ast

    import test_fla

    path = Path(naive(rule).__file__).with_name("chunk.py")
    functions = {x.name: x.args for x in ast.parse(path.read_text()).body if hasattr(x, "args")}
    theirs = [arg.arg for arg in functions[name].args]
    stand_in = inspect.signature(getattr(test_fla, name)).parameters
    used = [x for x in stand_in if x != "options"]
    assert [x for x in theirs if x in used] == used
