"""Token mixers with a fixed-size state, usable with torch alone."""

from fairseq_fwm.mixers.base import Mixer
from fairseq_fwm.mixers.fast_weight import FastWeightMixer, FastWeightState
from fairseq_fwm.mixers.rules import UPDATE_RULES, UpdateRule, register_update_rule
from fairseq_fwm.mixers.validity import (
    SITES,
    FastWeightConfig,
    validity_table,
    why_invalid,
)

__all__ = [
    "SITES",
    "UPDATE_RULES",
    "FastWeightConfig",
    "FastWeightMixer",
    "FastWeightState",
    "Mixer",
    "UpdateRule",
    "register_update_rule",
    "validity_table",
    "why_invalid",
]
