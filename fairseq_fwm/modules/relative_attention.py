"""Softmax attention over a segment and a memory, by relative positions (Transformer-XL)."""

import torch
from fairseq.modules.fairseq_dropout import FairseqDropout
from torch import Tensor, nn

from fairseq_fwm.modules.shared_source import IncrementalState
from fairseq_fwm.modules.surface import FairseqAttention, is_causal
from fairseq_fwm.nn.positions import Sinusoids

MEMORY = "memory"
"""Key in the state: the last inputs, ``(N, M, C)``."""


class RelativeAttention(FairseqAttention):
    """Causal self-attention that also sees the inputs of the segments before.

    The score of query i and key j is ``((q_i + u) . k_j + (q_i + w) . r_{i-j}) / sqrt(d)`` with
    ``r`` projected from sinusoids of the distance. Nothing has a bias but u and w.

    Args:
        embed_dim: C, an even number.
        num_heads: H, which must divide C.
        mem_len: how many inputs are remembered in training.
        eval_mem_len: the same in evaluation.
        dropout: on the attention weights.
        position_dropout: on the sinusoids.
        q_noise: quantisation noise on the projections, as in fairseq.
        qn_block_size: block size of that noise.

    Source: arXiv 1901.02860, Sec. 3.3.

    Raises:
        ValueError: if H does not divide C, C is odd or a memory is negative.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mem_len: int,
        eval_mem_len: int,
        dropout: float = 0.0,
        position_dropout: float = 0.0,
        q_noise: float = 0.0,
        qn_block_size: int = 8,
    ) -> None:
        super().__init__(embed_dim, num_heads, q_noise, qn_block_size, bias=False)
        if min(mem_len, eval_mem_len) < 0:
            raise ValueError(
                f"a memory cannot have {min(mem_len, eval_mem_len)} positions (--mem-len, "
                "--eval-mem-len)"
            )
        self.mem_len, self.eval_mem_len = mem_len, eval_mem_len
        name = type(self).__name__
        self.dropout_module = FairseqDropout(dropout, module_name=name)
        self.position_dropout_module = FairseqDropout(position_dropout, module_name=name)
        self.sinusoids = Sinusoids(embed_dim)
        self.q_proj = self._linear(embed_dim, embed_dim)
        self.kv_proj = self._linear(embed_dim, 2 * embed_dim)
        self.r_proj = self._linear(embed_dim, embed_dim)
        for projection in (self.q_proj, self.kv_proj, self.r_proj):
            self._init_projection(projection, embed_dim)
        self.content_bias = nn.Parameter(torch.zeros(num_heads, 1, self.head_dim))
        self.position_bias = nn.Parameter(torch.zeros(num_heads, 1, self.head_dim))
        self.out_proj = self._build_out_proj(embed_dim)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        incremental_state: IncrementalState | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Attend.

        Args:
            query: ``(T, N, C)``.
            key, value: ignored: self-attention.
            key_padding_mask: ``(N, T)``, True at padding, which nobody sees.
            incremental_state: fairseq's; the memory is taken from it and left there.
            need_weights: without effect.
            attn_mask: fairseq's causal mask; not needed with ``incremental_state``.

        Returns:
            ``(T, N, C)`` and ``None`` in place of attention weights.

        Raises:
            ValueError: for any other mask, and for padding that would be remembered.
        """
        self._check(query.shape[0], key_padding_mask, incremental_state, attn_mask)
        memory = self._get_input_buffer(incremental_state).get(MEMORY)
        context = query if memory is None else torch.cat((memory.transpose(0, 1), query))
        if incremental_state is not None:
            self._set_input_buffer(incremental_state, {MEMORY: self._remember(context)})
        q = self._to_heads(self.q_proj(query))
        k, v = self._to_heads(self.kv_proj(context)).chunk(2, -1)
        scores = self._scores(q, k).masked_fill(hidden(q, k, key_padding_mask), -torch.inf)
        weights = self.dropout_module(scores.softmax(-1))
        return self._from_heads(weights @ v), None

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        distances = torch.arange(k.shape[2] - 1, -2, -1, device=q.device)
        encodings = self.sinusoids(distances, self.r_proj.weight.dtype)
        encodings = self.position_dropout_module(encodings)
        r = self._to_heads(self.r_proj(encodings.unsqueeze(1))).squeeze(0)
        scale = self.head_dim**-0.5
        content = scale * (q + self.content_bias) @ k.transpose(2, 3)
        position = torch.einsum("nhtd,hsd->nhts", scale * (q + self.position_bias), r)
        return content + by_key(position)

    def _remember(self, context: Tensor) -> Tensor:
        size = self.mem_len if self.training else self.eval_mem_len
        last = context[max(0, context.shape[0] - size) :]
        return last.detach().transpose(0, 1).contiguous()

    def _check(
        self,
        length: int,
        key_padding_mask: Tensor | None,
        incremental_state: IncrementalState | None,
        attn_mask: Tensor | None,
    ) -> None:
        if key_padding_mask is not None and incremental_state is not None:
            raise ValueError(
                "a memory holds no padding: feed segments without any (the streaming task does), "
                "or a batch of one stream"
            )
        if attn_mask is None:
            causal = incremental_state is not None or length == 1
        else:
            causal = is_causal(attn_mask, length)
        if not causal:
            raise ValueError(
                "relative attention is causal: it takes fairseq's causal mask and no other, and "
                "cannot see the full context (full_context_alignment)"
            )

    def reorder_incremental_state(
        self, incremental_state: IncrementalState, new_order: Tensor
    ) -> IncrementalState:
        """Let the memory follow the beam."""
        buffer = self._get_input_buffer(incremental_state)
        reordered = {name: x.index_select(0, new_order) for name, x in buffer.items()}
        self._set_input_buffer(incremental_state, reordered)
        return incremental_state


def by_key(scores: Tensor) -> Tensor:
    """Turn scores by distance into scores by key; a view.

    Args:
        scores: ``(..., T, S + 1)``; column p is for the distance S - 1 - p, so that the last one
            (-1) is for nobody.

    Returns:
        ``(..., T, S)``: query i and key j have the distance S - T + i - j. Keys that come later
        than their query have scores without a meaning.
    """
    t, s = scores.shape[-2], scores.shape[-1] - 1
    # Row i's keys begin at column T - 1 - i, one further left with every row: rows of S + 1 that
    # are read as rows of S move just so.
    return scores.flatten(-2)[..., t - 1 : t - 1 + t * s].unflatten(-1, (t, s))


def hidden(q: Tensor, k: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """Return which keys a query must not see, as a mask that broadcasts to ``(N, H, T, S)``.

    Args:
        q: ``(N, H, T, d)``.
        k: ``(N, H, S, d)``, of which the last T are at the queries' positions.
        key_padding_mask: ``(N, S)`` for S = T, True at padding, or ``None``.
    """
    t, s = q.shape[2], k.shape[2]
    future = torch.ones(t, s, dtype=torch.bool, device=q.device).triu(s - t + 1)
    if key_padding_mask is None:
        return future
    # Padding sees itself: attention to nothing would be NaN.
    itself = torch.eye(t, dtype=torch.bool, device=q.device)
    return future | (key_padding_mask[:, None, None].bool() & ~itself)
