"""scripts/train_multi30k.sh, a run's score, and scripts/results_multi30k.py."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import results_multi30k as results  # noqa: E402
from lib import multi30k_run as record  # noqa: E402
from lib.result_tables import END, START, ResultsError, put_between_markers  # noqa: E402

VARIANTS = [
    "softmax", "elu-sum", "favor-sum", "dpfp-sum", "elu-delta", "dpfp-delta", "sum-everywhere",
    "elu-sum-everywhere",
]  # fmt: skip


def script(name, *arguments):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, "VIRTUAL_ENV": sys.prefix},
    )


def inner(updates, wps, wall, train_wall):
    return (
        f"2026-01-01 00:00:00 | INFO | train_inner | epoch 001:     50 / 124 loss=9.1, "
        f"nll_loss=8.4, ppl=346.2, wps={wps}, ups=0.53, wpb=3489, bsz=242.7, "
        f"num_updates={updates}, lr=0.0002, gnorm=2.011, train_wall={train_wall}, wall={wall}\n"
    )


def valid(updates, loss, nll):
    return (
        f"2026-01-01 00:00:00 | INFO | valid | epoch 001 | valid on 'valid' subset | loss {loss} "
        f"| nll_loss {nll} | ppl 332.14 | wps 5117.1 | wpb 2547.8 | bsz 168 "
        f"| num_updates {updates} | best_loss {loss}\n"
    )


def test_train_log_of_a_resumed_run():
    log = (
        "| INFO | fairseq_cli.train | num. shared model params: 2,568,192 (num. trained: 2)\n"
        + inner(50, 60.5, 60, 50)
        + inner(100, 70, 120, 55)
        + valid(100, 4.0, 3.5)
        + inner(150, 9999, 180, 99)  # lost: the run was stopped before it was saved
        + inner(150, 80, 61, 45)
        + valid(150, 3.0, 2.5)
        + valid(200, 3.2, 2.4)
    )
    assert record.parse_train_log(log) == {
        "train_seconds": 150.0,
        "words_per_second": 69.8,
        "parameters": 2568192,
        "last_valid": {"loss": 3.2, "nll_loss": 2.4, "updates": 200},
        "best_valid": {"loss": 3.0, "nll_loss": 2.5, "updates": 150},
    }


def test_an_empty_train_log_says_nothing():
    assert set(record.parse_train_log("").values()) == {None}


GENERATED = """\
S-10\tten
T-10\tzehn ,
H-10\t-0.5\tzehn ;
D-10\t-0.5\tzehn ;
P-10\t-0.5 -0.4
S-9\tnine
T-9\tneun
D-9\t-0.1\tneun\x85 neun
Generate test with beam=5: BLEU4 = 41.02, 71.0/47.5/34.3/24.5 (BP=0.999, ratio=0.999)
"""
SPEED = (
    "INFO | Translated 1,000 sentences (15,447 tokens) in 12.5s "
    "(80.0 sentences/s, 1,235.76 tokens/s)"
)


@pytest.mark.parametrize(("out", "log"), [(GENERATED, SPEED), (GENERATED + SPEED, "")])
def test_generation_is_put_in_order(out, log):
    assert record.parse_generation(out, log) == {
        "references": ["neun", "zehn ,"],
        "hypotheses": ["neun\x85 neun", "zehn ;"],
        "bleu": 41.02,
        "bleu_line": "BLEU4 = 41.02, 71.0/47.5/34.3/24.5 (BP=0.999, ratio=0.999)",
        "decode_seconds": 12.5,
        "decode_sentences_per_second": 80.0,
        "decode_tokens_per_second": 1235.76,
    }


@pytest.mark.parametrize("missing", ["Generate", "D-9", "T-10"])
def test_incomplete_generation_is_refused(missing):
    out = "".join(line for line in GENERATED.splitlines(True) if not line.startswith(missing))
    with pytest.raises(record.RunError, match="incomplete"):
        record.parse_generation(out, SPEED)


def test_sacrebleu_ignores_case_and_says_so():
    score = record.sacrebleu_score(["ein mann steht da."], ["Ein Mann steht da."])
    assert score["sacrebleu"] == 100
    assert "case:lc" in score["signature"]
    assert "tok:13a" in score["signature"]


def scored_run(directory, name, hypotheses, references, **entries):
    run = directory / name
    run.mkdir(parents=True)
    for file, lines in (("hyp.tok.de", hypotheses), ("ref.tok.de", references)):
        (run / file).write_text("".join(f"{line}\n" for line in lines))
    seed = int(match[1]) if (match := re.search(r"-seed(\d+)", name)) else 1
    result = {
        "variant": "softmax", "seed": seed, "budget": "reduced", "command": f"train {name}",
        "bleu": 40.0, "sacrebleu": 39.5, "signature": "nrefs:1|case:lc",
        "plain_reference": "raw", "last_valid": {"loss": 3.0, "nll_loss": 2.5},
        "best_valid": {"loss": 2.9, "nll_loss": 2.4}, "train_wall_seconds": 3660.0,
        "words_per_second": 2700.0, "arch": "fwm_transformer_tiny", "updates": 3000,
        "parameters": 2568192, "decode_seconds": 60.0, "decode_tokens_per_second": 250.0,
        "threads": 1, "torch": "2.13.0", "git_commit": "0123456789abcdef-dirty", "cpu": "CPU",
        "device": "cpu", "date": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    (run / "result.json").write_text(json.dumps(result | entries))
    return run


def sentences(count, seed):
    chooser = random.Random(seed)
    return [" ".join(chooser.choices("abcdefgh", k=12)) for _ in range(count)]


def spoil(lines, share):
    chooser = random.Random(5)
    return [
        " ".join(word if chooser.random() > share else "x" for word in line.split())
        for line in lines
    ]


def test_tables(tmp_path, capsys):
    references = sentences(60, 1)
    worse = spoil(references, 0.2)
    for seed, bleu in ((1, 40.0), (2, 40.5)):
        scored_run(tmp_path, f"softmax-seed{seed}", worse, references, bleu=bleu)
        scored_run(tmp_path, f"dpfp-delta-seed{seed}", references, references, bleu=bleu + 1)
    scored_run(tmp_path, "elu-sum-seed3", worse, references, bleu=30.0)
    scored_run(tmp_path, "wider", references, references, bleu=50.0, words_per_second=None)
    assert results.main(["--runs", str(tmp_path), "--out", str(tmp_path / "out.md")]) == 0
    text = (tmp_path / "out.md").read_text()
    assert text == f"# Multi30k\n\n{START}\n\n{capsys.readouterr().out}\n{END}\n"
    rows = [line for line in text.splitlines() if line.startswith("|")]
    summary = [row.split(" | ")[0].strip("| ") for row in rows[2:6]]
    assert summary == ["softmax", "elu-sum", "dpfp-delta", "wider"]
    assert "| softmax | 1, 2 | **40.25** (40.00, 40.50) |  | **39.50**" in text
    assert "| dpfp-delta | 1, 2 | **41.25** (41.00, 41.50) | +1.00 |" in text
    assert "| elu-sum | 3 | **30.00** | no softmax run of the same seed |" in text
    assert "| 2.500 | 1:01 | 2,700 |" in text
    assert "| wider | 1 | **50.00** | +10.00 |" in text
    for seed in ("1", "2", "all"):
        assert re.search(
            rf"\| dpfp-delta \| {seed} \| \d+\.\d\d \| 100\.00 \| \+\d+\.\d\d \| 0\.001 \|", text
        )
    assert "| 0123456789+ | 2026-01-02 |" in text
    assert "`nrefs:1|case:lc`" in text
    assert "train dpfp-delta-seed1" in text


def test_bootstrap_sees_no_difference_where_there_is_none():
    references = sentences(50, 1)
    spoilt = spoil(references, 0.3)
    first, second, p = results.paired_bootstrap(spoilt, spoilt, references)
    assert first == second < 100
    assert p == 1
    halves = spoilt[:25] + references[25:], references[:25] + spoilt[25:]
    first, second, p = results.paired_bootstrap(*halves, references)
    assert first != second
    assert p > 0.1


def test_other_text_of_the_file_stays(tmp_path):
    path = tmp_path / "a.md"
    path.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    put_between_markers(path, "new", "title")
    assert path.read_text() == f"before\n{START}\n\nnew\n\n{END}\nafter\n"


@pytest.mark.parametrize("text", ["no markers\n", f"{START}\n", f"{END}\n"])
def test_a_file_without_markers_is_left_alone(tmp_path, text):
    path = tmp_path / "a.md"
    path.write_text(text)
    with pytest.raises(ResultsError, match="exactly one line"):
        put_between_markers(path, "new", "title")
    assert path.read_text() == text


def test_different_test_sets_are_not_compared(tmp_path, capsys):
    scored_run(tmp_path, "softmax-seed1", ["a b"], ["a b"])
    scored_run(tmp_path, "elu-sum-seed1", ["a b"], ["a c"])
    assert results.main(["--runs", str(tmp_path)]) == 1
    assert "different test sets" in capsys.readouterr().err


def test_no_runs_is_an_error(tmp_path, capsys):
    assert results.main(["--runs", str(tmp_path)]) == 1
    assert "run scripts/train_multi30k.sh first" in capsys.readouterr().err


def test_variants_are_listed():
    listed = dict(
        line.split(maxsplit=1)
        for line in script("train_multi30k.sh", "--list").stdout.splitlines()
    )
    assert list(listed) == VARIANTS
    assert results.ORDER == VARIANTS
    sites = r"--fwm-encoder-self (\w+) --fwm-decoder-self (\w+) --fwm-cross (\w+)"
    chosen = {name: re.match(sites, flags).groups() for name, flags in listed.items()}
    assert chosen["softmax"] == ("softmax", "softmax", "softmax")
    assert chosen["favor-sum"] == ("softmax", "sum", "softmax")
    assert chosen["dpfp-delta"] == ("softmax", "delta", "softmax")
    assert chosen["sum-everywhere"] == ("sum", "sum", "sum")
    for name, flags in listed.items():
        map_name = {"softmax": None, "sum-everywhere": "dpfp"}.get(name, name.split("-")[0])
        assert (f"--fwm-feature-map {map_name}" in flags) == (map_name is not None)
        assert ("--fwm-dpfp-nu 1" in flags) == (map_name == "dpfp")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "which VARIANT? One of: softmax elu-sum"),
        (("dpfp",), "unknown variant 'dpfp'. Valid ones: softmax elu-sum favor-sum dpfp-sum"),
        (("softmax", "--seed", "one"), "--seed must be a whole number, not 'one'"),
        (("softmax", "--budget", "huge"), "--budget must be reduced or full, not 'huge'"),
        (("softmax", "--seed"), "--seed needs a value"),
        (("softmax", "--data", "/nowhere"), "prepare_multi30k.sh"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    result = script("train_multi30k.sh", *arguments)
    assert result.returncode == 1
    assert message in result.stderr


def tiny_corpus(directory):
    """Write a BPE'd corpus that a small model can almost learn: numbers, word for word."""
    directory.mkdir()
    english, german = ("one two three four five", "eins zwei drei vier fünf")
    dictionary = dict(zip(english.split(), german.split(), strict=True))
    chooser = random.Random(1)
    for name, count in (("train", 120), ("valid", 16), ("test.2016", 12)):
        sources = [
            chooser.choices(list(dictionary), k=chooser.randint(1, 5)) for _ in range(count)
        ]
        targets = [[dictionary[word] for word in source] for source in sources]
        for lang, lines in (("en", sources), ("de", targets)):
            text = "".join(f"{' '.join(line)} .\n" for line in lines)
            (directory / f"{name}.{lang}").write_text(text)
    (directory / "bpe_codes").write_text("#version: 0.2\n")


@pytest.mark.slow
def test_prepares_trains_averages_translates_scores_and_goes_on(tmp_path):
    pytest.importorskip("fairseq")
    tiny_corpus(tmp_path / "text")
    data = tmp_path / "data"
    result = script(
        "prepare_multi30k.sh", "--from", tmp_path / "text", "--out", data, "--no-verify"
    )
    assert result.returncode == 0, result.stderr
    command = ["train_multi30k.sh", "dpfp-delta", "--data", data, "--runs", tmp_path / "runs"]
    command += ["--average", 2, "--max-epoch", 3, "--batch-size", 24, "--log-interval", 2]
    run = tmp_path / "runs" / "dpfp-delta-seed1"
    assert script(*command).returncode == 0
    first = json.loads((run / "result.json").read_text())
    assert first["arch"] == "fwm_transformer_tiny"
    assert first["fwm"]["fwm_decoder_self"] == "delta"
    assert first["averaged"] == ["checkpoint3.pt", "checkpoint2.pt"]
    assert first["updates"] == 15
    assert first["train_wall_seconds"] > 0
    assert first["words_per_second"] is None or first["words_per_second"] > 0
    assert first["plain_reference"] == "detokenised"
    assert len((run / "hyp.tok.de").read_text().splitlines()) == 12
    assert (run / "ref.tok.de").read_bytes() == (tmp_path / "text" / "test.2016.de").read_bytes()

    again = script(*command)
    assert "training: already finished" in again.stdout
    assert "averaging: already done" in again.stdout
    assert "translating: already done" in again.stdout

    # As if stopped after epoch 2, while checkpoint_last.pt was being copied.
    for name in ("checkpoint3.pt", "average.pt", "gen.out", "result.json"):
        (run / name).unlink()
    started = json.loads((run / "run.json").read_text()) | {"finished": None}
    (run / "run.json").write_text(json.dumps(started))
    (run / "checkpoint_last.pt").write_bytes((run / "checkpoint2.pt").read_bytes()[:10000])
    resumed = script(*command)
    assert resumed.returncode == 0, resumed.stderr
    assert "was cut short: going on from checkpoint2.pt" in resumed.stdout
    assert "begin training epoch 3" in resumed.stdout
    assert "begin training epoch 2" not in resumed.stdout
    assert json.loads((run / "result.json").read_text())["updates"] == 15

    assert "other flags" in script(*command, "--lr", "0.1").stderr
    assert results.main(["--runs", str(tmp_path / "runs")]) == 0
