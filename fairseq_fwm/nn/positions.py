"""Positions: those of the published language models, and fairseq's."""

import math
import sys

import torch
from torch import Tensor, nn


class Sinusoids(nn.Module):
    """Sinusoids ``[sin, cos]`` (not interleaved) of given positions.

    Args:
        dim: D, an even number.

    Raises:
        ValueError: if ``dim`` is odd.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"sinusoids need an even number of dimensions, found {dim}")
        self.dim = dim

    def forward(self, positions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the encodings of positions, ``(...)`` -> ``(..., D)``."""
        # No buffer: in a model of half precision it would round the angles.
        exact = torch.promote_types(dtype, torch.float32)
        evens = torch.arange(0, self.dim, 2, dtype=torch.float64, device=positions.device)
        angles = positions.unsqueeze(-1) * (10000 ** (-evens / self.dim)).to(exact)
        return torch.cat((angles.sin(), angles.cos()), -1).to(dtype)


class ReversedSinusoids(Sinusoids):
    """Sinusoids of the distance to the end of the segment.

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
        super().__init__(dim)
        self.padding_idx = padding_idx

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
        return super().forward(left)


def count_from_start(tokens: Tensor, padding_idx: int, seen: int = 0) -> Tensor:
    """Return fairseq's positions of tokens: they begin behind the index of padding.

    Args:
        tokens: ``(N, T)``.
        padding_idx: index of padding, which counts for nothing and whose position it is.
        seen: how many tokens came before.

    Returns:
        ``(N, T)``.
    """
    real = tokens.ne(padding_idx)
    return torch.where(real, real.cumsum(1) + seen, 0) + padding_idx


class ForwardSinusoids(nn.Module):
    """fairseq's sinusoids, counted from the beginning: ``[sin, cos]``, zeros at padding.

    Their frequencies are not :class:`Sinusoids`': they go down to 1/10000 itself.

    Args:
        dim: D.
        padding_idx: index of padding.
    """

    def __init__(self, dim: int, padding_idx: int) -> None:
        super().__init__()
        self.dim, self.padding_idx = dim, padding_idx

    def forward(self, tokens: Tensor, seen: int = 0) -> Tensor:
        """Return the encodings ``(N, T, D)`` of ``(N, T)`` tokens after ``seen`` others."""
        half = self.dim // 2
        steps = torch.arange(half, dtype=torch.float, device=tokens.device)
        frequencies = torch.exp(steps * -(math.log(10000) / (half - 1)))
        angles = count_from_start(tokens, self.padding_idx, seen).unsqueeze(-1) * frequencies
        encodings = torch.cat((angles.sin(), angles.cos()), -1)
        encodings = torch.where(tokens.eq(self.padding_idx).unsqueeze(-1), 0.0, encodings)
        return nn.functional.pad(encodings, (0, self.dim % 2))


class LearnedPositions(nn.Embedding):
    """fairseq's learned positions: a vector for each, up to a greatest length.

    Args:
        positions: greatest length.
        dim: D.
        padding_idx: index of padding.
    """

    def __init__(self, positions: int, dim: int, padding_idx: int) -> None:
        super().__init__(positions + padding_idx + 1, dim, padding_idx)

    def forward(self, tokens: Tensor, seen: int = 0) -> Tensor:
        """Return the vectors ``(N, T, D)`` of ``(N, T)`` tokens after ``seen`` others.

        Raises:
            ValueError: if the text is too long.
        """
        longest = self.num_embeddings - self.padding_idx - 1
        if seen + tokens.shape[1] > longest:
            raise ValueError(
                f"{seen + tokens.shape[1]} tokens, but positions were learned for {longest}: "
                "give a shorter text"
            )
        return super().forward(count_from_start(tokens, self.padding_idx, seen))
