"""Feature maps phi: what turns queries and keys into the inputs of a fast weight memory.

A new one is a subclass of :class:`FeatureMap` with the decorator :func:`register_feature_map`;
it then appears in ``--fwm-feature-map``, in the validity matrix and in the tests.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fairseq_fwm.ops.features import check_nu
from fairseq_fwm.ops.maps import dpfp, elu_features, favor_exp

__all__ = [
    "FEATURE_MAPS",
    "DpfpFeatureMap",
    "EluFeatureMap",
    "FavorFeatureMap",
    "FeatureMap",
    "SoftmaxFeatureMap",
    "TanhFeatureMap",
    "build_feature_map",
    "column_orthogonal",
    "register_feature_map",
    "row_orthogonal",
]

FEATURE_MAPS: dict[str, type["FeatureMap"]] = {}


def register_feature_map(name: str) -> Callable[[type["FeatureMap"]], type["FeatureMap"]]:
    """Register a class under ``name``; a name can be taken once.

    Raises:
        ValueError: if the name is taken.
    """

    def register(cls: type["FeatureMap"]) -> type["FeatureMap"]:
        if name in FEATURE_MAPS:
            raise ValueError(f"feature map {name!r} is registered already")
        FEATURE_MAPS[name] = cls
        cls.name = name
        return cls

    return register


def build_feature_map(name: str, head_dim: int, **options: object) -> "FeatureMap":
    """Build a registered feature map; options it does not know are ignored.

    Args:
        name: key of :data:`FEATURE_MAPS`.
        head_dim: d, the size of a head's queries and keys.
        options: ``nu`` (dpfp); ``m``, ``variant``, ``seed`` (favor).

    Raises:
        ValueError: if the name is unknown or an option is out of range.
    """
    if name not in FEATURE_MAPS:
        raise ValueError(f"unknown feature map {name!r}: choose one of {', '.join(FEATURE_MAPS)}")
    cls = FEATURE_MAPS[name]
    return cls(head_dim, **{key: options[key] for key in cls.options if key in options})


class FeatureMap(nn.Module):
    """Map ``(..., head_dim)`` to ``(..., out_dim)``.

    Attributes:
        name: key in the registry.
        options: constructor arguments besides ``head_dim``.
        positive: every feature is non-negative, so sums of features may be divided by.
        normalized: every feature vector sums to one already.
        out_dim: number of features K.
    """

    name: str
    options: tuple[str, ...] = ()
    positive = True
    normalized = False

    def __init__(self, head_dim: int, out_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.out_dim = out_dim

    def forward(self, x: Tensor, scale_free: bool = False) -> Tensor:
        """Return phi(x).

        Args:
            x: ``(..., head_dim)``, fp32 or fp64.
            scale_free: the caller divides out any factor common to the features of one position
                (sum normalisation, or a query under attention normalisation), so the map may
                choose that factor for numerical range.

        Returns:
            ``(..., out_dim)``.
        """
        raise NotImplementedError

    def resample(self, update: int) -> None:
        """Draw what is random in the map for training update ``update``; nothing by default."""

    def extra_repr(self) -> str:
        """Show the shape in ``print(model)``."""
        return f"{self.head_dim} -> {self.out_dim}"


@register_feature_map("elu")
class EluFeatureMap(FeatureMap):
    """ELU(x) + 1 (arXiv 2006.16236); K = d."""

    def __init__(self, head_dim: int) -> None:
        super().__init__(head_dim, head_dim)

    def forward(self, x: Tensor, scale_free: bool = False) -> Tensor:
        """Return phi(x); see the base class."""
        return elu_features(x)


@register_feature_map("dpfp")
class DpfpFeatureMap(FeatureMap):
    """Deterministic parameter-free projection (arXiv 2102.11174, Eq. 37); K = 2 * nu * d.

    Raises:
        ValueError: unless 1 <= nu <= 2 * head_dim - 1.
    """

    options = ("nu",)

    def __init__(self, head_dim: int, nu: int = 1) -> None:
        check_nu(nu, head_dim)
        super().__init__(head_dim, 2 * nu * head_dim)
        self.nu = nu

    def forward(self, x: Tensor, scale_free: bool = False) -> Tensor:
        """Return phi(x); see the base class."""
        return dpfp(x, self.nu)


@register_feature_map("tanh")
class TanhFeatureMap(FeatureMap):
    """tanh(x); K = d. Takes both signs, so nothing may be divided by its sums."""

    positive = False

    def __init__(self, head_dim: int) -> None:
        super().__init__(head_dim, head_dim)

    def forward(self, x: Tensor, scale_free: bool = False) -> Tensor:
        """Return phi(x); see the base class."""
        return x.tanh()


@register_feature_map("softmax_features")
class SoftmaxFeatureMap(FeatureMap):
    """Softmax over the d features of a head; K = d, sums to one (recurrent fast weights, SRWM)."""

    normalized = True

    def __init__(self, head_dim: int) -> None:
        super().__init__(head_dim, head_dim)

    def forward(self, x: Tensor, scale_free: bool = False) -> Tensor:
        """Return phi(x); see the base class."""
        return x.softmax(-1)


def column_orthogonal(
    d: int, m: int, generator: torch.Generator, reuse_norms: bool = False
) -> Tensor:
    """Draw ``(d, m)`` with columns orthogonal in blocks of d, norms those of Gaussian vectors.

    ``reuse_norms`` takes the norms from the Gaussian matrix that gave the directions, as the
    retrieval experiments did; independent norms keep the kernel estimate unbiased.
    """
    # On the CPU also where a model is built on another default device: the generator is there.
    kind = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
    blocks = []
    for start in range(0, m, d):
        gaussian = torch.randn(d, d, **kind)
        q, _ = torch.linalg.qr(gaussian)
        if not reuse_norms:
            gaussian = torch.randn(d, d, **kind)
        blocks.append((q * gaussian.norm(dim=1))[:, : min(d, m - start)])
    return torch.cat(blocks, 1).float()


def row_orthogonal(d: int, m: int, generator: torch.Generator) -> Tensor:
    """Draw ``(d, m)`` with rows orthogonal in blocks of m, norms those of Gaussian vectors."""
    kind = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
    blocks = []
    for start in range(0, d, m):
        gaussian = torch.randn(m, m, **kind)
        q, _ = torch.linalg.qr(gaussian)
        blocks.append(q.T[: min(m, d - start)])
    norms = torch.randn(d, m, **kind).norm(dim=1, keepdim=True)
    return (torch.cat(blocks, 0) * norms).float()


@register_feature_map("favor")
class FavorFeatureMap(FeatureMap):
    """FAVOR+ positive orthogonal random features (arXiv 2009.14794); K = 2m.

    phi(x) = (2m)^{-1/2} [exp(u - |x|^2/2), exp(-u - |x|^2/2)] with u = P^T x, P ``(d, m)`` random.

    Variants:
        ``stable`` (default): x is first scaled by d^{-1/4}, so that phi(q).phi(k) estimates
        exp(q.k / sqrt(d)); columns of P orthogonal. Where the caller divides common factors out,
        each position is shifted by its own largest exponent; elsewhere exponents are capped where
        exp and sums of it could overflow. Neither sees other positions.
        ``toolkit``: the language-modelling toolkit of arXiv 2102.11174: unscaled x, 1e-4 added to
        every exponential, rows of P orthogonal.
        ``retrieval``: that paper's retrieval experiments: unscaled x, nothing added.

    One draw serves evaluation (buffer ``projection``, in checkpoints); in training a fresh P is
    drawn for each update from (seed, update), so that ranks agree and a resumed run repeats them.

    Args:
        head_dim: d.
        m: number of random directions.
        variant: see above.
        seed: names the stream of draws; give every layer its own.

    Raises:
        ValueError: if m < 1 or the variant is unknown.
    """

    options = ("m", "variant", "seed")
    VARIANTS = ("stable", "toolkit", "retrieval")
    # exp of it, times a query feature and summed over thousands of positions, still fits fp32.
    MAX_EXPONENT = 40.0

    def __init__(self, head_dim: int, m: int = 64, variant: str = "stable", seed: int = 0) -> None:
        if m < 1:
            raise ValueError(f"favor: m must be at least 1, found {m}")
        if variant not in self.VARIANTS:
            raise ValueError(
                f"favor: unknown variant {variant!r}, choose one of {', '.join(self.VARIANTS)}"
            )
        super().__init__(head_dim, 2 * m)
        self.m, self.variant = m, variant
        self.register_buffer("projection", torch.empty(head_dim, m))
        self.register_buffer("training_projection", torch.empty(head_dim, m), persistent=False)
        self.seed_draws(seed)

    def seed_draws(self, seed: int) -> None:
        """Start the stream of draws over from ``seed``."""
        self.seed = seed
        self._drawn_for: int | None = None
        self.projection.copy_(self._draw(0))
        self.resample(0)

    def resample(self, update: int) -> None:
        """Draw the training projection of ``update``; the same update gives the same draw."""
        if update != self._drawn_for:
            # Not in place: a graph of an earlier update may still hold the previous draw.
            self.training_projection = self._draw(update).to(self.training_projection)
            self._drawn_for = update

    def set_num_updates(self, num_updates: int) -> None:
        """Resample in training; fairseq calls this on every module before each update."""
        if self.training:
            self.resample(num_updates)

    def _draw(self, update: int) -> Tensor:
        seed = (self.seed * 1_000_000_007 + update) % 2**63
        generator = torch.Generator("cpu").manual_seed(seed)
        if self.variant == "toolkit":
            return row_orthogonal(self.head_dim, self.m, generator)
        return column_orthogonal(
            self.head_dim, self.m, generator, reuse_norms=self.variant == "retrieval"
        )

    def forward(self, x: Tensor, scale_free: bool = False) -> Tensor:
        """Return phi(x); see the base class."""
        P = (self.training_projection if self.training else self.projection).to(x.dtype)
        stable = self.variant == "stable"
        if stable:
            x = x * self.head_dim**-0.25
        u = x @ P
        if stable and scale_free:
            offset = u.abs().amax(-1, keepdim=True)  # the largest exponent is then zero
        else:
            offset = x.square().sum(-1, keepdim=True) / 2
        return favor_exp(
            u,
            offset,
            scale=1 / math.sqrt(2 * self.m),
            added=1e-4 if self.variant == "toolkit" else 0.0,
            cap=self.MAX_EXPONENT if stable else math.inf,
        )
