"""The delta rule on DPFP features behind the names and call shapes of ``dpfp-pytorch`` 0.3.

The interface is that package's, the mathematics the paper's (arXiv 2102.11174): position t reads
what was written up to t, on every device; beta is a sigmoid; features are divided by their sum.
"""

import torch
from torch import Tensor, nn

from fairseq_fwm.mixers import FastWeightState
from fairseq_fwm.nn.attention import FastWeightAttention
from fairseq_fwm.nn.transformer import FastWeightBlock, run_blocks
from fairseq_fwm.ops import FeatureSpec, causal_delta_step
from fairseq_fwm.ops.features import check_nu


class DPFPAttention(nn.Module):
    """Multi-head delta rule attention with DPFP features and a memory W that goes in and out.

    Args:
        dim: size of the vectors.
        dim_head: d, of a head.
        heads: H.
        nu: of DPFP; K = 2 nu d.
        dropout: of the output, while training.

    >>> attention = DPFPAttention(128, nu=1)
    >>> x = torch.randn(1, 16, 128)
    >>> W = torch.zeros(attention.get_memory_shape(1))
    >>> x, W = attention(x, W)
    >>> x.shape, W.shape
    (torch.Size([1, 16, 128]), torch.Size([1, 8, 128, 64]))
    """

    def __init__(
        self, dim: int, dim_head: int = 64, heads: int = 8, nu: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.attention = FastWeightAttention(
            dim, heads, dim_head, "delta", "dpfp", dropout=dropout, nu=nu, scale=dim_head**-0.5
        )
        self.memory_shape = (heads, 2 * nu * dim_head, dim_head)

    def get_memory_shape(self, batch_size: int) -> tuple[int, int, int, int]:
        """Return the shape of W: ``(N, H, K, d)``."""
        return batch_size, *self.memory_shape

    def forward(
        self, x: Tensor, W: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Process a sequence.

        Args:
            x: ``(N, T, dim)``.
            W: the memory to go on from, ``(N, H, K, d)``; ``None`` is an empty one.
            mask: ``(N, T)`` bool, False at padding.

        Returns:
            ``(N, T, dim)`` and the memory after the last position, through which gradients flow.
        """
        state = None if W is None else FastWeightState(W, None)
        y, state = self.attention(x, state, mask, return_state=True)
        return y, state.weights


class DPFPCell(nn.Module):
    """One head, one time step: the delta rule on sum-normalised features, and an output layer.

    arXiv 2102.11174, Eqs. 23-25 and 29.

    Args:
        dim: size of the vectors.
        nu: of DPFP; values have K = 2 nu dim numbers too.
        dropout: of the output, while training.

    >>> cell = DPFPCell(128, nu=1)
    >>> W = torch.randn(1, 256, 256)
    >>> x, W = cell(torch.randn(1, 128), W)
    >>> x.shape, W.shape
    (torch.Size([1, 128]), torch.Size([1, 256, 256]))
    """

    def __init__(self, dim: int, nu: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        check_nu(nu, dim)
        inner = 2 * nu * dim
        self.to_q, self.to_k, self.to_v = (
            nn.Linear(dim, dim),
            nn.Linear(dim, dim),
            nn.Linear(dim, inner),
        )
        self.to_beta, self.to_out = nn.Linear(dim, 1), nn.Linear(inner, dim)
        self.dropout = nn.Dropout(dropout)
        self.features = FeatureSpec("dpfp", nu, True)

    def forward(
        self, x: Tensor, W: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Write, then read.

        Args:
            x: ``(N, dim)``.
            W: ``(N, K, K)`` or ``(1, K, K)``; the value v that belongs to a key k is W phi(k).
            context: where keys and values come from, ``(N, dim)``; ``x`` by default.

        Returns:
            ``(N, dim)`` and the new W, ``(N, K, K)``.

        Raises:
            ValueError: W has another shape.
        """
        inner = self.to_out.in_features
        if W.shape not in ((len(x), inner, inner), (1, inner, inner)):
            raise ValueError(
                f"W must be ({len(x)}, {inner}, {inner}) or (1, {inner}, {inner}); found "
                f"{tuple(W.shape)}"
            )
        source = x if context is None else context
        one_head = (
            layer.unsqueeze(1) for layer in (self.to_q(x), self.to_k(source), self.to_v(source))
        )
        state = W.expand(len(x), -1, -1).mT.unsqueeze(1)
        beta = torch.sigmoid(self.to_beta(x))
        y, S = causal_delta_step(*one_head, beta, state, features=self.features)
        return self.dropout(self.to_out(y.squeeze(1))), S.squeeze(1).mT


class DPFPformer(nn.Module):
    """A transformer of delta rule attention with DPFP features.

    Args:
        dim: size of the vectors.
        depth: number of layers.
        dim_head, heads, nu: of every :class:`DPFPAttention`.
        ff_mult: width of the feed-forward networks over ``dim``.
        attn_dropout, ff_dropout: while training.
        pre_norm: layer normalisation before each part; otherwise behind it.

    >>> model = DPFPformer(128, 3, nu=1)
    >>> model(torch.randn(16, 16, 128)).shape
    torch.Size([16, 16, 128])
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        dim_head: int = 64,
        heads: int = 8,
        nu: int = 1,
        ff_mult: int = 4,
        attn_dropout: float = 0.0,
        ff_dropout: float = 0.0,
        pre_norm: bool = True,
    ) -> None:
        super().__init__()
        sizes = (dim, dim_head, heads, nu, attn_dropout)
        self.layers = nn.ModuleList(
            FastWeightBlock(
                DPFPAttention(*sizes).attention, dim, ff_mult * dim, ff_dropout, pre_norm
            )
            for _ in range(depth)
        )
        self.memory_shape = (heads, 2 * nu * dim_head, dim_head)

    def get_memory_shape(self, batch_size: int) -> tuple[int, ...]:
        """Return the shape of W: a memory for every layer, ``(depth, N, H, K, d)``."""
        return len(self.layers), batch_size, *self.memory_shape

    def forward(
        self,
        x: Tensor,
        W: Tensor | None = None,
        mask: Tensor | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Process a sequence.

        Args:
            x: ``(N, T, dim)``.
            W: memories to go on from, ``(depth, N, H, K, d)``; ``None``: empty ones.
            mask: ``(N, T)`` bool, False at padding.
            return_weights: return the memories after the last position, too.

        Returns:
            ``(N, T, dim)``; with ``return_weights`` that and the memories,
            ``(depth, N, H, K, d)``.

        Raises:
            ValueError: W has no memory for every layer.
        """
        states = None if W is None else [FastWeightState(memory, None) for memory in W]
        if not return_weights:
            return run_blocks(self.layers, x, states, mask)
        x, states = run_blocks(self.layers, x, states, mask, return_state=True)
        return x, torch.stack([state.weights for state in states])
