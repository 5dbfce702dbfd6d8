"""The ops as ``torch.ops.fwm.*``: schemas, fake kernels, autograd, and where kernels plug in.

C++ registers implementations only (``TORCH_LIBRARY_IMPL(fwm, CPU | CUDA, m)`` in the compiled
module ``fairseq_fwm._C``). Without it the chunked PyTorch form below answers, so the ops always
exist, trace with fake tensors and differentiate.

``final_state`` is an empty tensor unless ``output_final_state``: fixed arity, no optional outputs.
"""

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

from fairseq_fwm.ops._common import accumulation_dtype, mask_writes
from fairseq_fwm.ops.chunked import causal_delta_chunked, causal_sum_chunked

_STATE_ARGS = "Tensor? state, Tensor? write_mask, bool output_final_state"
SCHEMAS = {
    "causal_sum_fwd": f"(Tensor q, Tensor k, Tensor v, {_STATE_ARGS}) -> (Tensor, Tensor)",
    "causal_delta_fwd": (
        f"(Tensor q, Tensor k, Tensor v, Tensor beta, {_STATE_ARGS}) -> (Tensor, Tensor)"
    ),
}


def causal_sum_fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor | None,
    write_mask: Tensor | None,
    output_final_state: bool,
) -> tuple[Tensor, Tensor]:
    """Run the chunked sum rule on tensors of any dtype, masked here."""
    return _run_chunked(causal_sum_chunked, q, (k, v), state, write_mask, output_final_state)


def causal_delta_fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    state: Tensor | None,
    write_mask: Tensor | None,
    output_final_state: bool,
) -> tuple[Tensor, Tensor]:
    """Run the chunked delta rule on tensors of any dtype, masked here."""
    writes = (k, v, beta)
    return _run_chunked(causal_delta_chunked, q, writes, state, write_mask, output_final_state)


def _run_chunked(
    form: Any,
    q: Tensor,
    writes: tuple[Tensor, ...],
    state: Tensor | None,
    write_mask: Tensor | None,
    output_final_state: bool,
) -> tuple[Tensor, Tensor]:
    k, v = writes[:2]
    dtype = accumulation_dtype(q, k, v)
    sequence = [x.to(dtype) for x in (q, *mask_writes(write_mask, *writes))]
    S = None if state is None else state.to(dtype)
    y, final = form(*sequence, S, output_final_state)
    return y.to(v.dtype), q.new_empty(0, dtype=dtype) if final is None else final


def _fake(*args: Any) -> tuple[Tensor, Tensor]:
    q, k, v, output_final_state = args[0], args[1], args[2], args[-1]
    dtype = accumulation_dtype(q, k, v)
    shape = (*k.shape[:2], k.shape[-1], v.shape[-1]) if output_final_state else (0,)
    return torch.empty_like(v, memory_format=torch.contiguous_format), q.new_empty(
        shape, dtype=dtype
    )


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.output_final_state = inputs[-1]
    ctx.save_for_backward(*inputs[:-1])


def _recomputing_backward(forward: Any) -> Any:
    """Differentiate a chunked form by running it again; kernels bring backwards of their own."""

    def backward(ctx: Any, grad_y: Tensor, grad_final: Tensor) -> tuple:
        saved = ctx.saved_tensors
        with torch.enable_grad():
            leaves = [
                x.detach().requires_grad_(needed) if x is not None and needed else x
                for x, needed in zip(saved, ctx.needs_input_grad, strict=False)
            ]
            outputs = forward(*leaves, ctx.output_final_state)
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad) if needed]
        pairs = [(outputs[0], grad_y)]
        if ctx.output_final_state:
            pairs.append((outputs[1], grad_final))
        found = torch.autograd.grad(
            [out for out, _ in pairs], [leaves[i] for i in wanted], [g for _, g in pairs]
        )
        grads: list[Tensor | None] = [None] * (len(saved) + 1)
        for i, grad in zip(wanted, found, strict=True):
            grads[i] = grad
        return tuple(grads)

    return backward


def has_kernel(op: str, device_type: str) -> bool:
    """Return whether the compiled module registered a kernel for ``fwm::op`` on the device."""
    return device_type.upper() in COMPILED[op]


def dispatch_keys(op: str) -> list[str]:
    """Return which of CPU, CUDA (compiled) and CompositeExplicitAutograd (chunked) serve an op."""
    keys = ("CPU", "CUDA", "CompositeExplicitAutograd")
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return [key for key in keys if has(f"fwm::{op}", key)]


def missing_reason() -> str:
    """Say in a few words why there is no compiled kernel."""
    return EXTENSION_PROBLEM or "the extension fairseq_fwm._C was built without it"


def _register() -> None:
    library = torch.library.Library("fwm", "DEF")
    for name, forward in (
        ("causal_sum_fwd", causal_sum_fwd),
        ("causal_delta_fwd", causal_delta_fwd),
    ):
        library.define(name + SCHEMAS[name])
        library.impl(name, forward, "CompositeExplicitAutograd")
        torch.library.register_fake(f"fwm::{name}", _fake, lib=library)
        torch.library.register_autograd(
            f"fwm::{name}",
            _recomputing_backward(forward),
            setup_context=_setup_context,
            lib=library,
        )
    globals()["_library"] = library  # registrations live as long as this object


def _load_extension() -> str | None:
    """Load the compiled module; return what is wrong with it in one line, or ``None``."""
    if importlib.util.find_spec("fairseq_fwm._C") is None:
        return "the extension fairseq_fwm._C is not built"
    try:
        importlib.import_module("fairseq_fwm._C")
    except Exception as error:  # a wrong ABI raises ImportError or OSError, a bad op anything
        return f"fairseq_fwm._C does not load: {error}"
    return None


_register()
EXTENSION_PROBLEM = _load_extension()
# Asked once: torch.compile cannot trace a question to the dispatcher.
COMPILED = {op: [key for key in dispatch_keys(op) if key in ("CPU", "CUDA")] for op in SCHEMAS}
