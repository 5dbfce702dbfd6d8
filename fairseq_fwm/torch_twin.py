"""A fairseq model as one that needs torch alone (:mod:`fairseq_fwm.nn`), with the same weights."""

from dataclasses import replace
from typing import Any

import torch
from fairseq.models.transformer import TransformerModel, TransformerModelBase
from fairseq.models.transformer_lm import TransformerLanguageModel
from fairseq.modules import AdaptiveSoftmax, LearnedPositionalEmbedding
from torch import Tensor, nn

from fairseq_fwm.mixers import RECURRENT_MIXERS, FastWeightConfig
from fairseq_fwm.models.fwm_transformer import FWMTransformerModel
from fairseq_fwm.models.fwm_transformer_lm import FWMTransformerLanguageModel
from fairseq_fwm.modules.adaptive_softmax import TiedAdaptiveSoftmax
from fairseq_fwm.modules.layers import has_no_biases, site_config
from fairseq_fwm.nn.config import StackConfig
from fairseq_fwm.nn.export import Exported, ExportError, find_tied, tie
from fairseq_fwm.nn.language_model import LanguageModel
from fairseq_fwm.nn.layers import ACTIVATIONS
from fairseq_fwm.nn.positions import ReversedSinusoids
from fairseq_fwm.nn.translation_model import TranslationModel

TRANSLATION = (FWMTransformerModel, TransformerModelBase, TransformerModel)
LANGUAGE = (FWMTransformerLanguageModel, TransformerLanguageModel)
UNUSED = ("version", "_float_tensor")
"""Last part of the names of what fairseq keeps in a state dict for its own bookkeeping."""

POSITIONS = {
    type(None): "none",
    LearnedPositionalEmbedding: "learned",
    ReversedSinusoids: "reversed",
}
"""Names of positions; any other are fairseq's sinusoids."""

REFUSED = {
    "adaptive_input": "--adaptive-input",
    "cross_self_attention": "--cross-self-attention",
    "no_cross_attention": "--no-cross-attention",
    "base_layers": "--base-layers",
    "scale_fc": "--scale-fc",
    "scale_attn": "--scale-attn",
    "scale_heads": "--scale-heads",
    "scale_resids": "--scale-resids",
}
"""Fields of a model's configuration that change what it computes, and their flags."""


def torch_twin(model: nn.Module) -> Exported:
    """Return a model of :mod:`fairseq_fwm.nn` with the weights and the logits of fairseq's.

    Args:
        model: ``fwm_transformer``, ``fwm_transformer_lm``, or fairseq's ``transformer`` and
            ``transformer_lm``. Its weights are copied.

    Raises:
        ExportError: for any other model, and for what fairseq's models can do and
            :mod:`fairseq_fwm.nn` cannot, naming the flag.
    """
    if type(model) in TRANSLATION:
        sides = {
            "encoder": encoder_config(model.encoder, model.cfg),
            "decoder": decoder_config(model.decoder, model.cfg, model.cfg.encoder.embed_dim),
        }
        twin: Exported = TranslationModel(**sides, eos=model.decoder.dictionary.eos())
    elif type(model) in LANGUAGE:
        decoder = decoder_config(model.decoder, model.decoder.cfg, None)
        twin = LanguageModel(decoder, model.decoder.dictionary.eos())
    else:
        raise ExportError(
            f"a {type(model).__name__} cannot be exported: fwm_transformer, fwm_transformer_lm, "
            "and fairseq's transformer and transformer_lm can"
        )
    return copy_weights(model, twin)


def copy_weights(model: nn.Module, twin: Exported) -> Exported:
    """Give a twin the weights of a fairseq model, tied where they are tied there."""
    state = {
        twin_name(name, model): x.float()
        for name, x in model.state_dict().items()
        if name.rpartition(".")[2] not in UNUSED
    }
    tie(twin, find_tied(state))
    try:
        twin.load_state_dict(state)
    except RuntimeError as error:
        raise ExportError(f"this model has other parameters than its flags say: {error}") from None
    return twin.eval()


def twin_name(name: str, model: nn.Module) -> str:
    """Return the name of a parameter in the twin: torch's adaptive softmax has no dropout."""
    softmax = "decoder.adaptive_softmax.tail."
    if name.startswith(softmax) and not isinstance(
        model.decoder.adaptive_softmax, TiedAdaptiveSoftmax
    ):
        cluster, layer, rest = name.removeprefix(softmax).split(".", 2)
        return f"{softmax}{cluster}.{ {'0': 0, '2': 1}[layer] }.{rest}"
    return name


def encoder_config(encoder: nn.Module, cfg: Any) -> StackConfig:
    """Describe an encoder."""
    return StackConfig(
        **shared_fields(encoder, cfg, cfg.encoder),
        dim=cfg.encoder.embed_dim,
        causal=False,
        self_attention=variant(cfg, "encoder_self"),
    )


def decoder_config(decoder: nn.Module, cfg: Any, source_dim: int | None) -> StackConfig:
    """Describe a decoder; ``source_dim`` is ``None`` without an encoder."""
    return StackConfig(
        **shared_fields(decoder, cfg, cfg.decoder),
        **output_fields(decoder),
        dim=cfg.decoder.embed_dim,
        causal=True,
        self_attention=variant(cfg, "decoder_self"),
        cross_attention=None if source_dim is None else variant(cfg, "cross"),
        source_dim=source_dim,
    )


def shared_fields(side: nn.Module, cfg: Any, part: Any) -> dict[str, Any]:
    """Return what encoders and decoders have in common."""
    refuse(side, cfg)
    positions = side.embed_positions
    kind = POSITIONS.get(type(positions), "sinusoids")
    return {
        "words": side.embed_tokens.num_embeddings,
        "pad": side.padding_idx,
        "embed_dim": side.embed_tokens.embedding_dim,
        "layers": len(side.layers),
        "heads": part.attention_heads,
        "ff_dim": part.ffn_embed_dim,
        "attention_bias": not has_no_biases(cfg),
        "norm_first": part.normalize_before,
        "final_norm": side.layer_norm is not None,
        "embed_norm": side.layernorm_embedding is not None,
        "embed_scale": float(side.embed_scale),
        "activation": str(cfg.activation_fn),
        "positions": kind,
        "max_positions": positions.max_positions if kind == "learned" else 0,
    }


def refuse(side: nn.Module, cfg: Any) -> None:
    """Refuse what :mod:`fairseq_fwm.nn` does not have.

    Raises:
        ExportError: naming the flag.
    """
    flags = [flag for name, flag in REFUSED.items() if getattr(cfg, name, None)]
    if cfg.quant_noise.pq > 0:
        flags.append("--quant-noise-pq")
    if str(cfg.activation_fn) not in ACTIVATIONS:
        flags.append(f"--activation-fn {cfg.activation_fn}")
    if not isinstance(side.embed_tokens, nn.Embedding) and not flags:
        flags.append("--character-embeddings")
    if flags:
        raise ExportError(
            f"a model trained with {', '.join(flags)} cannot be exported: fairseq_fwm.nn has "
            "nothing like it; train without, or run it with fairseq"
        )


def output_fields(decoder: nn.Module) -> dict[str, Any]:
    """Describe the output layer."""
    words = decoder.embed_tokens.num_embeddings
    softmax = decoder.adaptive_softmax
    found = decoder.output_projection.out_features if softmax is None else softmax.vocab_size
    if found != words:
        raise ExportError(
            f"the input has {words} words and the output {found} (--output-dictionary-size): such "
            "a model cannot be exported"
        )
    fields = {"output": "linear", "output_dim": decoder.output_embed_dim}
    if softmax is None:
        if decoder.share_input_output_embed:
            fields["output_dim"] = decoder.embed_tokens.embedding_dim
        return fields
    fields["cutoff"] = tuple(softmax.cutoff[:-1])
    if isinstance(softmax, TiedAdaptiveSoftmax):
        return {**fields, "output": "tied_clusters"}
    assert isinstance(softmax, AdaptiveSoftmax)
    return {**fields, "output": "adaptive", "factor": float(softmax.factor)}


def variant(cfg: Any, site: str) -> FastWeightConfig | None:
    """Return the variant at a site, the paper's choices spelled out; ``None`` is softmax."""
    config = site_config(cfg, site) if hasattr(cfg, f"fwm_{site}") else None
    if config is None:
        return None
    config = replace(config, impl="auto")
    if config.rule in RECURRENT_MIXERS:
        return config
    sum_norm, attn_norm = config.resolved
    return replace(config, sum_norm=sum_norm, attn_norm=attn_norm)


@torch.no_grad()
def difference(model: nn.Module, twin: Exported, length: int = 12) -> float:
    """Return the largest difference of log-probabilities between a model and its twin.

    Args:
        model: fairseq's, in evaluation mode.
        twin: of :func:`torch_twin`.
        length: of the two made-up texts that both read.
    """
    generator = torch.Generator().manual_seed(0)

    def text(words: int) -> Tensor:
        tokens = torch.randint(4, words, (2, length), generator=generator)
        tokens[1, length // 2 :] = twin.decoder.cfg.pad
        return tokens

    inputs = (text(twin.decoder.cfg.words),)
    output = None
    if isinstance(twin, TranslationModel):
        source = text(twin.encoder.cfg.words)
        output = model(source, source.ne(twin.encoder.cfg.pad).sum(1), inputs[0])
        inputs = (source, *inputs)
    output = model(inputs[0]) if output is None else output
    # fairseq gives log-probabilities of an adaptive softmax only with a target; None is all words.
    wanted = model.get_normalized_probs(output, log_probs=True, sample=None)
    found = twin(*inputs).log_softmax(-1)
    real = inputs[-1].ne(twin.decoder.cfg.pad)
    return (found - wanted)[real].abs().max().item()
