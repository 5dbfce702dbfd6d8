"""Modules for anyone with torch: fast weight attention, transformers, the DPFP interface."""

from fairseq_fwm.nn.attention import FastWeightAttention
from fairseq_fwm.nn.dpfp import DPFPAttention, DPFPCell, DPFPformer
from fairseq_fwm.nn.transformer import FastWeightBlock, FastWeightTransformer
from fairseq_fwm.ops import dpfp

__all__ = [
    "DPFPAttention",
    "DPFPCell",
    "DPFPformer",
    "FastWeightAttention",
    "FastWeightBlock",
    "FastWeightTransformer",
    "dpfp",
]
