"""What a fast weight memory goes through: how it is written, how full it is, what it forgets.

Numbers to look at, in fp64, one step after the other; ``scripts/inspect_memory.py`` draws them.

With u_t = beta_t (v_t - vbar_t), or v_t of the sum rule, a memory is S_T = sum_t k_t (x) u_t. In
other terms it is S_T = sum_t a_t(T) (x) v_t: what token t wrote, a_t(t) = beta_t k_t, and every
later write of the delta rule takes away what points along its own key,

    a_t(j) = a_t(j-1) - beta_j k_j (k_j . a_t(j-1)).

Reading with the key of token t then gives v_t with the weight k_t . a_t(j). That weight, divided
by what it was when t had just been written, is the *share* of t that is left after write j. What
write j *erased* of t is by how much it made that share smaller: the erasures of a token and the
share left at the end add up to one. The sum rule erases nothing. Division by z.q (attention
normalisation of the output) dilutes what is read of every token alike and is left out of the
share; of the kind ``full``, what is retrieved is divided by z.k, and so is what is erased.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fairseq_fwm.ops.normalization import ATTN_NORM_EPS

__all__ = ["MemoryTrace", "effective_rank", "trace_memory", "trace_mixer"]


class MemoryTrace(NamedTuple):
    """The history of the memories of one sequence's heads; all fp64.

    Attributes:
        beta: write strengths ``(H, T)``; ``None`` of a rule without.
        norm: ``(H, T)``, |S_t|, the Frobenius norm after each write.
        rank: ``(H, T)``, effective rank of S_t, see :func:`effective_rank`.
        retrieved: ``(H, T)``, |vbar_t|: what lay at the key before it was written. The sum rule
            does not look at it; with attention normalisation it is divided by z.k there, as a
            reading would be.
        change: ``(H, T)``, |beta_t (v_t - vbar_t)|, or |v_t| of the sum rule: by how much the
            write changed that.
        erased: ``(H, T, T)``; ``[:, j, i]`` is the share of token i's write that write j erased;
            below zero where j strengthened it; zero for i >= j.
        left: ``(H, T)``, the share of each token's write that is left at the end; one where
            nothing was written.
    """

    beta: Tensor | None
    norm: Tensor
    rank: Tensor
    retrieved: Tensor
    change: Tensor
    erased: Tensor
    left: Tensor


def effective_rank(matrix: Tensor) -> Tensor:
    """Return e to the entropy of the singular values over their sum: (Roy and Vetterli, 2007).

    One for a matrix of rank one, n for n equal singular values, zero for zeros.

    Args:
        matrix: ``(..., K, V)``.

    Returns:
        ``(...)``.
    """
    values = torch.linalg.svdvals(matrix)
    total = values.sum(-1, keepdim=True)
    shares = values / total.where(total > 0, 1.0)
    rank = torch.special.entr(shares).sum(-1).exp()
    return rank.where(total.squeeze(-1) > 0, 0.0)


@torch.no_grad()
def trace_memory(
    k: Tensor, v: Tensor, beta: Tensor | None = None, attn_norm: str = "none"
) -> MemoryTrace:
    """Follow the memory of one sequence from empty to its end.

    Args:
        k: keys ``(H, T, K)``, after the feature map.
        v: values ``(H, T, V)``.
        beta: write strengths ``(H, T)`` of the delta rule; ``None`` is the sum rule.
        attn_norm: ``full`` divides what is retrieved by z.k, and so does ``output`` for the sum
            rule.
    """
    k, v = k.double(), v.double()
    heads, length, keys = k.shape
    strength = k.new_ones(heads, length) if beta is None else beta.double()
    S, z = k.new_zeros(heads, keys, v.shape[-1]), k.new_zeros(heads, keys)
    a = k.new_zeros(heads, keys, length)  # a[:, :, t]: where v_t lies
    first = strength * k.square().sum(-1)  # weight of v_t when it was just written
    share, steps = k.new_ones(heads, length), []
    divides = attn_norm == ("output" if beta is None else "full")
    for t in range(length):
        k_t, beta_t = k[:, t], strength[:, t, None]
        kappa = _kappa(z, k_t) if divides else 1.0
        retrieved = torch.einsum("hk,hkv->hv", k_t, S) / kappa
        u = v[:, t] if beta is None else beta_t * (v[:, t] - retrieved)
        S = S + k_t.unsqueeze(-1) * u.unsqueeze(-2)
        if beta is not None:
            lost = beta_t * torch.einsum("hk,hkt->ht", k_t, a) / kappa
            a = a - k_t.unsqueeze(-1) * lost.unsqueeze(-2)
        a[:, :, t], z = beta_t * k_t, z + k_t
        weights = torch.einsum("htk,hkt->ht", k, a)
        known = (torch.arange(length, device=k.device) <= t) & (first > 0)
        new_share = torch.where(known, weights / first.where(first > 0, 1.0), 1.0)
        sizes = (torch.linalg.matrix_norm(S), effective_rank(S), retrieved.norm(dim=-1))
        steps.append((*sizes, u.norm(dim=-1), share - new_share))
        share = new_share
    norm, rank, retrieved, change, erased = (torch.stack(x, 1) for x in zip(*steps, strict=True))
    return MemoryTrace(
        None if beta is None else strength, norm, rank, retrieved, change, erased, share
    )


def _kappa(z: Tensor, k: Tensor) -> Tensor:
    """z.k + eps where something was written, else one; ``(H, 1)``."""
    written = (z != 0).any(-1, keepdim=True)
    return torch.where(written, (z * k).sum(-1, keepdim=True) + ATTN_NORM_EPS, 1.0)


@torch.no_grad()
def trace_mixer(mixer: nn.Module, projected: Tensor) -> list[MemoryTrace]:
    """Follow the memories of a mixer, one trace per sequence.

    Args:
        mixer: one with a method ``writes``: a fast weight or Recurrent Delta mixer.
        projected: ``(N, H, T, projection_size)``, or k | v of cross-attention
            ``(N, H, T, 2 * head_dim)``.

    Raises:
        ValueError: if the mixer's memory is not written by keys and values.
    """
    if not hasattr(mixer, "writes"):
        raise ValueError(
            f"{type(mixer).__name__} has no memory that keys and values are written to"
        )
    k, v, beta = mixer.writes(projected)
    kind = getattr(mixer, "attn_norm", "none")
    betas = [None] * len(k) if beta is None else beta
    return [trace_memory(*one, attn_norm=kind) for one in zip(k, v, betas, strict=True)]
