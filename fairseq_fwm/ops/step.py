"""One time step, for decoding: O(1) in the length of what came before.

``*_step`` returns a new state; ``*_step_`` changes the state in place. Both can gather the rows of
the old state first (``rows``), which fuses the reordering of a beam with the update.
"""

import torch
from torch import Tensor

from fairseq_fwm.ops import fallback, library
from fairseq_fwm.ops._common import State, accumulation_dtype, check_mask_dtype
from fairseq_fwm.ops.features import NO_FEATURES, FeatureSpec

# Looked up once: a step takes a few microseconds.
_STEP = {
    "sum": ("causal_sum_step", torch.ops.fwm.causal_sum_step.default),
    "delta": ("causal_delta_step", torch.ops.fwm.causal_delta_step.default),
}
_STEP_IN_PLACE = {
    "sum": ("causal_sum_step_", torch.ops.fwm.causal_sum_step_.default),
    "delta": ("causal_delta_step_", torch.ops.fwm.causal_delta_step_.default),
}


def causal_sum_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: State,
    *,
    rows: Tensor | None = None,
    write_mask: Tensor | None = None,
    features: FeatureSpec | None = None,
    attn_norm: str = "none",
) -> tuple[Tensor, State]:
    """One step of :func:`fairseq_fwm.ops.causal_sum`.

    Args:
        q, k: ``(N, H, K)``; raw ``(N, H, d)`` with ``features``.
        v: ``(N, H, V)``.
        state: S ``(N, H, K, V)``; with attention normalisation the pair of S and z ``(N, H, K)``.
        rows: ``(N,)`` integers: row b goes on from row ``rows[b]`` of the state, which may then
            have another number of rows.
        write_mask: ``(N,)`` bool, True where the row writes.
        features, attn_norm: as in :func:`fairseq_fwm.ops.causal_sum`.

    Returns:
        y ``(N, H, V)`` in the dtype of ``v`` and the new state.

    Raises:
        ValueError: if shapes do not match.
    """
    return _step("sum", (q, k, v), state, rows, write_mask, features, attn_norm)


def causal_sum_step_(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: State,
    *,
    rows: Tensor | None = None,
    write_mask: Tensor | None = None,
    features: FeatureSpec | None = None,
    attn_norm: str = "none",
) -> Tensor:
    """In-place :func:`causal_sum_step`; the state must be contiguous."""
    return _step_("sum", (q, k, v), state, rows, write_mask, features, attn_norm)


def causal_delta_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    state: State,
    *,
    rows: Tensor | None = None,
    write_mask: Tensor | None = None,
    features: FeatureSpec | None = None,
    attn_norm: str = "none",
) -> tuple[Tensor, State]:
    """One step of :func:`fairseq_fwm.ops.causal_delta`.

    Args:
        q, k, v, state, rows, write_mask, features, attn_norm: as in :func:`causal_sum_step`.
        beta: ``(N, H)``.

    Returns:
        y ``(N, H, V)`` in the dtype of ``v`` and the new state.

    Raises:
        ValueError: if shapes do not match.
    """
    return _step("delta", (q, k, v, beta), state, rows, write_mask, features, attn_norm)


def causal_delta_step_(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    state: State,
    *,
    rows: Tensor | None = None,
    write_mask: Tensor | None = None,
    features: FeatureSpec | None = None,
    attn_norm: str = "none",
) -> Tensor:
    """In-place :func:`causal_delta_step`; see :func:`causal_sum_step_`."""
    return _step_("delta", (q, k, v, beta), state, rows, write_mask, features, attn_norm)


def _step(
    rule: str,
    tensors: tuple[Tensor, ...],
    state: State,
    rows: Tensor | None,
    write_mask: Tensor | None,
    features: FeatureSpec | None,
    attn_norm: str,
) -> tuple[Tensor, State]:
    features = features or NO_FEATURES
    S, z = state if attn_norm != "none" else (state, None)
    name, op = _STEP[rule]
    if _has_kernel(name, (*tensors, S, z)):  # which checks shapes itself
        y, S, z = op(*tensors, S, z, rows, write_mask, *features.astuple, attn_norm)
    else:
        _check_step(tensors, S, z, rows, write_mask, features)
        q, k, v, *beta = tensors
        y, S, z = fallback.step(
            *(q, k, v, beta[0] if beta else None, S, z),
            *(rows, write_mask, features, attn_norm),
        )
    return y, S if attn_norm == "none" else (S, z)


def _step_(
    rule: str,
    tensors: tuple[Tensor, ...],
    state: State,
    rows: Tensor | None,
    write_mask: Tensor | None,
    features: FeatureSpec | None,
    attn_norm: str,
) -> Tensor:
    features = features or NO_FEATURES
    S, z = state if attn_norm != "none" else (state, None)
    name, op = _STEP_IN_PLACE[rule]
    if _has_kernel(name, (*tensors, S, z)):
        return op(*tensors, S, z, rows, write_mask, *features.astuple, attn_norm)
    if rows is not None and rows.shape != S.shape[:1]:
        raise ValueError(
            f"rows must have shape ({S.shape[0]},), one per row of the state, found "
            f"{tuple(rows.shape)}; a beam that shrinks needs the functional step"
        )
    y, fresh = _step(rule, tensors, state, rows, write_mask, features, attn_norm)
    for old, new in zip((S, z), fresh if z is not None else (fresh,), strict=False):
        old.copy_(new)
    return y


def _has_kernel(op: str, tensors: tuple[Tensor | None, ...]) -> bool:
    """The kernels have no derivative and want the state in the dtype that they compute in."""
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        return False
    q, k, v, S = tensors[0], tensors[1], tensors[2], tensors[-2]
    dtype = S.dtype
    usual = q.dtype is k.dtype is v.dtype is dtype and dtype in (torch.float32, torch.float64)
    if not usual and dtype != accumulation_dtype(q, k, v):
        return False
    return library.has_kernel(op, S.device.type)


def _check_step(
    tensors: tuple[Tensor, ...],
    S: Tensor,
    z: Tensor | None,
    rows: Tensor | None,
    write_mask: Tensor | None,
    features: FeatureSpec,
) -> None:
    q, k, v, *beta = tensors
    n, h, d = k.shape
    states = (n if rows is None else S.shape[0], h, features.out_dim(d))
    checks = [
        ("q", q, k.shape),
        ("v", v, (n, h, v.shape[-1])),
        ("state", S, (*states, v.shape[-1])),
        ("normalizer", z, states),
        ("write_mask", write_mask, (n,)),
        *(("beta", x, (n, h)) for x in beta),
    ]
    for name, tensor, wanted in checks:
        if tensor is not None and tensor.shape != wanted:
            raise ValueError(
                "a step takes q, k (N, H, K), v (N, H, V), beta (N, H), state (N, H, K, V) and "
                f"write_mask (N,): {name} should be {tuple(wanted)}, found {tuple(tensor.shape)}"
            )
    check_mask_dtype(write_mask)
