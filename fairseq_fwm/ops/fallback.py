"""The chunked form behind the signature of an op: any device, any dtype, differentiable."""

from collections.abc import Callable

from torch import Tensor

from fairseq_fwm.ops._common import accumulation_dtype, mask_writes, no_autocast
from fairseq_fwm.ops.chunked import causal_delta_chunked, causal_sum_chunked
from fairseq_fwm.ops.features import FeatureSpec
from fairseq_fwm.ops.normalization import attention_normalize

Update = Callable[..., tuple[Tensor, Tensor | None]]
"""(q, k, v, beta or None, state, output_final_state) -> (y, S_T), in the accumulation dtype."""


def chunked(q: Tensor, k: Tensor, v: Tensor, beta: Tensor | None, *options):
    """Run the chunked form of the delta rule, or of the sum rule if ``beta`` is ``None``."""
    if beta is None:
        return causal_sum_chunked(q, k, v, *options)
    return causal_delta_chunked(q, k, v, beta, *options)


def causal(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    state: Tensor | None,
    normalizer: Tensor | None,
    write_mask: Tensor | None,
    features: FeatureSpec,
    attn_norm: str,
    output_final_state: bool,
    update: Update = chunked,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Run the delta rule, or the sum rule if ``beta`` is ``None``; inputs of any dtype, unmasked.

    ``update`` does the recurrence on what is left when the mask, the feature map and attention
    normalisation are applied.

    Returns:
        y ``(N, H, T, V)`` in the dtype of ``v``, S_T and z_T (``None`` if not asked for).
    """
    dtype, out_dtype = accumulation_dtype(q, k, v), v.dtype
    q, k, v, beta, state, normalizer = (
        None if x is None else x.to(dtype) for x in (q, k, v, beta, state, normalizer)
    )
    k, v, *strength = mask_writes(write_mask, k, v, *(() if beta is None else (beta,)))
    # Masked keys are zero before the map, which keeps garbage out of gradients, and after it.
    (k,) = mask_writes(write_mask, features(k))
    q, k, beta, z = attention_normalize(
        features(q), k, strength[0] if strength else None, normalizer, attn_norm
    )
    y, S = update(q, k, v, beta, state, output_final_state)
    return y.to(out_dtype), S, z if output_final_state else None


@no_autocast
def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    state: Tensor,
    normalizer: Tensor | None,
    rows: Tensor | None,
    write_mask: Tensor | None,
    features: FeatureSpec,
    attn_norm: str,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One step of :func:`causal`: q, k ``(N, H, K)``, v ``(N, H, V)``, write_mask ``(N,)``.

    Returns:
        y ``(N, H, V)`` in the dtype of ``v``, the new state and the new normaliser.
    """
    if rows is not None:
        state = state.index_select(0, rows)
        normalizer = None if normalizer is None else normalizer.index_select(0, rows)
    sequence = (None if x is None else x.unsqueeze(2) for x in (q, k, v, beta))
    mask = None if write_mask is None else write_mask.unsqueeze(1)
    y, S, z = causal(*sequence, state, normalizer, mask, features, attn_norm, True)
    return y.squeeze(2), S, z
