"""Updates that depend on what they read: the recurrent delta rule, self-referential weights.

Neither can be computed for all time steps at once, so there is no chunked form: a kernel, or the
reference.
"""

from torch import Tensor

from fairseq_fwm.ops import library
from fairseq_fwm.ops._common import accumulation_dtype, check_write_mask, no_autocast
from fairseq_fwm.ops.dispatch import resolve_impl
from fairseq_fwm.ops.reference import recurrent_delta_reference, self_referential_reference


@no_autocast
def recurrent_delta(
    projected: Tensor,
    recurrent: Tensor,
    *,
    state: tuple[Tensor, Tensor] | None = None,
    output_final_state: bool = False,
    write_mask: Tensor | None = None,
    impl: str = "auto",
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Recurrent Delta rule (arXiv 2106.06295; as in arXiv 2310.16076).

    [q' | k' | v' | beta']_t = x_t + R^T tanh(y_{t-1}) ;  q_t = softmax(q'_t), k_t = softmax(k'_t),
    v_t = v'_t, beta_t = sigmoid(beta'_t) ;  then S_t and y_t by the delta rule.

    Args:
        projected: x ``(N, H, T, 3d + 1)``: q' | k' | v' | beta', before any activation.
        recurrent: R ``(H, d, 3d + 1)``, in the same order.
        state: S_0 ``(N, H, d, d)`` and y_0 ``(N, H, d)``; zeros if ``None``. Not changed; both
            receive a gradient.
        output_final_state: return S_T and y_T too.
        write_mask: ``(N, T)`` bool; a position that is False leaves the state as it is, its output
            is zero.
        impl: ``auto``, ``reference`` (``chunked`` is the same), ``cpu`` or ``cuda``.

    Returns:
        y ``(N, H, T, d)`` in the dtype of ``projected``, and S_T and y_T if asked for.

    Raises:
        ValueError: shapes or dtypes do not match.
        RuntimeError: a compiled kernel is asked for and is not there.
    """
    d = _check_recurrent(projected, recurrent, state)
    check_write_mask(write_mask, projected.shape[0], projected.shape[2])
    chosen = resolve_impl(impl, "recurrent_delta_fwd", projected.device)
    if chosen in ("reference", "chunked"):
        y, final = recurrent_delta_reference(
            projected, recurrent, state=state, write_mask=write_mask
        )
        return y, final if output_final_state else None
    dtype = accumulation_dtype(projected, recurrent)
    S, last = state or (
        projected.new_zeros(*projected.shape[:2], d, d, dtype=dtype),
        projected.new_zeros(*projected.shape[:2], d, dtype=dtype),
    )
    y, S, last, *_ = library.ops_of(chosen).recurrent_delta_fwd(
        *(x.to(dtype) for x in (projected, recurrent, S, last)), write_mask
    )
    return y.to(projected.dtype), (S, last) if output_final_state else None


@no_autocast
def self_referential(
    x: Tensor,
    weights: Tensor,
    *,
    output_final_state: bool = False,
    write_mask: Tensor | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Self-referential weight matrix (arXiv 2202.05780, Eqs. 5-8; as in arXiv 2310.16076).

    [y | q' | k' | beta']_t = W_{t-1}^T x_t ;  q_t = softmax(q'_t), k_t = softmax(k'_t),
    beta_t = sigmoid(beta'_t), one for each of the four parts of W ;
    W_t = W_{t-1} + k_t (x) beta_t (W_{t-1}^T q_t - W_{t-1}^T k_t)

    Args:
        x: ``(N, H, T, d)``.
        weights: W_0 = [W_y | W_q | W_k | W_beta], ``(H, d, 3d + 4)`` for all sequences, or
            ``(N, H, d, 3d + 4)`` to go on from. Not changed; receives a gradient.
        output_final_state: return W_T too.
        write_mask: ``(N, T)`` bool; a position that is False changes nothing, its output is zero.
        impl: ``auto``, ``reference`` (``chunked`` is the same), ``cpu`` or ``cuda``.

    Returns:
        y ``(N, H, T, d)`` in the dtype of ``x`` and W_T, or ``None`` if not asked for.

    Raises:
        ValueError: shapes or dtypes do not match.
        RuntimeError: a compiled kernel is asked for and is not there.
    """
    weights = _check_self_referential(x, weights)
    check_write_mask(write_mask, x.shape[0], x.shape[2])
    chosen = resolve_impl(impl, "self_referential_fwd", x.device)
    if chosen in ("reference", "chunked"):
        y, W = self_referential_reference(x, weights, write_mask=write_mask)
    else:
        dtype = accumulation_dtype(x, weights)
        forward = library.ops_of(chosen).self_referential_fwd
        y, W, *_ = forward(x.to(dtype), weights.to(dtype), write_mask)
    return y.to(x.dtype), W if output_final_state else None


def _check_recurrent(
    projected: Tensor, recurrent: Tensor, state: tuple[Tensor, Tensor] | None
) -> int:
    if projected.dim() != 4 or projected.shape[-1] % 3 != 1 or not projected.is_floating_point():
        raise ValueError(
            "projected must be floating point (N, H, T, 3d + 1): q | k | v | beta, found "
            f"{tuple(projected.shape)} {projected.dtype}"
        )
    n, h, _, width = projected.shape
    d = width // 3
    if recurrent.shape != (h, d, width):
        raise ValueError(
            f"recurrent must be (H, d, 3d + 1) = {(h, d, width)}, found {tuple(recurrent.shape)}"
        )
    if state is not None:
        found = [tuple(x.shape) for x in state]
        if found != [(n, h, d, d), (n, h, d)]:
            raise ValueError(
                f"a state is S (N, H, d, d) = {(n, h, d, d)} and y (N, H, d), found {found}"
            )
    return d


def _check_self_referential(x: Tensor, weights: Tensor) -> Tensor:
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(
            f"x must be floating point (N, H, T, d), found {tuple(x.shape)} {x.dtype}"
        )
    n, h, _, d = x.shape
    wanted = (n, h, d, 3 * d + 4)
    if weights.shape not in (wanted, wanted[1:]):
        raise ValueError(
            f"weights must be (H, d, 3d + 4) = {wanted[1:]}, or (N, H, d, 3d + 4) to go on from, "
            f"found {tuple(weights.shape)}"
        )
    return weights if weights.dim() == 4 else weights.expand(wanted)
