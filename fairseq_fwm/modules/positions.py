"""Positions of the published language models: sinusoids, counted from the end."""

import sys

import torch
from torch import Tensor, nn


class ReversedSinusoids(nn.Module):
    """Sinusoids ``[sin, cos]`` (not interleaved) of the distance to the end of the segment.

    The last token of a segment always has position 0, so the same token moves by one position
    with every token that is appended: there is no decoding token by token.

    Args:
        dim: D, an even number.
        padding_idx: index of padding, which counts for nothing.

    Source: arXiv 2102.11174, Sec. 6.3 (the setting of Transformer-XL's absolute baseline).

    Raises:
        ValueError: if ``dim`` is odd.
    """

    max_positions = sys.maxsize

    def __init__(self, dim: int, padding_idx: int) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"reversed sinusoids need an even number of dimensions, found {dim}")
        self.padding_idx = padding_idx
        frequencies = 10000 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        self.register_buffer("frequencies", frequencies.float(), persistent=False)

    def forward(self, tokens: Tensor, incremental_state: dict | None = None) -> Tensor:
        """Return the encodings of ``(N, T)`` tokens, ``(N, T, D)`` or ``(1, T, D)``.

        Raises:
            ValueError: while decoding token by token.
        """
        if incremental_state is not None:
            raise ValueError(
                "reversed positions move with every new token, so decoding cannot go token by "
                "token: recompute the window (scripts/sample_lm.py does), or train with "
                "--no-token-positional-embeddings"
            )
        real = tokens.ne(self.padding_idx)
        lengths = real.shape[1] if bool(real.all()) else real.sum(1, keepdim=True)
        steps = torch.arange(real.shape[1], device=tokens.device)
        left = (lengths - 1 - steps.unsqueeze(0)).clamp(min=0)
        angles = left.unsqueeze(-1) * self.frequencies
        return torch.cat((angles.sin(), angles.cos()), -1)
