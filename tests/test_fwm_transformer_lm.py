"""fwm_transformer_lm in fairseq: stock with softmax, as published in size and form, streaming."""

import pytest
import torch

import language_models
from language_models import EOS, PAD, Task, tokens
from variants import assert_close

pytest.importorskip("fairseq", reason="fairseq is not installed")

from fairseq.criterions.adaptive_loss import AdaptiveLoss
from fairseq.sequence_generator import SequenceGenerator

import fairseq_fwm  # noqa: F401
from fairseq_fwm.modules.stream import Stream
from fairseq_fwm.nn.positions import ReversedSinusoids

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
    {"fwm_decoder_self": "recurrent_delta", "fwm_output_scale": "rsqrt"},
    {"fwm_decoder_self": "srwm"},
]


def build(arch="fwm_transformer_lm", **flags):
    return language_models.build(arch, **flags)


def log_probs(model, x, **options):
    return model.get_normalized_probs(model(x, **options), log_probs=True)


def test_softmax_is_the_stock_language_model():
    flags = {**TINY, "share_decoder_input_output_embed": True}
    ours = build(fwm_decoder_self="softmax", **flags)
    stock = build("transformer_lm", **flags | {"decoder_normalize_before": False})
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
        model = build(arch=arch, words=WORDS, fwm_decoder_self=rule, **flags)
    count = sum(p.numel() for p in model.parameters())
    dim = {"small": 128, "medium": 256}[size]
    layer = 4 * dim * dim + 2 * dim * 2048 + 2048 + dim + 4 * dim
    assert count == WORDS * (dim + 1) + 3 * (dim + 1) + 16 * layer + extra
    assert round(count / 1e6, 2) == millions


@pytest.mark.parametrize("flags", VARIANTS, ids=lambda f: "-".join(map(str, f.values())))
@pytest.mark.parametrize("lengths", [(12,), (5, 7), (1, 1, 10), (4, 1, 4, 3)])
def test_a_stream_in_segments_is_one_long_segment(flags, lengths):
    model = build(**TINY, **PLAIN, **flags)
    text, stream = tokens(3, 12), Stream.empty()
    with torch.no_grad():
        wanted = log_probs(model, text)
        found = [log_probs(model, part, stream=stream) for part in text.split(lengths, 1)]
    assert_close("log-probabilities", torch.cat(found, 1), wanted, 1e-4)


def test_gradients_flow_through_a_stream_until_it_is_detached():
    model = build(**TINY, **PLAIN)
    first, second = tokens(2, 12).split(6, 1)
    table = model.decoder.embed_tokens.weight

    def gradient(stream):
        model.zero_grad()
        log_probs(model, second, stream=stream).sum().backward()
        return table.grad.clone()

    attached, detached = Stream.empty(), Stream.empty()
    for stream in (attached, detached):
        model(first, stream=stream)
    detached = detached.detach()
    assert_close("same values", attached.states[1]["weights"], detached.states[1]["weights"], 0)
    through, cut = gradient(attached), gradient(detached)
    only_first = torch.tensor(sorted({*first.flatten().tolist()} - {*second.flatten().tolist()}))
    assert through[only_first].any() and not cut[only_first].any()


def test_the_state_has_the_published_size():
    """arXiv 2102.11174, Table 4: 0.13 M numbers for the medium model."""
    shape = {**TINY, "decoder_embed_dim": 256, "decoder_layers": 16, "decoder_attention_heads": 8}
    shape |= {"decoder_input_dim": 256, "decoder_output_dim": 256}
    model = build(**shape, **PLAIN, fwm_feature_map="elu")
    stream = Stream.empty()
    with torch.no_grad():
        model(tokens(2, 3), stream=stream)
    assert stream.numbers_per_layer == [8 * 32 * 32] * 16


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({**PLAIN, "fwm_decoder_self": "softmax"}, "no state of fixed size"),
        ({}, "begin anew in every segment"),
        ({"fwm_positions": "reversed"}, "begin anew in every segment"),
        ({**PLAIN, "decoder_layerdrop": 0.2}, "--decoder-layerdrop"),
    ],
)
def test_models_that_cannot_carry_a_state_say_why(flags, reason):
    model = build(**TINY, **flags)
    with pytest.raises(ValueError, match=reason):
        model(tokens(1, 3), stream=Stream.empty())


def test_padding_does_not_change_a_stream():
    model = build(**TINY, **PLAIN)
    text = tokens(2, 8)
    padded = torch.cat((text[:, :5], torch.full((2, 2), PAD)), 1)
    short, long = Stream.empty(), Stream.empty()
    with torch.no_grad():
        model(text[:, :5], stream=short)
        model(padded, stream=long)
    for a, b in zip(short.states, long.states, strict=True):
        assert_close("S", b["weights"], a["weights"], 1e-5)


def brute_force_log_probs(softmax, features):
    """Head softmax over words and clusters; a tail word's is its cluster's times its own."""
    table, cuts = softmax.embedding.weight, softmax.cutoff
    words = features @ table.T + softmax.bias
    clusters = features @ softmax.cluster_weight.T + softmax.cluster_bias
    head = torch.cat((words[..., : cuts[0]], clusters), -1).log_softmax(-1)
    parts = [head[..., : cuts[0]]]
    for i, (start, end) in enumerate(zip(cuts, cuts[1:], strict=False)):
        parts.append(head[..., [cuts[0] + i]] + words[..., start:end].log_softmax(-1))
    return torch.cat(parts, -1)


def test_tied_adaptive_softmax():
    """All probabilities, the loss of fairseq's criterion, and the tie with the input."""
    flags = {"adaptive_softmax_cutoff": "8,12,17", "fwm_tied_adaptive_softmax": True}
    model = build(**TINY, **PLAIN, **flags)
    softmax = model.decoder.adaptive_softmax
    assert softmax.embedding is model.decoder.embed_tokens
    for parameter in (softmax.bias, softmax.cluster_bias, softmax.cluster_weight):
        torch.nn.init.normal_(parameter)
    text, target = tokens(3, 9), tokens(3, 10)[:, 1:].contiguous()
    features = model(text)[0]
    wanted = brute_force_log_probs(softmax, features)
    assert_close("log-probabilities", log_probs(model, text), wanted, 1e-5)
    assert_close("sum", wanted.exp().sum(-1), torch.ones(3, 9), 1e-5)
    criterion = AdaptiveLoss(Task(), sentence_avg=False)
    sample = {"net_input": {"src_tokens": text}, "target": target}
    loss, *_ = criterion(model, sample)
    assert_close("loss", loss[0], -wanted.gather(-1, target.unsqueeze(-1)).sum(), 1e-5)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({}, "needs --adaptive-softmax-cutoff"),
        ({"adaptive_softmax_cutoff": "8,30"}, "must ascend and lie below the 24 words"),
        ({"adaptive_softmax_cutoff": "8", "decoder_input_dim": 8}, "one table"),
        (
            {"adaptive_softmax_cutoff": "8", "adaptive_input": True, "adaptive_input_cutoff": "8"},
            "without --adaptive-input",
        ),
    ],
)
def test_wrong_adaptive_softmax_flags_name_the_cause(flags, reason):
    with pytest.raises(ValueError, match=reason):
        build(fwm_tied_adaptive_softmax=True, **{**TINY, **flags})


def test_reversed_positions():
    """The last token has position 0 whatever the length; sines come before cosines."""
    positions = ReversedSinusoids(6, padding_idx=1)
    text = tokens(2, 5)
    found = positions(text)
    for j in range(5):
        angles = (4 - j) / 10000 ** (torch.tensor([0.0, 2.0, 4.0]) / 6)
        assert_close("encoding", found[0, j], torch.cat((angles.sin(), angles.cos())), 1e-6)
    padded = text.clone()
    padded[1, 3:] = 1
    assert_close("shorter row", positions(padded)[1, :3], positions(text[:, :3])[0], 0)
    with pytest.raises(ValueError, match="move with every new token"):
        positions(text, incremental_state={})
    with pytest.raises(ValueError, match="even number"):
        ReversedSinusoids(5, padding_idx=1)


def test_initialisation_as_published():
    model = build(fwm_init="normal", **{**TINY, "decoder_ffn_embed_dim": 4096})
    layer = model.decoder.layers[0]
    assert layer.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not layer.fc1.bias.any() and not layer.self_attn.in_proj.bias.any()
    norms = torch.cat([x.final_layer_norm.weight for x in model.decoder.layers])
    assert 0.002 < norms.std() < 0.05 and abs(norms.mean() - 1) < 0.02
    assert not model.decoder.embed_tokens.weight[PAD].any()


@pytest.mark.parametrize(
    "flags", [*VARIANTS[:2], *VARIANTS[-2:]], ids=lambda f: str([*f.values()])
)
def test_generation_scores_equal_full_recomputation(flags):
    model = build(**TINY, **PLAIN, **flags)
    model.decoder.embed_tokens.weight.data *= 0.3
    generator = SequenceGenerator([model], Task().target_dictionary, beam_size=3, max_len_b=9)
    generator.normalize_scores = False
    empty = torch.full((2, 1), EOS)
    sample = {"net_input": {"src_tokens": empty, "src_lengths": torch.ones(2)}}
    with torch.no_grad():
        for hypotheses in generator.generate([model], sample):
            for hypothesis in hypotheses:
                target = hypothesis["tokens"].unsqueeze(0)
                text = torch.cat((empty[:1], target[:, :-1]), 1)
                whole = log_probs(model, text).gather(-1, target.unsqueeze(-1)).sum()
                assert hypothesis["score"].item() == pytest.approx(whole.item(), abs=1e-3)


def test_presets():
    shapes = {
        "fwm_transformer_lm_wikitext103_small": (16, 128, 2048, 8),
        "fwm_transformer_lm_wikitext103_medium": (16, 256, 2048, 8),
        "fwm_transformer_lm_char": (12, 512, 2048, 8),
        "fwm_transformer_lm_tiny": (4, 128, 512, 4),
    }
    for arch, (layers, dim, ffn, heads) in shapes.items():
        with torch.device("meta"):
            model = build(
                arch=arch, words=300_000, tokens_per_sample=256, max_target_positions=None
            )
        layer = model.decoder.layers[0]
        found = (len(model.decoder.layers), layer.embed_dim, layer.fc1.out_features)
        assert (*found, layer.nh) == (layers, dim, ffn, heads), arch
        assert model.decoder.layer_norm is None, "post-LN ends without a layer norm"


def test_flags_that_do_not_go_together():
    with pytest.raises(ValueError, match="--fwm-decoder-self delta.*can be zero"):
        build(fwm_feature_map="tanh", fwm_sum_norm="on", **TINY)
    with pytest.raises(ValueError, match="no --character-embeddings"):
        build(character_embeddings=True, **TINY)
    with pytest.raises(ValueError, match="--tie-adaptive-weights needs"):
        build(tie_adaptive_weights=True, **TINY)
