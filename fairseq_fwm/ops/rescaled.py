"""The update rule of the Fast Weight Memory: the delta rule, the memory's norm kept at one."""

import torch
from torch import Tensor

from fairseq_fwm.ops._common import accumulation_dtype, check_sequence, no_autocast
from fairseq_fwm.ops.recall import sum_weights


@no_autocast
def read_rescaled(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """Read from the memory that :func:`write_rescaled` writes, without making it.

    Args:
        q: ``(N, H, Q, K)``, queries of the memory S_T.
        k, v, beta: as there.

    Returns:
        S_T^T q ``(N, H, Q, V)``, fp32 or better.

    Raises:
        ValueError: if shapes do not match.
    """
    check_sequence(k, k, v, beta)
    dtype = accumulation_dtype(q, k, v, beta)
    k, v, beta = k.to(dtype), v.to(dtype), beta.to(dtype)
    residual, decay, _ = torch.ops.fwm.rescaled_fwd(k @ k.transpose(-1, -2), v, beta)
    return (sum_weights(q, k) * (decay * beta).unsqueeze(-2)) @ residual


@no_autocast
def write_rescaled(k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """Write pairs with the delta rule, the memory's norm kept at one or below; a loop, for tests.

    S_t = c_t (S_{t-1} + k_t (x) beta_t (v_t - S_{t-1}^T k_t)) with c_t = 1 / max(1, |.|_F), but
    c_1 = 1 (Schlag, Munkhdalai and Schmidhuber, arXiv 2011.07831, as the retrieval experiments
    of arXiv 2102.11174 had it).

    Args:
        k: ``(N, H, T, K)``.  v: ``(N, H, T, V)``.  beta: ``(N, H, T)``.

    Returns:
        S_T ``(N, H, K, V)``, fp32 or better.

    Raises:
        ValueError: if shapes do not match.
    """
    check_sequence(k, k, v, beta)
    dtype = accumulation_dtype(k, v, beta)
    S = k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1], dtype=dtype)
    steps = zip(*(x.to(dtype).unbind(2) for x in (k, v, beta)), strict=True)
    for t, (k_t, v_t, beta_t) in enumerate(steps):
        retrieved = (k_t.unsqueeze(-2) @ S).squeeze(-2)
        S = S + k_t.unsqueeze(-1) * (beta_t.unsqueeze(-1) * (v_t - retrieved)).unsqueeze(-2)
        if t > 0:
            norm = torch.linalg.vector_norm(S, dim=(-2, -1), keepdim=True)
            S = S / norm.clamp(min=1.0)
    return S
