"""Token mixers with a fixed-size state, usable with torch alone."""

from fairseq_fwm.mixers.base import Mixer
from fairseq_fwm.mixers.fast_weight import FastWeightMixer, FastWeightState
from fairseq_fwm.mixers.recurrent import (
    RECURRENT_MIXERS,
    RecurrentDeltaMixer,
    RecurrentDeltaState,
    SelfReferentialMixer,
    SelfReferentialState,
)
from fairseq_fwm.mixers.rules import UPDATE_RULES, UpdateRule, register_update_rule
from fairseq_fwm.mixers.validity import (
    SITES,
    FastWeightConfig,
    validity_table,
    why_invalid,
)


def build_mixer(head_dim: int, num_heads: int, config: FastWeightConfig, site: str) -> Mixer:
    """Build the mixer of a configuration.

    Args:
        head_dim: d.
        num_heads: H.
        config: the variant.
        site: where it stands.

    Raises:
        ValueError: if the variant is not valid at the site, with the reason.
    """
    if config.rule not in RECURRENT_MIXERS:
        return FastWeightMixer(head_dim, config, site)
    if reason := why_invalid(config, site):
        raise ValueError(reason)
    return RECURRENT_MIXERS[config.rule](head_dim, num_heads, config.scale, config.impl)


__all__ = [
    "RECURRENT_MIXERS",
    "SITES",
    "UPDATE_RULES",
    "FastWeightConfig",
    "FastWeightMixer",
    "FastWeightState",
    "Mixer",
    "RecurrentDeltaMixer",
    "RecurrentDeltaState",
    "SelfReferentialMixer",
    "SelfReferentialState",
    "UpdateRule",
    "build_mixer",
    "register_update_rule",
    "validity_table",
    "why_invalid",
]
