"""A transformer of fast weight attention layers, batch first."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from fairseq_fwm.mixers.base import State
from fairseq_fwm.nn.attention import FastWeightAttention

States = tuple[State, ...]
"""One state per layer."""


class FastWeightBlock(nn.Module):
    """Attention and a feed-forward network, each with a residual connection.

    Args:
        attention: what mixes positions.
        dim: size of the vectors.
        ff_dim: width of the feed-forward network.
        dropout: after the activation, while training.
        pre_norm: layer normalisation before each part; otherwise behind it, on its output.
    """

    def __init__(
        self,
        attention: nn.Module,
        dim: int,
        ff_dim: int,
        dropout: float = 0.0,
        pre_norm: bool = True,
    ) -> None:
        super().__init__()
        self.attention, self.pre_norm = attention, pre_norm
        self.attention_norm, self.ff_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.ff = nn.Sequential(
            nn.Linear(dim, ff_dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(ff_dim, dim)
        )

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
            state: of the attention, to go on from; ``None`` is an empty memory.
            mask: ``(N, T)`` bool, False at padding.
            return_state: return the state after the last position, too.

        Returns:
            ``(N, T, dim)``; with ``return_state`` that and the state.
        """
        y = self.attention(self._before(self.attention_norm, x), state, mask, return_state)
        y, state = y if return_state else (y, None)
        x = self._feed_forward(x + self._behind(self.attention_norm, y))
        return (x, state) if return_state else x

    def step(self, x: Tensor, state: State, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """Process one position.

        Args:
            x: ``(N, dim)``.
            state: of the attention; not changed.
            mask: ``(N,)`` bool, False where nothing is written.

        Returns:
            ``(N, dim)`` and the new state.
        """
        y, state = self.attention.step(self._before(self.attention_norm, x), state, mask)
        return self._feed_forward(x + self._behind(self.attention_norm, y)), state

    def _feed_forward(self, x: Tensor) -> Tensor:
        return x + self._behind(self.ff_norm, self.ff(self._before(self.ff_norm, x)))

    def _before(self, norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x) if self.pre_norm else x

    def _behind(self, norm: nn.Module, x: Tensor) -> Tensor:
        return x if self.pre_norm else norm(x)


def check_number(blocks: Sequence[nn.Module], states: Sequence[State] | None) -> None:
    """Refuse states that are not one for every block.

    Raises:
        ValueError: with both numbers.
    """
    if states is not None and len(states) != len(blocks):
        raise ValueError(f"{len(blocks)} layers go on from as many states; found {len(states)}")


def run_blocks(
    blocks: Iterable[nn.Module],
    x: Tensor,
    states: Sequence[State] | None = None,
    mask: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, States]:
    """Process a sequence by one block after the other; see :class:`FastWeightTransformer`.

    Raises:
        ValueError: there is not one state for every block.
    """
    blocks, after = list(blocks), []
    check_number(blocks, states)
    for i, block in enumerate(blocks):
        x = block(x, None if states is None else states[i], mask, return_state)
        if return_state:
            x, state = x
            after.append(state)
    return (x, tuple(after)) if return_state else x


class FastWeightTransformer(nn.Module):
    """Layers of :class:`FastWeightAttention` and feed-forward networks on vectors.

    Args:
        dim: size of the vectors that come in and go out.
        depth: number of layers.
        ff_mult: width of the feed-forward networks over ``dim``.
        dropout: in attention and feed-forward networks.
        pre_norm: see :class:`FastWeightBlock`.
        attention: further arguments of :class:`FastWeightAttention`: ``heads``, ``rule``,
            ``feature_map``, ``causal``, ...

    Raises:
        ValueError: see :class:`FastWeightAttention`.

    >>> import torch
    >>> model = FastWeightTransformer(32, depth=2, heads=4, rule="sum", feature_map="elu")
    >>> x = torch.randn(3, 7, 32)
    >>> y, states = model(x, return_state=True)
    >>> y.shape, len(states)
    (torch.Size([3, 7, 32]), 2)
    >>> next_y, states = model.step(torch.randn(3, 32), states)
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        *,
        ff_mult: int = 4,
        dropout: float = 0.0,
        pre_norm: bool = True,
        **attention: Any,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            FastWeightBlock(
                FastWeightAttention(dim, dropout=dropout, **attention),
                *(dim, ff_mult * dim, dropout, pre_norm),
            )
            for _ in range(depth)
        )

    def init_state(self, batch: int) -> States:
        """Return the states of empty memories, each a named tuple of ``(N, H, ...)`` tensors."""
        return tuple(layer.attention.init_state(batch) for layer in self.layers)

    def forward(
        self,
        x: Tensor,
        states: States | None = None,
        mask: Tensor | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, States]:
        """Process a sequence.

        Args:
            x: ``(N, T, dim)``.
            states: one per layer to go on from; ``None``: empty memories.
            mask: ``(N, T)`` bool, False at padding.
            return_state: return the states after the last position, too.

        Returns:
            ``(N, T, dim)``; with ``return_state`` that and the states.

        Raises:
            ValueError: there is not one state for every layer.
        """
        return run_blocks(self.layers, x, states, mask, return_state)

    def step(
        self, x: Tensor, states: States | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, States]:
        """Process one position.

        Args:
            x: ``(N, dim)``.
            states: as in :meth:`forward`; not changed.
            mask: ``(N,)`` bool, False where nothing is written.

        Returns:
            ``(N, dim)`` and the new states.

        Raises:
            ValueError: there is not one state for every layer.
        """
        after = []
        check_number(self.layers, states)
        states = self.init_state(len(x)) if states is None else states
        for layer, state in zip(self.layers, states, strict=True):
            x, state = layer.step(x, state, mask)
            after.append(state)
        return x, tuple(after)
