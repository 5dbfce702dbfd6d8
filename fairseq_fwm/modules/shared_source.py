"""What a beam search need not repeat: all hypotheses of a sentence read the same source.

fairseq repeats the encoder's output for every hypothesis, moves all of it in every step, and lets
softmax cross-attention keep keys and values once per hypothesis. Here the repeated output carries
the width of the beam, from which cross-attention takes one row per sentence.
"""

from typing import Any

import torch
from fairseq.modules import MultiheadAttention
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

EncoderOut = dict[str, list[Tensor]]
IncrementalState = dict[str, dict[str, Tensor | None]]

BEAM = "beam"
"""Key in the encoder's output and in the incremental state: hypotheses per sentence."""


def beam_of(output: EncoderOut) -> int:
    """Return how many consecutive rows of an encoder's output are one sentence's."""
    return int(output[BEAM][0]) if BEAM in output else 1


def beam_after(output: EncoderOut, new_order: Tensor) -> int:
    """Return how many consecutive rows of a reordered output will be one sentence's.

    Args:
        output: the encoder's output before.
        new_order: row i becomes row ``new_order[i]``.
    """
    rows = output["encoder_out"][0].shape[1]
    before, after = beam_of(output), len(new_order)
    if before > 1:
        sentences = torch.div(new_order, before, rounding_mode="floor")
        whole = after % before == 0 and bool((sentences.view(-1, before).diff() == 0).all())
        return before if whole else 1
    beam = after // rows if rows and after % rows == 0 else 1
    repeated = torch.arange(rows, device=new_order.device).repeat_interleave(beam)
    return beam if beam > 1 and torch.equal(new_order, repeated) else 1


def stays(output: EncoderOut, new_order: Tensor) -> bool:
    """Return whether reordering leaves an output as it is: rows move within their sentences."""
    beam, rows = beam_of(output), output["encoder_out"][0].shape[1]
    if beam == 1 or len(new_order) != rows:
        return False
    sentences = torch.div(new_order, beam, rounding_mode="floor")
    return torch.equal(sentences, torch.arange(rows, device=new_order.device) // beam)


def per_sentence(output: EncoderOut) -> EncoderOut:
    """Return an output with one row per sentence; views, nothing is copied."""
    beam = beam_of(output)
    if beam == 1:
        return output
    return {
        **output,
        "encoder_out": [x[:, ::beam] for x in output["encoder_out"]],
        "encoder_padding_mask": [x[::beam] for x in output["encoder_padding_mask"]],
    }


def follow_beam(buffer: dict[str, Tensor | None], new_order: Tensor) -> dict[str, Tensor | None]:
    """Reorder a state that has one row per sentence.

    While no sentence leaves the batch, rows move among hypotheses of one source: nothing to copy.

    Args:
        buffer: the state, batch-first, and under ``BEAM`` the hypotheses per sentence.
        new_order: row i of the hypotheses becomes row ``new_order[i]``.
    """
    beam = int(buffer[BEAM])
    states = {name: x for name, x in buffer.items() if name != BEAM and x is not None}
    if all(x.shape[0] * beam == len(new_order) for x in states.values()):
        return buffer
    sentences = torch.div(new_order[::beam], beam, rounding_mode="floor")
    return {**buffer, **{name: x.index_select(0, sentences) for name, x in states.items()}}


class KeepsSource:
    """Cross-attention whose incremental state has one row per sentence, and ``BEAM``."""

    def reorder_incremental_state(
        self, incremental_state: IncrementalState, new_order: Tensor
    ) -> IncrementalState:
        """Let the state follow the beam: only sentences that leave the batch change it."""
        buffer = self._get_input_buffer(incremental_state)
        if buffer:
            self._set_input_buffer(incremental_state, follow_beam(buffer, new_order))
        return incremental_state


class SharedSourceAttention(KeepsSource, MultiheadAttention):
    """fairseq's softmax cross-attention, which may be given fewer source rows than query rows.

    Query rows ``i * beam .. (i + 1) * beam - 1`` then read source row i.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        key_padding_mask: Tensor | None = None,
        incremental_state: IncrementalState | None = None,
        need_weights: bool = True,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend to the source; see fairseq's class."""
        buffer = self._get_input_buffer(incremental_state) if incremental_state else {}
        if "prev_key" in buffer and not need_weights and self._only_reads(**options):
            return self._read(query, buffer), None
        result = super().forward(
            *(query, key, value, key_padding_mask, incremental_state, need_weights), **options
        )
        if incremental_state is not None:
            buffer = self._get_input_buffer(incremental_state)
            buffer[BEAM] = torch.tensor(query.shape[1] // buffer["prev_key"].shape[0])
        return result

    def _only_reads(
        self,
        static_kv: bool = False,
        attn_mask: Tensor | None = None,
        before_softmax: bool = False,
        need_head_weights: bool = False,
    ) -> bool:
        drops = self.training or self.dropout_module.apply_during_inference
        special = before_softmax or need_head_weights or attn_mask is not None
        return static_kv and not special and not (drops and self.dropout_module.p)

    def _read(self, query: Tensor, buffer: dict[str, Tensor | None]) -> Tensor:
        """Attend to the keys and values of the state, ``(N, H, S, d)``."""
        k, v, padding = (buffer["prev_" + x] for x in ("key", "value", "key_padding_mask"))
        n, h, _, d = k.shape
        t, rows, c = query.shape
        q = self.q_proj(query).view(t, n, -1, h, d).permute(1, 3, 2, 0, 4)
        # No order among the queries: the hypotheses are as good as further positions.
        y = scaled_dot_product_attention(
            *(q.flatten(2, 3), k, v),
            attn_mask=None if padding is None else ~padding.bool()[:, None, None],
            scale=self.scaling,
        )
        y = y.view(n, h, -1, t, d).permute(3, 0, 2, 1, 4)
        return self.out_proj(y.reshape(t, rows, c))
