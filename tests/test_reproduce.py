"""scripts/reproduce.py: its tables are the published ones, its rows train, score and are kept."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("fairseq", reason="fairseq is not installed")

from lm_data import make
from translation_data import capitals

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import reproduce  # noqa: E402
from lib import reproduce_steps  # noqa: E402
from lib.published_tables import LANGUAGE, TABLES, TRANSLATION  # noqa: E402

CONFIGS = ROOT / "configs"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.chdir(ROOT)


def head(folder, row):
    return (CONFIGS / folder / f"{row}.yaml").read_text().split("defaults:")[0]


@pytest.mark.parametrize("row", TABLES[1].rows, ids=lambda r: r.run)
def test_translation_rows_are_those_of_the_configurations(row):
    text = head("translation", f"wmt14_{row.run.replace('-', '_')}")
    assert f"valid {row.valid}, test {row.test} (arXiv 2102.11174, Table 1)" in text
    features = re.search(r"Key features of a head: (\d+)", text)
    assert (features[1] if features else "") == row.cells[1]


@pytest.mark.parametrize("number", [2, 3, 4, 5])
def test_language_rows_are_those_of_the_configurations(number):
    for row in TABLES[number].rows:
        text = head("language_modeling", row.run)
        assert re.search(rf"Tables? .*{number}", text), row
        if row.memory is not None:
            line = f"({row.memory}, {row.segment}) valid {row.valid}, test {row.test}"
            assert line in text
        else:
            published = re.search(r"Published perplexity: (?:valid )?([> \d.]+)", text)[1]
            assert published.strip() == row.valid and row.test in text


@pytest.mark.parametrize("scale", ["full", "tiny"])
@pytest.mark.parametrize("number", TABLES)
def test_commands_of_a_table(number, scale, capsys):
    assert reproduce.main(["--table", str(number), "--scale", scale, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table, commands = TABLES[number], [shlex.split(line) for line in lines]
    runs = {row.run for row in table.rows}
    assert len(lines) == 1 + len(runs) + 2 * len(table.rows)
    for command in commands:
        script = Path(command[1])
        assert (ROOT / script).is_file()
        if script.name.startswith("train"):
            assert command[2] in runs
            done = subprocess.run([*command, "--print"], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        if not script.name.startswith("prepare"):
            assert ("cuda" in command or "--gpus" in command or "score" in script.name) or (
                scale == "tiny"
            )
            assert ("--cpu" in command) == (scale == "tiny" and script.suffix == ".sh")


TINY = [
    "--encoder-layers=1", "--decoder-layers=1", "--encoder-embed-dim=8", "--decoder-embed-dim=8",
    "--encoder-ffn-embed-dim=8", "--decoder-ffn-embed-dim=8", "--max-tokens=64",
    "--max-update=2", "--num-workers=0", "--required-batch-size-multiple=1",
    "--encoder-attention-heads=2", "--decoder-attention-heads=2", "--update-freq=1",
    '--eval-bleu-args={"beam": 2, "max_len_a": 0, "max_len_b": 4}',
]  # fmt: skip


def run_table(capsys, *arguments, status=0):
    assert reproduce.main([*map(str, arguments)]) == status
    return capsys.readouterr()


def test_a_row_of_translation_from_end_to_end(tmp_path, run, monkeypatch, capsys):
    monkeypatch.setattr(reproduce_steps, "TINY_TRANSLATION", TINY)
    data = capitals(tmp_path, run, train=40, valid=3, test=3)
    arguments = ["--table", 1, "--scale", "tiny", "--data", data, "--runs", tmp_path / "runs"]
    text = run_table(capsys, *arguments, "--only", "linear").out
    assert "make no claim" in text and "compound-split" in text
    assert re.search(
        r"\| Linear \| 64 \| 25.5 \| \*\*[\d.]+\*\* \| 26.8 \| \*\*[\d.]+\*\* \|", text
    )
    folder = tmp_path / "runs" / "tiny" / TRANSLATION / "linear"
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = run_table(capsys, *arguments, "--only", "linear")
    assert again.out == text and "training linear" not in again.err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times
    assert "| Standard |  | 26.6 | not run |" in text, "the page is of all rows"
    (folder / "checkpoint_best.pt").unlink()  # to have its room
    collected = run_table(capsys, *arguments, "--collect").out
    assert collected == text
    page = tmp_path / "runs" / "tiny" / "table1.md"
    assert page.read_text().strip() in collected
    assert len(json.loads(page.with_suffix(".json").read_text())) == 7


def test_rows_of_language_models_share_a_training(tmp_path, monkeypatch, capsys):
    texts = {split: b" ".join(b"abcdefghijklmnopqrstuvwxyz"[i % 26 : i % 26 + 1] for i in range(n))
             for split, n in (("train", 600), ("valid", 90), ("test", 80))}  # fmt: skip
    data = make(tmp_path, "word", texts)
    flags = reproduce_steps.Language.tiny_flags

    def less(self, row):
        changes = {"optimization.max_update": 2, "model.decoder_layers": 1,
                   "lr_scheduler.warmup_updates": 1, "task.tokens_per_sample": 8,
                   "model.adaptive_softmax_cutoff": "'8,12,20'", "dataset.batch_size": 2,
                   "dataset.batch_size_valid": 2}  # fmt: skip
        return [*flags(self, row), *(f"{name}={value}" for name, value in changes.items())]

    monkeypatch.setattr(reproduce_steps.Language, "tiny_flags", less)
    arguments = ["--table", 4, "--scale", "tiny", "--data", data, "--runs", tmp_path / "runs"]
    arguments += ["--only", "medium_transformer_xl", "medium_carry_over_delta", "--seed", 3]
    text = run_table(capsys, *arguments).out
    assert text.count("| Transformer-XL |") == 4 and text.count("not run") == 2 * 2
    assert (tmp_path / "runs" / "tiny" / LANGUAGE / "medium_transformer_xl-seed3").is_dir()
    rows = json.loads((tmp_path / "runs" / "tiny" / "table4-seed3.json").read_text())
    kept = [row["numbers kept"] for row in rows if row["run"] == "medium_transformer_xl"]
    assert len(set(kept)) == 4, "the four memories are of four sizes"


def test_a_failed_row_is_named_and_the_others_go_on(tmp_path, run, monkeypatch, capsys):
    def one_is_wrong(self, row):
        return [*TINY, *(["--no-such-flag"] if row.run == "linear" else [])]

    monkeypatch.setattr(reproduce_steps.Translation, "tiny_flags", one_is_wrong)
    data = capitals(tmp_path, run, train=40, valid=3, test=3)
    arguments = ["--table", 1, "--scale", "tiny", "--data", data, "--runs", tmp_path / "runs"]
    out, err = run_table(capsys, *arguments, "--only", "linear", "softmax", status=1)
    assert out.count("not run") == 2 * 6
    assert re.search(r"error: linear failed: see the end of .*linear/reproduce.log", err)
    assert "error: softmax" not in err


def test_a_diverged_run_is_no_failure(tmp_path, capsys):
    folder = tmp_path / "tiny" / LANGUAGE / "medium_carry_over_linear"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"finished": "2026-01-01", "diverged": 7}))
    arguments = ["--table", 4, "--scale", "tiny", "--runs", tmp_path, "--data", tmp_path]
    out = run_table(capsys, *arguments, "--only", "medium_carry_over_linear").out
    assert "| > 260 | diverged | > 260 | diverged |" in out
    (folder / "checkpoint_best.pt").touch()
    for split in ("valid", "test"):
        found = {"perplexity": 300.0, "state_per_layer": 4, "layers": 2}
        (folder / f"reproduce-streaming-{split}.json").write_text(json.dumps(found))
    out = run_table(capsys, *arguments, "--collect").out
    assert "**300.00**" in out and "| diverged after 7 updates |" in out


def test_a_stopped_table_goes_on(tmp_path, run):
    """SIGTERM ends what was started, too; run again, it goes on."""
    data = capitals(tmp_path, run, train=400, valid=16, test=16)
    arguments = ["--table", "1", "--scale", "tiny", "--data", data, "--runs", tmp_path / "runs"]
    command = [sys.executable, "scripts/reproduce.py", *arguments, "--only", "linear"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "runs" / "tiny" / TRANSLATION / "linear" / "train.log"
    for _ in range(600):
        if log.is_file() and "begin training epoch" in log.read_text():
            break
        time.sleep(0.1)
    process.terminate()
    assert process.wait(60) == 130
    assert "run it again to go on" in process.stderr.read()
    time.sleep(0.5)
    assert subprocess.run(["pgrep", "-f", str(log.parent)], capture_output=True).returncode == 1


def test_data_that_cannot_be_made_are_named(tmp_path, capsys):
    arguments = ["--table", 1, "--scale", "tiny", "--runs", tmp_path, "--from", tmp_path]
    _, err = run_table(capsys, *arguments, status=1)
    assert re.search(r"error: data failed: see the end of .*prepare.log", err)
    log = next(tmp_path.rglob("prepare.log")).read_text()
    assert "prepare_multi30k.sh --out" in log and "error" in log


def test_key_features_are_counted(tmp_path, capsys):
    out = run_table(capsys, "--table", 6, "--scale", "full", "--runs", tmp_path).out
    for features, m, nu in ((256, 128, 2), (384, 192, 3), (512, 256, 4)):
        assert f"| {features} | {m} | {features} | {nu} | {features} |" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "small_delta"], "table 1 has softmax, linear, favor-m32"),
        (["--data", "here", "--from", "there"], "give one of them"),
        (["--jobs", "0"], "at least 1"),
        (["--scale", "full", "--jobs", "2"], "would share GPUs"),
        (["--scale", "full", "--gpus", "5"], "--gpus must divide the batches of an update"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        reproduce.main(["--table", "1", "--scale", "tiny", *arguments])
    assert message in capsys.readouterr().err


def test_the_script_for_wikitext(tmp_path):
    def script(*arguments):
        command = ["bash", "scripts/train_wikitext103.sh", *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    rows = {path.stem for path in (CONFIGS / "language_modeling").glob("*.yaml")}
    listed = script("--list").stdout.splitlines()
    assert {line.split()[0] for line in listed} == rows
    assert "dataset.batch_size=48" in script("small_delta", "--gpus", "2", "--print").stdout
    assert "must divide the streams of this row, 96" in script("small_delta", "--gpus", "5").stderr
    assert "do not go together" in script("small_delta", "--gpus", "2", "--cpu", "--print").stderr
    assert "neither an option nor KEY=VALUE" in script("small_delta", "--what").stderr
    missing = script("small_delta", "--data", str(tmp_path))
    assert missing.returncode == 1 and "prepare_wikitext103.sh" in missing.stderr
