"""The contract of a token mixer: what modules, models and tasks know of it."""

import torch
from torch import Tensor, nn

State = tuple[Tensor | None, ...]
"""A ``NamedTuple`` of batch-first tensors, or ``None`` for one that the variant does not need."""


class Mixer(nn.Module):
    """A causal map over time with a state of fixed size, one per head.

    A slow network outside (a linear layer) emits ``projection_size`` numbers per head and
    position; the mixer turns them into ``value_dim`` numbers. Its state is a ``NamedTuple`` of
    batch-first tensors, so that a beam can be reordered by indexing.

    Attributes:
        projection_size: how many numbers per head the slow network must emit.
        value_dim: how many numbers per head the mixer returns.
        state_type: the class of its state.
    """

    projection_size: int
    value_dim: int
    state_type: type[State]

    def init_state(
        self, batch: int, num_heads: int, *, device: torch.device, dtype: torch.dtype
    ) -> State:
        """Return the state before the first step.

        Args:
            batch: N.
            num_heads: H.
            device: where.
            dtype: accumulation dtype, fp32 or fp64.

        Returns:
            a ``state_type`` of ``(N, H, ...)`` tensors.
        """
        raise NotImplementedError

    def forward(
        self,
        projected: Tensor,
        state: State | None = None,
        mask: Tensor | None = None,
        output_final_state: bool = False,
    ) -> tuple[Tensor, State | None]:
        """Process a sequence.

        Args:
            projected: ``(N, H, T, projection_size)``.
            state: state to go on from; ``None`` is the initial state.
            mask: ``(N, T)`` bool, True where a position writes.
            output_final_state: return the state after the last step.

        Returns:
            y ``(N, H, T, value_dim)`` in the dtype of ``projected``; the final state or ``None``.
        """
        raise NotImplementedError

    def step(
        self,
        projected: Tensor,
        state: State,
        mask: Tensor | None = None,
        rows: Tensor | None = None,
        in_place: bool = False,
    ) -> tuple[Tensor, State]:
        """Process one position.

        Args:
            projected: ``(N, H, projection_size)``.
            state: state to go on from.
            mask: ``(N,)`` bool, True where the row writes.
            rows: ``(N,)`` integers: row i goes on from row ``rows[i]`` of the state.
            in_place: the given state may be overwritten, which saves its copy.

        Returns:
            y ``(N, H, value_dim)`` in the dtype of ``projected`` and the new state.
        """
        raise NotImplementedError

    def forward_noncausal(self, projected: Tensor, mask: Tensor | None = None) -> Tensor:
        """Process a sequence in which every position sees all others (encoder self-attention).

        Args:
            projected: ``(N, H, T, projection_size)``.
            mask: ``(N, T)`` bool, True where a position writes.

        Returns:
            y ``(N, H, T, value_dim)``.
        """
        raise NotImplementedError

    def write(self, projected: Tensor, mask: Tensor | None = None) -> State:
        """Write a whole source for :meth:`read` (cross-attention).

        Args:
            projected: k | v, ``(N, H, T, 2d)``.
            mask: ``(N, T)`` bool, True where a position writes.

        Returns:
            the state, a ``state_type`` of ``(N, H, ...)`` tensors.
        """
        raise NotImplementedError

    def read(self, projected: Tensor, state: State) -> Tensor:
        """Read what :meth:`write` left.

        Args:
            projected: queries ``(N, H, T, d)``.
            state: what was written.

        Returns:
            y ``(N, H, T, value_dim)``.
        """
        raise NotImplementedError
