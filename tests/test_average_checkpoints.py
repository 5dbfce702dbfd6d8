"""scripts/average_checkpoints.py."""

import argparse
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import average_checkpoints as averaging  # noqa: E402

PROJECTION = "decoder.layers.0.self_attn.feature_map.projection"


def save(path, updates, model=None, **entries):
    model = {"weight": torch.tensor([float(updates)])} if model is None else model
    state = {
        "args": None,
        "cfg": {"model": argparse.Namespace(arch="fwm_transformer")},
        "model": OrderedDict(model),
        "optimizer_history": [{"num_updates": updates}],
        "extra_state": {"val_loss": updates},
        "last_optimizer_state": {"exp_avg": torch.zeros(3)},
    }
    torch.save({**state, **entries}, path)
    return path


def epochs(directory, count):
    return [save(directory / f"checkpoint{n}.pt", 10 * n) for n in range(1, count + 1)]


def average(*paths):
    return averaging.average_checkpoints(paths)


def names(paths):
    return [path.name for path in paths]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_mean_of_parameters_in_their_own_type(tmp_path, dtype):
    values = torch.randn(3, 4, 5, dtype=torch.float64).to(dtype)
    paths = [save(tmp_path / f"{n}.pt", n, {"w": value}) for n, value in enumerate(values)]
    result = average(*paths)["model"]["w"]
    assert result.dtype == dtype
    assert torch.equal(result, values.double().mean(0).to(dtype))


def test_small_differences_survive_half_precision(tmp_path):
    """2048 + 1 is 2048 in fp16: a sum in the parameters' own type would lose the ones."""
    values = [2048.0, 1.0, 1.0, 1.0]
    paths = [
        save(tmp_path / f"{n}.pt", n, {"w": torch.tensor([v], dtype=torch.float16)})
        for n, v in enumerate(values)
    ]
    expected = torch.tensor([sum(values) / 4], dtype=torch.float16)
    assert torch.equal(average(*paths)["model"]["w"], expected)


@pytest.mark.parametrize("newest_first", [True, False])
def test_what_has_no_mean_comes_from_the_newest(tmp_path, newest_first):
    def model(seed):
        generator = torch.Generator().manual_seed(seed)
        return {
            PROJECTION: torch.randn(8, 4, generator=generator),
            "num_updates": torch.tensor(seed),
            "seen": torch.tensor([seed > 1, True]),
            "weight": torch.tensor([float(seed)]),
        }

    paths = [save(tmp_path / f"{n}.pt", n, model(n)) for n in (1, 2)]
    result = average(*(paths[::-1] if newest_first else paths))
    assert torch.equal(result["model"][PROJECTION], model(2)[PROJECTION])
    assert result["model"]["num_updates"] == 2
    assert result["model"]["seen"].tolist() == [True, True]
    assert result["model"]["weight"] == 1.5
    assert result["extra_state"]["val_loss"] == 2
    assert result["last_optimizer_state"] is None


def test_tied_parameters_stay_tied(tmp_path):
    def model(seed):
        embedding = torch.full((100, 8), float(seed))
        return {"encoder.e": embedding, "decoder.e": embedding, "other": embedding.clone()}

    paths = [save(tmp_path / f"{n}.pt", n, model(n)) for n in (1, 2)]
    averaging.save_whole(average(*paths), tmp_path / "average.pt")
    result = averaging.load_checkpoint(tmp_path / "average.pt")["model"]
    assert list(result) == list(model(1))
    assert all(torch.equal(value, torch.full((100, 8), 1.5)) for value in result.values())
    assert result["encoder.e"].data_ptr() == result["decoder.e"].data_ptr()
    assert result["encoder.e"].data_ptr() != result["other"].data_ptr()


@pytest.mark.parametrize("first", [0, 1])
def test_parameters_once_tied_and_then_not_are_averaged_apart(tmp_path, first):
    tied = torch.ones(4)
    paths = [
        save(tmp_path / "0.pt", 1, {"a": tied, "b": tied}),
        save(tmp_path / "1.pt", 2, {"a": torch.zeros(4), "b": torch.full((4,), 3.0)}),
    ]
    result = average(paths[first], paths[1 - first])["model"]
    assert result["a"].tolist() == [0.5] * 4
    assert result["b"].tolist() == [2.0] * 4


def test_selects_the_last_epochs(tmp_path):
    epochs(tmp_path, 11)
    save(tmp_path / "checkpoint_last.pt", 999)
    save(tmp_path / "checkpoint_12_125.pt", 125)
    chosen = averaging.select_checkpoints(tmp_path, 3)
    assert names(chosen) == ["checkpoint11.pt", "checkpoint10.pt", "checkpoint9.pt"]
    bounded = averaging.select_checkpoints(tmp_path, 2, upper_bound=9)
    assert names(bounded) == ["checkpoint9.pt", "checkpoint8.pt"]


def test_selects_the_last_updates(tmp_path):
    epochs(tmp_path, 3)
    for n in (900, 1000, 1100):
        save(tmp_path / f"checkpoint_2_{n}.pt", n)
    chosen = averaging.select_checkpoints(tmp_path, 2, by_update=True)
    assert names(chosen) == ["checkpoint_2_1100.pt", "checkpoint_2_1000.pt"]
    bounded = averaging.select_checkpoints(tmp_path, 2, by_update=True, upper_bound=1000)
    assert names(bounded) == ["checkpoint_2_1000.pt", "checkpoint_2_900.pt"]


def test_too_few_checkpoints_say_how_many_there_are(tmp_path):
    epochs(tmp_path, 4)
    with pytest.raises(averaging.AveragingError, match="holds 4 epoch checkpoints, 10 were asked"):
        averaging.select_checkpoints(tmp_path, 10)
    with pytest.raises(averaging.AveragingError, match="2 epoch checkpoints up to epoch 2, 3"):
        averaging.select_checkpoints(tmp_path, 3, upper_bound=2)
    with pytest.raises(averaging.AveragingError, match="0 update checkpoints"):
        averaging.select_checkpoints(tmp_path, 1, by_update=True)


def test_different_models_are_refused(tmp_path):
    one = save(tmp_path / "1.pt", 1, {"a": torch.ones(2), "b": torch.ones(2)})
    other = save(tmp_path / "2.pt", 2, {"a": torch.ones(2), "c": torch.ones(2)})
    with pytest.raises(averaging.AveragingError, match=r"2\.pt and .*1\.pt .* only one .* b, c"):
        average(one, other)
    wider = save(tmp_path / "3.pt", 2, {"a": torch.ones(2), "b": torch.ones(3)})
    with pytest.raises(averaging.AveragingError, match=r"b has the shape \(3,\) .* \(2,\)"):
        average(one, wider)


class Harmful:
    """Would touch a file when unpickled carelessly."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_bad_files_are_refused_and_run_nothing(tmp_path):
    good = save(tmp_path / "good.pt", 1)
    harmful = save(tmp_path / "harmful.pt", 2, extra_state=Harmful(tmp_path / "touched"))
    with pytest.raises(averaging.AveragingError, match=r"harmful\.pt cannot be loaded"):
        average(good, harmful)
    assert not (tmp_path / "touched").exists()
    short = tmp_path / "short.pt"
    short.write_bytes(good.read_bytes()[:-100])
    with pytest.raises(averaging.AveragingError, match=r"short\.pt cannot be loaded"):
        average(short)
    with pytest.raises(averaging.AveragingError, match="does not exist"):
        average(tmp_path / "nothing.pt")
    torch.save({"weight": torch.ones(2)}, tmp_path / "plain.pt")
    with pytest.raises(averaging.AveragingError, match="not a fairseq checkpoint"):
        average(tmp_path / "plain.pt")


def test_command_line(tmp_path, capsys):
    epochs(tmp_path, 3)
    output = tmp_path / "out" / "average.pt"
    flags = ["--inputs", str(tmp_path), "--output", str(output)]
    assert averaging.main([*flags, "--num-epoch-checkpoints", "2"]) == 0
    state = averaging.load_checkpoint(output)
    assert state["model"]["weight"].item() == 25
    assert state["extra_state"]["averaged_checkpoints"] == ["checkpoint3.pt", "checkpoint2.pt"]
    assert names(output.parent.iterdir()) == ["average.pt"]

    for wrong, message in [
        (["--num-epoch-checkpoints", "4"], "holds 3"),
        (["--num-epoch-checkpoints", "0"], "at least 1"),
        ([], "say how many"),
        (["--checkpoint-upper-bound", "2"], "needs --num-epoch-checkpoints"),
    ]:
        assert averaging.main([*flags, *wrong]) == 1
        assert message in capsys.readouterr().err


def test_explicit_files(tmp_path):
    paths = [str(path) for path in epochs(tmp_path, 3)]
    output = tmp_path / "average.pt"
    assert averaging.main(["--inputs", *paths, "--output", str(output)]) == 0
    state = averaging.load_checkpoint(output)
    assert state["model"]["weight"].item() == 20
    assert state["optimizer_history"][-1]["num_updates"] == 30


@pytest.mark.slow
def test_a_trained_model(tmp_path, run):
    """Two epochs of a real model: fairseq loads the average, and it is the mean of both."""
    from fairseq.checkpoint_utils import load_model_ensemble

    for name in ("train", "valid"):
        for lang in ("en", "de"):
            (tmp_path / f"{name}.{lang}").write_text("one two three\nfour five\n" * 8)
    data, out = tmp_path / "data", tmp_path / "checkpoints"
    preprocess = ["-m", "fairseq_cli.preprocess", "-s", "en", "-t", "de", "--joined-dictionary"]
    preprocess += ["--trainpref", tmp_path / "train", "--validpref", tmp_path / "valid"]
    run(*preprocess, "--destdir", data)
    train = ["-m", "fairseq_cli.train", data, "--user-dir", ROOT / "fairseq_fwm"]
    train += ["--save-dir", out]
    train += ["--arch", "fwm_transformer_tiny", "--share-all-embeddings", "--max-epoch", 2]
    train += ["--fwm-decoder-self", "sum", "--fwm-feature-map", "favor", "--batch-size", 8]
    run(*train, "--optimizer", "adam", "--lr", 0.01, "--num-workers", 0, "--cpu")
    command = [ROOT / "scripts" / "average_checkpoints.py", "--inputs", out]
    run(*command, "--num-epoch-checkpoints", 2, "--output", tmp_path / "average.pt")

    (model,), _ = load_model_ensemble([str(tmp_path / "average.pt")])
    found = model.state_dict()
    first, last = (averaging.load_checkpoint(out / f"checkpoint{n}.pt")["model"] for n in (1, 2))
    projections = [name for name in found if name.endswith("feature_map.projection")]
    assert len(projections) == 4
    for name, value in found.items():
        mean = ((first[name].double() + last[name]) / 2).to(value.dtype)
        assert torch.equal(value, last[name] if name in projections else mean), name
    name = "decoder.embed_tokens.weight"
    assert not torch.equal(first[name], last[name])
