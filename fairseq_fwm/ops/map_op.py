"""What ``torch.library`` asks of the feature maps besides a kernel.

The PyTorch form, the fake kernel, the derivative.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fairseq_fwm.ops._common import differentiate
from fairseq_fwm.ops.features import FeatureSpec


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


def differentiate_feature_map(ops: Any) -> Callable[..., tuple]:
    """Differentiate by ``feature_map_bwd`` of these ops."""

    def run(ctx: Any, dphi: Tensor) -> tuple:
        (x,) = ctx.saved_tensors
        return ops.feature_map_bwd(dphi, x, *ctx.options), None, None, None

    return run


def feature_map_backward(dphi: Tensor, x: Tensor, *options: Any) -> Tensor:
    """PyTorch form of ``feature_map_bwd``."""
    (dx,) = differentiate(lambda leaf: (feature_map(leaf, *options),), (x,), (dphi,))
    return dx.contiguous()


def fake_feature_map_backward(dphi: Tensor, x: Tensor, *options: Any) -> Tensor:
    """Shape and dtype of :func:`feature_map_backward`."""
    return x.new_empty(x.shape)


def favor_exp(u: Tensor, offset: Tensor, scale: float, added: float, cap: float) -> Tensor:
    """scale * (exp(min([u, -u] - offset, cap)) + added)."""
    exponents = (torch.cat((u, -u), -1) - offset).clamp(max=cap)
    return scale * (exponents.exp() + added)


def favor_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    """Keep the features: their exponentials are the derivative."""
    ctx.options = inputs[2:]
    ctx.save_for_backward(output)


def differentiate_favor(ops: Any) -> Callable[..., tuple]:
    """Differentiate by ``favor_exp_bwd`` of these ops."""

    def run(ctx: Any, dphi: Tensor) -> tuple:
        (phi,) = ctx.saved_tensors
        return *ops.favor_exp_bwd(dphi, phi, *ctx.options), None, None, None

    return run


def favor_backward(
    dphi: Tensor, phi: Tensor, scale: float, added: float, cap: float
) -> tuple[Tensor, Tensor]:
    """PyTorch form of ``favor_exp_bwd``: from the features."""
    slope = phi - scale * added
    slope = slope.where(slope < scale * math.exp(min(cap, 700.0)) * (1 - 1e-6), 0.0)
    up, down = (dphi * slope).chunk(2, -1)
    return up - down, -(up + down).sum(-1, keepdim=True)


def fake_favor_backward(dphi: Tensor, phi: Tensor, *options: float) -> tuple[Tensor, Tensor]:
    """Shapes of the gradients of u and offset."""
    rows = phi.shape[:-1]
    return phi.new_empty((*rows, phi.shape[-1] // 2)), phi.new_empty((*rows, 1))
