"""scripts/results_lm.py: tables and pictures of made-up runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="pictures need matplotlib: bash scripts/setup.sh")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import results_lm as results  # noqa: E402
from lib import lm_curves, result_tables  # noqa: E402

LIMIT = 20000


def evaluation(method, perplexity, limit=None, **entries):
    return {
        "command": f"eval {method}", "method": method, "length": 256, "split": "test",
        "limit": limit, "tokens": limit or 245569, "perplexity": perplexity, "unit": "word",
        "state_per_layer": 4096, "layers": 4, "seconds": 12.34, "tokens_per_second": 2000.0,
        "threads": 1, **entries,
    }  # fmt: skip


def made_run(directory, variant, seed, perplexity, name=None, bits=None, **entries):
    """Write a run's result; a carried state where the variant's name says so."""
    run = directory / (name or f"{variant}-seed{seed}")
    run.mkdir(parents=True)
    unit = {} if bits is None else {"bits_per_token": bits, "unit": "character"}
    if variant.endswith(("-streaming", "-xl")):
        ways = [("streaming", None, 1), ("streaming", LIMIT, 1)]
    else:
        ways = [("segments", None, 1), ("segments", LIMIT, 1), ("sliding", LIMIT, 0.9)]
    result = {
        "variant": variant, "seed": seed, "command": f"train {run.name}", "threads": 1,
        "git_commit": "0123456789abcdef-dirty", "arch": "fwm_transformer_lm_tiny",
        "updates": 3000, "train_wall_seconds": 3660.0, "parameters": 1234567,
        "tokens_per_second": 7890.1, "corpus": "wikitext2",
        "unit": "word" if bits is None else "character", "data_settings": {},
        "data_sha256": {"test.bin": "aa"}, "cpu": "CPU", "device": "cpu", "torch": "2.13.0",
        "date": "2026-01-02T03:04:05+00:00", "best_valid": {"loss": 7.0, "updates": 2750},
        "validations": [
            {"loss": 7 + 500 / update, "updates": update} for update in range(250, 3001, 250)
        ],
        "evaluations": [
            evaluation(method, perplexity * factor, limit, **unit)
            for method, limit, factor in ways
        ],
    }  # fmt: skip
    (run / "result.json").write_text(json.dumps(result | entries))
    return run


def tabulate(runs, capsys, *arguments):
    """Return the rows of all tables by their first cell, and the whole text."""
    assert results.main(["--runs", str(runs), *map(str, arguments)]) == 0
    text = capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return rows, text


def test_tables(tmp_path, capsys):
    for seed, factor in ((1, 1.0), (2, 1.1)):
        made_run(tmp_path, "softmax", seed, 100 * factor)
        made_run(tmp_path, "elu-sum", seed, 125 * factor)
        made_run(tmp_path, "elu-delta", seed, 115 * factor)
    made_run(tmp_path, "elu-delta-streaming", 3, 95.0)
    made_run(tmp_path, "elu-delta", 1, 110.0, name="elu-delta-lr3")
    out = tmp_path / "page.md"
    rows, text = tabulate(tmp_path, capsys, "--out", out)
    main = {row[0]: row for row in rows[:7]}
    assert list(main) == [
        "variant", "---", "softmax", "elu-sum", "elu-delta", "elu-delta-streaming", "elu-delta-lr3"
    ]  # fmt: skip
    assert main["variant"][3] == "perplexity"
    assert main["softmax"][1:4] == ["1, 2", "segments", "**105.00** (100.00, 110.00)"]
    assert main["softmax"][4:6] == ["", ""]
    assert main["elu-sum"][4:6] == ["+25.0 %", ""]
    assert main["elu-delta"][4:6] == ["+15.0 %", "-8.0 %"]
    assert main["elu-delta-lr3"][4:6] == ["+10.0 %", "?"]
    streaming = ["3", "streaming", "**95.00**", "?", "?"]
    assert main["elu-delta-streaming"][1:6] == streaming
    assert main["elu-sum"][6:] == ["128.00", "1,234,567", "1:01", "7,890", "4,096"]
    first = {row[0]: row for row in rows[7:14]}
    assert first["elu-delta"][2:7] == ["120.75", "108.68", "", "+15.0 %", "-8.0 %"]
    assert first["elu-delta-streaming"][2:5] == ["", "", "95.00"]
    runs = {row[0]: row for row in rows[14:]}
    shown = ["3,000", "256", "2,750", "12.3", "1", "2.13.0", "0123456789+", "2026-01-02"]
    assert runs["elu-delta-seed2"][2:] == shown
    assert "train elu-delta-lr3" in text
    assert "![Validation, perplexity, against updates](page/wikitext2.png)" in text
    assert (tmp_path / "page" / "wikitext2.png").read_bytes().startswith(b"\x89PNG")
    start, end = result_tables.START, result_tables.END
    assert out.read_text() == f"# Language modelling\n\n{start}\n\n{text}\n{end}\n"


def test_a_section_for_each_corpus_in_its_unit(tmp_path, capsys):
    for seed, (a, b) in ((1, (1.5, 1.8)), (2, (1.7, 1.8))):
        name = f"shakespeare/softmax-seed{seed}"
        made_run(tmp_path, "softmax", seed, 3.1, name=name, bits=a, corpus="shakespeare")
        name = f"shakespeare/elu-sum-seed{seed}"
        made_run(tmp_path, "elu-sum", seed, 3.5, name=name, bits=b, corpus="shakespeare")
    small = {"small": True}
    made_run(tmp_path, "softmax", 1, 99.0, name="small/softmax-seed1", data_settings=small)
    piece = {"unit": "piece", "corpus": "stdlib"}
    pieces = evaluation("segments", 20.0, perplexity_per_word=180.0)
    made_run(tmp_path, "softmax", 2, 20.0, name="p/softmax-seed2", evaluations=[pieces], **piece)
    rows, text = tabulate(tmp_path, capsys, "--out", tmp_path / "page.md")
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == ["## shakespeare", "## stdlib", "## wikitext2, small"]
    assert next(r for r in rows if "per word" in r)[3:5] == ["perplexity per piece", "per word"]
    assert "| softmax | 2 | segments | **20.00** | 180.00 |" in text
    assert "| elu-sum | 1, 2 | segments | **1.800** (1.800, 1.800) | +12.9 % |" in text
    assert "bits per character" in text
    names = {path.name for path in (tmp_path / "page").iterdir()}
    assert names == {"shakespeare.png", "stdlib.png", "wikitext2-small.png"}


def test_runs_that_broke_down_are_shown(tmp_path, capsys):
    made_run(tmp_path, "elu-sum-streaming", 1, 100.0)
    infinite = [evaluation("streaming", float("inf"))]
    made_run(tmp_path, "elu-sum-no-attn-norm-streaming", 1, 0.0, evaluations=infinite)
    lost = {"diverged": 60, "evaluations": [], "best_valid": None, "validations": []}
    lost |= {"tokens_per_second": None, "train_wall_seconds": None}
    made_run(tmp_path, "elu-delta-streaming", 1, 0.0, **lost)
    worse = [{"loss": 7.0, "updates": 250}, {"loss": None, "updates": 500}]
    made_run(tmp_path, "dpfp-delta-streaming", 1, 128.0, diverged=550, validations=worse)
    rows, text = tabulate(tmp_path, capsys, "--out", tmp_path / "page.md")
    main = {row[0]: row for row in rows[:6]}
    assert main["elu-sum-no-attn-norm-streaming"][3] == "**inf**"
    assert main["elu-delta-streaming"][1:7] == ["1†", "", "diverged", "?", "?", "?"]
    assert main["dpfp-delta-streaming"][1:4] == ["1†", "streaming", "**128.00**"]
    assert "60, diverged" in text and "† training diverged" in text


def test_different_data_of_one_name_are_not_compared(tmp_path, capsys):
    made_run(tmp_path, "softmax", 1, 100.0)
    made_run(tmp_path, "elu-sum", 1, 100.0, data_sha256={"test.bin": "bb"})
    assert results.main(["--runs", str(tmp_path)]) == 1
    assert "different data of the same name (wikitext2)" in capsys.readouterr().err


def test_no_runs_is_an_error(tmp_path, capsys):
    assert results.main(["--runs", str(tmp_path)]) == 1
    assert "run scripts/train_lm.sh first" in capsys.readouterr().err


def test_known_variants_are_those_of_the_training_script():
    script = ["bash", str(ROOT / "scripts" / "train_lm.sh"), "--list"]
    listed = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in listed.splitlines()] == results.ORDER


def test_curves_are_told_apart():
    """Within a panel no two variants look the same."""
    looks = [
        (lm_curves.panel_of(variant), *map(str, lm_curves.style_of(variant).values()))
        for variant in results.ORDER
    ]
    assert len(set(looks)) == len(looks)
    assert [lm_curves.panel_of(v) for v in results.ORDER].count("carried") == 5
    assert lm_curves.panel_of("softmax-no-positions") == "no positions"


def test_the_page_has_a_place_for_the_tables(tmp_path):
    page = (ROOT / "docs" / "results" / "language_modeling.md").read_text()
    (tmp_path / "page.md").write_text(page)
    result_tables.put_between_markers(tmp_path / "page.md", "TABLES", "none")
    assert "TABLES" in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize("missing", ["tokens_per_second", "git_commit"])
def test_what_was_not_recorded_is_a_question_mark(tmp_path, capsys, missing):
    made_run(tmp_path, "softmax", 1, 100.0, **{missing: None})
    assert "| ? |" in tabulate(tmp_path, capsys)[1]
