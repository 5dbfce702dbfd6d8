"""The formal-language task: batches, the seven models' wiring, whole-string accuracy, training."""

import re

import pytest
import torch

pytest.importorskip("fairseq", reason="fairseq is not installed")

from fairseq_fwm.criterions.tagging import TaggingCriterion
from fairseq_fwm.data.formal_languages import LANGUAGES, make_splits
from fairseq_fwm.models.sequence_tagger import MIXERS, SequenceTagger, SequenceTaggerConfig
from fairseq_fwm.modules.tagger_layers import ELSTM
from fairseq_fwm.tasks.formal_language import FormalLanguageConfig, FormalLanguageTask


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Files of a small language: dyck-1."""
    folder = tmp_path_factory.mktemp("dyck")
    language = LANGUAGES["dyck-1"]
    splits = make_splits(language, 1, [(2, 12), (14, 20), (22, 30)], (60, 20, 20, 10))
    for split, strings in splits.items():
        targets = map(language.targets, strings)
        for end, lines in (("src", strings), ("tgt", targets)):
            text = "".join(" ".join(line) + "\n" for line in lines)
            (folder / f"{split}_50.{end}").write_text(text)
    return folder


def task(data, **flags):
    given = {"data": str(data), "batch_size": 8, "seed": 1} | flags
    return FormalLanguageTask(FormalLanguageConfig(**given))


def batches(made, split, size=8, epoch=1):
    made.load_dataset(split)
    found = made.get_batch_iterator(made.datasets[split], max_sentences=size, epoch=epoch)
    return list(found.next_epoch_itr(shuffle=False))


# ---- batches


def test_batches_hold_the_files_and_padding(data):
    made = task(data)
    found = [batches(made, split) for split in ("bin0", "bin1", "bin2")]
    assert [{b["bin"] for b in part} for part in found] == [{0}, {1}, {2}]
    names = [list(names) for names in (made.symbols, made.targets)]
    assert names == [["(", ")"], ["1", "0"]] and made.pads == (2, 2)
    for part, split in zip(found, ("valid", "test", "bin2"), strict=True):
        for end, key in (("src", None), ("tgt", "target")):
            lines = (data / f"{split}_50.{end}").read_text().splitlines()
            known = names[key == "target"]
            rows = [
                [known[i] for i in row if i < 2]
                for batch in part
                for row in (batch["target"] if key else batch["net_input"]["tokens"]).tolist()
            ]
            assert [" ".join(row) for row in rows] == lines
    valid = batches(made, "valid")
    assert [b["bin"] for b in valid] == [0, 0, 0, 1, 1, 1]
    limited = batches(task(data, eval_limit=5), "valid")
    assert [(b["bin"], b["nsentences"]) for b in limited] == [(0, 5), (1, 5)]


def test_training_goes_through_all_strings_in_turns(data):
    made = task(data, eval_every=3)  # 24 of 60 strings an epoch
    seen = [
        i for e in range(1, 6) for b in batches(made, "train", epoch=e) for i in b["id"].tolist()
    ]
    assert len(seen) == 120
    first, second = seen[:60], seen[60:]
    assert sorted(first) == sorted(second) == list(range(60)) and first != second
    again = [b["id"].tolist() for b in batches(task(data, eval_every=3), "train", epoch=2)]
    assert sum(again, []) == seen[24:48]
    other = [b["id"].tolist() for b in batches(task(data, eval_every=3, seed=2), "train", epoch=2)]
    assert other != again


def test_what_is_missing_or_broken_is_named(data, tmp_path):
    with pytest.raises(ValueError, match=r"train_50.src is not there: scripts/make_formal"):
        task(tmp_path)
    with pytest.raises(ValueError, match="pass --batch-size"):
        task(data, batch_size=None)
    for name, text in (("train", "( )"), ("valid", "( x"), ("test", "( )")):
        (tmp_path / f"{name}_50.src").write_text(text)
        (tmp_path / f"{name}_50.tgt").write_text("1 0")
    with pytest.raises(
        ValueError, match="valid_50 has the symbol 'x', which the training data lack"
    ):
        task(tmp_path).load_dataset("valid")
    (tmp_path / "train_50.tgt").write_text("1")
    with pytest.raises(ValueError, match="need as many symbols in every line"):
        task(tmp_path)


# ---- models


def build(mixer, **flags):
    flags = {"layers": 2, "hidden_size": 16, "heads": 2, "embed_size": 12} | flags
    return SequenceTagger(3, 5, SequenceTaggerConfig(mixer=mixer, **flags)).eval()


D, H, F, V_IN, V_OUT, E = 16, 2, 64, 3, 5, 12
SHELL = V_IN * D + D * V_OUT + V_OUT
FF = 2 * D + 2 * F * D + F + D
LINEAR = 2 * D + 3 * D * D + D * D
SIZES = {  # from the study's formulas
    "linear_transformer": SHELL + 2 * (LINEAR + FF),
    "deltanet": SHELL + 2 * (LINEAR + H * D + FF),
    "recurrent_delta": SHELL + 2 * (LINEAR + H * D + 3 * D * D // H + D + FF),
    "srwm": SHELL + 2 * (2 * D + D * D + 3 * D * D // H + 4 * D + FF),
    "transformer": SHELL + 2 * (4 * (D * D + D) + 2 * F * D + F + D + 4 * D) + 2 * D,
    "lstm": V_IN * E + 4 * D * (E + D + 2) + 4 * D * (2 * D + 2) + D * V_OUT + V_OUT,
    "elstm": V_IN * E + 2 * D * (E + 2) + D * (E + D + 1) + D * V_OUT + V_OUT,
}


@pytest.mark.parametrize("mixer", MIXERS)
def test_number_of_parameters(mixer):
    assert sum(p.numel() for p in build(mixer).parameters()) == SIZES[mixer]


@pytest.mark.parametrize("mixer", MIXERS)
def test_nothing_later_and_no_padding_is_seen(mixer):
    model = build(mixer).double()
    tokens = torch.randint(0, 2, (3, 11))
    logits = model(tokens)
    assert logits.shape == (3, 11, V_OUT)
    other = tokens.clone()
    other[:, 6:] = 2  # padding
    torch.testing.assert_close(model(other)[:, :6], logits[:, :6])
    assert not torch.allclose(model(other)[:, 6:], logits[:, 6:])
    torch.testing.assert_close(model(tokens[:1, :6]), logits[:1, :6])


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_parameter_learns(mixer):
    model = build(mixer).train()
    tokens = torch.randint(0, 3, (4, 9))
    model(tokens).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_published_wiring():
    model = build("srwm")
    layer, h = model.layers[0], torch.randn(2, 3, D)
    y, _ = layer.mixer(h.unflatten(-1, (H, -1)).transpose(1, 2))
    wanted = layer.norm(h) + layer.out_proj(y.transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(h), wanted)
    layer = build("deltanet").layers[0]
    assert layer.mixer.sum_norm and layer.mixer.attn_norm == "none"
    x = layer.in_proj(layer.norm(h)).unflatten(-1, (H, -1)).transpose(1, 2)
    wanted = h + layer.out_proj(layer.mixer(x)[0].transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(h), wanted)
    linear = build("linear_transformer").layers[0].mixer
    assert (linear.sum_norm, linear.attn_norm) == (False, "none")


def test_elementwise_lstm_is_its_definition():
    model, x = ELSTM(3, 4).double(), torch.randn(2, 5, 3, dtype=torch.float64)
    W, b = model.inputs.weight, model.inputs.bias
    c, outputs = torch.zeros(2, 4, dtype=torch.float64), []
    for t in range(5):
        z = torch.tanh(x[:, t] @ W[:4].T + model.recurrent[:4] * c + b[:4])
        f = torch.sigmoid(x[:, t] @ W[4:].T + model.recurrent[4:] * c + b[4:])
        c = f * c + (1 - f) * z
        o = torch.sigmoid(model.output_gate(torch.cat((x[:, t], c), 1)))
        outputs.append(o * c)
    torch.testing.assert_close(model(x), torch.stack(outputs, 1))


def test_heads_divide_the_width():
    with pytest.raises(ValueError, match="--hidden-size 16 is not divisible by --heads 3"):
        build("deltanet", heads=3)
    build("lstm", heads=3)


# ---- the criterion


class Fixed(torch.nn.Module):
    """Logits that are given."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, tokens):
        return self.logits


def test_one_wrong_symbol_makes_a_string_wrong_and_padding_none(data):
    criterion = TaggingCriterion(task(data))
    targets = torch.tensor([[0, 1, 1], [1, 0, 2]])  # 2: padding
    logits = 5 * torch.nn.functional.one_hot(torch.tensor([[0, 1, 1], [1, 0, 0]]), 3).float()
    sample = {"net_input": {"tokens": targets}, "target": targets, "bin": 1, "nsentences": 2,
              "ntokens": 5}  # fmt: skip
    loss, size, log = criterion(Fixed(logits), sample)
    assert (size, int(log["right1"]), log["strings1"], int(log["tokens_right"])) == (5, 2, 2, 5)
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1)[:5], targets.flatten()[:5])
    torch.testing.assert_close(loss / size, each)
    logits[0, 1] = torch.tensor([9.0, 0, 0])
    _, _, log = criterion(Fixed(logits), sample)
    assert (int(log["right1"]), int(log["tokens_right"])) == (1, 4)


# ---- training


def last(log, name):
    return float(re.findall(rf"valid on .* \| {name} ([0-9.]+)", log)[-1])


@pytest.mark.parametrize("mixer", ["deltanet", "srwm"])
def test_training_until_all_is_right(data, run, root, tmp_path, mixer):
    done = run(
        *("-m", "fairseq_cli.train", data, "--user-dir", root / "fairseq_fwm", "--cpu"),
        *("--task", "formal_language", "--arch", "sequence_tagger", "--mixer", mixer),
        *("--hidden-size", 16, "--heads", 2, "--layers", 1, "--criterion", "tagging"),
        *("--optimizer", "adam", "--adam-betas", "(0.9, 0.995)", "--lr", 0.01),
        *("--lr-scheduler", "until_solved", "--solved-loss", 0, "--stop-min-lr", 0),
        *("--unsolved-patience", 1000, "--best-checkpoint-metric", "wrong"),
        *("--batch-size", 16, "--max-update", 1500, "--num-workers", 0, "--seed", 1),
        *("--save-dir", tmp_path, "--no-epoch-checkpoints", "--no-last-checkpoints"),
        *("--log-format", "simple"),
    )
    log = done.stdout + done.stderr
    assert "solved: a validation loss of 0 after" in log
    assert last(log, "bin0") == 100 and last(log, "wrong") == 0
    best = torch.load(tmp_path / "checkpoint_best.pt", weights_only=True)
    assert best["extra_state"]["best"] == 0


def test_published_choice_is_by_both_bins(data):
    from fairseq.logging import metrics

    for published, wanted in ((False, 0.0), (True, 25.0)):
        criterion = TaggingCriterion(task(data, as_published=published))
        logs = []
        for number, right in ((0, 2), (1, 1)):
            log = {"loss": 0.0, "ntokens": 4, "sample_size": 4, "nsentences": 2, "tokens_right": 4}
            log |= {f"strings{number}": 2, f"right{number}": right}
            logs.append(log | {f"decides{i}": 1 for i in criterion.deciding})
        with metrics.aggregate(new_root=True) as found:
            for log in logs:  # one batch after the other, as fairseq does
                TaggingCriterion.reduce_metrics([log])
        values = found.get_smoothed_values()
        assert (values["bin0"], values["bin1"]) == (100, 50)
        assert values["wrong"] == pytest.approx(wanted)
