"""The flat ``--fwm-*`` flags: what every model with fast weights lets its user choose."""

from dataclasses import dataclass, field
from typing import Any

from fairseq.dataclass import ChoiceEnum
from torch import nn

from fairseq_fwm.feature_maps import FEATURE_MAPS, FavorFeatureMap
from fairseq_fwm.mixers import RECURRENT_MIXERS, SITES, UPDATE_RULES, why_invalid
from fairseq_fwm.mixers.validity import ATTN_NORMS
from fairseq_fwm.modules.layers import SOFTMAX, site_config
from fairseq_fwm.modules.precision import PRECISIONS
from fairseq_fwm.ops.dispatch import IMPLS


def site_choices(site: str) -> Any:
    """Return the type of a flag that chooses the update rule of a site."""
    recurrent = RECURRENT_MIXERS if site == "decoder_self" else ()
    rules = (name for name, rule in UPDATE_RULES.items() if site in rule.sites)
    return ChoiceEnum([SOFTMAX, *rules, *recurrent])


DECODER_SELF = site_choices("decoder_self")
FEATURE_MAP = ChoiceEnum(list(FEATURE_MAPS))
SUM_NORM = ChoiceEnum(["auto", "on", "off"])
ATTN_NORM = ChoiceEnum(["auto", *ATTN_NORMS])
OUTPUT_SCALE = ChoiceEnum(["one", "rsqrt"])
FAVOR_VARIANT = ChoiceEnum(list(FavorFeatureMap.VARIANTS))
IMPL = ChoiceEnum(list(IMPLS))
PRECISION = ChoiceEnum(list(PRECISIONS))


@dataclass
class FastWeightFlags:
    """The variant of the decoder's self-attention, and what all fast weight sites share."""

    fwm_decoder_self: DECODER_SELF = field(
        default="delta", metadata={"help": "decoder self-attention"}
    )
    fwm_feature_map: FEATURE_MAP = field(
        default="dpfp", metadata={"help": "feature map phi of all fast weight sites"}
    )
    fwm_dpfp_nu: int = field(
        default=1, metadata={"help": "DPFP's nu; key features K = 2 * nu * head_dim"}
    )
    fwm_favor_features: int = field(
        default=64, metadata={"help": "FAVOR+'s m; key features K = 2 * m"}
    )
    fwm_favor_variant: FAVOR_VARIANT = field(
        default="stable",
        metadata={"help": "FAVOR+ as here (stable) or as published (toolkit, retrieval)"},
    )
    fwm_favor_seed: int = field(default=1, metadata={"help": "seed of FAVOR+'s random matrices"})
    fwm_sum_norm: SUM_NORM = field(
        default="auto",
        metadata={"help": "phi(q), phi(k) divided by their sums; auto: on for delta, off for sum"},
    )
    fwm_l2_norm: bool = field(
        default=False, metadata={"help": "phi(q), phi(k) divided by their lengths, not their sums"}
    )
    fwm_beta_max: float = field(
        default=1.0,
        metadata={"help": "largest write strength; 2 with --fwm-l2-norm: negative eigenvalues"},
    )
    fwm_attn_norm: ATTN_NORM = field(
        default="auto",
        metadata={"help": "division by z.q (and z.k: full); auto: output for sum, none for delta"},
    )
    fwm_output_scale: OUTPUT_SCALE = field(
        default="one", metadata={"help": "output times one or 1/sqrt(head_dim)"}
    )
    fwm_impl: IMPL = field(
        default="auto",
        metadata={"help": "implementation of the updates; a named one must be there"},
    )
    fwm_inference_precision: PRECISION = field(
        default="float32",
        metadata={"help": "numbers in generation and scoring on a CPU; no effect on training"},
    )


def check_sites(cfg: Any) -> None:
    """Refuse invalid combinations before anything is built.

    Raises:
        ValueError: naming the flag and the reason.
    """
    for site in SITES:
        config = site_config(cfg, site)
        reason = None if config is None else why_invalid(config, site)
        if reason is not None:
            flag = "--fwm-" + site.replace("_", "-")
            raise ValueError(
                f"{flag} {config.rule} with --fwm-feature-map {config.feature_map}: {reason}"
            )


def seed_random_features(model: nn.Module, seed: int) -> None:
    """Give every layer's random features a stream of their own, the same on every rank."""
    maps = [m for m in model.modules() if isinstance(m, FavorFeatureMap)]
    for layer, feature_map in enumerate(maps):
        feature_map.seed_draws(seed * 1009 + layer)
