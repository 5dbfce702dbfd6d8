"""scripts/reproduce.py: its tables are the published ones, its rows train, score and are kept."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fairseq", reason="fairseq is not installed")

from lm_data import make
from translation_data import capitals

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import reproduce  # noqa: E402
import reproduce_steps  # noqa: E402
from published_tables import LANGUAGE, TABLES, TRANSLATION  # noqa: E402

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
            assert ("--cpu" in command) == (scale == "tiny")


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
    collected = run_table(capsys, *arguments, "--collect").out
    assert "| Standard |  | 26.6 | not run |" in collected and "| Linear | 64 |" in collected
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
    assert text.count("| Transformer-XL |") == 4 and "not run" not in text
    assert (tmp_path / "runs" / "tiny" / LANGUAGE / "medium_transformer_xl-seed3").is_dir()
    rows = json.loads((tmp_path / "runs" / "tiny" / "table4.json").read_text())
    kept = [row["numbers kept"] for row in rows if row["run"] == "medium_transformer_xl"]
    assert len(set(kept)) == 4, "the four memories are of four sizes"


def test_a_failed_row_is_named_and_the_others_go_on(tmp_path, run, monkeypatch, capsys):
    monkeypatch.setattr(reproduce_steps, "TINY_TRANSLATION", [*TINY, "--no-such-flag"])
    data = capitals(tmp_path, run, train=40, valid=3, test=3)
    arguments = ["--table", 1, "--scale", "tiny", "--data", data, "--runs", tmp_path / "runs"]
    out, err = run_table(capsys, *arguments, "--only", "linear", "softmax", status=1)
    assert out.count("not run") == 4
    for name in ("linear", "softmax"):
        assert re.search(rf"error: {name} failed: see the end of .*{name}/reproduce.log", err)


def test_a_diverged_run_is_no_failure(tmp_path, capsys):
    folder = tmp_path / "tiny" / LANGUAGE / "medium_carry_over_linear"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"finished": "2026-01-01", "diverged": 7}))
    arguments = ["--table", 4, "--scale", "tiny", "--runs", tmp_path, "--data", tmp_path]
    out = run_table(capsys, *arguments, "--only", "medium_carry_over_linear").out
    assert "| > 260 | diverged | > 260 | diverged |" in out


def test_key_features_are_counted(tmp_path, capsys):
    out = run_table(capsys, "--table", 6, "--scale", "full", "--runs", tmp_path).out
    for features, m, nu in ((256, 128, 2), (384, 192, 3), (512, 256, 4)):
        assert f"| {features} | {m} | {features} | {nu} | {features} |" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "small_delta"], "table 1 has softmax, linear, favor-m32"),
        (["--data", "here", "--from", "there"], "give one of them"),
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
    assert "neither an option nor KEY=VALUE" in script("small_delta", "--what").stderr
    missing = script("small_delta", "--data", str(tmp_path))
    assert missing.returncode == 1 and "prepare_wikitext103.sh" in missing.stderr
