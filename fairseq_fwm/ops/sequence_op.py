"""What ``torch.library`` asks of the sequence ops and steps besides a kernel.

The PyTorch form, the fake kernel, the derivative, each made for a rule: both rules share
everything but beta, which the sum rule has not got. What is made takes the positional arguments of
the schemas in :mod:`fairseq_fwm.ops.library`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fairseq_fwm.ops import fallback
from fairseq_fwm.ops._common import accumulation_dtype, differentiate
from fairseq_fwm.ops.features import FeatureSpec

HasKernel = Callable[[str, str], bool]
"""(op, device type) -> whether a compiled kernel serves it."""


def split_beta(rule: str, args: tuple) -> tuple:
    """Return (q, k, v, beta or None, what follows)."""
    return (*args[:4], args[4:]) if rule == "delta" else (*args[:3], None, args[3:])


def forward(rule: str) -> Callable[..., tuple[Tensor, ...]]:
    """PyTorch form of ``causal_*_fwd``; keeps nothing for the derivative."""

    def run(*args: Any) -> tuple[Tensor, ...]:
        q, k, v, beta, (state, normalizer, mask, *options, output_final_state, _) = split_beta(
            rule, args
        )
        name, nu, sum_norm, attn_norm = options
        y, S, z = fallback.causal(
            *(q, k, v, beta, state, normalizer, mask),
            *(FeatureSpec(name, nu, sum_norm), attn_norm, output_final_state),
        )
        none = _nothing(5, q, accumulation_dtype(q, k, v))
        # Copies: an output of an op must be neither one of its inputs nor part of something.
        S = none[0] if S is None else S.clone() if S is state else S
        return y.contiguous(), S, none[1] if z is None else z.clone(), *none[2:]

    return run


def fake_forward(rule: str, has_kernel: HasKernel) -> Callable[..., tuple[Tensor, ...]]:
    """Shapes, dtypes and strides of ``causal_*_fwd``."""

    def fake(*args: Any) -> tuple[Tensor, ...]:
        q, k, v, beta, (_, _, _, *options, output_final_state, save) = split_beta(rule, args)
        name, nu, sum_norm, attn_norm = options
        n, h, t, d = q.shape
        K, V = FeatureSpec(name, nu, sum_norm).out_dim(d), v.shape[-1]
        dtype, norm = accumulation_dtype(q, k, v), attn_norm != "none"
        compiled = has_kernel(f"causal_{rule}_fwd", v.device.type)

        def wide(wanted: bool, *shape: int) -> Tensor:
            return q.new_empty(shape if wanted else (0,), dtype=dtype)

        return (
            _empty_in_order_of(v, V) if compiled else v.new_empty(v.shape),
            wide(output_final_state, n, h, K, V),
            wide(output_final_state and norm, n, h, K),
            wide(compiled and save and beta is not None, n, h, t, V),
            wide(compiled and save and norm, n, h, t),
            wide(compiled and save and attn_norm == "full", n, h, t),
        )

    return fake


def backward(rule: str) -> Callable[..., tuple[Tensor, ...]]:
    """PyTorch form of ``causal_*_bwd``: needs nothing of what a kernel keeps."""

    def run(dy: Tensor, dS: Tensor | None, dz: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
        q, k, v, beta, (state, normalizer, mask, _, _, _, _, *options, state_grad) = split_beta(
            rule, args
        )
        tensors = (q, k, v) if beta is None else (q, k, v, beta)
        K, dtype = FeatureSpec(*options[:3]).out_dim(q.shape[-1]), accumulation_dtype(q, k, v)
        if state_grad and state is None:
            state = q.new_zeros(*q.shape[:2], K, v.shape[-1], dtype=dtype)
        if state_grad and normalizer is None and options[-1] != "none":
            normalizer = q.new_zeros(*q.shape[:2], K, dtype=dtype)
        states = tuple(x for x in (state, normalizer) if x is not None and state_grad)
        # Of a final state that was not returned a compiler passes an empty gradient.
        dS, dz = (g if g is not None and g.numel() else None for g in (dS, dz))
        count, final = len(tensors), dS is not None or dz is not None

        def form(*leaves: Tensor) -> tuple[Tensor, ...]:
            S, z = (*leaves[count:], None)[:2] if states else (state, normalizer)
            return forward(rule)(*leaves[:count], S, z, mask, *options, final, False)

        grads = differentiate(form, (*tensors, *states), (dy, dS, dz))
        dq, dk, dv, *dbeta = map(_in_order_of, tensors, grads)
        none = _nothing(3, q, dtype)
        d_states = (*(g.to(dtype) for g in grads[count:]), *none)[:2]
        return dq, dk, dv, *(dbeta or none[2:]), *d_states

    return run


def fake_backward(rule: str) -> Callable[..., tuple[Tensor, ...]]:
    """Shapes, dtypes and strides of ``causal_*_bwd``."""

    def fake(dy: Tensor, d_final: Any, d_final_z: Any, *args: Any) -> tuple[Tensor, ...]:
        q, k, v, beta, (_, _, _, _, _, _, _, *options, state_grad) = split_beta(rule, args)
        name, nu, sum_norm, attn_norm = options
        n, h, _, d = q.shape
        K, V = FeatureSpec(name, nu, sum_norm).out_dim(d), v.shape[-1]
        dtype = accumulation_dtype(q, k, v)
        return (
            *(_empty_in_order_of(x, x.shape[-1]) for x in (q, k, v)),
            q.new_empty(0, dtype=dtype) if beta is None else _empty_in_order_of(beta, None),
            q.new_empty((n, h, K, V) if state_grad else (0,), dtype=dtype),
            q.new_empty((n, h, K) if state_grad and attn_norm != "none" else (0,), dtype=dtype),
        )

    return fake


def _nothing(count: int, like: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Several, as outputs of an op must not be one tensor."""
    return [like.new_empty(0, dtype=dtype) for _ in range(count)]


def _in_order_of(x: Tensor, values: Tensor) -> Tensor:
    """``values`` as a kernel lays them out: :func:`_empty_in_order_of` of ``x``."""
    return _empty_in_order_of(x, x.shape[-1] if x.dim() == 4 else None).copy_(values)


def _empty_in_order_of(x: Tensor, width: int | None) -> Tensor:
    """Dense, the first three dimensions in memory as in ``x``, the last (if any) innermost."""
    outer = sorted(range(3), key=lambda dim: -x.stride(dim))
    shape = [*x.shape[:3], *(() if width is None else (width,))]
    order = [*outer, *range(3, len(shape))]
    return x.new_empty([shape[i] for i in order]).permute(
        [order.index(i) for i in range(len(shape))]
    )


def setup_context(rule: str) -> Callable[..., None]:
    """Keep what the derivative of ``causal_*_fwd`` needs."""

    def setup(ctx: Any, inputs: tuple, output: tuple) -> None:
        q, k, v, beta, (state, normalizer, mask, *options, output_final_state, _) = split_beta(
            rule, inputs
        )
        y, _, _, *kept = output
        *ctx.options, attn_norm = options
        ctx.attn_norm, ctx.output_final_state = attn_norm, output_final_state
        ctx.set_materialize_grads(False)
        y = None if attn_norm == "none" else y
        ctx.save_for_backward(q, k, v, beta, state, normalizer, mask, y, *kept)

    return setup


def differentiate_forward(rule: str, ops: Any) -> Callable[..., tuple]:
    """Differentiate by ``causal_*_bwd`` of these ops."""
    op = getattr(ops, f"causal_{rule}_bwd")

    def run(ctx: Any, dy: Tensor | None, dS: Tensor | None, dz: Tensor | None, *_: Any):
        q, k, v, beta, state, normalizer, mask, y, *kept = ctx.saved_tensors
        tensors = (q, k, v) if beta is None else (q, k, v, beta)
        options = (*ctx.options, ctx.attn_norm)
        dy = torch.zeros_like(v) if dy is None else dy
        needs = ctx.needs_input_grad[: len(tensors) + 2]
        *grads, dbeta, d_state, d_z = op(
            *(dy, dS, dz, *tensors, state, normalizer, mask, y, *kept, *options), any(needs[-2:])
        )
        grads = [*grads, *(() if beta is None else (dbeta,)), d_state, d_z]
        grads = [g if needed else None for g, needed in zip(grads, needs, strict=True)]
        return (*grads, *([None] * 7))

    return run


def step(rule: str) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """PyTorch form of ``causal_*_step``."""

    def run(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, beta, (S, z, rows, mask, name, nu, sum_norm, attn_norm) = split_beta(rule, args)
        spec = FeatureSpec(name, nu, sum_norm)
        y, S, z = fallback.step(q, k, v, beta, S, z, rows, mask, spec, attn_norm)
        return y, S, S.new_empty(0) if z is None else z

    return run


def step_in_place(rule: str) -> Callable[..., Tensor]:
    """PyTorch form of ``causal_*_step_``."""

    def run(*args: Any) -> Tensor:
        *_, (old_S, old_z, *_) = split_beta(rule, args)
        y, S, z = step(rule)(*args)
        old_S.copy_(S)
        if old_z is not None:
            old_z.copy_(z)
        return y

    return run
