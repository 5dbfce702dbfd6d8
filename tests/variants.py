"""The combinations that several test files run over, and how results are compared."""

import itertools

import torch

from fairseq_fwm.feature_maps import FEATURE_MAPS
from fairseq_fwm.mixers import UPDATE_RULES, FastWeightConfig, why_invalid
from fairseq_fwm.mixers.validity import ATTN_NORMS

DTYPES = [torch.float64, torch.float32]


def valid_configs(site: str = "decoder_self") -> list[FastWeightConfig]:
    """Every valid feature map x rule x normalisation at a site."""
    configs = (
        FastWeightConfig(rule, feature_map, sum_norm, attn_norm, nu=2, m=8)
        for rule, feature_map, sum_norm, attn_norm in itertools.product(
            UPDATE_RULES, FEATURE_MAPS, (False, True), ATTN_NORMS
        )
    )
    return [config for config in configs if why_invalid(config, site) is None]


def label(config: FastWeightConfig) -> str:
    """A test id."""
    sum_norm, attn_norm = config.resolved
    return f"{config.feature_map}-{config.rule}-{'sumnorm' if sum_norm else 'raw'}-{attn_norm}"


def assert_close(name: str, found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    """Compare by the error relative to the largest entry wanted."""
    assert found.shape == wanted.shape, f"{name}: {found.shape} is not {wanted.shape}"
    assert torch.isfinite(found).all(), f"{name} is not finite"
    scale = max(wanted.abs().max().item(), 1e-3) if wanted.numel() else 1.0
    error = (found - wanted).abs().max().item() / scale if wanted.numel() else 0.0
    assert error <= tolerance, f"{name}: relative error {error:.2e} > {tolerance:.0e}"
