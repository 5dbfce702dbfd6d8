"""Feature maps as ops, by the compiled kernel where there is one."""

import math

import torch
from torch import Tensor

from fairseq_fwm.ops import library, map_op
from fairseq_fwm.ops._common import no_autocast
from fairseq_fwm.ops.features import FeatureSpec


@no_autocast
def feature_map(x: Tensor, spec: FeatureSpec) -> Tensor:
    """Apply a parameter-free feature map to rows.

    The kernel's derivative keeps ``x`` alone, nothing of size K.

    Args:
        x: ``(..., d)``.
        spec: which map, and whether its features are divided by their sum.

    Returns:
        ``(..., K)`` with K as :meth:`FeatureSpec.out_dim` says.

    Raises:
        ValueError: if nu is out of range.
    """
    if library.has_kernel("feature_map", x.device.type):
        return torch.ops.fwm.feature_map(x, *spec.astuple)
    return spec(x)


def dpfp(x: Tensor, nu: int = 1) -> Tensor:
    """Deterministic parameter-free projection (arXiv 2102.11174, Eq. 37).

    With r = [relu(x), relu(-x)]: phi(x) = [r * roll(r, 1), ..., r * roll(r, nu)].

    Args:
        x: ``(..., d)``.
        nu: number of cyclic shifts, 1 <= nu <= 2d - 1.

    Returns:
        ``(..., 2 * nu * d)``, non-negative.

    Raises:
        ValueError: if nu is out of range.

    >>> dpfp(torch.randn(4, 3, 16, 16)).shape
    torch.Size([4, 3, 16, 32])
    >>> dpfp(torch.randn(4, 3, 16, 16), nu=2).shape
    torch.Size([4, 3, 16, 64])
    """
    return feature_map(x, FeatureSpec("dpfp", nu))


def elu_features(x: Tensor) -> Tensor:
    """ELU(x) + 1, elementwise (Katharopoulos et al., arXiv 2006.16236, Eq. 7).

    Args:
        x: ``(..., d)``.

    Returns:
        ``(..., d)``, positive.
    """
    return feature_map(x, FeatureSpec("elu"))


@no_autocast
def favor_exp(
    u: Tensor, offset: Tensor, *, scale: float = 1.0, added: float = 0.0, cap: float = math.inf
) -> Tensor:
    """scale * (exp(min([u, -u] - offset, cap)) + added): the costly part of FAVOR+.

    Args:
        u: ``(..., m)``, fp32 or fp64.
        offset: ``(..., 1)``.
        scale: factor on every feature.
        added: what is added to every exponential.
        cap: largest exponent.

    Returns:
        ``(..., 2m)`` (arXiv 2009.14794, positive features).
    """
    if library.has_kernel("favor_exp", u.device.type):
        return torch.ops.fwm.favor_exp(u, offset, scale, added, cap)
    return map_op.favor_exp(u, offset, scale, added, cap)
