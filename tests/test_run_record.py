"""scripts/lib/run_record.py: how a run starts, goes on and ends."""

import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
from lib import run_record as record  # noqa: E402


def begin(run, *command):
    run.mkdir(exist_ok=True)
    record.begin(run, ["fairseq-train", *command], variant="softmax", seed=1, budget="reduced")


def test_a_run_goes_on_only_as_it_started(tmp_path):
    begin(tmp_path / "run", "--lr", "0.1")
    begin(tmp_path / "run", "--lr", "0.1")
    with pytest.raises(record.RunError, match="other flags") as error:
        begin(tmp_path / "run", "--lr", "0.2")
    assert "--lr 0.1" in str(error.value)
    assert "--lr 0.2" in str(error.value)
    assert "--name" in str(error.value)


def test_the_command_line_keeps_notes(tmp_path):
    about = ["--variant", "elu-sum", "--seed", "3", "--note", "budget=a=b"]
    run = str(tmp_path)
    assert record.main(["begin", run, *about, "--", "fairseq-train", "a b", "--lr", "1"]) == 0
    found = json.loads((tmp_path / "run.json").read_text())
    assert {name: found[name] for name in ("variant", "seed", "budget", "command")} == {
        "variant": "elu-sum",
        "seed": 3,
        "budget": "a=b",
        "command": "fairseq-train 'a b' --lr 1",
    }
    assert record.main(["finished", run]) == 3
    assert record.main(["end", run]) == 0
    assert json.loads((tmp_path / "run.json").read_text())["finished"]


def test_a_run_is_finished_when_it_says_so(tmp_path):
    begin(tmp_path)
    assert not record.finished(tmp_path)
    (tmp_path / "checkpoint_last.pt").touch()
    assert not record.finished(tmp_path)
    record.end(tmp_path)
    assert record.finished(tmp_path)


def test_a_last_checkpoint_cut_short_is_replaced(tmp_path):
    torch = pytest.importorskip("torch")
    begin(tmp_path)
    for epoch in (9, 10):
        torch.save({"epoch": epoch}, tmp_path / f"checkpoint{epoch}.pt")
    whole = (tmp_path / "checkpoint10.pt").read_bytes()
    last = tmp_path / "checkpoint_last.pt"
    last.write_bytes(whole[: len(whole) // 2])
    begin(tmp_path)
    assert last.read_bytes() == whole
    (tmp_path / "checkpoint10.pt").write_bytes(whole[:50])
    last.write_bytes(whole[:100])
    begin(tmp_path)
    assert torch.load(last) == {"epoch": 9}


def test_the_newest_numbered_checkpoint_replaces_then_the_best(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    begin(tmp_path)
    names = ["checkpoint_2_250.pt", "checkpoint_1_500.pt", "checkpoint_best.pt"]
    for age, name in enumerate(names):
        torch.save({"name": name}, tmp_path / name)
        os.utime(tmp_path / name, ns=(0, 10**9 * age))
    last = tmp_path / "checkpoint_last.pt"
    for wanted in ("checkpoint_1_500.pt", "checkpoint_2_250.pt", "checkpoint_best.pt"):
        last.write_bytes(b"PK")
        begin(tmp_path)
        assert torch.load(last) == {"name": wanted}
        assert f"going on from {wanted}" in capsys.readouterr().out
        (tmp_path / wanted).unlink()
    last.write_bytes(b"PK")
    begin(tmp_path)
    assert not last.exists()


NAN = "FloatingPointError: gradients are Nan/Inf"
WORKERS = """Fatal error: gradients are inconsistent between workers. Try --ddp-backend=legacy_ddp.
grad_norm across the workers:
rank   0 = {}
rank   1 = 0.50000000
"""


@pytest.mark.parametrize(
    ("text", "diverged"),
    [
        ("FloatingPointError: Minimum loss scale reached (0.0001).", True),
        (WORKERS.format("nan"), True),
        (WORKERS.format("0.40000000"), False),
    ],
)
def test_divergence_in_fp16_and_with_workers(text, diverged, tmp_path):
    begin(tmp_path)
    (tmp_path / "train.log").write_text(f"\n=== first\n{text}\n")
    assert record.main(["diverged", str(tmp_path)]) == (0 if diverged else 1)


def test_a_run_goes_on_with_another_number_of_gpus(tmp_path):
    begin(tmp_path / "a", "--update-freq", "48", "--distributed-world-size", "1", "--fp16")
    begin(tmp_path / "a", "--update-freq", "6", "--distributed-world-size", "8", "--fp16")
    with pytest.raises(record.RunError, match="other flags"):
        begin(tmp_path / "a", "--update-freq", "12", "--distributed-world-size", "8", "--fp16")
    size = "distributed_training.distributed_world_size"
    begin(tmp_path / "b", "dataset.batch_size=96", f"{size}=1", "common.seed=1")
    begin(tmp_path / "b", "dataset.batch_size=48", f"{size}=2", "common.seed=1")
    with pytest.raises(record.RunError, match="other flags"):
        begin(tmp_path / "b", "dataset.batch_size=48", f"{size}=2", "common.seed=2")


@pytest.mark.parametrize("limit", [0, 9])
def test_a_run_of_unknown_end_is_not_taken_for_finished(limit, tmp_path, monkeypatch):
    """By epochs, as WMT14 is trained, max_update is 0."""
    (tmp_path / "checkpoint_last.pt").touch()
    info = {"updates": 8, "max_update": limit}
    monkeypatch.setattr(record, "checkpoint_info", lambda path: info)
    with pytest.raises(record.RunError, match="did not start"):
        record.finished(tmp_path)


def test_divergence_is_a_result_other_errors_are_not(tmp_path, capsys):
    begin(tmp_path)
    log = tmp_path / "train.log"
    log.write_text(
        f"\n=== first\n| train_inner | num_updates=50, lr\n{NAN}\n"
        "\n=== second\n| train_inner | num_updates=100, lr\nKeyboardInterrupt\n"
    )
    assert record.main(["diverged", str(tmp_path)]) == 1
    assert "see the end of" in capsys.readouterr().err
    assert not record.finished(tmp_path)
    with log.open("a") as file:
        file.write(f"\n=== third\n| train_inner | num_updates=150, lr\n{NAN}\n")
    assert record.main(["diverged", str(tmp_path)]) == 0
    assert record.finished(tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["diverged"] == 150


def test_validations_that_are_no_numbers(tmp_path):
    line = (
        "| INFO | valid | epoch 001 | valid on 'valid' subset | loss {} | ppl 9 | num_updates {}\n"
    )
    valid = record.validations(line.format("nan", 500) + line.format("3.5", 250))
    assert valid == [{"loss": 3.5, "updates": 250}, {"loss": None, "updates": 500}]
    assert record.best_of(valid) == {"loss": 3.5, "updates": 250}
    assert record.best_of([{"loss": None, "updates": 1}]) is None
