"""One time step, for decoding: O(1) in the length of what came before.

``*_step`` returns a new state; ``*_step_`` changes the state in place and can gather its rows
first (``rows``), which fuses the reordering of a beam with the update.
"""

from torch import Tensor

from fairseq_fwm.ops._common import check_mask_dtype, no_autocast


def _read(state: Tensor, q: Tensor) -> Tensor:
    return (q.to(state.dtype).unsqueeze(-2) @ state).squeeze(-2)


def _sum_write(k: Tensor, v: Tensor, state: Tensor, write_mask: Tensor | None) -> Tensor:
    return _outer(k, v.to(state.dtype), state, write_mask)


def _delta_write(
    k: Tensor, v: Tensor, beta: Tensor, state: Tensor, write_mask: Tensor | None
) -> Tensor:
    u = beta.to(state.dtype).unsqueeze(-1) * (v.to(state.dtype) - _read(state, k))
    return _outer(k, u, state, write_mask)


def _outer(k: Tensor, u: Tensor, state: Tensor, write_mask: Tensor | None) -> Tensor:
    written = k.to(state.dtype).unsqueeze(-1) * u.unsqueeze(-2)
    if write_mask is not None:
        written = written.masked_fill(~write_mask[:, None, None, None], 0.0)
    return written


def _check_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    write_mask: Tensor | None,
    beta: Tensor | None = None,
) -> None:
    given = {"q": q, "k": k, "v": v, "state": state, "beta": beta, "write_mask": write_mask}
    n, h = k.shape[:2]
    wanted = {"k": (n, h, k.shape[-1]), "v": (n, h, v.shape[-1]), "beta": (n, h)}
    wanted |= {"q": wanted["k"], "state": (*wanted["k"], v.shape[-1]), "write_mask": (n,)}
    for name, tensor in given.items():
        if tensor is not None and tensor.shape != wanted[name]:
            raise ValueError(
                "a step takes q, k (N, H, K), v (N, H, V), beta (N, H), state (N, H, K, V) and "
                f"write_mask (N,): {name} should be {wanted[name]}, found {tuple(tensor.shape)}"
            )
    check_mask_dtype(write_mask)


def _gather(state: Tensor, rows: Tensor | None) -> None:
    if rows is not None:
        if rows.shape != state.shape[:1]:
            raise ValueError(
                f"rows must have shape ({state.shape[0]},), one per row of the state, found "
                f"{tuple(rows.shape)}; a beam that shrinks needs the functional step"
            )
        state.copy_(state.index_select(0, rows))


@no_autocast
def causal_sum_step(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, *, write_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One step of :func:`fairseq_fwm.ops.causal_sum`.

    Args:
        q, k: ``(N, H, K)``.  v: ``(N, H, V)``.  state: S ``(N, H, K, V)``.
        write_mask: ``(N,)`` bool, True where the row writes.

    Returns:
        y ``(N, H, V)`` in the dtype of ``v`` and the new state.

    Raises:
        ValueError: if shapes do not match.
    """
    _check_step(q, k, v, state, write_mask)
    state = state + _sum_write(k, v, state, write_mask)
    return _read(state, q).to(v.dtype), state


@no_autocast
def causal_sum_step_(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    *,
    rows: Tensor | None = None,
    write_mask: Tensor | None = None,
) -> Tensor:
    """In-place :func:`causal_sum_step`; row b of the state is first replaced by ``rows[b]``."""
    _check_step(q, k, v, state, write_mask)
    _gather(state, rows)
    state += _sum_write(k, v, state, write_mask)
    return _read(state, q).to(v.dtype)


@no_autocast
def causal_delta_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    state: Tensor,
    *,
    write_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of :func:`fairseq_fwm.ops.causal_delta`.

    Args:
        q, k: ``(N, H, K)``.  v: ``(N, H, V)``.  beta: ``(N, H)``.  state: S ``(N, H, K, V)``.
        write_mask: ``(N,)`` bool, True where the row writes.

    Returns:
        y ``(N, H, V)`` in the dtype of ``v`` and the new state.

    Raises:
        ValueError: if shapes do not match.
    """
    _check_step(q, k, v, state, write_mask, beta)
    state = state + _delta_write(k, v, beta, state, write_mask)
    return _read(state, q).to(v.dtype), state


@no_autocast
def causal_delta_step_(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    state: Tensor,
    *,
    rows: Tensor | None = None,
    write_mask: Tensor | None = None,
) -> Tensor:
    """In-place :func:`causal_delta_step`; row b of the state is first replaced by ``rows[b]``."""
    _check_step(q, k, v, state, write_mask, beta)
    _gather(state, rows)
    state += _delta_write(k, v, beta, state, write_mask)
    return _read(state, q).to(v.dtype)
