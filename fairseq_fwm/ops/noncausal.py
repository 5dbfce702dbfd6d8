"""Write a whole memory, then read it: encoder self-attention and cross-attention (sum rule)."""

from torch import Tensor

from fairseq_fwm.ops._common import (
    accumulation_dtype,
    check_sequence,
    mask_writes,
    no_autocast,
)


@no_autocast
def write(
    k: Tensor, v: Tensor, *, write_mask: Tensor | None = None, state: Tensor | None = None
) -> Tensor:
    """Write all pairs with the sum rule: S = S_0 + sum_t k_t (x) v_t.

    Args:
        k: ``(N, H, T, K)``.
        v: ``(N, H, T, V)``.
        write_mask: ``(N, T)`` bool, True where a position writes.
        state: S_0 ``(N, H, K, V)``; zeros if ``None``.

    Returns:
        S ``(N, H, K, V)``, fp32 or better.

    Raises:
        ValueError: if shapes do not match.
    """
    check_sequence(k, k, v, None, state, write_mask)
    dtype = accumulation_dtype(k, v)
    k, v = mask_writes(write_mask, k, v)
    written = k.to(dtype).transpose(-1, -2) @ v.to(dtype)
    return written if state is None else state.to(dtype) + written


@no_autocast
def read(q: Tensor, state: Tensor) -> Tensor:
    """Read a memory: y_t = S^T q_t.

    Args:
        q: ``(N, H, T, K)``.
        state: S ``(N, H, K, V)``.

    Returns:
        y ``(N, H, T, V)`` in the dtype of the state; the caller casts.

    Raises:
        ValueError: if shapes do not match.
    """
    if q.dim() != 4 or state.dim() != 4 or q.shape[:2] + q.shape[-1:] != state.shape[:3]:
        raise ValueError(
            f"q must be (N, H, T, K) and state (N, H, K, V), found {tuple(q.shape)} "
            f"and {tuple(state.shape)}"
        )
    return q.to(state.dtype) @ state
