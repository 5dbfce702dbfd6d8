"""Reference recurrences: the definition of each op, one time step after the other.

Any device, any float dtype, differentiable, slow. Everything faster is tested against these.
"""

import torch
from torch import Tensor

from fairseq_fwm.ops._common import (
    accumulation_dtype,
    check_sequence,
    initial_state,
    mask_writes,
)


def causal_sum_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    state: Tensor | None = None,
    write_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum update rule, arXiv 2102.11174 Eqs. 8-9 without the normalisation.

    S_t = S_{t-1} + k_t (x) v_t ;  y_t = S_t^T q_t

    Args: see :func:`fairseq_fwm.ops.causal_sum`.

    Returns:
        y ``(N, H, T, V)`` in the dtype of ``v`` and S_T ``(N, H, K, V)``.
    """
    check_sequence(q, k, v, None, state, write_mask)
    dtype, out_dtype = accumulation_dtype(q, k, v), v.dtype
    k, v = mask_writes(write_mask, k, v)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    S = initial_state(k, v, state, dtype)
    outputs = []
    for q_t, k_t, v_t in zip(q.unbind(2), k.unbind(2), v.unbind(2), strict=True):
        S = S + k_t.unsqueeze(-1) * v_t.unsqueeze(-2)
        outputs.append((S * q_t.unsqueeze(-1)).sum(-2))
    y = torch.stack(outputs, 2) if outputs else torch.zeros_like(v)
    return y.to(out_dtype), S


def causal_delta_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    state: Tensor | None = None,
    write_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Delta update rule, arXiv 2102.11174 Eqs. 23-25.

    vbar_t = S_{t-1}^T k_t ;  S_t = S_{t-1} + k_t (x) beta_t (v_t - vbar_t) ;  y_t = S_t^T q_t

    Args: see :func:`fairseq_fwm.ops.causal_delta`.

    Returns:
        y ``(N, H, T, V)`` in the dtype of ``v`` and S_T ``(N, H, K, V)``.
    """
    check_sequence(q, k, v, beta, state, write_mask)
    dtype, out_dtype = accumulation_dtype(q, k, v), v.dtype
    k, v, beta = mask_writes(write_mask, k, v, beta)
    q, k, v, beta = (x.to(dtype) for x in (q, k, v, beta))
    S = initial_state(k, v, state, dtype)
    outputs = []
    steps = (x.unbind(2) for x in (q, k, v, beta))
    for q_t, k_t, v_t, beta_t in zip(*steps, strict=True):
        retrieved = (S * k_t.unsqueeze(-1)).sum(-2)
        S = S + k_t.unsqueeze(-1) * (beta_t.unsqueeze(-1) * (v_t - retrieved)).unsqueeze(-2)
        outputs.append((S * q_t.unsqueeze(-1)).sum(-2))
    y = torch.stack(outputs, 2) if outputs else torch.zeros_like(v)
    return y.to(out_dtype), S
