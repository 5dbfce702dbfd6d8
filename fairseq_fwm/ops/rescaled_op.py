"""What ``torch.library`` asks of the rescaled delta rule besides a kernel.

The PyTorch form, the fake kernel, the derivative. In terms of inner products of keys,
gram[t, s] = k_t . k_s for s <= t: with r_t = v_t - S_{t-1}^T k_t what is missing and decay[t, s]
what is left of the write at s after step t,

    r_t = v_t - sum_{s<t} decay[t-1, s] beta_s gram[t, s] r_s
    S_T = sum_t decay[T, t] beta_t k_t (x) r_t

so that neither it nor its derivative needs S; and of |S_t|^2 it knows the increase,
2 beta_t r_t . (v_t - r_t) + |beta_t r_t|^2 gram[t, t].
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_fwm.ops._common import differentiate


def forward(gram: Tensor, v: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return r ``(N, H, T, V)``, decay[T] ``(N, H, T)`` and decay ``(N, H, T, T)``."""
    T = v.shape[2]
    residuals, history = [v[:, :, 0]], []
    norm2 = (beta[:, :, 0, None] * v[:, :, 0]).square().sum(-1) * gram[:, :, 0, 0]
    decay = torch.ones_like(beta[:, :, :1])
    history.append(F.pad(decay, (0, T - 1)))
    for t in range(1, T):
        weights = decay * gram[:, :, t, :t] * beta[:, :, :t]
        retrieved = (weights.unsqueeze(-2) @ torch.stack(residuals, 2)).squeeze(-2)
        residuals.append(v[:, :, t] - retrieved)
        written = beta[:, :, t, None] * residuals[-1]
        norm2 = norm2 + 2 * (written * retrieved).sum(-1)
        norm2 = norm2 + written.square().sum(-1) * gram[:, :, t, t]
        left = norm2.clamp(min=1.0).rsqrt()
        norm2 = norm2 * left.square()
        decay = torch.cat((decay * left.unsqueeze(-1), left.unsqueeze(-1)), -1)
        history.append(F.pad(decay, (0, T - 1 - t)))
    return torch.stack(residuals, 2), decay.clone(), torch.stack(history, 2)


def fake_forward(gram: Tensor, v: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes of :func:`forward`."""
    return v.new_empty(v.shape), v.new_empty(beta.shape), v.new_empty(gram.shape)


def context(ctx: Any, inputs: tuple, output: tuple) -> None:
    """Keep everything; S, which would be larger, is not among it."""
    residual, _, history = output
    ctx.mark_non_differentiable(history)
    ctx.save_for_backward(*inputs, residual, history)


def differentiate_forward(ops: Any) -> Callable[..., tuple]:
    """Differentiate by ``rescaled_bwd`` of these ops."""

    def run(ctx: Any, d_residual: Tensor, d_decay: Tensor, _: Tensor) -> tuple:
        return ops.rescaled_bwd(d_residual, d_decay, *ctx.saved_tensors)

    return run


def backward(
    d_residual: Tensor, d_decay: Tensor, gram: Tensor, v: Tensor, beta: Tensor, *_: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """PyTorch form of ``rescaled_bwd``."""
    grads = differentiate(forward, (gram, v, beta), (d_residual, d_decay))
    return tuple(g.contiguous() for g in grads)


def fake_backward(
    d_residual: Tensor, d_decay: Tensor, gram: Tensor, v: Tensor, beta: Tensor, *_: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes of the gradients of gram, v and beta."""
    return tuple(x.new_empty(x.shape) for x in (gram, v, beta))
