"""``fwm_transformer``: fairseq's transformer with fast weight attention where it is asked for.

With softmax at every site it *is* fairseq's ``transformer``: same modules, same state dict, same
numbers from the same seed.
"""

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import torch
from fairseq.dataclass import ChoiceEnum
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import register_model, register_model_architecture
from fairseq.models.transformer import (
    TransformerConfig,
    TransformerDecoderBase,
    TransformerEncoderBase,
    TransformerModelBase,
    base_architecture,
    transformer_iwslt_de_en,
)
from fairseq.models.transformer.transformer_legacy import transformer_vaswani_wmt_en_de_big
from torch import Tensor, nn

from fairseq_fwm.models.flags import (
    FastWeightFlags,
    check_sites,
    seed_random_features,
    site_choices,
)
from fairseq_fwm.modules.layers import (
    SOFTMAX,
    FWMTransformerDecoderLayer,
    FWMTransformerEncoderLayer,
    decodes_fast,
    wrap_layer,
)
from fairseq_fwm.modules.precision import set_inference_precision
from fairseq_fwm.modules.shared_source import BEAM, EncoderOut, beam_after, per_sentence, stays

ENCODER_SELF = site_choices("encoder_self")
CROSS = site_choices("cross")
FAST_DECODING = ChoiceEnum(["auto", "on", "off"])

NO_LAYER = -1
"""The alignment layer of a decoder that gives no alignment."""


@dataclass
class FWMTransformerConfig(FastWeightFlags, TransformerConfig):
    """fairseq's transformer configuration and the flat ``--fwm-*`` flags."""

    fwm_encoder_self: ENCODER_SELF = field(
        default="softmax",
        metadata={"help": "encoder self-attention; delta runs once in each direction"},
    )
    fwm_cross: CROSS = field(
        default="softmax",
        metadata={"help": "cross-attention; sum writes the source once, then reads in O(1)"},
    )
    fwm_fast_decoding: FAST_DECODING = field(
        default="auto",
        metadata={
            "help": "beam search keeps the source once per sentence, not per hypothesis; auto: "
            "unless every site is softmax (then as fairseq, to the last bit)"
        },
    )


class FWMTransformerEncoder(TransformerEncoderBase):
    """fairseq's encoder with our layers."""

    def build_encoder_layer(self, cfg: FWMTransformerConfig) -> nn.Module:
        """Build one layer."""
        return wrap_layer(FWMTransformerEncoderLayer(cfg, return_fc=self.return_fc), cfg)

    def reorder_encoder_out(self, encoder_out: EncoderOut, new_order: Tensor) -> EncoderOut:
        """Let the output follow the beam, without a copy where rows stay with their sentence."""
        if not decodes_fast(self.cfg):
            return super().reorder_encoder_out(encoder_out, new_order)
        if stays(encoder_out, new_order):
            return encoder_out
        beam = beam_after(encoder_out, new_order)
        reordered = super().reorder_encoder_out(encoder_out, new_order)
        return reordered if beam == 1 else {**reordered, BEAM: [torch.tensor(beam)]}


class FWMTransformerDecoder(TransformerDecoderBase):
    """fairseq's decoder with our layers."""

    def build_decoder_layer(
        self, cfg: FWMTransformerConfig, no_encoder_attn: bool = False
    ) -> nn.Module:
        """Build one layer."""
        return wrap_layer(FWMTransformerDecoderLayer(cfg, no_encoder_attn), cfg)

    needs_alignment = True
    """Whether decoding returns attention weights; a beam search would carry and move them all."""

    def buffered_future_mask(self, tensor: Tensor) -> Tensor:
        """Return the causal mask; of fast weights only what stands for it, not T x T numbers."""
        rule = str(getattr(self.cfg, "fwm_decoder_self", SOFTMAX))
        if rule == SOFTMAX or self.cross_self_attention:
            return super().buffered_future_mask(tensor)
        return tensor.new_empty(0)

    @cached_property
    def _stateful(self) -> tuple[nn.Module, ...]:
        modules = (module for layer in self.layers for module in layer.modules())
        return tuple(m for m in modules if hasattr(m, "reorder_incremental_state"))

    def reorder_incremental_state_scripting(
        self, incremental_state: dict[str, Any], new_order: Tensor
    ) -> None:
        """Let all states follow the beam; fairseq looks for them among all modules every time."""
        for module in self._stateful:
            module.reorder_incremental_state(incremental_state, new_order)

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: EncoderOut | None,
        incremental_state: dict[str, Any] | None = None,
        full_context_alignment: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the features below the output layer, as fairseq's decoder does."""
        if incremental_state is not None:
            if alignment_layer is None and not self.needs_alignment:
                alignment_layer = NO_LAYER
            if encoder_out is not None and not self.cross_self_attention:
                encoder_out = per_sentence(encoder_out)
        return super().extract_features(
            prev_output_tokens,
            *(encoder_out, incremental_state),
            *(full_context_alignment, alignment_layer, alignment_heads),
        )


@register_model("fwm_transformer")
class FWMTransformerModel(TransformerModelBase):
    """Transformer for translation; the attention of each site is chosen by ``--fwm-*`` flags."""

    @classmethod
    def add_args(cls, parser: Any) -> None:
        """Add fairseq's transformer flags and ours; defaults come from the architecture."""
        gen_parser_from_dataclass(
            parser, FWMTransformerConfig(), delete_default=True, with_prefix=""
        )

    @classmethod
    def build_model(cls, args: Any, task: Any) -> "FWMTransformerModel":
        """Build a model.

        Raises:
            ValueError: if a combination of ``--fwm-*`` flags is not valid.
        """
        fwm_base_architecture(args)
        cfg = FWMTransformerConfig.from_namespace(args)
        check_sites(cfg)
        model = super().build_model(cfg, task)
        seed_random_features(model, cfg.fwm_favor_seed)
        return model

    @classmethod
    def build_encoder(cls, cfg, src_dict, embed_tokens):  # noqa: D102, fairseq's own contract
        return FWMTransformerEncoder(cfg, src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, cfg, tgt_dict, embed_tokens):  # noqa: D102, fairseq's own contract
        return FWMTransformerDecoder(
            cfg, tgt_dict, embed_tokens, no_encoder_attn=cfg.no_cross_attention
        )

    def prepare_for_inference_(self, cfg: Any) -> None:
        """Prepare for generation as fairseq does; attention weights only for who asks for them.

        Raises:
            ValueError: if alignments are wanted of a cross-attention that has none.
        """
        flags = {"--print-alignment": "print_alignment", "--replace-unk": "replace_unk"}
        wanted = [f for f, name in flags.items() if getattr(cfg.generation, name, None)]
        if wanted and str(self.cfg.fwm_cross) != SOFTMAX:
            raise ValueError(
                f"{' and '.join(wanted)} need attention weights over the source, which fast "
                f"weight cross-attention (--fwm-cross {self.cfg.fwm_cross}) does not have: "
                "generate without, or train with --fwm-cross softmax"
            )
        super().prepare_for_inference_(cfg)
        self.decoder.needs_alignment = bool(wanted)
        set_inference_precision(self, str(self.cfg.fwm_inference_precision))


def _fill_fwm_defaults(args: Any) -> None:
    for f in fields(FWMTransformerConfig):
        if f.name.startswith("fwm_"):
            setattr(args, f.name, getattr(args, f.name, f.default))


@register_model_architecture("fwm_transformer", "fwm_transformer")
def fwm_base_architecture(args: Any) -> None:
    """fairseq's base shape (6 + 6 layers, 512, FFN 2048, 8 heads)."""
    _fill_fwm_defaults(args)
    base_architecture(args)


@register_model_architecture("fwm_transformer", "fwm_transformer_tiny")
def fwm_transformer_tiny(args: Any) -> None:
    """4 + 4 layers, 128, FFN 256, 4 heads: minutes on a CPU, Multi30k."""
    for side in ("encoder", "decoder"):
        for name, size in (("embed_dim", 128), ("ffn_embed_dim", 256)):
            _default(args, f"{side}_{name}", size)
        for name in ("layers", "attention_heads"):
            _default(args, f"{side}_{name}", 4)
    fwm_base_architecture(args)


@register_model_architecture("fwm_transformer", "fwm_transformer_iwslt_de_en")
def fwm_transformer_iwslt_de_en(args: Any) -> None:
    """fairseq's IWSLT shape (6 + 6 layers, 512, FFN 1024, 4 heads)."""
    _fill_fwm_defaults(args)
    transformer_iwslt_de_en(args)


@register_model_architecture("fwm_transformer", "fwm_transformer_wmt_en_de")
def fwm_transformer_wmt_en_de(args: Any) -> None:
    """The base shape, under the name fairseq's users expect."""
    fwm_base_architecture(args)


@register_model_architecture("fwm_transformer", "fwm_transformer_wmt_en_de_big")
def fwm_transformer_wmt_en_de_big(args: Any) -> None:
    """The paper's translation model (6 + 6 layers, 1024, FFN 4096, 16 heads)."""
    _fill_fwm_defaults(args)
    transformer_vaswani_wmt_en_de_big(args)


def _default(args: Any, name: str, value: Any) -> None:
    setattr(args, name, getattr(args, name, value))
