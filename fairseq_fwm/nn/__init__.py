"""Modules for anyone with torch: fast weight attention, transformers, DPFP, trained models."""

from fairseq_fwm.nn.attention import FastWeightAttention
from fairseq_fwm.nn.config import StackConfig
from fairseq_fwm.nn.dpfp import DPFPAttention, DPFPCell, DPFPformer
from fairseq_fwm.nn.export import ExportError, load_exported, save_exported
from fairseq_fwm.nn.language_model import LanguageModel
from fairseq_fwm.nn.transformer import FastWeightBlock, FastWeightTransformer
from fairseq_fwm.nn.translation_model import TranslationModel
from fairseq_fwm.nn.vocabulary import Vocabulary
from fairseq_fwm.ops import dpfp

__all__ = [
    "DPFPAttention",
    "DPFPCell",
    "DPFPformer",
    "ExportError",
    "FastWeightAttention",
    "FastWeightBlock",
    "FastWeightTransformer",
    "LanguageModel",
    "StackConfig",
    "TranslationModel",
    "Vocabulary",
    "dpfp",
    "load_exported",
    "save_exported",
]
