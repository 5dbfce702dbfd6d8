"""The contract of a token mixer: what modules, models and tasks know of it."""

from typing import NamedTuple, Optional

import torch
from torch import Tensor, nn


class Mixer(nn.Module):
    """A causal map over time with a state of fixed size, one per head.

    A slow network outside (a linear layer) emits ``projection_size`` numbers per head and
    position; the mixer turns them into ``value_dim`` numbers. Its state is a ``NamedTuple`` of
    batch-first tensors, so that a beam can be reordered by indexing.

    Attributes:
        projection_size: how many numbers per head the slow network must emit.
        value_dim: how many numbers per head the mixer returns.
    """

    projection_size: int
    value_dim: int

    def init_state(
        self, batch: int, num_heads: int, *, device: torch.device, dtype: torch.dtype
    ) -> NamedTuple:
        """Return the state before the first step.

        Args:
            batch: N.
            num_heads: H.
            device: where.
            dtype: accumulation dtype, fp32 or fp64.
        """
        raise NotImplementedError

    def forward(
        self,
        projected: Tensor,
        state: Optional[NamedTuple] = None,
        mask: Tensor | None = None,
        output_final_state: bool = False,
    ) -> tuple[Tensor, Optional[NamedTuple]]:
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
        self, projected: Tensor, state: NamedTuple, mask: Tensor | None = None
    ) -> tuple[Tensor, NamedTuple]:
        """Process one position.

        Args:
            projected: ``(N, H, projection_size)``.
            state: state to go on from.
            mask: ``(N,)`` bool, True where the row writes.

        Returns:
            y ``(N, H, value_dim)`` in the dtype of ``projected`` and the new state.
        """
        raise NotImplementedError
