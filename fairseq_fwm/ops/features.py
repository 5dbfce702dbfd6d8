"""Feature maps as functions, and the specification by which an op applies one itself."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

SUM_NORM_EPS = 1e-6
"""Keeps phi / sum(phi) finite where phi is all zero; far below any sum of ordinary features."""


def elu_features(x: Tensor) -> Tensor:
    """PyTorch form of :func:`fairseq_fwm.ops.elu_features`."""
    return F.elu(x) + 1


def dpfp(x: Tensor, nu: int = 1) -> Tensor:
    """PyTorch form of :func:`fairseq_fwm.ops.dpfp`."""
    check_nu(nu, x.shape[-1])
    r = torch.cat((x, -x), dim=-1).relu()
    rolled = [r.roll(shift, dims=-1) for shift in range(1, nu + 1)]
    return torch.cat([r * other for other in rolled], dim=-1)


def check_nu(nu: int, head_dim: int) -> None:
    """Raise ``ValueError`` unless 1 <= nu <= 2 * head_dim - 1."""
    if not 1 <= nu <= 2 * head_dim - 1:
        raise ValueError(
            f"dpfp: nu must be between 1 and 2 * head_dim - 1 = {2 * head_dim - 1}, found {nu}"
        )


def sum_normalize(features: Tensor, eps: float = SUM_NORM_EPS) -> Tensor:
    """phi / (sum_j phi_j + eps) over the last dimension (arXiv 2102.11174, Eq. 29)."""
    return features / (features.sum(-1, keepdim=True) + eps)


@dataclass(frozen=True)
class FeatureSpec:
    """A parameter-free feature map that an op applies to raw q and k itself.

    A kernel that does so stores nothing of size 2 * nu * d.

    Attributes:
        name: ``"elu"``, ``"dpfp"``, or ``"none"`` for the identity (sum normalisation only).
        nu: number of shifts (``dpfp`` only).
        sum_norm: divide the features by their sum afterwards.
        astuple: (name, nu, sum_norm), as the compiled ops take them.
    """

    name: str
    nu: int = 1
    sum_norm: bool = False
    astuple: tuple[str, int, bool] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.name not in ("none", "elu", "dpfp"):
            raise ValueError(
                f"FeatureSpec: name must be 'none', 'elu' or 'dpfp', found {self.name!r}"
            )
        object.__setattr__(self, "astuple", (self.name, self.nu, self.sum_norm))

    def out_dim(self, head_dim: int) -> int:
        """Return K for rows of ``head_dim`` numbers."""
        return 2 * self.nu * head_dim if self.name == "dpfp" else head_dim

    def __call__(self, x: Tensor) -> Tensor:
        """Map ``(..., d)`` to ``(..., K)``."""
        features = x
        if self.name != "none":
            features = dpfp(x, self.nu) if self.name == "dpfp" else elu_features(x)
        return sum_normalize(features) if self.sum_norm else features


NO_FEATURES = FeatureSpec("none")
