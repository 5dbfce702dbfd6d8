"""Fast weight attention: feature map x update rule x normalisations."""

from typing import NamedTuple

import torch
from torch import Tensor

from fairseq_fwm import ops
from fairseq_fwm.feature_maps import build_feature_map
from fairseq_fwm.mixers.base import Mixer
from fairseq_fwm.mixers.rules import UPDATE_RULES
from fairseq_fwm.mixers.validity import FastWeightConfig, why_invalid
from fairseq_fwm.ops._common import accumulation_dtype, mask_writes, no_autocast
from fairseq_fwm.ops.dispatch import require_impl
from fairseq_fwm.ops.features import sum_normalize

ATTN_NORM_EPS = 1e-5


class FastWeightState(NamedTuple):
    """The memory of a fast weight mixer.

    Attributes:
        weights: S ``(N, H, K, V)``.
        normalizer: z ``(N, H, K)``, sum of the keys written; ``None`` without attention
            normalisation.
    """

    weights: Tensor
    normalizer: Tensor | None


class FastWeightMixer(Mixer):
    """Linear attention with a fast weight memory (arXiv 2102.11174).

    The slow network emits q | k | v (| beta) per head: 3d (+ 1) numbers.

    Args:
        head_dim: d, the size of q, k and v of a head.
        config: the variant.
        site: where it stands (``encoder_self``, ``decoder_self``, ``cross``).
        seed: stream of random features, see :class:`fairseq_fwm.feature_maps.FavorFeatureMap`.

    Raises:
        ValueError: if the variant is not valid at the site, with the reason.
        RuntimeError: if ``config.impl`` names a compiled kernel that is not there.
    """

    state_type = FastWeightState

    def __init__(
        self,
        head_dim: int,
        config: FastWeightConfig,
        site: str = "decoder_self",
        seed: int = 0,
    ) -> None:
        super().__init__()
        reason = why_invalid(config, site)
        if reason is not None:
            raise ValueError(
                f"{config.feature_map} features with the {config.rule} rule at {site}: {reason}"
            )
        require_impl(config.impl, f"causal_{config.rule}_fwd")
        self.config = config
        self.rule = UPDATE_RULES[config.rule]
        self.sum_norm, self.attn_norm = config.resolved
        self.head_dim = self.value_dim = head_dim
        self.projection_size = 3 * head_dim + int(self.rule.uses_beta)
        self.feature_map = build_feature_map(
            config.feature_map,
            head_dim,
            nu=config.nu,
            m=config.m,
            variant=config.favor_variant,
            seed=seed,
        )

    def init_state(
        self,
        batch: int,
        num_heads: int,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> FastWeightState:
        """Return an empty memory; see the base class."""
        keys, kind = self.feature_map.out_dim, {"device": device, "dtype": dtype}
        weights = torch.zeros(batch, num_heads, keys, self.value_dim, **kind)
        if self.attn_norm == "none":
            return FastWeightState(weights, None)
        return FastWeightState(weights, torch.zeros(batch, num_heads, keys, **kind))

    @no_autocast
    def forward(
        self,
        projected: Tensor,
        state: FastWeightState | None = None,
        mask: Tensor | None = None,
        output_final_state: bool = False,
    ) -> tuple[Tensor, FastWeightState | None]:
        """Process a sequence; see the base class."""
        q, k, v, beta = self._split(projected)
        z_before, z = self._normalizers(k, state, mask)
        write_k, write_beta = self._scale_retrieval(k, beta, z_before)
        y, weights = self.rule.sequence(
            q,
            write_k,
            v,
            write_beta,
            state=None if state is None else state.weights,
            write_mask=mask,
            output_final_state=output_final_state,
            impl=self.config.impl,
        )
        y = self._normalize_output(y, q, z).to(projected.dtype)
        if not output_final_state:
            return y, None
        if z is None:
            return y, FastWeightState(weights, None)
        # Of no steps at all, the state before is the state after.
        last = z if z.shape[2] else z_before
        return y, FastWeightState(weights, last[:, :, -1])

    @no_autocast
    def step(
        self, projected: Tensor, state: FastWeightState, mask: Tensor | None = None
    ) -> tuple[Tensor, FastWeightState]:
        """Process one position; see the base class."""
        q, k, v, beta = self._split(projected)
        z_before, z = state.normalizer, None
        if z_before is not None:
            z = z_before + (k if mask is None else k.masked_fill(~mask[:, None, None], 0.0))
        write_k, write_beta = self._scale_retrieval(k, beta, z_before)
        y, weights = self.rule.step(q, write_k, v, write_beta, state.weights, mask)
        y = self._normalize_output(y, q, z).to(projected.dtype)
        return y, FastWeightState(weights, z)

    @no_autocast
    def forward_noncausal(self, projected: Tensor, mask: Tensor | None = None) -> Tensor:
        """Process a sequence in which every position sees all others; see the base class.

        A rule whose writes commute writes everything, then reads. Any other runs once in each
        direction with the same slow weights, and the two outputs are averaged.
        """
        if self.rule.order_free:
            d = self.head_dim
            return self.read(projected[..., :d], self.write(projected[..., d:], mask))
        ahead, _ = self(projected, None, mask)
        flipped_mask = None if mask is None else mask.flip(1)
        back, _ = self(projected.flip(2), None, flipped_mask)
        return (ahead + back.flip(2)) / 2

    @no_autocast
    def write(self, projected: Tensor, mask: Tensor | None = None) -> FastWeightState:
        """Write a whole source with the sum rule; see the base class."""
        k, v = self._wide(projected).split(self.head_dim, -1)
        k = self._keys(k)
        weights = ops.write(k, v, write_mask=mask)
        if self.attn_norm == "none":
            return FastWeightState(weights, None)
        return FastWeightState(weights, mask_writes(mask, k)[0].sum(2))

    @no_autocast
    def read(self, projected: Tensor, state: FastWeightState) -> Tensor:
        """Read what was written; see the base class."""
        q = self._queries(self._wide(projected))
        z = None if state.normalizer is None else state.normalizer.unsqueeze(2)
        return self._normalize_output(ops.read(q, state.weights), q, z).to(projected.dtype)

    def _wide(self, x: Tensor) -> Tensor:
        return x.to(accumulation_dtype(x))

    def _split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        d = self.head_dim
        x = self._wide(projected)
        q, k, v = x[..., :d], x[..., d : 2 * d], x[..., 2 * d : 3 * d]
        beta = x[..., 3 * d].sigmoid() if self.rule.uses_beta else None
        return self._queries(q), self._keys(k), v, beta

    def _queries(self, q: Tensor) -> Tensor:
        divided_out = self.sum_norm or self.attn_norm != "none"
        features = self.feature_map(q, scale_free=divided_out)
        return sum_normalize(features) if self.sum_norm else features

    def _keys(self, k: Tensor) -> Tensor:
        features = self.feature_map(k, scale_free=self.sum_norm)
        return sum_normalize(features) if self.sum_norm else features

    def _normalizers(
        self, k: Tensor, state: FastWeightState | None, mask: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return z_{t-1} and z_t for every t, ``(N, H, T, K)`` each."""
        if self.attn_norm == "none":
            return None, None
        z_0 = k.new_zeros(k.shape[:2] + k.shape[3:]) if state is None else state.normalizer
        z_0 = z_0.unsqueeze(2)
        z = z_0 + mask_writes(mask, k)[0].cumsum(2)
        return torch.cat((z_0, z), 2)[:, :, : max(1, z.shape[2])], z

    def _scale_retrieval(
        self, k: Tensor, beta: Tensor | None, z_before: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Fold the normalisation of the retrieved value into key and write strength.

        With kappa_t = z_{t-1}.k_t, the delta rule on k / kappa and beta * kappa retrieves
        S^T k / kappa and writes k (x) beta (v - that): Eqs. 26-28 of arXiv 2102.11174. Where
        nothing was written yet S is zero and any kappa will do.
        """
        if self.attn_norm != "full":
            return k, beta
        kappa = (z_before * k).sum(-1) + ATTN_NORM_EPS
        kappa = torch.where((z_before == 0).all(-1), 1.0, kappa)
        return k / kappa.unsqueeze(-1), beta * kappa

    def _normalize_output(self, y: Tensor, q: Tensor, z: Tensor | None) -> Tensor:
        if z is not None:
            y = y / ((z * q).sum(-1, keepdim=True) + ATTN_NORM_EPS)
        return y if self.config.scale == 1.0 else y * self.config.scale
