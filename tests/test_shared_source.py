"""Beam search keeps one source per sentence and carries no attention that nobody asked for."""

import argparse

import pytest
import torch

from variants import assert_close

pytest.importorskip("fairseq", reason="fairseq is not installed")

from fairseq.sequence_generator import SequenceGenerator, SequenceGeneratorWithAlignment

from fairseq_fwm.modules.attention import FastWeightCrossAttention
from fairseq_fwm.modules.shared_source import SharedSourceAttention, beam_of, per_sentence
from test_fwm_transformer import batch, build, generate

STOCK = {"fwm_decoder_self": "softmax"}
CROSS = [
    {"fwm_cross": "softmax"},
    {"fwm_cross": "sum", "fwm_attn_norm": "output"},
    {"fwm_cross": "softmax", "fwm_decoder_self": "softmax", "fwm_fast_decoding": "on"},
]


def encoded(**flags):
    """An encoder, and its output for three sentences."""
    model, task = build(**flags)
    inputs = batch(task)["net_input"]
    with torch.no_grad():
        return model.encoder, model.encoder(inputs["src_tokens"], inputs["src_lengths"])


def inference(model, **generation):
    model.prepare_for_inference_(
        argparse.Namespace(generation=argparse.Namespace(beam=3, **generation))
    )
    return model


def same(found, wanted):
    for name, tensors in wanted.items():
        for a, b in zip(found[name], tensors, strict=True):
            assert torch.equal(a, b), name


@pytest.mark.parametrize("beam", [1, 2, 5])
def test_reordering_the_encoder_gives_fairseq_s_rows(beam):
    """Whatever the order: of a beam, of a batch that shrinks, or of neither."""
    generator = torch.Generator().manual_seed(beam)
    (ours, out), (stock, wanted) = encoded(), encoded(**STOCK)
    start = torch.arange(3).repeat_interleave(beam)
    offsets = torch.randint(beam, (3, beam), generator=generator)
    within = (torch.arange(3).unsqueeze(1) * beam + offsets).flatten()
    leaving = within.view(3, beam)[[0, 2]].flatten()
    anything = torch.randint(3 * beam, (7,), generator=generator)
    across = torch.arange(3 * beam).flip(0)
    out, wanted = ours.reorder_encoder_out(out, start), stock.reorder_encoder_out(wanted, start)
    same(out, wanted)
    assert beam_of(out) == beam
    for order in (within, leaving, anything, across):
        found = ours.reorder_encoder_out(out, order)
        same(found, stock.reorder_encoder_out(wanted, order))
        sources = per_sentence(found)["encoder_out"][0]
        assert sources.shape[1] * beam_of(found) == len(order)
        assert torch.equal(sources.repeat_interleave(beam_of(found), 1), found["encoder_out"][0])
    assert (ours.reorder_encoder_out(out, within) is out) == (beam > 1)
    assert beam_of(ours.reorder_encoder_out(out, leaving)) == beam
    assert beam_of(ours.reorder_encoder_out(out, anything)) == 1


def test_an_order_that_only_looks_like_a_beam_is_none():
    encoder, out = encoded()
    swapped = torch.tensor([0, 1, 1, 0, 2, 2])
    assert beam_of(encoder.reorder_encoder_out(out, swapped)) == 1
    assert beam_of(encoder.reorder_encoder_out(out, torch.tensor([2, 0, 1]))) == 1


def test_softmax_everywhere_keeps_fairseq_s_ways():
    encoder, out = encoded(**STOCK)
    repeated = encoder.reorder_encoder_out(out, torch.arange(3).repeat_interleave(2))
    assert beam_of(repeated) == 1
    model, _ = build(**STOCK)
    assert not any(isinstance(m, SharedSourceAttention) for m in model.modules())


@pytest.mark.parametrize("flags", CROSS, ids=lambda f: "-".join(f.values()))
@pytest.mark.parametrize("length", [1, 3])
def test_fewer_source_rows_are_read_by_consecutive_queries(flags, length):
    model, _ = build(**flags)
    attention = model.decoder.layers[0].encoder_attn
    query, source = torch.randn(length, 6, 16), torch.randn(5, 2, 16)
    padding = torch.tensor([[False] * 5, [True] * 2 + [False] * 3])
    repeated, mask = source.repeat_interleave(3, 1), padding.repeat_interleave(3, 0)
    for attend in (None, {}):
        wanted, _ = attention(query, repeated, repeated, mask, None, static_kv=True)
        found, _ = attention(query, source, source, padding, attend, static_kv=True)
        assert_close("y", found, wanted, 1e-5)
    for weights in (True, False):  # now from the state
        found, _ = attention(query, None, None, None, attend, weights, static_kv=True)
        assert_close("y", found, wanted, 1e-5)
    order = torch.tensor([5, 5, 3])  # the first sentence leaves
    attention.reorder_incremental_state(attend, order)
    found, _ = attention(query[:, order], None, None, None, attend, False, static_kv=True)
    assert_close("y", found, wanted[:, order], 1e-5)


@pytest.mark.parametrize("flags", CROSS, ids=lambda f: "-".join(f.values()))
def test_decoding_keeps_the_source_once_for_a_sentence(flags, monkeypatch):
    model, task = build(**flags)
    rows = set()
    kind = SharedSourceAttention if flags["fwm_cross"] == "softmax" else FastWeightCrossAttention
    forward = kind.forward

    def spy(self, query, key, *rest, **options):
        result = forward(self, query, key, *rest, **options)
        state = options["incremental_state"]
        buffer = {k: x for k, x in self._get_input_buffer(state).items() if x is not None}
        rows.update((query.shape[1], x.shape[0]) for x in buffer.values() if x.dim())
        return result

    monkeypatch.setattr(kind, "forward", spy)
    generate(model, task, batch(task), max_len_b=12)
    assert (12, 3) in rows  # a beam of 4 for each of three sentences
    assert all(queries == 4 * states for queries, states in rows)


@pytest.mark.parametrize("flags", CROSS, ids=lambda f: "-".join(f.values()))
def test_the_same_translations_as_with_repeated_sources(flags):
    (model, task), (other, _) = build(**flags), build(**flags | {"fwm_fast_decoding": "off"})
    sample = batch(task)
    shared = generate(model, task, sample, max_len_b=20)
    repeated = generate(other, task, sample, max_len_b=20)
    prepared = generate(inference(model), task, sample, max_len_b=20)
    for found, again, wanted in zip(shared, prepared, repeated, strict=True):
        for hypotheses in (found, again):
            assert [tokens for tokens, _ in hypotheses] == [tokens for tokens, _ in wanted]
            scores = [score for _, score in hypotheses]
            assert scores == pytest.approx([score for _, score in wanted], abs=1e-5)


def attentions(model, task, generator=SequenceGenerator, name="attention"):
    found = generator([model], task.target_dictionary, beam_size=3, max_len_b=9).generate(
        [model], batch(task)
    )
    return [h[name] for hypotheses in found for h in hypotheses]


def test_attention_weights_only_for_who_asks():
    model, task = build()
    before = attentions(model, task)
    assert all(x.numel() for x in before)
    asked, _ = build()
    for found, wanted in zip(
        attentions(inference(asked, print_alignment="hard"), task), before, strict=True
    ):
        assert torch.equal(found, wanted)
    assert not any(x.numel() for x in attentions(inference(model), task))


def test_alignments():
    model, task = build()
    inference(model, print_alignment="hard")
    generator = SequenceGeneratorWithAlignment
    assert all(len(x) for x in attentions(model, task, generator, "alignment"))
