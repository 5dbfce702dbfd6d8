"""What few queries read from the memory of a sequence, at the cost of queries, not of values.

A memory written from zero holds nothing but the values: S_T^T q = sum_t w_t v_t. The weights w are
to a fast weight memory what attention weights are to softmax attention.
"""

import torch
from torch import Tensor

from fairseq_fwm.ops._common import accumulation_dtype, no_autocast
from fairseq_fwm.ops.sequence import causal_delta


@no_autocast
def sum_weights(q: Tensor, k: Tensor) -> Tensor:
    """Weights of the sum rule: w_t = q . k_t.

    Args:
        q: ``(N, H, Q, K)``, queries of the memory S_T.
        k: ``(N, H, T, K)``.

    Returns:
        w ``(N, H, Q, T)``: S_T^T q = sum_t w_t v_t.

    Raises:
        ValueError: if shapes do not match.
    """
    _check(q, k)
    dtype = accumulation_dtype(q, k)
    return q.to(dtype) @ k.to(dtype).transpose(-1, -2)


@no_autocast
def delta_weights(q: Tensor, k: Tensor, beta: Tensor, impl: str = "auto") -> Tensor:
    """Weights of the delta rule.

    S_T = sum_t (prod_{s>t} (I - beta_s k_s k_s^T)) beta_t k_t v_t^T, so with a_T = q, going back
    in time, w_t = beta_t k_t . a_t and a_{t-1} = a_t - k_t w_t. That is the delta rule itself,
    with queries for states and nothing for values: Q columns of work, where writing takes V.

    Args:
        q: ``(N, H, Q, K)``, queries of the memory S_T.
        k: ``(N, H, T, K)``.
        beta: ``(N, H, T)``, after the sigmoid.
        impl: as in :func:`fairseq_fwm.ops.causal_delta`.

    Returns:
        w ``(N, H, Q, T)``: S_T^T q = sum_t w_t v_t.

    Raises:
        ValueError: if shapes do not match.
    """
    _check(q, k)
    if beta.shape != k.shape[:3]:
        raise ValueError(
            f"beta must be (N, H, T) = {tuple(k.shape[:3])}, found {tuple(beta.shape)}"
        )
    dtype = accumulation_dtype(q, k, beta)
    k, beta, a = k.to(dtype).flip(2), beta.to(dtype).flip(2), q.to(dtype).transpose(-1, -2)
    products = k[:, :, :1] @ a  # k_T . a_T
    if k.shape[2] > 1:
        nothing = k.new_zeros(*beta[:, :, 1:].shape, a.shape[-1])
        # What is read after a step is the next step's k . a.
        later, _ = causal_delta(
            k[:, :, 1:], k[:, :, :-1], nothing, beta[:, :, :-1], state=a.contiguous(), impl=impl
        )
        products = torch.cat((products, later), 2)
    return (beta.unsqueeze(-1) * products).flip(2).transpose(-1, -2)


def _check(q: Tensor, k: Tensor) -> None:
    if q.dim() != 4 or k.dim() != 4 or q.shape[:2] + q.shape[3:] != k.shape[:2] + k.shape[3:]:
        raise ValueError(
            f"q must be (N, H, Q, K) and k (N, H, T, K), found {tuple(q.shape)} and "
            f"{tuple(k.shape)}"
        )
