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


def recurrent_delta_reference(
    projected: Tensor,
    recurrent: Tensor,
    *,
    state: tuple[Tensor, Tensor] | None = None,
    write_mask: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Recurrent Delta rule: the last output has a say in what is written and asked next.

    [q' | k' | v' | beta']_t = x_t + R^T tanh(y_{t-1}) ;  q_t = softmax(q'_t), k_t = softmax(k'_t),
    v_t = v'_t, beta_t = sigmoid(beta'_t) ;  then S_t and y_t by the delta rule
    (arXiv 2106.06295; as in arXiv 2310.16076).

    Args: see :func:`fairseq_fwm.ops.recurrent_delta`.

    Returns:
        y ``(N, H, T, d)`` in the dtype of ``projected``, and S_T and y_T.
    """
    dtype, d = accumulation_dtype(projected, recurrent), recurrent.shape[1]
    (x,) = mask_writes(write_mask, projected.to(dtype))
    R = recurrent.to(dtype)
    S, y = state or (x.new_zeros(*x.shape[:2], d, d), x.new_zeros(*x.shape[:2], d))
    S, y, outputs = S.to(dtype), y.to(dtype), []
    for t in range(x.shape[2]):
        a = x[:, :, t] + torch.einsum("nhi,him->nhm", y.tanh(), R)
        q, k, v, beta = a.split((d, d, d, 1), -1)
        q, k, beta = q.softmax(-1), k.softmax(-1), beta.sigmoid()
        retrieved = (S * k.unsqueeze(-1)).sum(-2)
        new_S = S + k.unsqueeze(-1) * (beta * (v - retrieved)).unsqueeze(-2)
        new_y = (new_S * q.unsqueeze(-1)).sum(-2)
        if write_mask is None:
            S, y = new_S, new_y
            outputs.append(y)
        else:
            written = write_mask[:, t, None, None]
            S, y = torch.where(written.unsqueeze(-1), new_S, S), torch.where(written, new_y, y)
            outputs.append(torch.where(written, y, 0.0))
    y_all = torch.stack(outputs, 2) if outputs else x[..., :d]
    return y_all.to(projected.dtype), (S, y)


def self_referential_reference(
    x: Tensor, weights: Tensor, *, write_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Self-referential weight matrix: it decides how it changes (arXiv 2202.05780, Eqs. 5-8).

    [y | q' | k' | beta']_t = W_{t-1}^T x_t ;  q_t = softmax(q'_t), k_t = softmax(k'_t),
    beta_t = sigmoid(beta'_t), one for each of the four parts of W ;
    W_t = W_{t-1} + k_t (x) beta_t (W_{t-1}^T q_t - W_{t-1}^T k_t)

    Args: see :func:`fairseq_fwm.ops.self_referential`.

    Returns:
        y ``(N, H, T, d)`` in the dtype of ``x``, and W_T ``(N, H, d, 3d + 4)``.
    """
    dtype, d = accumulation_dtype(x, weights), x.shape[-1]
    (inputs,) = mask_writes(write_mask, x.to(dtype))
    W = weights.to(dtype).expand(x.shape[0], -1, -1, -1)
    parts, outputs = torch.tensor([d, d, d, 4], device=x.device), []
    for t in range(x.shape[2]):
        a = (W * inputs[:, :, t].unsqueeze(-1)).sum(-2)
        y, q, k, beta = a.split((d, d, d, 4), -1)
        q, k = q.softmax(-1), k.softmax(-1)
        beta = beta.sigmoid().repeat_interleave(parts, -1)
        change = beta * (W * (q - k).unsqueeze(-1)).sum(-2)
        new_W = W + k.unsqueeze(-1) * change.unsqueeze(-2)
        if write_mask is None:
            W = new_W
            outputs.append(y)
        else:
            written = write_mask[:, t, None, None]
            W = torch.where(written.unsqueeze(-1), new_W, W)
            outputs.append(torch.where(written, y, 0.0))
    y_all = torch.stack(outputs, 2) if outputs else inputs
    return y_all.to(x.dtype), W
