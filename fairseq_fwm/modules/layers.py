"""fairseq's transformer layers with the attention of each site chosen by the configuration."""

from typing import Any

import torch
from fairseq.distributed import fsdp_wrap
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from fairseq.modules.transformer_layer import (
    TransformerDecoderLayerBase,
    TransformerEncoderLayerBase,
)
from torch import nn

from fairseq_fwm.mixers import SITES, FastWeightConfig, build_mixer
from fairseq_fwm.modules.attention import (
    FastWeightCrossAttention,
    FastWeightSelfAttention,
    MixerAttention,
)
from fairseq_fwm.modules.shared_source import SharedSourceAttention

SOFTMAX = "softmax"


def site_config(cfg: Any, site: str) -> FastWeightConfig | None:
    """Return the fast weight variant at a site, or ``None`` where fairseq's softmax stands.

    Args:
        cfg: model configuration with the ``fwm_*`` fields.
        site: ``encoder_self``, ``decoder_self`` or ``cross``.
    """
    rule = str(getattr(cfg, f"fwm_{site}"))
    if rule == SOFTMAX:
        return None
    heads, dim = _shape(cfg, site)
    sum_norm, attn_norm = str(cfg.fwm_sum_norm), str(cfg.fwm_attn_norm)
    return FastWeightConfig(
        rule=rule,
        feature_map=str(cfg.fwm_feature_map),
        sum_norm=None if sum_norm == "auto" else sum_norm == "on",
        attn_norm=None if attn_norm == "auto" else attn_norm,
        l2_norm=cfg.fwm_l2_norm,
        beta_max=cfg.fwm_beta_max,
        scale=(dim // heads) ** -0.5 if str(cfg.fwm_output_scale) == "rsqrt" else 1.0,
        nu=cfg.fwm_dpfp_nu,
        m=cfg.fwm_favor_features,
        favor_variant=str(cfg.fwm_favor_variant),
        impl=str(cfg.fwm_impl),
    )


def decodes_fast(cfg: Any) -> bool:
    """Return whether decoding may leave fairseq's own way (``--fwm-fast-decoding``)."""
    if str(cfg.fwm_fast_decoding) != "auto":
        return str(cfg.fwm_fast_decoding) == "on"
    # Without fast weights a model stays fairseq's to the last bit.
    return any(site_config(cfg, site) is not None for site in SITES)


def has_no_biases(cfg: Any) -> bool:
    """Return whether attention projects without biases (language models only)."""
    return getattr(cfg, "fwm_no_projection_bias", False)


def remove_biases(attention: nn.Module) -> None:
    """Take the biases from the projections of fairseq's attention.

    Its ``bias=False`` does not run: the biases become zeros that are no parameters.
    """
    for linear in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
        zeros = torch.zeros_like(linear.bias)
        del linear.bias
        linear.register_buffer("bias", zeros, persistent=False)


def _shape(cfg: Any, site: str) -> tuple[int, int]:
    side = cfg.encoder if site == "encoder_self" else cfg.decoder
    return side.attention_heads, side.embed_dim


def build_attention(cfg: Any, site: str) -> MixerAttention | None:
    """Build the fast weight attention of a site, or return ``None`` where softmax stands.

    Raises:
        ValueError: if the variant is not valid there.
    """
    config = site_config(cfg, site)
    if config is None:
        return None
    heads, dim = _shape(cfg, site)
    mixer = build_mixer(dim // heads, heads, config, site)
    options = {
        "q_noise": cfg.quant_noise.pq,
        "qn_block_size": cfg.quant_noise.pq_block_size,
        "bias": not has_no_biases(cfg),
    }
    if site == "cross":
        return FastWeightCrossAttention(dim, heads, mixer, kv_dim=cfg.encoder.embed_dim, **options)
    return FastWeightSelfAttention(dim, heads, mixer, causal=site == "decoder_self", **options)


class FWMTransformerEncoderLayer(TransformerEncoderLayerBase):
    """fairseq's encoder layer; self-attention by ``--fwm-encoder-self``."""

    def build_self_attention(self, embed_dim: int, cfg: Any) -> nn.Module:
        """Build the module at the site; fairseq's own for softmax."""
        ours = build_attention(cfg, "encoder_self")
        return ours if ours is not None else super().build_self_attention(embed_dim, cfg)


class FWMTransformerDecoderLayer(TransformerDecoderLayerBase):
    """fairseq's decoder layer; ``--fwm-decoder-self`` and ``--fwm-cross``."""

    def build_self_attention(self, embed_dim: int, cfg: Any, **kwargs: Any) -> nn.Module:
        """Build the module at the site; fairseq's own for softmax."""
        ours = build_attention(cfg, "decoder_self")
        if ours is not None:
            return ours
        softmax = super().build_self_attention(embed_dim, cfg, **kwargs)
        if has_no_biases(cfg):
            remove_biases(softmax)
        return softmax

    def build_encoder_attention(self, embed_dim: int, cfg: Any) -> nn.Module:
        """Build the module at the site; fairseq's own for softmax."""
        ours = build_attention(cfg, "cross")
        if ours is not None:
            return ours
        if not decodes_fast(cfg):
            return super().build_encoder_attention(embed_dim, cfg)
        return SharedSourceAttention(
            embed_dim,
            cfg.decoder.attention_heads,
            kdim=cfg.encoder.embed_dim,
            vdim=cfg.encoder.embed_dim,
            dropout=cfg.attention_dropout,
            encoder_decoder_attention=True,
            q_noise=self.quant_noise,
            qn_block_size=self.quant_noise_block_size,
            xformers_att_config=cfg.encoder.xformers_att_config,
        )


def wrap_layer(layer: nn.Module, cfg: Any) -> nn.Module:
    """Apply activation checkpointing and FSDP to a layer as fairseq's builders do."""
    if cfg.checkpoint_activations:
        layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
    # A checkpointed layer is wrapped whatever its size.
    min_params = 0 if cfg.checkpoint_activations else cfg.min_params_to_wrap
    return fsdp_wrap(layer, min_num_params=min_params)
