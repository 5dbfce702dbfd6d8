"""Causal fast weight updates over whole sequences: the public functions."""

import torch
from torch import Tensor

from fairseq_fwm.ops import fallback, fla, library
from fairseq_fwm.ops._common import State, check_sequence, no_autocast
from fairseq_fwm.ops.dispatch import resolve_impl
from fairseq_fwm.ops.features import NO_FEATURES, FeatureSpec
from fairseq_fwm.ops.normalization import ATTN_NORMS
from fairseq_fwm.ops.reference import causal_delta_reference, causal_sum_reference

REFERENCE = {"sum": causal_sum_reference, "delta": causal_delta_reference}


@no_autocast
def causal_sum(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    state: State | None = None,
    output_final_state: bool = False,
    write_mask: Tensor | None = None,
    features: FeatureSpec | None = None,
    attn_norm: str = "none",
    impl: str = "auto",
) -> tuple[Tensor, State | None]:
    """Causal sum rule: S_t = S_{t-1} + k_t (x) v_t ; y_t = S_t^T q_t (arXiv 2102.11174, Eqs. 8-9).

    Args:
        q, k: ``(N, H, T, K)``; raw ``(N, H, T, d)`` with ``features``.
        v: ``(N, H, T, V)``.
        state: S_0 ``(N, H, K, V)``; zeros if ``None``. Not changed; receives a gradient. With
            attention normalisation the pair of S_0 and z_0 ``(N, H, K)``.
        output_final_state: return S_T too (short sequences have a faster form without it).
        write_mask: ``(N, T)`` bool; a position that is False writes nothing (it still reads).
        features: feature map that the op applies to q and k itself.
        attn_norm: ``none``, or ``output``: y_t = S_t^T q_t / (z_t.q_t + 1e-5) with
            z_t = z_{t-1} + k_t.
        impl: ``auto``, ``reference``, ``chunked``, ``cpu``, ``cuda``, or ``fla`` where
            flash-linear-attention is installed (:mod:`fairseq_fwm.ops.fla`).

    Returns:
        y ``(N, H, T, V)`` in the dtype of ``v`` and S_T (with attention normalisation the pair of
        S_T and z_T), or ``None`` if not asked for.

    Raises:
        ValueError: shapes or dtypes do not match, or an option is unknown or makes no sense.
        RuntimeError: a compiled kernel or a package is asked for and is not there.
    """
    if attn_norm == "full":
        raise ValueError("the sum rule retrieves nothing before it writes: use attn_norm='output'")
    options = (state, output_final_state, write_mask, features, attn_norm, impl)
    return _causal("sum", (q, k, v), *options)


@no_autocast
def causal_delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    state: State | None = None,
    output_final_state: bool = False,
    write_mask: Tensor | None = None,
    features: FeatureSpec | None = None,
    attn_norm: str = "none",
    impl: str = "auto",
) -> tuple[Tensor, State | None]:
    """Causal delta rule (arXiv 2102.11174, Eqs. 23-25).

    S_t = S_{t-1} + k_t (x) beta_t (v_t - S_{t-1}^T k_t) ;  y_t = S_t^T q_t

    Args:
        q, k, v, state, output_final_state, write_mask, features, impl: as in :func:`causal_sum`.
        beta: write strength ``(N, H, T)``, after the sigmoid.
        attn_norm: ``none``, ``output`` as in :func:`causal_sum`, or ``full``: what is retrieved is
            divided by z_{t-1}.k_t + 1e-5 too (Eqs. 26-28).

    Returns:
        y ``(N, H, T, V)`` in the dtype of ``v`` and S_T (with attention normalisation the pair of
        S_T and z_T), or ``None`` if not asked for.

    Raises:
        ValueError: shapes or dtypes do not match, or an option is unknown or makes no sense.
        RuntimeError: a compiled kernel or a package is asked for and is not there.
    """
    options = (state, output_final_state, write_mask, features, attn_norm, impl)
    return _causal("delta", (q, k, v, beta), *options)


def _causal(
    rule: str,
    tensors: tuple[Tensor, ...],
    state: State | None,
    output_final_state: bool,
    write_mask: Tensor | None,
    features: FeatureSpec | None,
    attn_norm: str,
    impl: str,
) -> tuple[Tensor, State | None]:
    features = features or NO_FEATURES
    S, z = _split(state, attn_norm)
    q, k, v, *beta = tensors
    check_sequence(q, k, v, *(beta or [None]), S, write_mask, features.out_dim(k.shape[-1]), z)
    chosen = resolve_impl(impl, f"causal_{rule}_fwd", q.device)
    if chosen == "reference":
        y, final = _reference(rule, tensors, state, write_mask, features, attn_norm)
        return y, final if output_final_state else None
    if chosen == "chunked":
        y, S, z = fallback.causal(
            *(q, k, v, beta[0] if beta else None, S, z),
            *(write_mask, features, attn_norm, output_final_state),
        )
    elif chosen == "fla":
        options = (write_mask, features, attn_norm, output_final_state)
        y, S, z = fla.causal(rule, tensors, S, z, *options)
    else:
        op = library.sequence_op_of(rule, chosen)
        save = torch.is_grad_enabled() and any(
            x is not None and x.requires_grad for x in (*tensors, S, z)
        )
        y, S, z, *_ = op(
            *tensors, S, z, write_mask, *features.astuple, attn_norm, output_final_state, save
        )
    if not output_final_state:
        return y, None
    return y, S if attn_norm == "none" else (S, z)


def _split(state: State | None, attn_norm: str) -> tuple[Tensor | None, Tensor | None]:
    if attn_norm not in ATTN_NORMS:
        raise ValueError(f"unknown attn_norm {attn_norm!r}: choose one of {', '.join(ATTN_NORMS)}")
    pair = isinstance(state, tuple)
    if state is not None and pair == (attn_norm == "none"):
        wanted = "the tensor S" if attn_norm == "none" else "the pair (S, z)"
        found = "a pair" if pair else "a tensor"
        raise ValueError(f"with attn_norm={attn_norm!r} a state is {wanted}, found {found}")
    return state if pair else (state, None)


def _reference(
    rule: str,
    tensors: tuple[Tensor, ...],
    state: State | None,
    write_mask: Tensor | None,
    features: FeatureSpec,
    attn_norm: str,
) -> tuple[Tensor, State]:
    q, k, *rest = tensors
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), torch.float32)
    q, k = features(q.to(dtype)), features(k.to(dtype))
    return REFERENCE[rule](q, k, *rest, state=state, write_mask=write_mask, attn_norm=attn_norm)
