"""fwm_transformer_lm in fairseq: stock with softmax, as published in size and form, streaming."""

import argparse

import pytest
import torch

pytest.importorskip("fairseq", reason="fairseq is not installed")

from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, MODEL_DATACLASS_REGISTRY
from fairseq.models.transformer_lm import TransformerLanguageModel

import fairseq_fwm  # noqa: F401
from fairseq_fwm.models.fwm_transformer_lm import FWMTransformerLanguageModel

WORDS = 267_735
TINY = {
    "decoder_embed_dim": 16,
    "decoder_input_dim": 16,
    "decoder_output_dim": 16,
    "decoder_ffn_embed_dim": 16,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "dropout": 0.0,
    "tokens_per_sample": 64,
    "max_target_positions": None,
}
PLAIN = {"no_token_positional_embeddings": True}
VARIANTS = [
    {"fwm_decoder_self": "delta"},
    {"fwm_decoder_self": "delta", "fwm_feature_map": "elu", "fwm_attn_norm": "full"},
    {"fwm_decoder_self": "sum", "fwm_feature_map": "elu"},
    {"fwm_decoder_self": "sum", "fwm_feature_map": "favor", "fwm_output_scale": "rsqrt"},
]


class Task:
    """As much of fairseq's language modelling task as a model needs to be built."""

    def __init__(self, words=24):
        self.source_dictionary = self.target_dictionary = Dictionary()
        for i in range(words - 4):
            self.source_dictionary.add_symbol(f"w{i}")


def build(cls=FWMTransformerLanguageModel, arch="fwm_transformer_lm", words=24, **flags):
    """Build as fairseq does: flags, then the architecture's shape, then the defaults."""
    args, task = argparse.Namespace(**flags), Task(words)
    ARCH_CONFIG_REGISTRY[arch](args)
    defaults = MODEL_DATACLASS_REGISTRY["fwm_transformer_lm"]()
    for name in vars(defaults):
        if not hasattr(args, name):
            setattr(args, name, getattr(defaults, name))
    torch.manual_seed(0)
    return cls.build_model(args, task).eval(), task


def tokens(*shape, words=24):
    return torch.randint(4, words, shape, generator=torch.Generator().manual_seed(1))


def log_probs(model, x, **options):
    return model.get_normalized_probs(model(x, **options), log_probs=True)


def test_softmax_is_the_stock_language_model():
    flags = {**TINY, "share_decoder_input_output_embed": True}
    ours, _ = build(fwm_decoder_self="softmax", **flags)
    stock, _ = build(TransformerLanguageModel, **flags)
    assert list(ours.state_dict()) == list(stock.state_dict())
    for name, tensor in stock.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    assert torch.equal(log_probs(ours, tokens(3, 9)), log_probs(stock, tokens(3, 9)))


@pytest.mark.parametrize(
    ("size", "rule", "millions", "extra"),
    [
        ("small", "delta", 44.03, 16 * 128 * 8),
        ("medium", "delta", 89.87, 16 * 256 * 8),
        ("medium", "sum", 89.83, 0),
        ("medium", "softmax", 89.83, 0),
    ],
)
def test_published_parameter_counts(size, rule, millions, extra):
    """arXiv 2102.11174, Tables 2 and 4: 44.0 M, 89.8 M, and 16 K / 33 K more for the gates."""
    arch = f"fwm_transformer_lm_wikitext103_{size}"
    with torch.device("meta"):
        flags = {"tokens_per_sample": 256, "max_target_positions": None}
        model, _ = build(arch=arch, words=WORDS, fwm_decoder_self=rule, **flags)
    count = sum(p.numel() for p in model.parameters())
    dim = {"small": 128, "medium": 256}[size]
    layer = 4 * dim * dim + 2 * dim * 2048 + 2048 + dim + 4 * dim
    assert count == WORDS * (dim + 1) + 3 * (dim + 1) + 16 * layer + extra
    assert round(count / 1e6, 2) == millions
