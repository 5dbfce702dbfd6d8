"""``fwm_transformer_lm``: decoder-only language models with fast weights or softmax.

With softmax and fairseq's own flags it *is* fairseq's ``transformer_lm``. The presets have the
shapes of arXiv 2102.11174.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq import options, utils
from fairseq.dataclass import ChoiceEnum
from fairseq.models import register_model, register_model_architecture
from fairseq.models.transformer_lm import (
    DEFAULT_MAX_TARGET_POSITIONS,
    TransformerLanguageModel,
    TransformerLanguageModelConfig,
)
from fairseq.modules import AdaptiveInput
from torch import Tensor, nn

from fairseq_fwm.models.flags import FastWeightFlags, check_sites, seed_random_features
from fairseq_fwm.models.fwm_transformer import FWMTransformerConfig, FWMTransformerDecoder
from fairseq_fwm.modules.adaptive_softmax import TiedAdaptiveSoftmax
from fairseq_fwm.modules.layers import SOFTMAX
from fairseq_fwm.modules.precision import set_inference_precision
from fairseq_fwm.modules.stream import Stream
from fairseq_fwm.nn.positions import ReversedSinusoids

POSITIONS = ChoiceEnum(["fairseq", "reversed"])
INIT = ChoiceEnum(["fairseq", "normal"])
INIT_STD = 0.02


@dataclass
class PublishedFlags:
    """What all published language models do differently from fairseq's."""

    fwm_init: INIT = field(
        default="fairseq",
        metadata={"help": f"normal: all weights N(0, {INIT_STD}), LayerNorm N(1, {INIT_STD})"},
    )
    fwm_tied_adaptive_softmax: bool = field(
        default=False,
        metadata={
            "help": "adaptive softmax as published: one table for all clusters, tied with the "
            "input embedding, and output biases; with --adaptive-softmax-cutoff"
        },
    )


@dataclass
class LanguageModelFlags(PublishedFlags):
    """And those with absolute positions, or none."""

    fwm_positions: POSITIONS = field(
        default="fairseq",
        metadata={
            "help": "fairseq (its own flags decide), or reversed: sinusoids counted from the end "
            "of the segment, as published; --no-token-positional-embeddings removes both"
        },
    )
    fwm_no_projection_bias: bool = field(
        default=False, metadata={"help": "attention without biases, as published"}
    )


@dataclass
class FWMTransformerLMConfig(LanguageModelFlags, FastWeightFlags, TransformerLanguageModelConfig):
    """fairseq's ``transformer_lm`` configuration and the flat ``--fwm-*`` flags."""


@dataclass
class FWMDecoderConfig(LanguageModelFlags, FWMTransformerConfig):
    """The same, structured as fairseq's decoder wants it."""


class FWMTransformerLMDecoder(FWMTransformerDecoder):
    """fairseq's decoder without encoder; a stream's states go in and come out.

    Args:
        cfg: configuration.
        dictionary: of the output.
        embed_tokens: of the input.
    """

    def __init__(self, cfg: FWMDecoderConfig, dictionary: Any, embed_tokens: nn.Module) -> None:
        super().__init__(cfg, dictionary, embed_tokens, no_encoder_attn=True)
        if self.embed_positions is not None and str(cfg.fwm_positions) == "reversed":
            self.embed_positions = ReversedSinusoids(self.embed_dim, self.padding_idx)
        if str(cfg.fwm_init) == "normal":
            self.apply(init_normal)

    def build_output_projection(
        self, cfg: FWMDecoderConfig, dictionary: Any, embed_tokens: nn.Module
    ) -> None:
        """Build the output layer; the published adaptive softmax where it is asked for.

        Raises:
            ValueError: if that does not go with the other flags.
        """
        if not cfg.fwm_tied_adaptive_softmax:
            super().build_output_projection(cfg, dictionary, embed_tokens)
            return
        if cfg.adaptive_softmax_cutoff is None:
            raise ValueError("--fwm-tied-adaptive-softmax needs --adaptive-softmax-cutoff")
        widths = {getattr(embed_tokens, "embedding_dim", 0), self.embed_dim, self.output_embed_dim}
        if not isinstance(embed_tokens, nn.Embedding) or len(widths) > 1:
            raise ValueError(
                "--fwm-tied-adaptive-softmax ties one table of the model's own width: without "
                "--adaptive-input, and with equal --decoder-embed-dim, --decoder-input-dim and "
                "--decoder-output-dim"
            )
        self.adaptive_softmax = TiedAdaptiveSoftmax(
            embed_tokens,
            utils.eval_str_list(cfg.adaptive_softmax_cutoff, type=int),
            cfg.adaptive_softmax_dropout,
        )

    def forward(
        self,
        prev_output_tokens: Tensor,
        *args: Any,
        features_only: bool = False,
        stream: Stream | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return logits (or features) of ``(N, T)`` tokens, as fairseq's decoder does.

        Args:
            prev_output_tokens: ``(N, T)``.
            *args, **kwargs: as in fairseq's decoder.
            features_only: leave out the output layer.
            stream: go on from these states, and leave the new ones there.
        """
        if stream is None:
            return super().forward(
                prev_output_tokens, *args, features_only=features_only, **kwargs
            )
        x, extra = self.extract_segment(prev_output_tokens, stream)
        return x if features_only else self.output_layer(x), extra

    def extract_segment(self, tokens: Tensor, stream: Stream) -> tuple[Tensor, dict[str, Any]]:
        """Return the features ``(N, T, C)`` of the next segment of a stream.

        Args:
            tokens: ``(N, T)``.
            stream: the states so far; afterwards those at the segment's end.

        Raises:
            ValueError: if the model has no state of fixed size, or does not keep all its layers.
        """
        if why := self.why_no_stream():
            raise ValueError(why)
        x = self._embed(tokens).transpose(0, 1)
        states = stream.states or [{} for _ in self.layers]
        padding = tokens.eq(self.padding_idx)
        mask = padding if bool(padding.any()) else None
        after = []
        for layer, state in zip(self.layers, states, strict=True):
            incremental: dict[str, Any] = {}
            layer.self_attn._set_input_buffer(incremental, dict(state))
            x, *_ = layer(x, incremental_state=incremental, self_attn_padding_mask=mask)
            after.append(layer.self_attn._get_input_buffer(incremental))
        stream.states = after
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        x = x.transpose(0, 1)
        return (x if self.project_out_dim is None else self.project_out_dim(x)), {}

    def why_no_stream(self) -> str | None:
        """Return why no state can be carried from segment to segment, or ``None`` if it can."""
        if str(self.cfg.fwm_decoder_self) == SOFTMAX:
            return (
                "softmax attention has no state of fixed size to carry from segment to segment: "
                "use --fwm-decoder-self sum or delta, or transformer_xl_lm"
            )
        if self.embed_positions is not None:
            return (
                "positions that begin anew in every segment do not fit a carried state: train "
                "with --no-token-positional-embeddings"
            )
        return self.why_layers_forget()

    def why_layers_forget(self) -> str | None:
        """Return why not every layer keeps its state, or ``None`` if each does."""
        if self.cfg.checkpoint_activations or self.decoder_layerdrop > 0:
            return (
                "a carried state does not go with --checkpoint-activations or --decoder-layerdrop"
            )
        return None

    def _embed(self, tokens: Tensor) -> Tensor:
        x = self.embed_scale * self.embed_tokens(tokens)
        for module in (self.quant_noise, self.project_in_dim, self.layernorm_embedding):
            x = x if module is None else module(x)
        return self.dropout_module(x)

    def max_positions(self) -> int:
        """Return how long an input may be."""
        positions = self.embed_positions
        if positions is None or isinstance(positions, ReversedSinusoids):
            return ReversedSinusoids.max_positions
        return super().max_positions()


@register_model("fwm_transformer_lm", dataclass=FWMTransformerLMConfig)
class FWMTransformerLanguageModel(TransformerLanguageModel):
    """Language model for fairseq's ``language_modeling`` task and for streaming."""

    @classmethod
    def build_model(cls, args: Any, task: Any) -> "FWMTransformerLanguageModel":
        """Build a model.

        Raises:
            ValueError: if flags do not go together.
        """
        if getattr(args, "max_target_positions", None) is None:
            args.max_target_positions = getattr(
                args, "tokens_per_sample", DEFAULT_MAX_TARGET_POSITIONS
            )
        cfg = FWMDecoderConfig.from_namespace(args)
        check_sites(cfg)
        embedding = cls.build_input(args, task.source_dictionary)
        model = cls(FWMTransformerLMDecoder(cfg, task.target_dictionary, embedding))
        seed_random_features(model, cfg.fwm_favor_seed)
        return model

    @classmethod
    def build_input(cls, args: Any, dictionary: Any) -> nn.Module:
        """Build the input embedding: one table, or fairseq's adaptive input.

        Raises:
            ValueError: for character embeddings, and adaptive weights that cannot be tied.
        """
        if args.character_embeddings:
            raise ValueError("this model has no --character-embeddings")
        if args.tie_adaptive_weights and not (
            args.adaptive_input
            and args.adaptive_input_factor == args.adaptive_softmax_factor
            and args.adaptive_input_cutoff == args.adaptive_softmax_cutoff
            and args.decoder_input_dim == args.decoder_output_dim
        ):
            raise ValueError(
                "--tie-adaptive-weights needs --adaptive-input with the factor, the cutoffs and "
                "the size of the adaptive softmax"
            )
        if not args.adaptive_input:
            return cls.build_embedding(args, dictionary, args.decoder_input_dim)
        return AdaptiveInput(
            len(dictionary),
            dictionary.pad(),
            args.decoder_input_dim,
            args.adaptive_input_factor,
            args.decoder_embed_dim,
            options.eval_str_list(args.adaptive_input_cutoff, type=int),
            args.quant_noise_pq,
            args.quant_noise_pq_block_size,
        )

    def prepare_for_inference_(self, cfg: Any) -> None:
        """Prepare for generation and scoring as fairseq does, in the numbers asked for."""
        super().prepare_for_inference_(cfg)
        precision = getattr(self.decoder.cfg, "fwm_inference_precision", "float32")
        set_inference_precision(self, str(precision))


@torch.no_grad()
def init_normal(module: nn.Module) -> None:
    """Draw a module's own parameters as the published models do (arXiv 2102.11174, App. D)."""
    if isinstance(module, nn.Linear):
        module.weight.normal_(0, INIT_STD)
        if isinstance(module.bias, nn.Parameter):
            module.bias.zero_()
    elif isinstance(module, nn.Embedding):
        module.weight.normal_(0, INIT_STD)
        if module.padding_idx is not None:
            module.weight[module.padding_idx].zero_()
    elif isinstance(module, nn.LayerNorm):
        module.weight.normal_(1, INIT_STD)
        module.bias.zero_()
    elif isinstance(module, TiedAdaptiveSoftmax):
        module.cluster_weight.normal_(0, INIT_STD)


PUBLISHED = {
    "decoder_layers": 16,
    "decoder_attention_heads": 8,
    "decoder_ffn_embed_dim": 2048,
    "dropout": 0.1,
    "activation_dropout": 0.1,
    "adaptive_softmax_cutoff": "20000,40000,200000",
    "adaptive_softmax_dropout": 0.1,
    "fwm_init": "normal",
    "fwm_tied_adaptive_softmax": True,
}
"""What all WikiText-103 models of arXiv 2102.11174 share."""

DELTA_NETWORK = PUBLISHED | {
    "fwm_feature_map": "elu",
    "fwm_output_scale": "rsqrt",
    "fwm_positions": "reversed",
    "fwm_no_projection_bias": True,
}
"""And its Delta Networks."""

TINY = {
    "decoder_layers": 4,
    "decoder_attention_heads": 4,
    "decoder_ffn_embed_dim": 512,
    "dropout": 0.1,
    "share_decoder_input_output_embed": True,
}
"""Minutes on a CPU."""


def set_shape(args: Any, dim: int, **others: Any) -> None:
    """Set what was not given to a model of one width."""
    dims = {f"decoder_{kind}_dim": dim for kind in ("embed", "input", "output")}
    for name, value in (dims | others).items():
        setattr(args, name, getattr(args, name, value))


@register_model_architecture("fwm_transformer_lm", "fwm_transformer_lm_wikitext103_small")
def fwm_transformer_lm_wikitext103_small(args: Any) -> None:
    """The small model: 16 layers, 128, FFN 2048, 8 heads; train with --tokens-per-sample 256."""
    set_shape(args, 128, **DELTA_NETWORK)


@register_model_architecture("fwm_transformer_lm", "fwm_transformer_lm_wikitext103_medium")
def fwm_transformer_lm_wikitext103_medium(args: Any) -> None:
    """The medium model: 16 layers, 256, FFN 2048, 8 heads; with --tokens-per-sample 384."""
    set_shape(args, 256, **DELTA_NETWORK)


@register_model_architecture("fwm_transformer_lm", "fwm_transformer_lm_char")
def fwm_transformer_lm_char(args: Any) -> None:
    """Characters (enwik8, text8): 12 layers, 512, FFN 2048, 8 heads, no positions."""
    set_shape(
        args,
        512,
        decoder_layers=12,
        decoder_attention_heads=8,
        decoder_ffn_embed_dim=2048,
        dropout=0.1,
        share_decoder_input_output_embed=True,
        no_token_positional_embeddings=True,
        fwm_feature_map="elu",
        fwm_output_scale="rsqrt",
        fwm_init="normal",
    )


@register_model_architecture("fwm_transformer_lm", "fwm_transformer_lm_tiny")
def fwm_transformer_lm_tiny(args: Any) -> None:
    """4 layers, 128, FFN 512, 4 heads, minutes on a CPU; positions only if reversed are chosen."""
    reverses = str(getattr(args, "fwm_positions", "fairseq")) == "reversed"
    set_shape(args, 128, **TINY, no_token_positional_embeddings=not reverses)
