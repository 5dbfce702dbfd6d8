"""Models for torch alone: states, padding, positions, their folder. Nothing here needs fairseq."""

import copy
import doctest
import json
import pickle
from dataclasses import asdict, replace

import pytest
import torch

from fairseq_fwm.mixers import FastWeightConfig
from fairseq_fwm.nn import (
    ExportError,
    LanguageModel,
    TranslationModel,
    load_exported,
    save_exported,
)
from fairseq_fwm.nn import language_model as language_model_module
from fairseq_fwm.nn import vocabulary as vocabulary_module
from fairseq_fwm.nn.adaptive_softmax import TiedClusters
from fairseq_fwm.nn.config import StackConfig
from fairseq_fwm.nn.layers import ACTIVATIONS
from fairseq_fwm.nn.positions import ForwardSinusoids, LearnedPositions
from fairseq_fwm.nn.vocabulary import SPECIAL, Vocabulary

WORDS, PAD, EOS = 30, 1, 2
SHAPE = {"words": WORDS, "pad": PAD, "dim": 16, "embed_dim": 16, "layers": 2, "heads": 2}
DECODER = StackConfig(
    **SHAPE, ff_dim=24, causal=True, output="linear", output_dim=16, embed_scale=4.0
)
ENCODER = StackConfig(**SHAPE, ff_dim=24, causal=False, positions="sinusoids", embed_scale=4.0)
DELTA = FastWeightConfig("delta", "dpfp")
SUM = FastWeightConfig("sum", "elu")
VARIANTS = {
    "delta": replace(DECODER, self_attention=DELTA),
    "delta-sinusoids": replace(DECODER, self_attention=DELTA, positions="sinusoids"),
    "sum-norm-first": replace(DECODER, self_attention=SUM, norm_first=True, final_norm=True),
    "softmax-learned": replace(DECODER, positions="learned", max_positions=20),
    "adaptive": replace(DECODER, output="adaptive", cutoff=(8, 20), factor=2.0),
    "clusters": replace(DECODER, self_attention=SUM, output="tied_clusters", cutoff=(8, 20)),
    "srwm": replace(DECODER, self_attention=FastWeightConfig("srwm", "softmax")),
}
SITES = {
    "softmax": (None, None, None),
    "fast": (SUM, DELTA, SUM),
    "delta-both-ways": (DELTA, DELTA, None),
}


def text(*shape, words=WORDS):
    return torch.randint(4, words, shape)


def translation_model(encoder_self, decoder_self, cross):
    encoder = replace(ENCODER, self_attention=encoder_self)
    decoder = replace(DECODER, source_dim=16, positions="sinusoids")
    decoder = replace(decoder, self_attention=decoder_self, cross_attention=cross)
    return TranslationModel(encoder, decoder).eval()


@pytest.mark.parametrize("cfg", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_segments_and_steps_are_the_whole(cfg):
    model, tokens = LanguageModel(cfg).eval(), text(2, 9)
    whole = model(tokens)
    logits, state = model(tokens[:, :5], return_state=True)
    found = [logits]
    for t in range(5, 9):
        before = copy.deepcopy(state)
        logits, state = model.step(tokens[:, t], state)
        again, _ = model.step(tokens[:, t], before)
        assert torch.equal(logits, again), "a step changed its state"
        found.append(logits.unsqueeze(1))
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cfg", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_the_future_and_padding_do_not_count(cfg):
    model, tokens = LanguageModel(cfg).eval(), text(2, 9)
    whole = model(tokens)
    changed = tokens.clone()
    changed[0, 6:], changed[1, 6:] = text(3), PAD
    torch.testing.assert_close(model(changed)[:, :6], whole[:, :6], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variants", SITES.values(), ids=SITES)
@torch.no_grad()
def test_translations_do_not_depend_on_padding(variants):
    model = translation_model(*variants)
    sources = [[*text(n).tolist(), EOS] for n in (6, 3)]
    for padded in ([sources[1] + [PAD] * 3], [[PAD] * 3 + sources[1]]):
        batch = torch.tensor([sources[0], *padded])
        previous = torch.cat((torch.full((2, 1), EOS), text(2, 4)), 1)
        alone = [model(torch.tensor([s]), previous[i : i + 1]) for i, s in enumerate(sources)]
        torch.testing.assert_close(model(batch, previous), torch.cat(alone), rtol=1e-4, atol=1e-5)
        expected = [model.translate(torch.tensor([s]), 8)[0] for s in sources]
        assert model.translate(batch, 8) == expected
    assert all(0 < len(words) <= 8 for words in expected)


@torch.no_grad()
def test_translation_is_the_likeliest_word_each_time():
    model = translation_model(*SITES["fast"])
    source = torch.tensor([[*text(5).tolist(), EOS]])
    words = model.translate(source, 6)[0]
    logits = model(source, torch.tensor([[EOS, *words[:-1]]]))[0]
    logits[:, PAD] = -torch.inf
    logits[0, EOS] = -torch.inf
    assert logits.argmax(-1).tolist() == words
    assert model.translate(source, 0) == [[]]


@pytest.mark.parametrize("kind", ["adaptive", "clusters"])
@torch.no_grad()
def test_an_adaptive_softmax_gives_probabilities(kind):
    total = LanguageModel(VARIANTS[kind]).eval()(text(2, 3)).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones(2, 3))


def test_clusters_must_ascend():
    with pytest.raises(ValueError, match="must ascend"):
        TiedClusters(torch.nn.Embedding(10, 4, PAD), [8, 5])


def test_positions_count_on_and_skip_padding():
    positions, tokens = ForwardSinusoids(6, PAD), text(1, 5)
    torch.testing.assert_close(positions(tokens)[:, 2:], positions(tokens[:, 2:], 2))
    left = torch.cat((torch.full((1, 3), PAD), tokens), 1)
    torch.testing.assert_close(positions(left)[:, 3:], positions(tokens))
    assert not positions(left)[:, :3].any()


def test_learned_positions_end():
    positions = LearnedPositions(4, 6, PAD)
    assert positions(text(1, 4)).shape == (1, 4, 6)
    with pytest.raises(ValueError, match="5 tokens, but positions were learned for 4"):
        positions(text(1, 2), seen=3)


@pytest.mark.parametrize("cfg", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_folder(cfg, tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    model, tokens = LanguageModel(cfg).eval(), text(2, 9)
    (tmp_path / "dict.txt").write_text("".join(f"w{i} 1\n" for i in range(WORDS - 4)))
    save_exported(tmp_path, model, {"target": "dict.txt"})
    back = load_exported(tmp_path)
    assert torch.equal(back(tokens), model(tokens))
    assert len(back.vocabularies["target"]) == WORDS
    assert back.decoder.cfg == cfg and not back.training
    config = json.loads((tmp_path / "config.json").read_text())
    config["decoder"]["unheard_of"] = 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match="unheard_of"):
        load_exported(tmp_path)


def test_ordinary_modules():
    model = LanguageModel(VARIANTS["delta"]).eval()
    tokens = text(2, 5)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(tokens), model(tokens))
    model(tokens).logsumexp(-1).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens), model(tokens))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_can_be_pickled(name):
    cfg = replace(DECODER, activation=name)
    assert pickle.loads(pickle.dumps(LanguageModel(cfg)))(text(1, 3)).shape == (1, 3, WORDS)


def test_configurations_survive_json():
    for cfg in VARIANTS.values():
        assert StackConfig.from_json(json.loads(json.dumps(asdict(cfg)))) == cfg


def test_vocabulary(tmp_path):
    path = tmp_path / "dict.txt"
    path.write_text("a 5\n<pad> 3 #fairseq:overwrite\nb 1\n", "utf-8")
    vocabulary = Vocabulary.from_file(path)
    assert vocabulary.symbols == [*SPECIAL, "a", "<pad>", "b"]
    assert vocabulary.decode(vocabulary.encode("a  b unknown")) == "a b <unk>"
    path.write_text("a 5\nb\n", "utf-8")
    with pytest.raises(ValueError, match="line 2: 'b' is no word with its count"):
        Vocabulary.from_file(path)


@pytest.mark.parametrize("module", [language_model_module, vocabulary_module])
def test_examples(module):
    found = doctest.testmod(module)
    assert found.attempted and not found.failed
