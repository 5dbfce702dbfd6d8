"""Scoring and continuing texts: every way against brute force."""

import itertools

import pytest
import torch

from variants import assert_close

pytest.importorskip("fairseq", reason="fairseq is not installed")

from fairseq_fwm.lm_scoring import (
    can_stream,
    continue_text,
    score_segments,
    score_sliding,
    score_streaming,
    state_per_layer,
)
from language_models import EOS, tokens
from test_fwm_transformer_lm import PLAIN, TINY, build, log_probs

MODELS = {
    "softmax": {"fwm_decoder_self": "softmax"},
    "reversed": {"fwm_positions": "reversed", "fwm_feature_map": "elu"},
    "delta": PLAIN,
    "adaptive": {
        **PLAIN,
        "fwm_decoder_self": "sum",
        "adaptive_softmax_cutoff": "8,14",
        "fwm_tied_adaptive_softmax": True,
    },
    "fairseq's adaptive": {**PLAIN, "adaptive_softmax_cutoff": "8,14"},
}
TEXT = tokens(1, 23)[0]


def brute_force(model, context):
    """Log-probability of every token after ``context(i)``, the inputs that it may see."""
    inputs = torch.cat((torch.tensor([EOS]), TEXT))
    found = []
    with torch.no_grad():
        for i, word in enumerate(TEXT):
            seen = inputs[context(i) : i + 1]
            found.append(log_probs(model, seen[None])[0, -1, word])
    return torch.stack(found)


@pytest.mark.parametrize("flags", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("length", [1, 6, 23, 50])
def test_sliding_window(flags, length):
    model = build(**TINY, **flags)
    done = []
    found = score_sliding(model, TEXT, length, eos=EOS, batch_size=5, progress=done.append)
    if "fwm_positions" in flags:  # the first window's own positions: as one window
        first = min(length, len(TEXT))
        inputs = torch.cat((torch.tensor([EOS]), TEXT))[None, :first]
        whole = log_probs(model, inputs)[0].gather(-1, TEXT[:first, None])[:, 0]
        assert_close("first window", found[:first], whole, 1e-5)
    wanted = brute_force(model, lambda i: max(0, i + 1 - length))
    start = min(length, len(TEXT)) - 1 if "fwm_positions" in flags else 0
    assert_close("sliding", found[start:], wanted[start:], 1e-5)
    assert sum(done) == len(TEXT)


@pytest.mark.parametrize("flags", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("length", [4, 23, 50])
def test_segments(flags, length):
    model = build(**TINY, **flags)
    found = score_segments(model, TEXT, length, eos=EOS, batch_size=2)
    if "fwm_positions" in flags:
        inputs = torch.cat((torch.tensor([EOS]), TEXT))[:-1]
        parts = [
            log_probs(model, a[None])[0].gather(-1, b[:, None])[:, 0]
            for a, b in zip(inputs.split(length), TEXT.split(length), strict=True)
        ]
        assert_close("segments", found, torch.cat(parts), 1e-5)
        return
    wanted = brute_force(model, lambda i: i // length * length)
    assert_close("segments", found, wanted, 1e-5)


@pytest.mark.parametrize("name", ["delta", "adaptive", "fairseq's adaptive"])
@pytest.mark.parametrize("length", [1, 7, 50])
def test_streaming_sees_the_whole_text(name, length):
    model = build(**TINY, **MODELS[name])
    found = score_streaming(model, TEXT, length, eos=EOS)
    assert_close("streaming", found, brute_force(model, lambda i: 0), 1e-4)


def test_streaming_says_why_it_cannot():
    model = build(**TINY, **MODELS["softmax"])
    with pytest.raises(ValueError, match="no state of fixed size"):
        score_streaming(model, TEXT, 5, eos=EOS)


@pytest.mark.parametrize("name", ["softmax", "reversed", "delta", "adaptive"])
def test_the_likeliest_continuation(name):
    """Token by token with a state, or window by window, it is the argmax of a full pass."""
    model = build(**TINY, **MODELS[name])
    assert can_stream(model) == (name in ("delta", "adaptive"))
    window = 6
    tokens = continue_text(model, TEXT, eos=EOS, window=window, temperature=0, forbidden=(EOS,))
    context = torch.cat((torch.tensor([EOS]), TEXT))
    for token in itertools.islice(tokens, 5):
        with torch.no_grad():
            seen = context if can_stream(model) else context[-window:]
            probs = log_probs(model, seen[None])[0, -1]
        probs[EOS] = -torch.inf
        assert token == probs.argmax()
        context = torch.cat((context, torch.tensor([token])))


def test_sampling_follows_the_probabilities():
    model = build(**TINY, **PLAIN)
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        probs = log_probs(model, torch.cat((torch.tensor([EOS]), TEXT))[None])[0, -1].exp()
    counts = torch.zeros(len(probs))
    for _ in range(600):
        counts[next(continue_text(model, TEXT, eos=EOS, window=9, generator=random))] += 1
    assert_close("frequencies", counts / 600, probs, 0.35)
    best = set(probs.topk(2).indices.tolist())
    options = {"eos": EOS, "window": 9, "top_k": 2, "generator": random}
    assert {next(continue_text(model, TEXT, **options)) for _ in range(40)} == best


def test_what_a_layer_keeps():
    delta = build(**TINY, **PLAIN, fwm_attn_norm="full")
    assert state_per_layer(delta, 64, EOS) == 2 * 16 * (8 + 1)
    positions = build(**TINY, fwm_positions="reversed", fwm_feature_map="elu")
    assert state_per_layer(positions, 64, EOS) == 2 * 8 * 8
    softmax = build(**TINY, fwm_decoder_self="softmax")
    assert state_per_layer(softmax, 64, EOS) == 2 * 64 * 16
