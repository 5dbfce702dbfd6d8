"""What ``torch.library`` asks of the recurrent and self-referential ops besides a kernel.

The PyTorch form, the fake kernel, the derivative. A kernel keeps activations, what each write
changes and the last state; its backward pass takes the writes back one by one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fairseq_fwm.ops.reference import recurrent_delta_reference, self_referential_reference
from fairseq_fwm.ops.sequence_op import HasKernel

Tensors = tuple[Tensor, ...]
VECTOR_BYTES = {"avx512": 64, "avx2": 32, "baseline": 16}


def recurrent_forward(
    x: Tensor, R: Tensor, S: Tensor, y: Tensor, write_mask: Tensor | None
) -> Tensors:
    """PyTorch form of ``recurrent_delta_fwd``; keeps nothing for the derivative.

    Returns:
        y, S_T, y_T; then what a kernel keeps: q | k | v - S^T k | beta, and tanh(y_{t-1}).
    """
    out, (S, y) = recurrent_delta_reference(x, R, state=(S, y), write_mask=write_mask)
    return out.contiguous(), S.clone(), y.clone(), x.new_empty(0), x.new_empty(0)


def recurrent_fake(ops: Any, has_kernel: HasKernel) -> Callable[..., Tensors]:
    """Shapes of :func:`recurrent_forward`."""

    def fake(x: Tensor, R: Tensor, S: Tensor, y: Tensor, write_mask: Tensor | None) -> Tensors:
        shape = (*x.shape[:3], R.shape[1])
        keeps = has_kernel("recurrent_delta_fwd", x.device.type)
        kept = (_kept(ops, x, x.shape[-1]), shape) if keeps else ((0,), (0,))
        return tuple(x.new_empty(size) for size in (shape, S.shape, y.shape, *kept))

    return fake


def recurrent_context(ctx: Any, inputs: Tensors, output: Tensors) -> None:
    """Keep inputs for the PyTorch form, what a kernel kept, and the last S."""
    _, S, _, *kept = output
    ctx.save_for_backward(*inputs, S, *kept)


def recurrent_backward(ops: Any, has_kernel: HasKernel) -> Callable[..., tuple]:
    """Differentiate by the kernel, or the PyTorch form by running it again."""

    def run(ctx: Any, dy: Tensor, dS: Tensor, d_last: Tensor, *_: Any) -> tuple:
        x, R, S_0, y_0, mask, S_T, kept, feedback = ctx.saved_tensors
        if not has_kernel("recurrent_delta_bwd", x.device.type):
            inputs, outputs = (x, R, S_0, y_0), (dy, dS, d_last)
            return *_again(recurrent_forward, inputs, mask, outputs), None
        grads = ops.recurrent_delta_bwd(dy, dS, d_last, R, mask, S_T, kept, feedback)
        dx, dS_0, dy_0 = grads
        dR = (feedback.transpose(-1, -2) @ dx).sum(0)
        return dx, dR, dS_0, dy_0, None

    return run


def recurrent_fake_backward(dy: Tensor, dS: Tensor, d_last: Tensor, R: Tensor, *_: Any) -> Tensors:
    """Shapes of the gradients of x, S_0 and y_0."""
    shapes = ((*dy.shape[:3], R.shape[-1]), dS.shape, d_last.shape)
    return tuple(dy.new_empty(shape) for shape in shapes)


def self_forward(x: Tensor, W: Tensor, write_mask: Tensor | None) -> Tensors:
    """PyTorch form of ``self_referential_fwd``; keeps nothing for the derivative.

    Returns:
        y, W_T; then what a kernel keeps: q | k | beta | W^T (q - k).
    """
    y, W = self_referential_reference(x, W, write_mask=write_mask)
    return y.contiguous(), W.clone(), x.new_empty(0)


def self_fake(ops: Any, has_kernel: HasKernel) -> Callable[..., Tensors]:
    """Shapes of :func:`self_forward`."""

    def fake(x: Tensor, W: Tensor, write_mask: Tensor | None) -> Tensors:
        keeps = has_kernel("self_referential_fwd", x.device.type)
        kept = _kept(ops, x, 5 * x.shape[-1] + 8) if keeps else (0,)
        return tuple(x.new_empty(shape) for shape in (x.shape, W.shape, kept))

    return fake


def self_context(ctx: Any, inputs: Tensors, output: Tensors) -> None:
    """Keep inputs, what a kernel kept, and the last W."""
    _, W, *kept = output
    ctx.save_for_backward(*inputs, W, *kept)


def self_backward(ops: Any, has_kernel: HasKernel) -> Callable[..., tuple]:
    """Differentiate by the kernel, or the PyTorch form by running it again."""

    def run(ctx: Any, dy: Tensor, dW: Tensor, *_: Any) -> tuple:
        x, W_0, mask, W_T, kept = ctx.saved_tensors
        if not has_kernel("self_referential_bwd", x.device.type):
            return *_again(self_forward, (x, W_0), mask, (dy, dW)), None
        grads = ops.self_referential_bwd(dy, dW, x, mask, W_T, kept)
        return *grads, None

    return run


def self_fake_backward(dy: Tensor, dW: Tensor, *_: Any) -> Tensors:
    """Shapes of the gradients of x and W_0."""
    return dy.new_empty(dy.shape), dW.new_empty(dW.shape)


def _kept(ops: Any, x: Tensor, numbers: int) -> tuple[int, ...]:
    """Shape of what the kernel keeps: a sequence per lane of a CPU's vectors."""
    n, h, t, _ = x.shape
    on_cpu = x.device.type == "cpu" and ops is torch.ops.fwm
    together = VECTOR_BYTES[ops.cpu_isa()] // x.element_size() if on_cpu else 1
    return -(-n // together) * h, t, numbers, together


def _again(form: Callable, inputs: Tensors, mask: Tensor | None, grads: Tensors) -> Tensors:
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        outputs = form(*leaves, mask)[: len(grads)]
    return torch.autograd.grad(outputs, leaves, grads, materialize_grads=True)
