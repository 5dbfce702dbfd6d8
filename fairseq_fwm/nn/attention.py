"""Multi-head fast weight attention, batch first."""

from typing import Any

import torch
from torch import Tensor, nn

from fairseq_fwm.mixers import FastWeightConfig, build_mixer
from fairseq_fwm.mixers.base import State

NO_STATE = "attention that is not causal has no state to go on from"


class FastWeightAttention(nn.Module):
    """Multi-head attention whose memory is a matrix that keys and values write to.

    Any update rule and feature map of :mod:`fairseq_fwm.mixers` (arXiv 2102.11174; Recurrent Delta
    and self-referential weights: arXiv 2106.06295, 2202.05780).

    Args:
        dim: size of the vectors that come in and go out.
        heads: H.
        head_dim: d, size of a head's queries, keys and values; ``dim // heads`` by default.
        rule: ``sum``, ``delta``, ``recurrent_delta`` or ``srwm``.
        feature_map: ``dpfp``, ``elu``, ``favor``, ...; the recurrent rules have softmax features.
        causal: position t sees positions up to t; otherwise all of them (``sum`` and ``delta``).
        bias: give the input projection a bias.
        out_bias: give the output projection a bias.
        dropout: of the output, while training.
        options: further fields of :class:`fairseq_fwm.mixers.FastWeightConfig`: ``nu``, ``m``,
            ``sum_norm``, ``attn_norm``, ``scale``, ``impl``, ...

    Raises:
        ValueError: ``heads`` does not divide ``dim``, or the combination makes no sense, with
            the reason.

    >>> attention = FastWeightAttention(64, heads=4, rule="delta", feature_map="dpfp")
    >>> x = torch.randn(2, 10, 64)
    >>> attention(x).shape
    torch.Size([2, 10, 64])

    A text in segments, and token by token, goes on from a state of fixed size:

    >>> y, state = attention(x[:, :6], return_state=True)
    >>> y_6, state = attention.step(x[:, 6], state)
    >>> torch.allclose(y_6, attention(x)[:, 6], atol=1e-5)
    True
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        head_dim: int | None = None,
        rule: str = "delta",
        feature_map: str = "dpfp",
        *,
        causal: bool = True,
        bias: bool = False,
        out_bias: bool = True,
        dropout: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__()
        if head_dim is None and dim % heads:
            raise ValueError(f"dim {dim} is not divisible by heads {heads}: give head_dim")
        self.heads, self.causal = heads, causal
        config = FastWeightConfig(rule, feature_map, **options)
        site = "decoder_self" if causal else "encoder_self"
        self.mixer = build_mixer(head_dim or dim // heads, heads, config, site)
        self.in_proj = nn.Linear(dim, heads * self.mixer.projection_size, bias)
        self.out_proj = nn.Linear(heads * self.mixer.value_dim, dim, out_bias)
        self.dropout = nn.Dropout(dropout)

    def init_state(self, batch: int) -> State:
        """Return the state of an empty memory: a named tuple of ``(N, H, ...)`` tensors."""
        weight = self.in_proj.weight
        dtype = torch.float64 if weight.dtype is torch.float64 else torch.float32
        return self.mixer.init_state(batch, self.heads, device=weight.device, dtype=dtype)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        mask: Tensor | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, State]:
        """Process a sequence.

        Args:
            x: ``(N, T, dim)``.
            state: go on from it; ``None`` is an empty memory. Receives a gradient.
            mask: ``(N, T)`` bool, False at padding, which writes nothing.
            return_state: return the state after the last position, too.

        Returns:
            ``(N, T, dim)``; with ``return_state`` that and the state.

        Raises:
            ValueError: a state where attention is not causal, or one that is none; an input of
                another shape.
        """
        if x.dim() != 3:
            raise ValueError(f"x must have shape (N, T, dim); found {tuple(x.shape)}")
        self._check_state(state)
        projected = self._to_heads(self.in_proj(x))
        if not self.causal:
            if return_state:
                raise ValueError(NO_STATE)
            return self._from_heads(self.mixer.forward_noncausal(projected, mask))
        y, state = self.mixer(projected, state, mask, output_final_state=return_state)
        y = self._from_heads(y)
        return (y, state) if return_state else y

    def step(
        self, x: Tensor, state: State | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Process one position.

        Args:
            x: ``(N, dim)``.
            state: as in :meth:`forward`; not changed.
            mask: ``(N,)`` bool, False where nothing is written.

        Returns:
            ``(N, dim)`` and the new state.

        Raises:
            ValueError: as in :meth:`forward`.
        """
        if not self.causal:
            raise ValueError(NO_STATE)
        if x.dim() != 2:
            raise ValueError(f"a step takes x of shape (N, dim); found {tuple(x.shape)}")
        self._check_state(state)
        state = self.init_state(len(x)) if state is None else state
        projected = self.in_proj(x).unflatten(-1, (self.heads, -1))
        y, state = self.mixer.step(projected, state, mask)
        return self.dropout(self.out_proj(y.flatten(-2))), state

    def _check_state(self, state: Any) -> None:
        if state is None:
            return
        if not self.causal:
            raise ValueError(NO_STATE)
        if not isinstance(state, self.mixer.state_type):
            raise ValueError(
                f"a state is what init_state and return_state give, a "
                f"{self.mixer.state_type.__name__}; found a {type(state).__name__}"
            )

    def _to_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _from_heads(self, y: Tensor) -> Tensor:
        return self.dropout(self.out_proj(y.transpose(1, 2).flatten(-2)))
