"""transformer_xl_lm: the published formula, and a memory that is as good as a longer window."""

import math
from itertools import product

import pytest
import torch

from variants import assert_close

pytest.importorskip("fairseq", reason="fairseq is not installed")

import fairseq_fwm  # noqa: F401
from fairseq_fwm.modules.relative_attention import MEMORY, RelativeAttention, by_key
from fairseq_fwm.modules.stream import Stream
from fairseq_fwm.nn.positions import Sinusoids
from language_models import build, tokens

DIM = 16
SMALL = {
    "decoder_embed_dim": DIM,
    "decoder_input_dim": DIM,
    "decoder_output_dim": DIM,
    "decoder_ffn_embed_dim": 16,
    "decoder_layers": 3,
    "decoder_attention_heads": 2,
    "dropout": 0.0,
    "tokens_per_sample": 32,
    "fwm_init": "normal",
}


def small(**flags):
    """A small model; initialised large enough for every part of the scores to matter."""
    model = build("transformer_xl_lm", **{**SMALL, **flags})
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5)
    return model


def by_segments(model, text, lengths):
    """The logits of a text in segments, and the stream afterwards."""
    stream = Stream.empty()
    return torch.cat([model(x, stream=stream)[0] for x in text.split(lengths, 1)], 1), stream


def attention():
    found = RelativeAttention(DIM, 2, mem_len=5, eval_mem_len=5).double()
    with torch.no_grad():
        for bias in (found.content_bias, found.position_bias):
            bias.normal_()
    return found


def continued(attention, x, memory):
    """Attend to a memory ``(N, M, C)`` and to ``(T, N, C)``."""
    state = {}
    attention._set_input_buffer(state, {MEMORY: memory})
    return attention(x, incremental_state=state)[0]


def sinusoid(distance):
    angles = [distance / 10000 ** (2 * i / DIM) for i in range(DIM // 2)]
    return torch.tensor([*map(math.sin, angles), *map(math.cos, angles)], dtype=torch.float64)


def brute_force(attention, x, memory):
    """arXiv 1901.02860, Sec. 3.3, one query and one key at a time; ``(T, N, C)``."""
    d, m = attention.head_dim, memory.shape[1]
    w_k, w_v = attention.kv_proj.weight.view(-1, 2, d, DIM).unbind(1)
    w_q, w_r = (p.weight.view(-1, d, DIM) for p in (attention.q_proj, attention.r_proj))
    us, ws = attention.content_bias.squeeze(1), attention.position_bias.squeeze(1)

    def head(i, n, h):
        inputs = [*memory[n], *x[: i + 1, n]]
        q = w_q[h] @ x[i, n]
        scores = [
            (q + us[h]) @ (w_k[h] @ e) + (q + ws[h]) @ (w_r[h] @ sinusoid(m + i - j))
            for j, e in enumerate(inputs)
        ]
        weights = (torch.stack(scores) / math.sqrt(d)).softmax(0)
        return sum(a * (w_v[h] @ e) for a, e in zip(weights, inputs, strict=True))

    def row(i, n):
        return torch.cat([head(i, n, h) for h in range(attention.num_heads)])

    rows = [attention.out_proj.weight @ row(i, n) for i, n in product(*map(range, x.shape[:2]))]
    return torch.stack(rows).view_as(x)


def test_published_parameter_count():
    """arXiv 2102.11174, Table 4: 90.9 M."""
    words, dim = 267_735, 256
    with torch.device("meta"):
        arch = "transformer_xl_lm_wikitext103_medium"
        model = build(arch, words, tokens_per_sample=384)
    layer = 5 * dim * dim + 2 * dim * 2048 + 2048 + dim + 4 * dim
    count = sum(p.numel() for p in model.parameters())
    assert count == words * (dim + 1) + 3 * (dim + 1) + 16 * layer + 2 * dim
    assert round(count / 1e6, 1) == 90.9


@pytest.mark.parametrize(("t", "s"), [(1, 1), (1, 4), (4, 4), (3, 8)])
def test_scores_by_distance_become_scores_by_key(t, s):
    scores = torch.randn(2, 3, t, s + 1)
    found = by_key(scores)
    assert found.shape == (2, 3, t, s)
    for i in range(t):
        for j in range(s - t + i + 1):
            distance = s - t + i - j
            assert torch.equal(found[..., i, j], scores[..., i, s - 1 - distance])
    assert found.data_ptr() == scores[..., 0, t - 1].data_ptr(), "not a view"


@pytest.mark.parametrize("remembered", [0, 1, 5])
def test_attention_is_the_published_formula(remembered):
    module = attention()
    x = torch.randn(4, 2, DIM, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(2, remembered, DIM, dtype=torch.float64)
    wanted, found = brute_force(module, x, memory), continued(module, x, memory)
    assert_close("output", found, wanted, 1e-12)
    inputs = {"x": x, **dict(module.named_parameters())}
    upstream = torch.randn_like(wanted)
    gradients = [torch.autograd.grad(y, [*inputs.values()], upstream) for y in (found, wanted)]
    for name, ours, theirs in zip(inputs, *gradients, strict=True):
        assert_close(f"gradient of {name}", ours, theirs, 1e-10)


@pytest.mark.parametrize("stream", [False, True])
def test_causal(stream):
    """Changing a token leaves every earlier output as it is, to the bit."""
    model, text = small(), tokens(2, 12)
    before = tokens(2, 9, words=12)

    def logits(x):
        carried = Stream.empty() if stream else None
        if stream:
            model(before, stream=carried)
        return model(x, stream=carried)[0]

    changed = text.clone()
    changed[:, 7] = 4 + (changed[:, 7] - 3) % 20
    a, b = logits(text), logits(changed)
    assert torch.equal(a[:, :7], b[:, :7])
    assert not torch.allclose(a[:, 7:], b[:, 7:])


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("lengths", [[6, 6], [5, 1, 6], [1] * 12])
def test_segments_with_memory_are_one_long_window(layers, lengths):
    model, text = small(decoder_layers=layers, mem_len=11), tokens(2, 12)
    window = model(text)[0]
    segments, _ = by_segments(model, text, lengths)
    assert_close("logits", segments, window, 1e-5)
    assert not torch.allclose(model(text[:, 6:])[0], window[:, 6:], atol=1e-2)


@pytest.mark.parametrize("training", [True, False])
def test_memory_ends_at_its_length(training):
    """One layer sees the segment and as many tokens before as the memory has positions."""
    sizes = {"mem_len": 3} if training else {"mem_len": 7, "eval_mem_len": 3}
    model, text = small(decoder_layers=1, **sizes).train(training), tokens(2, 12)
    segments, stream = by_segments(model, text, [4, 4, 4])
    for start in (4, 8):
        window = model(text[:, start - 3 : start + 4])[0]
        assert_close("logits", segments[:, start : start + 4], window[:, 3:], 1e-5)
    inputs = model.decoder.embed_scale * model.decoder.embed_tokens(text)
    assert torch.equal(stream.states[0][MEMORY], inputs[:, -3:])


def test_a_memory_can_span_segments_and_be_empty():
    model, text = small(mem_len=5), tokens(2, 12)
    _, stream = by_segments(model, text[:, :4], [2, 2])
    assert stream.numbers_per_layer == 3 * [4 * DIM]
    _, stream = by_segments(model, text, [2] * 6)
    assert stream.numbers_per_layer == 3 * [5 * DIM]
    assert all(x.is_contiguous() for state in stream.states for x in state.values())
    forgetful = small(mem_len=0)
    segments, stream = by_segments(forgetful, text, [6, 6])
    assert stream.numbers_per_layer == 3 * [0]
    alone = torch.cat([forgetful(x)[0] for x in text.split(6, 1)], 1)
    assert torch.equal(segments, alone)


def test_memory_lengths_have_defaults():
    for flags, lengths in (
        ({}, (32, 32)),
        ({"mem_len": 5}, (5, 5)),
        ({"eval_mem_len": 64}, (32, 64)),
        ({"mem_len": 0, "eval_mem_len": 3}, (0, 3)),
    ):
        layer = small(**flags).decoder.layers[-1].self_attn
        assert (layer.mem_len, layer.eval_mem_len) == lengths
    with pytest.raises(ValueError, match="-1 positions.*--mem-len"):
        small(mem_len=-1)


def test_no_gradient_flows_into_the_memory():
    model = small().train()
    early, late = tokens(2, 8, words=14), tokens(2, 8, first=14)
    stream = Stream.empty()
    model(early, stream=stream)
    assert not any(x.requires_grad for state in stream.states for x in state.values())
    model(late, stream=stream)[0].logsumexp(-1).sum().backward()
    gradient = model.decoder.embed_tokens.weight.grad
    assert not gradient[:14].any()
    assert gradient[late.unique()].any(1).all()


@pytest.mark.parametrize("adaptive", [False, True])
def test_training_with_a_stream_reaches_every_parameter(adaptive):
    flags = {"adaptive_softmax_cutoff": "8,16", "fwm_tied_adaptive_softmax": True}
    model = small(dropout=0.1, attention_dropout=0.1, **(flags if adaptive else {})).train()
    stream, target = Stream.empty(), tokens(2, 16)
    for x in target.split(8, 1):
        output = model(x, stream=stream)
    if adaptive:
        labels = target[:, 8:].reshape(-1)
        logits, labels = model.decoder.adaptive_softmax(output[0].flatten(0, 1), labels)
        pairs = [(y, t) for y, t in zip(logits, labels, strict=True) if y is not None]
        loss = sum(torch.nn.functional.cross_entropy(y, t) for y, t in pairs)
    else:
        loss = torch.nn.functional.cross_entropy(output[0].flatten(0, 1), target[:, 8:].flatten())
    loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), name


def test_layers_share_two_biases():
    """arXiv 1901.02860: u and v have no index of a layer."""
    model = build("transformer_xl_lm_tiny", tokens_per_sample=8)
    layers = [layer.self_attn for layer in model.decoder.layers]
    assert all(x.content_bias is layers[0].content_bias for x in layers)
    assert all(x.position_bias is layers[0].position_bias for x in layers)
    assert not layers[0].content_bias.any()
    drawn = build("transformer_xl_lm_tiny", tokens_per_sample=8, fwm_init="normal").decoder
    for bias in (drawn.layers[0].self_attn.content_bias, drawn.layers[0].self_attn.position_bias):
        assert 0.015 < bias.std() < 0.025
    assert model.decoder.why_no_stream() is None
    assert model.max_positions() > 10**6


def test_dropout_is_on_weights_and_positions():
    x = torch.randn(6, 2, DIM)
    for flag in ("dropout", "position_dropout"):
        module = RelativeAttention(DIM, 2, 4, 4, **{flag: 0.5})
        a, b = (module(x, incremental_state={})[0] for _ in range(2))
        assert not torch.equal(a, b), flag
        module.eval()
        a, b = (module(x, incremental_state={})[0] for _ in range(2))
        assert torch.equal(a, b), flag


def test_half_precision_rounds_no_distances():
    """bfloat16 knows 256 but not 257: far keys would have each other's distances."""
    distances = torch.arange(2000)
    exact, rounded = (Sinusoids(DIM)(distances, t) for t in (torch.float64, torch.bfloat16))
    assert_close("sinusoids", rounded.double(), exact, 1e-2)
    model, text = small(), tokens(1, 60)
    wanted, _ = by_segments(model, text, [30, 30])
    found, _ = by_segments(model.bfloat16(), text, [30, 30])
    assert_close("logits", found.float(), wanted, 0.05)


def test_padding_is_not_seen():
    model, text, longer = small(), tokens(1, 6), tokens(1, 9)
    alone = model(text)[0]
    padding = torch.full((1, 3), model.decoder.padding_idx)
    right, left = torch.cat((text, padding), 1), torch.cat((padding, text), 1)
    for x, real in ((right, slice(0, 6)), (left, slice(3, 9))):
        logits = model(torch.cat((x, longer)))[0]
        assert_close("logits", logits[:1, real], alone, 1e-5)
    with pytest.raises(ValueError, match="memory holds no padding"):
        model(right, stream=Stream.empty())


def test_only_the_causal_mask_is_taken():
    module, x = RelativeAttention(DIM, 2, 4, 4), torch.randn(5, 2, DIM)
    causal = torch.full((5, 5), -torch.inf).triu(1)
    with_mask, _ = module(x, attn_mask=causal)
    assert torch.equal(with_mask, module(x, incremental_state={})[0])
    for mask in (None, torch.zeros(5, 5), causal.tril(1)):
        with pytest.raises(ValueError, match="relative attention is causal"):
            module(x, attn_mask=mask)


def test_decoding_token_by_token_follows_the_beam():
    """fairseq's incremental decoding: the memory is the state, in the order of the beam."""
    decoder, text = small(mem_len=8).decoder, tokens(3, 8)
    order = torch.tensor([2, 0, 1])
    window = decoder(torch.cat((text[order, :5], text[:, 5:]), 1))[0]
    state = {}
    steps = []
    for t in range(8):
        if t == 5:
            decoder.reorder_incremental_state_scripting(state, order)
        history = torch.zeros(3, t, dtype=torch.long)
        step = torch.cat((history, text[:, t : t + 1]), 1)
        steps.append(decoder(step, incremental_state=state)[0])
    assert_close("first tokens", torch.cat(steps[:5], 1)[order], window[:, :5], 1e-5)
    assert_close("last tokens", torch.cat(steps[5:], 1), window[:, 5:], 1e-5)


def test_streams_are_refused_where_layers_forget():
    model = small(decoder_layerdrop=0.1)
    with pytest.raises(ValueError, match="--decoder-layerdrop"):
        model(tokens(2, 4), stream=Stream.empty())
