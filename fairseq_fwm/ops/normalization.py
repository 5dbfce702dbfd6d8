"""Attention normalisation, as a change of what an update rule sees."""

import torch
from torch import Tensor

ATTN_NORMS = ("none", "output", "full")
ATTN_NORM_EPS = 1e-5


def attention_normalize(
    q: Tensor, k: Tensor, beta: Tensor | None, normalizer: Tensor | None, kind: str
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Fold attention normalisation into queries, keys and write strengths.

    With z_t = z_{t-1} + k_t, a query becomes q_t / (z_t.q_t + eps): the output is divided by it.
    Of the kind ``full``, with kappa_t = z_{t-1}.k_t + eps, the delta rule on k_t / kappa_t and
    beta_t kappa_t retrieves S^T k_t / kappa_t and writes k_t (x) beta_t (v_t - that): Eqs. 26-28
    of arXiv 2102.11174. Where nothing was written yet S is zero and any kappa will do.

    Args:
        q, k: features ``(N, H, T, K)``; masked keys are zero.
        beta: ``(N, H, T)`` or ``None``.
        normalizer: z_0 ``(N, H, K)``; zeros if ``None``.
        kind: one of :data:`ATTN_NORMS`.

    Returns:
        q, k and beta for the rule, and z_T; z_T is ``None`` for the kind ``none``.
    """
    if kind == "none":
        return q, k, beta, None
    z_0 = k.new_zeros(k.shape[:2] + k.shape[3:]) if normalizer is None else normalizer
    z = torch.cat((z_0.unsqueeze(2), z_0.unsqueeze(2) + k.cumsum(2)), 2)
    z_before, z_after = z[:, :, :-1], z[:, :, 1:]
    q = q / ((z_after * q).sum(-1, keepdim=True) + ATTN_NORM_EPS)
    if kind == "full":
        kappa = (z_before * k).sum(-1) + ATTN_NORM_EPS
        kappa = torch.where((z_before == 0).all(-1), 1.0, kappa)
        k, beta = k / kappa.unsqueeze(-1), beta * kappa
    return q, k, beta, z[:, :, -1]
