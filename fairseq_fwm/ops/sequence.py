"""Causal fast weight updates over whole sequences: the public functions."""

from collections.abc import Callable

import torch
from torch import Tensor

from fairseq_fwm.ops import library
from fairseq_fwm.ops._common import check_sequence, no_autocast
from fairseq_fwm.ops.dispatch import resolve_impl
from fairseq_fwm.ops.features import FeatureSpec
from fairseq_fwm.ops.reference import causal_delta_reference, causal_sum_reference


@no_autocast
def causal_sum(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    state: Tensor | None = None,
    output_final_state: bool = False,
    write_mask: Tensor | None = None,
    features: FeatureSpec | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Causal sum rule: S_t = S_{t-1} + k_t (x) v_t ; y_t = S_t^T q_t (arXiv 2102.11174, Eqs. 8-9).

    Args:
        q, k: ``(N, H, T, K)``; raw ``(N, H, T, d)`` with ``features``.
        v: ``(N, H, T, V)``.
        state: S_0 ``(N, H, K, V)``; zeros if ``None``. Not changed; receives a gradient.
        output_final_state: return S_T too (short sequences have a faster form without it).
        write_mask: ``(N, T)`` bool; a position that is False writes nothing (it still reads).
        features: feature map that the op applies to q and k itself.
        impl: ``auto``, ``reference``, ``chunked``, ``cpu`` or ``cuda``.

    Returns:
        y ``(N, H, T, V)`` in the dtype of ``v`` and S_T, or ``None`` if not asked for.

    Raises:
        ValueError: shapes or dtypes do not match, or ``impl`` is unknown or on another device.
        RuntimeError: a compiled kernel is asked for and is not there.
    """
    check_sequence(q, k, v, None, state, write_mask, _key_features(features, k))
    q, k = _apply(features, q, k)
    run = _implementation("causal_sum", impl, q.device, causal_sum_reference)
    return run(q, k, v, state=state, write_mask=write_mask, output_final_state=output_final_state)


@no_autocast
def causal_delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    state: Tensor | None = None,
    output_final_state: bool = False,
    write_mask: Tensor | None = None,
    features: FeatureSpec | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Causal delta rule (arXiv 2102.11174, Eqs. 23-25).

    S_t = S_{t-1} + k_t (x) beta_t (v_t - S_{t-1}^T k_t) ;  y_t = S_t^T q_t

    Args:
        q, k, v, state, output_final_state, write_mask, features, impl: as in :func:`causal_sum`.
        beta: write strength ``(N, H, T)``, after the sigmoid.

    Returns:
        y ``(N, H, T, V)`` in the dtype of ``v`` and S_T, or ``None`` if not asked for.

    Raises:
        ValueError: shapes or dtypes do not match, or ``impl`` is unknown or on another device.
        RuntimeError: a compiled kernel is asked for and is not there.
    """
    check_sequence(q, k, v, beta, state, write_mask, _key_features(features, k))
    q, k = _apply(features, q, k)
    run = _implementation("causal_delta", impl, q.device, causal_delta_reference)
    return run(
        q, k, v, beta, state=state, write_mask=write_mask, output_final_state=output_final_state
    )


def _key_features(features: FeatureSpec | None, k: Tensor) -> int | None:
    return None if features is None else features.out_dim(k.shape[-1])


def _apply(features: FeatureSpec | None, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    if features is None:
        return q, k
    dtype = torch.promote_types(q.dtype, torch.float32)
    return features(q.to(dtype)), features(k.to(dtype))


def _implementation(
    op: str, impl: str, device: torch.device, reference: Callable
) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """Return the function that runs, with the calling convention of the public one."""
    forward_op = f"{op}_fwd"
    chosen = resolve_impl(impl, forward_op, device)

    def run(
        *tensors: Tensor,
        state: Tensor | None,
        write_mask: Tensor | None,
        output_final_state: bool,
    ) -> tuple[Tensor, Tensor | None]:
        if chosen == "reference":
            y, final = reference(*tensors, state=state, write_mask=write_mask)
        else:
            compiled = chosen != "chunked"
            forward = getattr(torch.ops.fwm if compiled else library, forward_op)
            y, final = forward(*tensors, state, write_mask, output_final_state)
        return y, final if output_final_state else None

    return run
