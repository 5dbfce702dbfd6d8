"""Chunkwise-parallel PyTorch forms: matrix products inside a chunk, a recurrence between chunks.

Any T: the last chunk is as short as it comes. One chunk (T <= chunk_size) needs no state at all
unless one is passed in or asked for: the fast form for the short sequences of translation.
Masks, dtypes and checks are the caller's (:mod:`fairseq_fwm.ops.sequence`): everything here is in
the accumulation dtype and masked already. Causality holds bit by bit for finite inputs; an inf or
NaN spreads through the products to the whole chunk, where the recurrence keeps it to later steps.
"""

import torch
from torch import Tensor

DEFAULT_CHUNK_SIZE = 64


def causal_sum_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor | None,
    output_final_state: bool,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Sum rule by chunks: Y = Q S + tril(Q K^T) V ;  S <- S + K^T V.

    Args:
        q, k: ``(N, H, T, K)``.  v: ``(N, H, T, V)``.
        state: ``(N, H, K, V)`` or ``None`` for zeros.
        output_final_state: whether S_T is wanted.
        chunk_size: time steps per chunk; ``None`` is :data:`DEFAULT_CHUNK_SIZE`.
    """
    outputs, chunk_size = [], chunk_size or DEFAULT_CHUNK_SIZE
    chunks = list(zip(*(x.split(chunk_size, dim=2) for x in (q, k, v)), strict=True))
    for i, (q_c, k_c, v_c) in enumerate(chunks):
        y = (q_c @ k_c.transpose(-1, -2)).tril() @ v_c
        outputs.append(y if state is None else y + q_c @ state)
        if output_final_state or i + 1 < len(chunks):
            state = _accumulate(state, k_c, v_c)
    return _join(outputs), state if output_final_state else None


def causal_delta_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    state: Tensor | None,
    output_final_state: bool,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Delta rule by chunks, the WY form (arXiv 2406.06484, Section 3).

    The updates u_t = beta_t (v_t - S_{t-1}^T k_t) of a chunk that starts from S solve the unit
    lower triangular system (I + strict_tril(diag(beta) K K^T)) U = diag(beta) (V - K S);
    then Y = Q S + tril(Q K^T) U and S <- S + K^T U.

    Args:
        q, k: ``(N, H, T, K)``.  v: ``(N, H, T, V)``.  beta: ``(N, H, T)``.
        state: ``(N, H, K, V)`` or ``None`` for zeros.
        output_final_state: whether S_T is wanted.
        chunk_size: time steps per chunk; ``None`` is :data:`DEFAULT_CHUNK_SIZE`.
    """
    outputs, chunk_size = [], chunk_size or DEFAULT_CHUNK_SIZE
    parts = (q, k, v, beta.unsqueeze(-1))
    chunks = list(zip(*(x.split(chunk_size, dim=2) for x in parts), strict=True))
    for i, (q_c, k_c, v_c, beta_c) in enumerate(chunks):
        k_t = k_c.transpose(-1, -2)
        couplings = ((beta_c * k_c) @ k_t).tril(-1)
        wanted = v_c if state is None else v_c - k_c @ state
        u = torch.linalg.solve_triangular(
            couplings, beta_c * wanted, upper=False, unitriangular=True
        )
        y = (q_c @ k_t).tril() @ u
        outputs.append(y if state is None else y + q_c @ state)
        if output_final_state or i + 1 < len(chunks):
            state = _accumulate(state, k_c, u)
    return _join(outputs), state if output_final_state else None


def _accumulate(state: Tensor | None, k: Tensor, u: Tensor) -> Tensor:
    written = k.transpose(-1, -2) @ u
    return written if state is None else state + written


def _join(outputs: list[Tensor]) -> Tensor:
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
