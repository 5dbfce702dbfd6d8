"""Fast weight updates as functions on tensors.

Shape legend, used everywhere in this package:

    ``N`` batch, ``H`` heads, ``T`` time,
    ``K`` key features (after the feature map), ``V`` value features.

    q, k: ``(N, H, T, K)``;  v: ``(N, H, T, V)``;  beta: ``(N, H, T)``;
    weights S: ``(N, H, K, V)``;  normaliser z: ``(N, H, K)``;  write_mask: ``(N, T)``.

The state S is fp32 (fp64 for fp64 inputs) whatever the dtype of the inputs, and is never
changed in place unless a function's name ends in an underscore. The paper writes the
transpose, W = S^T, of shape ``(V, K)``. fairseq's ``(T, N, C)`` exists only in
:mod:`fairseq_fwm.modules`.
"""

from fairseq_fwm.ops.features import FeatureSpec
from fairseq_fwm.ops.maps import dpfp, elu_features, favor_exp, feature_map
from fairseq_fwm.ops.noncausal import read, write
from fairseq_fwm.ops.recurrent import recurrent_delta, self_referential
from fairseq_fwm.ops.reference import (
    causal_delta_reference,
    causal_sum_reference,
    recurrent_delta_reference,
    self_referential_reference,
)
from fairseq_fwm.ops.sequence import causal_delta, causal_sum
from fairseq_fwm.ops.step import (
    causal_delta_step,
    causal_delta_step_,
    causal_sum_step,
    causal_sum_step_,
)

__all__ = [
    "FeatureSpec",
    "causal_delta",
    "causal_delta_reference",
    "causal_delta_step",
    "causal_delta_step_",
    "causal_sum",
    "causal_sum_reference",
    "causal_sum_step",
    "causal_sum_step_",
    "dpfp",
    "elu_features",
    "favor_exp",
    "feature_map",
    "read",
    "recurrent_delta",
    "recurrent_delta_reference",
    "self_referential",
    "self_referential_reference",
    "write",
]
