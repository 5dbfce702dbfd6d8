"""Fast weight attention: feature map x update rule x normalisations."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_fwm import ops
from fairseq_fwm.feature_maps import build_feature_map
from fairseq_fwm.mixers.base import Mixer
from fairseq_fwm.mixers.rules import UPDATE_RULES
from fairseq_fwm.mixers.validity import FastWeightConfig, why_invalid
from fairseq_fwm.ops import FeatureSpec
from fairseq_fwm.ops._common import State, accumulation_dtype, mask_writes, no_autocast
from fairseq_fwm.ops.dispatch import require_impl
from fairseq_fwm.ops.normalization import ATTN_NORM_EPS

FUSED_MAPS = ("elu", "dpfp")


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
        # What the op applies to q and k itself: the whole map where kernels know it.
        fuses = config.feature_map in FUSED_MAPS and not config.l2_norm
        name = config.feature_map if fuses else "none"
        self.fused = FeatureSpec(name, config.nu if name == "dpfp" else 1, self.sum_norm)

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
        y, final = self.rule.sequence(
            *self._split(projected),
            state=None if state is None else self._for_op(state),
            write_mask=mask,
            output_final_state=output_final_state,
            features=self.fused,
            attn_norm=self.attn_norm,
            impl=self.config.impl,
        )
        return self._scaled(y, projected.dtype), self._from_op(
            final
        ) if output_final_state else None

    @no_autocast
    def step(
        self,
        projected: Tensor,
        state: FastWeightState,
        mask: Tensor | None = None,
        rows: Tensor | None = None,
        in_place: bool = False,
    ) -> tuple[Tensor, FastWeightState]:
        """Process one position; see the base class."""
        arguments = (*self._split(projected), self._for_op(state))
        options = {
            "rows": rows,
            "write_mask": mask,
            "features": self.fused,
            "attn_norm": self.attn_norm,
        }
        if in_place and projected.shape[0] == state.weights.shape[0]:
            y = self.rule.step_(*arguments, **options)
        else:
            y, final = self.rule.step(*arguments, **options)
            state = self._from_op(final)
        return self._scaled(y, projected.dtype), state

    @no_autocast
    def forward_noncausal(self, projected: Tensor, mask: Tensor | None = None) -> Tensor:
        """Process a sequence in which every position sees all others; see the base class.

        A rule whose writes commute writes everything, then reads. Any other runs once in each
        direction with the same slow weights, and the two outputs are averaged.
        """
        if self.rule.order_free:
            d = self.head_dim
            q, kv = split_last(projected, [d, 2 * d])
            return self.read(q, self.write(kv, mask))
        ahead, _ = self(projected, None, mask)
        flipped_mask = None if mask is None else mask.flip(1)
        # Time before heads: of a flip behind other dimensions torch.compile takes the strides of
        # the first length it sees for constants.
        backward_in_time = projected.transpose(1, 2).flip(1).transpose(1, 2)
        back, _ = self(backward_in_time, None, flipped_mask)
        return (ahead + back.flip(2)) / 2

    @no_autocast
    def write(self, projected: Tensor, mask: Tensor | None = None) -> FastWeightState:
        """Write a whole source with the sum rule; see the base class."""
        k, v = split_last(projected, [self.head_dim, self.head_dim])
        k = ops.feature_map(self._mapped(k, scale_free=self._divides_keys), self.fused)
        weights = ops.write(k, v, write_mask=mask)
        if self.attn_norm == "none":
            return FastWeightState(weights, None)
        return FastWeightState(weights, mask_writes(mask, k)[0].sum(2))

    @no_autocast
    def read(self, projected: Tensor, state: FastWeightState) -> Tensor:
        """Read what was written; see the base class."""
        q = self._mapped(projected, scale_free=self._divides_queries)
        q = ops.feature_map(q, self.fused)
        y = ops.read(q, state.weights)
        if state.normalizer is not None:
            z = state.normalizer.unsqueeze(2)
            y = y / ((z * q).sum(-1, keepdim=True) + ATTN_NORM_EPS)
        return self._scaled(y, projected.dtype)

    @no_autocast
    def writes(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what a sequence writes to its memory, for :mod:`fairseq_fwm.inspection`.

        Args:
            projected: ``(N, H, T, projection_size)``, or k | v for :meth:`write`.

        Returns:
            phi(k) ``(N, H, T, K)``, normalised as the rule sees it, v ``(N, H, T, d)`` and beta
            ``(N, H, T)`` or ``None``.
        """
        if projected.shape[-1] == 2 * self.head_dim:
            k, v = split_last(projected, [self.head_dim, self.head_dim])
            k, beta = self._mapped(k, scale_free=self._divides_keys), None
        else:
            _, k, v, beta = self._split(projected)
        return ops.feature_map(k.to(accumulation_dtype(k)), self.fused), v, beta

    @property
    def _divides_keys(self) -> bool:
        return self.sum_norm or self.config.l2_norm

    @property
    def _divides_queries(self) -> bool:
        return self._divides_keys or self.attn_norm != "none"

    def _split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return q, k (mapped, unless the op does that), v and beta."""
        sizes = [self.head_dim] * 3 + [1] * self.rule.uses_beta
        q, k, v, *beta = split_last(projected, sizes)
        q = self._mapped(q, scale_free=self._divides_queries)
        k = self._mapped(k, scale_free=self._divides_keys)
        if not beta:
            return q, k, v, None
        beta = beta[0].squeeze(-1).to(accumulation_dtype(projected)).sigmoid()
        return q, k, v, beta if self.config.beta_max == 1.0 else beta * self.config.beta_max

    def _mapped(self, x: Tensor, scale_free: bool) -> Tensor:
        if self.fused.name != "none":
            return x
        phi = self.feature_map(x.to(accumulation_dtype(x)), scale_free=scale_free)
        return F.normalize(phi, dim=-1) if self.config.l2_norm else phi

    def _for_op(self, state: FastWeightState) -> State:
        return state.weights if self.attn_norm == "none" else tuple(state)

    def _from_op(self, final: State) -> FastWeightState:
        return (
            FastWeightState(final, None) if self.attn_norm == "none" else FastWeightState(*final)
        )

    def _scaled(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        y = y.to(dtype)
        return y if self.config.scale == 1.0 else y * self.config.scale


def split_last(x: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    """Split along the last dimension, in the order in which ``x`` lies in memory.

    The gradient is then put together in that order too: one copy, and none where a view of
    fairseq's ``(T, N, C)`` goes back to it.
    """
    if torch.compiler.is_compiling():  # which lays gradients out itself, and sorts no symbols
        return x.split(sizes, -1)
    order = sorted(range(x.dim() - 1), key=lambda dim: -x.stride(dim)) + [x.dim() - 1]
    back = [order.index(dim) for dim in range(x.dim())]
    return tuple(part.permute(back) for part in x.permute(order).split(sizes, -1))
