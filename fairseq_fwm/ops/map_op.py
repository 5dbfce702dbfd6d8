"""What ``torch.library`` asks of the feature maps besides a kernel.

The PyTorch form, the fake kernel, the derivative.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fairseq_fwm.ops.features import FeatureSpec
from fairseq_fwm.ops.sequence_op import HasKernel


def feature_map(x: Tensor, name: str, nu: int, sum_norm: bool) -> Tensor:
    """Apply a :class:`FeatureSpec`."""
    phi = FeatureSpec(name, nu, sum_norm)(x)
    return phi.clone() if phi is x else phi  # an output of an op must not be one of its inputs


def fake_feature_map(x: Tensor, name: str, nu: int, sum_norm: bool) -> Tensor:
    """Shape and dtype of :func:`feature_map`."""
    return x.new_empty((*x.shape[:-1], FeatureSpec(name, nu, sum_norm).out_dim(x.shape[-1])))


def feature_map_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    """Keep the raw rows."""
    x, *ctx.options = inputs
    ctx.save_for_backward(x)


def feature_map_backward(has_kernel: HasKernel) -> Callable[..., tuple]:
    """Differentiate by the kernel, or the PyTorch form by running it again."""

    def run(ctx: Any, dphi: Tensor) -> tuple:
        (x,) = ctx.saved_tensors
        if has_kernel("feature_map_bwd", x.device.type):
            dx = torch.ops.fwm.feature_map_bwd(dphi, x, *ctx.options)
        else:
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                phi = feature_map(leaf, *ctx.options)
            (dx,) = torch.autograd.grad(phi, leaf, dphi)
        return dx, None, None, None

    return run


def favor_exp(u: Tensor, offset: Tensor, scale: float, added: float, cap: float) -> Tensor:
    """scale * (exp(min([u, -u] - offset, cap)) + added)."""
    exponents = (torch.cat((u, -u), -1) - offset).clamp(max=cap)
    return scale * (exponents.exp() + added)


def favor_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    """Keep the features: their exponentials are the derivative."""
    ctx.options = inputs[2:]
    ctx.save_for_backward(output)


def favor_backward(has_kernel: HasKernel) -> Callable[..., tuple]:
    """Differentiate from the features."""

    def run(ctx: Any, dphi: Tensor) -> tuple:
        (phi,) = ctx.saved_tensors
        if has_kernel("favor_exp_bwd", phi.device.type):
            du, d_offset = torch.ops.fwm.favor_exp_bwd(dphi, phi, *ctx.options)
        else:
            scale, added, cap = ctx.options
            slope = phi - scale * added
            slope = slope.where(slope < scale * math.exp(min(cap, 700.0)) * (1 - 1e-6), 0.0)
            up, down = (dphi * slope).chunk(2, -1)
            du, d_offset = up - down, -(up + down).sum(-1, keepdim=True)
        return du, d_offset, None, None, None

    return run


def fake_favor_backward(dphi: Tensor, phi: Tensor, *options: float) -> tuple[Tensor, Tensor]:
    """Shapes of the gradients of u and offset."""
    rows = phi.shape[:-1]
    return phi.new_empty((*rows, phi.shape[-1] // 2)), phi.new_empty((*rows, 1))
