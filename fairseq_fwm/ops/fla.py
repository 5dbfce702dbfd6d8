"""``impl="fla"``: the kernels of flash-linear-attention behind our conventions.

For GPUs on which that package is installed (``pip install 'flash-linear-attention[cuda]'``). Ours
to theirs: ``(N, H, T, features)`` becomes ``(N, T, H, features)``; their scale on queries, by
default ``K**-0.5``, is 1; feature maps, attention normalisation and the write mask are applied
before, in fp32; what goes in is then rounded to the dtype of ``v``, and the state stays fp32.
Decoding step by step, and every other op, keeps to our own kernels: see ``docs/interop.md``.
"""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from fairseq_fwm.ops import fallback
from fairseq_fwm.ops._common import accumulation_dtype
from fairseq_fwm.ops.features import FeatureSpec

DEVICE = "cuda"
"""Type of the device of the tensors that these kernels take (ROCm's is called so, too)."""
INSTALL = "pip install 'flash-linear-attention[cuda]'"
MAX_DELTA_KEYS = 256
FUNCTIONS = {
    "causal_sum_fwd": ("fla.ops.linear_attn", "chunk_linear_attn"),
    "causal_delta_fwd": ("fla.ops.delta_rule", "chunk_delta_rule"),
}
"""Which of its functions serves which of our ops."""
DTYPES = {
    "sum": (torch.bfloat16, torch.float16, torch.float32),
    "delta": (torch.bfloat16, torch.float16),
}


def function_of(op: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """Return the function of the package that serves an op, ``causal_sum_fwd`` for one.

    Raises:
        RuntimeError: if there is none, or the package is not there or does not load.
    """
    if op not in FUNCTIONS:
        raise RuntimeError(
            f"impl='fla' serves the sum and delta rules alone, not {op}: use impl='auto'"
        )
    module, name = FUNCTIONS[op]
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        raise RuntimeError(
            f"impl='fla' was asked for, but {module}.{name} of flash-linear-attention cannot be "
            f"loaded ({error}). Install it with \"{INSTALL}\", or use impl='auto'."
        ) from error


def causal(
    rule: str,
    tensors: tuple[Tensor, ...],
    state: Tensor | None,
    normalizer: Tensor | None,
    write_mask: Tensor | None,
    features: FeatureSpec,
    attn_norm: str,
    output_final_state: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Run the rule by the package's chunkwise kernels.

    Args:
        rule: ``sum`` or ``delta``.
        tensors: q, k, v and, for delta, beta, as :func:`fairseq_fwm.ops.causal_delta` takes them.
        state, normalizer: S_0 ``(N, H, K, V)`` and z_0 ``(N, H, K)``, or ``None``.
        write_mask, features, attn_norm, output_final_state: as there.

    Returns:
        y ``(N, H, T, V)`` in the dtype of ``v``, S_T and z_T (``None`` if not asked for).

    Raises:
        ValueError: for what the kernels cannot do, with the reason and what to use instead.
        RuntimeError: if the package is not there or does not load.
    """
    q, k, v, *beta = tensors
    keys, dtype = features.out_dim(k.shape[-1]), v.dtype
    double = accumulation_dtype(q, k, v) == torch.float64
    _check(rule, torch.float64 if double else dtype, keys, v.shape[-1], attn_norm)
    return fallback.causal(
        *(q, k, v, beta[0] if beta else None, state, normalizer),
        *(write_mask, features, attn_norm, output_final_state),
        update=_update(function_of(f"causal_{rule}_fwd"), dtype),
    )


def _update(run: Callable, dtype: torch.dtype) -> fallback.Update:
    """Return what does the recurrence, by a function of the package."""

    def update(q, k, v, beta, state, output_final_state):
        q, k, v = (x.transpose(1, 2).to(dtype).contiguous() for x in (q, k, v))
        strength = () if beta is None else (beta.transpose(1, 2).contiguous(),)
        y, final = run(
            *(q, k, v, *strength),
            scale=1.0,
            initial_state=None if state is None else state.contiguous(),
            output_final_state=output_final_state,
            **({} if strength else {"normalize": False}),
        )
        return y.transpose(1, 2), final

    return update


def _check(rule: str, dtype: torch.dtype, keys: int, values: int, attn_norm: str) -> None:
    """Refuse what the package's kernels answer with an assertion, or wrongly."""
    if dtype not in DTYPES[rule]:
        names = ", ".join(str(x).removeprefix("torch.") for x in DTYPES[rule])
        raise ValueError(
            f"impl='fla' takes {names} for the {rule} rule, found {dtype}: use bfloat16 "
            "(autocast, or .bfloat16()), or impl='auto'"
        )
    if dtype == torch.float16 and attn_norm != "none":
        raise ValueError(
            "impl='fla' with attention normalisation: queries divided by z.q may leave the range "
            "of float16; use bfloat16, or impl='auto'"
        )
    if dtype != torch.float32 and (keys % 2 or values % 2):
        raise ValueError(
            f"impl='fla' takes even K and V in half precision, found K = {keys} and V = {values}: "
            "change the head size, or use impl='auto'"
        )
    if rule == "delta" and keys > MAX_DELTA_KEYS:
        raise ValueError(
            f"impl='fla' takes up to {MAX_DELTA_KEYS} key features for the delta rule, found "
            f"{keys}: use a smaller nu or m, or impl='auto'"
        )
