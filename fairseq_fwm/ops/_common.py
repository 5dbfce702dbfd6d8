"""What every op shares: accumulation dtype, argument checks, the write mask."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

State = Tensor | tuple[Tensor, Tensor]
"""S ``(N, H, K, V)``; with attention normalisation the pair of S and z ``(N, H, K)``."""


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype of state and arithmetic: fp64 if any input is fp64, else fp32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def check_sequence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None = None,
    state: Tensor | None = None,
    write_mask: Tensor | None = None,
    key_features: int | None = None,
    normalizer: Tensor | None = None,
) -> None:
    """Check the shapes of a sequence op.

    Args:
        q, k, v, beta, state, write_mask: as in the legend of :mod:`fairseq_fwm.ops`.
        key_features: K of the state, where it differs from that of ``k`` (feature map in the op).
        normalizer: z_0.

    Raises:
        ValueError: naming the argument, what was wanted and what was found.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() != 4:
            _fail(name, "(N, H, T, features)", tensor)
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, found {tensor.dtype}")
    if q.shape != k.shape:
        raise ValueError(
            f"q and k must have the same shape (N, H, T, K), found q {tuple(q.shape)} "
            f"and k {tuple(k.shape)}"
        )
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(
            f"v must be (N, H, T, V) with the N, H, T of k {tuple(k.shape[:3])}, "
            f"found v {tuple(v.shape)}"
        )
    n, h, t, key_dim = k.shape
    if beta is not None and beta.shape != (n, h, t):
        _fail("beta", f"(N, H, T) = {(n, h, t)}", beta)
    if state is not None:
        wanted = (n, h, key_features or key_dim, v.shape[-1])
        if state.shape != wanted:
            _fail("state", f"(N, H, K, V) = {wanted}", state)
    if normalizer is not None:
        wanted = (n, h, key_features or key_dim)
        if normalizer.shape != wanted:
            _fail("normalizer", f"(N, H, K) = {wanted}", normalizer)
    check_write_mask(write_mask, n, t)


def check_write_mask(write_mask: Tensor | None, n: int, t: int) -> None:
    """Raise ``ValueError`` unless a mask is bool ``(N, T)``."""
    if write_mask is not None and write_mask.shape != (n, t):
        _fail("write_mask", f"(N, T) = {(n, t)}", write_mask)
    check_mask_dtype(write_mask)


def check_mask_dtype(write_mask: Tensor | None) -> None:
    """Raise ``ValueError`` unless a mask is bool: of an int mask nobody knows the sense."""
    if write_mask is not None and write_mask.dtype != torch.bool:
        raise ValueError(
            f"write_mask must be bool (True: this position writes), found {write_mask.dtype}"
        )


def _fail(name: str, wanted: str, tensor: Tensor) -> None:
    raise ValueError(f"{name} must have shape {wanted}, found {tuple(tensor.shape)}")


def mask_writes(write_mask: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Zero what masked positions would write.

    ``masked_fill`` and not a product: garbage at a padded position (inf, NaN) must not get in.

    Args:
        write_mask: ``(N, T)`` bool, True where a position writes; ``None`` masks nothing.
        tensors: ``(N, H, T)`` or ``(N, H, T, features)``.
    """
    if write_mask is None:
        return tensors
    hidden = ~write_mask[:, None, :]
    return tuple(
        x.masked_fill(hidden if x.dim() == 3 else hidden.unsqueeze(-1), 0.0) for x in tensors
    )


def initial_state(
    k: Tensor, v: Tensor, state: State | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return S_0 ``(N, H, K, V)`` and z_0 ``(N, H, K)`` in ``dtype``; zeros where missing."""
    S, z = state if isinstance(state, tuple) else (state, None)
    shape = (*k.shape[:2], k.shape[-1])
    S = k.new_zeros(*shape, v.shape[-1], dtype=dtype) if S is None else S.to(dtype)
    return S, k.new_zeros(shape, dtype=dtype) if z is None else z.to(dtype)


def differentiate(
    form: Callable, inputs: tuple[Tensor, ...], d_outputs: tuple[Tensor | None, ...]
) -> tuple[Tensor, ...]:
    """Run a PyTorch form again and differentiate it.

    Args:
        form: takes ``inputs``.
        inputs: what to differentiate with respect to.
        d_outputs: gradients of the first outputs; ``None`` for one that has none.

    Returns:
        The gradients of ``inputs``, zero where nothing depends on one.
    """
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        outputs = form(*leaves)
    pairs = [
        (y, dy)
        for y, dy in zip(outputs, d_outputs, strict=False)
        if dy is not None and y.requires_grad
    ]
    outputs, grads = zip(*pairs, strict=True)
    return torch.autograd.grad(outputs, leaves, grads, materialize_grads=True)


def no_autocast(function: Callable) -> Callable:
    """Run ``function`` outside autocast, which would round the state's products to half precision.

    The device is that of the first tensor argument.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        device = next((x.device.type for x in given if isinstance(x, Tensor)), "meta")
        supported = torch.amp.is_autocast_available(device)
        if not supported or not torch.is_autocast_enabled(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return wrapper
