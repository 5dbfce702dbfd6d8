"""Reference recurrences: the definition of each op, one time step after the other.

Any device, any float dtype, differentiable, slow. Everything faster is tested against these.
"""

import torch
from torch import Tensor

from fairseq_fwm.ops._common import State, accumulation_dtype, initial_state, mask_writes
from fairseq_fwm.ops.normalization import ATTN_NORM_EPS


def causal_sum_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    state: State | None = None,
    write_mask: Tensor | None = None,
    attn_norm: str = "none",
) -> tuple[Tensor, State]:
    """Sum update rule, arXiv 2102.11174 Eqs. 8-9.

    S_t = S_{t-1} + k_t (x) v_t ;  y_t = S_t^T q_t

    With attention normalisation z_t = z_{t-1} + k_t and y_t = S_t^T q_t / (z_t.q_t + eps).

    Args: see :func:`fairseq_fwm.ops.causal_sum`.

    Returns:
        y ``(N, H, T, V)`` in the dtype of ``v`` and S_T, or the pair of S_T and z_T.
    """
    dtype, out_dtype = accumulation_dtype(q, k, v), v.dtype
    k, v = mask_writes(write_mask, k, v)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    S, z = initial_state(k, v, state, dtype)
    outputs = []
    for q_t, k_t, v_t in zip(q.unbind(2), k.unbind(2), v.unbind(2), strict=True):
        S = S + k_t.unsqueeze(-1) * v_t.unsqueeze(-2)
        z = z + k_t
        y_t = (S * q_t.unsqueeze(-1)).sum(-2)
        outputs.append(y_t if attn_norm == "none" else y_t / _divisor(z, q_t))
    y = torch.stack(outputs, 2) if outputs else torch.zeros_like(v)
    return y.to(out_dtype), S if attn_norm == "none" else (S, z)


def causal_delta_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    state: State | None = None,
    write_mask: Tensor | None = None,
    attn_norm: str = "none",
) -> tuple[Tensor, State]:
    """Delta update rule, arXiv 2102.11174 Eqs. 23-25.

    vbar_t = S_{t-1}^T k_t ;  S_t = S_{t-1} + k_t (x) beta_t (v_t - vbar_t) ;  y_t = S_t^T q_t

    With attention normalisation z_t = z_{t-1} + k_t and y_t = S_t^T q_t / (z_t.q_t + eps); of the
    kind ``full`` vbar_t is divided by z_{t-1}.k_t + eps too, once something was written
    (Eqs. 26-28).

    Args: see :func:`fairseq_fwm.ops.causal_delta`.

    Returns:
        y ``(N, H, T, V)`` in the dtype of ``v`` and S_T, or the pair of S_T and z_T.
    """
    dtype, out_dtype = accumulation_dtype(q, k, v), v.dtype
    k, v, beta = mask_writes(write_mask, k, v, beta)
    q, k, v, beta = (x.to(dtype) for x in (q, k, v, beta))
    S, z = initial_state(k, v, state, dtype)
    outputs = []
    steps = (x.unbind(2) for x in (q, k, v, beta))
    for q_t, k_t, v_t, beta_t in zip(*steps, strict=True):
        retrieved = (S * k_t.unsqueeze(-1)).sum(-2)
        if attn_norm == "full":
            written = (z != 0).any(-1, keepdim=True)
            retrieved = retrieved / torch.where(written, _divisor(z, k_t), 1.0)
        S = S + k_t.unsqueeze(-1) * (beta_t.unsqueeze(-1) * (v_t - retrieved)).unsqueeze(-2)
        z = z + k_t
        y_t = (S * q_t.unsqueeze(-1)).sum(-2)
        outputs.append(y_t if attn_norm == "none" else y_t / _divisor(z, q_t))
    y = torch.stack(outputs, 2) if outputs else torch.zeros_like(v)
    return y.to(out_dtype), S if attn_norm == "none" else (S, z)


def _divisor(z: Tensor, x: Tensor) -> Tensor:
    return (z * x).sum(-1, keepdim=True) + ATTN_NORM_EPS
