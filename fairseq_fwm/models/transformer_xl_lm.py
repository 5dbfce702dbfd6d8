"""``transformer_xl_lm``: Transformer-XL (arXiv 1901.02860), the baseline with a memory.

With ``--task streaming_language_modeling`` every layer also attends to its last inputs of the
segments before; with fairseq's ``language_modeling`` each segment stands alone.
"""

from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.models import register_model, register_model_architecture
from fairseq.models.transformer import TransformerConfig
from fairseq.models.transformer_lm import TransformerLanguageModelConfig
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase
from torch import nn

from fairseq_fwm.models.fwm_transformer_lm import (
    INIT_STD,
    PUBLISHED,
    TINY,
    FWMTransformerLanguageModel,
    FWMTransformerLMDecoder,
    PublishedFlags,
    set_shape,
)
from fairseq_fwm.modules.layers import wrap_layer
from fairseq_fwm.modules.relative_attention import RelativeAttention


@dataclass
class MemoryFlags:
    """How many positions of the segments before are seen."""

    mem_len: Optional[int] = field(
        default=None,
        metadata={"help": "positions that a layer remembers (default: --tokens-per-sample)"},
    )
    eval_mem_len: Optional[int] = field(
        default=None,
        metadata={
            "help": "the same outside training (default: --mem-len); of a trained model: "
            "--model-overrides \"{'eval_mem_len': N}\""
        },
    )


@dataclass
class TransformerXLLMConfig(MemoryFlags, PublishedFlags, TransformerLanguageModelConfig):
    """fairseq's ``transformer_lm`` configuration, its positions aside, and the memory."""


@dataclass
class TransformerXLDecoderConfig(MemoryFlags, PublishedFlags, TransformerConfig):
    """The same, structured as fairseq's decoder wants it."""


class TransformerXLDecoderLayer(TransformerDecoderLayerBase):
    """fairseq's decoder layer with relative attention."""

    def build_self_attention(
        self, embed_dim: int, cfg: TransformerXLDecoderConfig, **kwargs: Any
    ) -> nn.Module:
        """Build the attention."""
        return RelativeAttention(
            embed_dim,
            cfg.decoder.attention_heads,
            cfg.mem_len,
            cfg.eval_mem_len,
            dropout=cfg.attention_dropout,
            position_dropout=cfg.dropout,
            q_noise=self.quant_noise,
            qn_block_size=self.quant_noise_block_size,
        )


class TransformerXLDecoder(FWMTransformerLMDecoder):
    """fairseq's decoder whose layers remember their inputs; all share the two score biases.

    Args:
        cfg: configuration.
        dictionary: of the output.
        embed_tokens: of the input.
    """

    def __init__(
        self, cfg: TransformerXLDecoderConfig, dictionary: Any, embed_tokens: nn.Module
    ) -> None:
        super().__init__(cfg, dictionary, embed_tokens)
        attentions = [m for m in self.modules() if isinstance(m, RelativeAttention)]
        for name in ("content_bias", "position_bias"):
            shared = getattr(attentions[0], name)
            if str(cfg.fwm_init) == "normal":
                nn.init.normal_(shared, std=INIT_STD)
            for attention in attentions:
                setattr(attention, name, shared)

    def build_decoder_layer(
        self, cfg: TransformerXLDecoderConfig, no_encoder_attn: bool = False
    ) -> nn.Module:
        """Build one layer."""
        return wrap_layer(TransformerXLDecoderLayer(cfg, no_encoder_attn), cfg)

    def why_no_stream(self) -> str | None:
        """Return why no memory can be carried from segment to segment, or ``None`` if it can."""
        return self.why_layers_forget()


@register_model("transformer_xl_lm", dataclass=TransformerXLLMConfig)
class TransformerXLLanguageModel(FWMTransformerLanguageModel):
    """Language model with a memory; without a stream, segments are independent."""

    @classmethod
    def build_model(cls, args: Any, task: Any) -> "TransformerXLLanguageModel":
        """Build a model.

        Raises:
            ValueError: if flags do not go together.
        """
        cfg = TransformerXLDecoderConfig.from_namespace(args)
        cfg.no_token_positional_embeddings = True
        if cfg.mem_len is None:
            cfg.mem_len = args.tokens_per_sample
        if cfg.eval_mem_len is None:
            cfg.eval_mem_len = cfg.mem_len
        embedding = cls.build_input(args, task.source_dictionary)
        return cls(TransformerXLDecoder(cfg, task.target_dictionary, embedding))


@register_model_architecture("transformer_xl_lm", "transformer_xl_lm_wikitext103_medium")
def transformer_xl_lm_wikitext103_medium(args: Any) -> None:
    """16 layers, 256, FFN 2048, 8 heads; with --tokens-per-sample 384 and as much memory."""
    set_shape(args, 256, **PUBLISHED)


@register_model_architecture("transformer_xl_lm", "transformer_xl_lm_tiny")
def transformer_xl_lm_tiny(args: Any) -> None:
    """4 layers, 128, FFN 512, 4 heads: minutes on a CPU."""
    set_shape(args, 128, **TINY)
