"""What ``torch.library`` asks of the recurrent and self-referential ops besides a kernel.

The PyTorch form, the fake kernel, the derivative. A kernel keeps activations, what each write
changes and the last state; its backward pass takes the writes back one by one. The PyTorch form
keeps its inputs and runs again.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fairseq_fwm.ops._common import differentiate
from fairseq_fwm.ops.reference import recurrent_delta_reference, self_referential_reference
from fairseq_fwm.ops.sequence_op import HasKernel

Tensors = tuple[Tensor, ...]
VECTOR_BYTES = {"avx512": 64, "avx2": 32, "baseline": 16}


def recurrent_forward(
    x: Tensor, R: Tensor, S: Tensor, y: Tensor, write_mask: Tensor | None
) -> Tensors:
    """PyTorch form of ``recurrent_delta_fwd``.

    Returns:
        y, S_T, y_T; then what a kernel keeps: q | k | v - S^T k | beta, and tanh(y_{t-1}); here x,
        S_0 and y_0 one after the other, and nothing.
    """
    kept = torch.cat([z.flatten() for z in (x, S, y)])
    out, (S, y) = recurrent_delta_reference(x, R, state=(S, y), write_mask=write_mask)
    return out.contiguous(), S.clone(), y.clone(), kept, x.new_empty(0)


def recurrent_fake(ops: Any, has_kernel: HasKernel) -> Callable[..., Tensors]:
    """Shapes of :func:`recurrent_forward`."""

    def fake(x: Tensor, R: Tensor, S: Tensor, y: Tensor, write_mask: Tensor | None) -> Tensors:
        shape = (*x.shape[:3], R.shape[1])
        if has_kernel("recurrent_delta_fwd", x.device.type):
            kept = _kept(ops, x, x.shape[-1]), shape
        else:
            kept = (x.numel() + S.numel() + y.numel(),), (0,)
        return tuple(x.new_empty(size) for size in (shape, S.shape, y.shape, *kept))

    return fake


def recurrent_context(ctx: Any, inputs: Tensors, output: Tensors) -> None:
    """Keep R, the mask, the last S and what the forward pass kept."""
    _, R, _, _, mask = inputs
    _, S, _, *kept = output
    ctx.save_for_backward(R, mask, S, *kept)


def differentiate_recurrent(ops: Any) -> Callable[..., tuple]:
    """Differentiate by ``recurrent_delta_bwd`` of these ops."""

    def run(ctx: Any, dy: Tensor, dS: Tensor, d_last: Tensor, *_: Any) -> tuple:
        return *ops.recurrent_delta_bwd(dy, dS, d_last, *ctx.saved_tensors), None

    return run


def recurrent_backward(
    dy: Tensor,
    dS: Tensor,
    d_last: Tensor,
    R: Tensor,
    write_mask: Tensor | None,
    _: Tensor,
    kept: Tensor,
    __: Tensor,
) -> Tensors:
    """PyTorch form of ``recurrent_delta_bwd``: gradients of x, R, S_0 and y_0."""
    shapes = ((*dy.shape[:3], R.shape[-1]), dS.shape, d_last.shape)
    numbers = [math.prod(shape) for shape in shapes]
    x, S, y = (part.view(z) for part, z in zip(kept.split(numbers), shapes, strict=True))

    def form(*leaves: Tensor) -> Tensors:
        return recurrent_forward(*leaves, write_mask)

    grads = differentiate(form, (x, R, S, y), (dy, dS, d_last))
    return tuple(g.contiguous() for g in grads)


def recurrent_fake_backward(dy: Tensor, dS: Tensor, d_last: Tensor, R: Tensor, *_: Any) -> Tensors:
    """Shapes of :func:`recurrent_backward`."""
    shapes = ((*dy.shape[:3], R.shape[-1]), R.shape, dS.shape, d_last.shape)
    return tuple(dy.new_empty(shape) for shape in shapes)


def self_forward(x: Tensor, W: Tensor, write_mask: Tensor | None) -> Tensors:
    """PyTorch form of ``self_referential_fwd``.

    Returns:
        y, W_T; then what a kernel keeps: q | k | beta | W^T (q - k); here W_0.
    """
    y, W_T = self_referential_reference(x, W, write_mask=write_mask)
    return y.contiguous(), W_T.clone(), W.clone(memory_format=torch.contiguous_format)


def self_fake(ops: Any, has_kernel: HasKernel) -> Callable[..., Tensors]:
    """Shapes of :func:`self_forward`."""

    def fake(x: Tensor, W: Tensor, write_mask: Tensor | None) -> Tensors:
        keeps = has_kernel("self_referential_fwd", x.device.type)
        kept = _kept(ops, x, 5 * x.shape[-1] + 8) if keeps else W.shape
        return tuple(x.new_empty(shape) for shape in (x.shape, W.shape, kept))

    return fake


def self_context(ctx: Any, inputs: Tensors, output: Tensors) -> None:
    """Keep x, the mask, the last W and what the forward pass kept."""
    x, _, mask = inputs
    _, W, kept = output
    ctx.save_for_backward(x, mask, W, kept)


def differentiate_self(ops: Any) -> Callable[..., tuple]:
    """Differentiate by ``self_referential_bwd`` of these ops."""

    def run(ctx: Any, dy: Tensor, dW: Tensor, *_: Any) -> tuple:
        return *ops.self_referential_bwd(dy, dW, *ctx.saved_tensors), None

    return run


def self_backward(
    dy: Tensor, dW: Tensor, x: Tensor, write_mask: Tensor | None, _: Tensor, kept: Tensor
) -> Tensors:
    """PyTorch form of ``self_referential_bwd``: gradients of x and W_0."""

    def form(*leaves: Tensor) -> Tensors:
        return self_forward(*leaves, write_mask)

    return tuple(g.contiguous() for g in differentiate(form, (x, kept), (dy, dW)))


def self_fake_backward(dy: Tensor, dW: Tensor, *_: Any) -> Tensors:
    """Shapes of :func:`self_backward`."""
    return dy.new_empty(dy.shape), dW.new_empty(dW.shape)


def _kept(ops: Any, x: Tensor, numbers: int) -> tuple[int, ...]:
    """Shape of what the kernel keeps: a sequence per lane of a CPU's vectors."""
    n, h, t, _ = x.shape
    on_cpu = x.device.type == "cpu" and ops is torch.ops.fwm
    together = VECTOR_BYTES[ops.cpu_isa()] // x.element_size() if on_cpu else 1
    return -(-n // together) * h, t, numbers, together
