"""Mixers behind the surface of fairseq's ``MultiheadAttention``.

The layers of fairseq's transformer use them without knowing.
"""

import torch
from torch import Tensor

from fairseq_fwm.mixers.base import Mixer, State
from fairseq_fwm.modules.shared_source import BEAM, IncrementalState, KeepsSource
from fairseq_fwm.modules.surface import FairseqAttention, is_causal

ROWS = "rows"
"""Key beside the state's fields: the order that the beam has asked for since the last step."""


class MixerAttention(FairseqAttention):
    """What self- and cross-attention share.

    The incremental state holds the fast weights.

    Args:
        embed_dim: C, size of the queries' vectors.
        num_heads: H, which must divide C.
        mixer: a mixer for heads of size C / H.
        q_noise: quantisation noise on the projections, as in fairseq.
        qn_block_size: block size of that noise.
        bias: give the projections biases.

    Raises:
        ValueError: if H does not divide C.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mixer: Mixer,
        q_noise: float = 0.0,
        qn_block_size: int = 8,
        bias: bool = True,
    ) -> None:
        super().__init__(embed_dim, num_heads, q_noise, qn_block_size, bias)
        self.mixer = mixer
        self.out_proj = self._build_out_proj(num_heads * mixer.value_dim)

    def _load_state(self, incremental_state: IncrementalState) -> State | None:
        buffer = self._get_input_buffer(incremental_state)
        if not buffer:
            return None
        return self.mixer.state_type(*map(buffer.get, self.mixer.state_type._fields))

    def _save_state(self, incremental_state: IncrementalState, state: State) -> None:
        buffer = {name: x for name, x in state._asdict().items() if x is not None}
        self._set_input_buffer(incremental_state, buffer)


class FastWeightSelfAttention(MixerAttention):
    """Self-attention through a mixer; one fused projection, laid out per head.

    Args:
        causal: decoder self-attention (True) or encoder self-attention (False).
        embed_dim, num_heads, mixer, q_noise, qn_block_size, bias: see
            :class:`MixerAttention`.
    """

    def __init__(self, *args, causal: bool, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.causal = causal
        outputs = self.num_heads * self.mixer.projection_size
        self.in_proj = self._linear(self.embed_dim, outputs)
        self._init_projection(self.in_proj, self.embed_dim)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        incremental_state: IncrementalState | None = None,
        need_weights: bool = False,
        static_kv: bool = False,
        attn_mask: Tensor | None = None,
        before_softmax: bool = False,
        need_head_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            query: ``(T, N, C)``.
            key, value: ignored: self-attention.
            key_padding_mask: ``(N, T)``, True at padding, which writes nothing.
            incremental_state: fairseq's; the fast weights go on from what is in it.
            attn_mask: causal for a causal site, ``None`` for another.
            need_weights, need_head_weights, static_kv, before_softmax: without effect (fairseq's
                decoder asks its last layer for weights whether anyone wants them or not).

        Returns:
            ``(T, N, C)`` and ``None`` in place of attention weights.

        Raises:
            ValueError: for a mask that is not causal.
        """
        self._check_mask(attn_mask, query.shape[0], incremental_state)
        mask = None if key_padding_mask is None else ~key_padding_mask.bool()
        projected = self._to_heads(self.in_proj(query))
        if not self.causal:
            y = self.mixer.forward_noncausal(projected, mask)
        elif incremental_state is None:
            y, _ = self.mixer(projected, None, mask)
        else:
            y = self._continue(projected, mask, incremental_state)
        return self._from_heads(y), None

    def _continue(
        self, projected: Tensor, mask: Tensor | None, incremental_state: IncrementalState
    ) -> Tensor:
        state = self._load_state(incremental_state)
        rows = self._get_input_buffer(incremental_state).get(ROWS)
        if projected.shape[2] == 1 and state is not None:
            row_mask = None if mask is None else mask[:, -1]
            # Nobody else holds the state while no gradient is asked for.
            in_place = not torch.is_grad_enabled()
            y, state = self.mixer.step(projected.squeeze(2), state, row_mask, rows, in_place)
            y = y.unsqueeze(2)
        else:
            if rows is not None:
                state = type(state)(*(x if x is None else x.index_select(0, rows) for x in state))
            y, state = self.mixer(projected, state, mask, output_final_state=True)
        self._save_state(incremental_state, state)
        return y

    def reorder_incremental_state(
        self, incremental_state: IncrementalState, new_order: Tensor
    ) -> IncrementalState:
        """Let the state follow the beam: the next step reads row ``new_order[i]`` for row i.

        The rows are remembered, not moved: copying a state costs more than a step of the kernel.
        """
        buffer = self._get_input_buffer(incremental_state)
        if buffer:
            rows = buffer.get(ROWS)
            buffer[ROWS] = new_order if rows is None else rows.index_select(0, new_order)
            self._set_input_buffer(incremental_state, buffer)
        return incremental_state

    def _check_mask(
        self,
        attn_mask: Tensor | None,
        length: int,
        incremental_state: IncrementalState | None,
    ) -> None:
        if attn_mask is None:
            if self.causal and incremental_state is None and length > 1:
                raise ValueError(
                    "this fast weight self-attention is causal: it cannot see the full context "
                    "(full_context_alignment); use softmax at this site"
                )
            return
        if not self.causal:
            raise ValueError("non-causal fast weight self-attention takes no attn_mask")
        if not is_causal(attn_mask, length):
            raise ValueError(
                f"fast weight self-attention can only be causal: attn_mask of shape "
                f"{tuple(attn_mask.shape)} is not the ({length}, {length}) causal mask; "
                "use softmax at this site for any other mask"
            )


class FastWeightCrossAttention(KeepsSource, MixerAttention):
    """Cross-attention: the source is written once, then every target position reads it in O(1).

    Args:
        kv_dim: size of the encoder's vectors.
        embed_dim, num_heads, mixer, q_noise, qn_block_size, bias: see
            :class:`MixerAttention`.
    """

    def __init__(self, *args, kv_dim: int, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.q_proj = self._linear(self.embed_dim, self.embed_dim)
        self.kv_proj = self._linear(kv_dim, 2 * self.embed_dim)
        self._init_projection(self.q_proj, self.embed_dim)
        self._init_projection(self.kv_proj, kv_dim)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        incremental_state: IncrementalState | None = None,
        need_weights: bool = False,
        static_kv: bool = False,
        attn_mask: Tensor | None = None,
        before_softmax: bool = False,
        need_head_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend to the source.

        Args:
            query: ``(T, N, C)``.
            key: encoder output ``(S, N, kv_dim)``; not read once the state holds the source.
                With fewer rows than ``query``, row i is the source of as many consecutive ones.
            value: ignored: the same tensor as ``key``.
            key_padding_mask: ``(N, S)``, True at padding, which writes nothing.
            incremental_state: fairseq's; keeps the written source.
            attn_mask: must be ``None``.
            need_weights, need_head_weights, static_kv, before_softmax: without effect (fairseq's
                decoder asks its last layer for weights whether anyone wants them or not).

        Returns:
            ``(T, N, C)`` and ``None`` in place of attention weights.

        Raises:
            ValueError: if there is a mask other than for padding.
        """
        if attn_mask is not None:
            raise ValueError("fast weight cross-attention takes no attn_mask")
        state = None if incremental_state is None else self._load_state(incremental_state)
        if state is None:
            mask = None if key_padding_mask is None else ~key_padding_mask.bool()
            state = self.mixer.write(self._to_heads(self.kv_proj(key)), mask)
            if incremental_state is not None:
                self._save_state(incremental_state, state)
                buffer = self._get_input_buffer(incremental_state)
                buffer[BEAM] = torch.tensor(query.shape[1] // key.shape[1])
        return self._from_heads(self._read(self._to_heads(self.q_proj(query)), state)), None

    def _read(self, q: Tensor, state: State) -> Tensor:
        """Read for every query row from its sentence's row of the state."""
        rows, h, t, _ = q.shape
        sentences = state[0].shape[0]
        if rows == sentences:
            return self.mixer.read(q, state)
        # Reading knows no order: the hypotheses of a sentence are as good as further positions.
        q = q.unflatten(0, (sentences, -1)).transpose(1, 2).flatten(2, 3)
        y = self.mixer.read(q, state)
        return y.unflatten(2, (-1, t)).transpose(1, 2).reshape(rows, h, t, -1)
