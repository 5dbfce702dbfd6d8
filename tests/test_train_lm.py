"""scripts/train_lm.sh: its variants, a run that is killed and goes on, what its end is worth."""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("fairseq", reason="fairseq is not installed")

from fairseq import options

import fairseq_fwm  # noqa: F401
from language_models import build, tokens
from lm_data import ROOT, make

sys.path.insert(0, str(ROOT / "scripts"))
import eval_lm  # noqa: E402
import results_lm  # noqa: E402
from lib import (
    lm_run,  # noqa: E402
    run_record,  # noqa: E402
)

# One process for all: the corpus and the trained model are made once.
pytestmark = pytest.mark.xdist_group("train lm")

SCRIPT = ["bash", str(ROOT / "scripts" / "train_lm.sh")]
SHAPE = shlex.split(
    "--decoder-layers 1 --decoder-embed-dim 16 --decoder-input-dim 16 --decoder-output-dim 16 "
    "--decoder-ffn-embed-dim 16 --decoder-attention-heads 2"
)
OFTEN = shlex.split("--validate-interval-updates 20 --save-interval-updates 20 --log-interval 10")


def environment():
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "VIRTUAL_ENV": sys.prefix}


def script(*arguments):
    command = [*SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment())


VARIANTS = dict(
    re.split(r"\s+", line, maxsplit=1)
    for line in subprocess.check_output([*SCRIPT, "--list"], text=True).splitlines()
)


# ---------------------------------------------------------------- variants


def build_variant(variant):
    flags = ["nowhere", "--task", "streaming_language_modeling", "--tokens-per-sample", "256"]
    flags += [*VARIANTS[variant].split(), "--fwm-init", "normal", "--dropout", "0.1"]
    args = options.parse_args_and_arch(options.get_training_parser(), flags)
    chosen = {name: value for name, value in vars(args).items() if name != "arch"}
    return args, build(args.arch, **chosen)


def test_variants_are_listed():
    assert len(VARIANTS) == 19
    assert list(VARIANTS)[:2] == ["softmax", "elu-sum"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_what_its_name_says(variant):
    args, model = build_variant(variant)
    decoder = model.decoder
    carried = variant.endswith(("-streaming", "-xl"))
    assert args.no_carry_over is not carried
    if carried:
        assert decoder.why_no_stream() is None
    positions = not carried and "no-positions" not in variant
    assert (decoder.embed_positions is not None) == positions
    attention = decoder.layers[0].self_attn
    assert not [name for name, _ in attention.named_parameters() if name.endswith("bias")] or (
        variant == "transformer-xl"  # the two of its scores
    )
    logits, _ = model(tokens(2, 6))
    assert logits.isfinite().all()
    if variant in ("transformer-xl", "softmax", "softmax-no-positions"):
        return
    feature_map, rule = variant.split("-")[:2]
    mixer = attention.mixer
    assert (args.fwm_feature_map, args.fwm_decoder_self) == (feature_map, rule)
    assert mixer.feature_map.out_dim == (32 if feature_map == "elu" else 64)
    assert mixer.config.scale == 32**-0.5
    normalised = "output" if rule == "sum" and "no-attn-norm" not in variant else "none"
    assert mixer.config.resolved == (rule == "delta", normalised)


def test_variants_differ_in_nothing_but_the_gate():
    """A head's gate is all that delta has more than sum; softmax has what sum has."""
    counts = {
        name: sum(p.numel() for p in build_variant(name)[1].parameters()) for name in VARIANTS
    }
    plain, gated = counts["softmax"], counts["softmax"] + 4 * 128 * 4
    for name, count in counts.items():
        if name != "transformer-xl":
            assert count == (gated if "-delta" in name else plain), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "which VARIANT? One of: softmax elu-sum"),
        (("elu",), "unknown variant 'elu'. Valid ones: softmax elu-sum"),
        (("softmax",), "which data? Name a directory that a scripts/prepare_*.sh made: --data"),
        (("softmax", "--data", "/nowhere"), "/nowhere holds no dict.txt: make a data directory"),
        (("softmax", "--data"), "--data needs a value"),
        (("softmax", "--seed", "one"), "--seed must be a whole number, not 'one'"),
        (("softmax", "--updates", "1e3"), "--updates must be a whole number, not '1e3'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    result = script(*arguments)
    assert result.returncode == 1
    assert message in result.stderr


def test_help_says_the_recipe():
    text = script("--help").stdout
    assert "--lr 1e-3 after 200 updates" in text
    assert max(map(len, text.splitlines())) < 100


# ---------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A binarised text of a few words."""
    words = random.Random(0)
    texts = {
        split: "".join(f"{' '.join(words.choices('abcdefgh', k=9))}\n" for _ in range(count))
        for split, count in (("train", 100), ("valid", 12), ("test", 9))
    }
    folder = tmp_path_factory.mktemp("corpus")
    return make(folder, "word", {split: text.encode() for split, text in texts.items()})


def wait_for(what, process):
    deadline = time.monotonic() + 120
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run that was killed and went on: its directory, its command, what both runs printed."""
    runs = tmp_path_factory.mktemp("runs")
    command = ["elu-delta-streaming", "--data", data, "--runs", runs, "--updates", 300]
    command += ["--tokens-per-sample", 8, "--batch-size", 2, "--warmup-updates", 5, *SHAPE]
    command += ["--sliding-limit", 20, "--clip-norm", 1, *OFTEN]
    run = runs / "elu-delta-streaming-seed1"
    first = subprocess.Popen(
        [*SCRIPT, *map(str, command)], env=environment(), start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wait_for((run / "train.log").is_file, first)
    second = script(*command).stderr
    wait_for(lambda: "Saved checkpoint" in (run / "train.log").read_text(), first)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert not run_record.read_json(run / "run.json")["finished"]
    assert "is being trained by another process" in second
    log = (run / "train.log").read_text()
    done = script(*command)
    assert done.returncode == 0, done.stderr
    return run, command, log


def test_a_killed_run_goes_on(trained):
    run, _, log = trained
    before = max(int(u) for u in re.findall(r"Saved checkpoint .*@ (\d+) updates", log))
    after = (run / "train.log").read_text()[len(log) :]
    assert 20 <= before < 300
    loaded = int(re.search(r"Loaded checkpoint .*@ (\d+) updates", after)[1])
    assert loaded in (before, before + 20)  # killed between a checkpoint and its message: later
    assert min(map(int, re.findall(r"num_updates=(\d+)", after))) == loaded + 10


def test_its_result(trained, data):
    run, _, _ = trained
    result = json.loads((run / "result.json").read_text())
    assert (result["variant"], result["seed"], result["updates"]) == (
        "elu-delta-streaming",
        1,
        300,
    )
    assert result["arch"] == "fwm_transformer_lm_tiny" and result["threads"] >= 1
    assert result["parameters"] and result["finished"] and result["train_wall_seconds"] > 0
    assert result["corpus"] == "tiny" and result["unit"] == "word"
    assert [one["updates"] for one in result["validations"]] == list(range(20, 301, 20))
    whole, first = result["evaluations"]
    assert (whole["method"], whole["limit"], whole["tokens"]) == ("streaming", None, 90)
    assert (first["method"], first["limit"], first["tokens"]) == ("streaming", 20, 20)
    assert 1 < whole["perplexity"] < 20 and whole["state_per_layer"] == 2 * 8 * 8
    again = shlex.split(whole["command"])[2:]
    args = eval_lm.make_parser().parse_args(again)
    args.argv, args.checkpoint, args.data = again, run / "checkpoint_best.pt", data
    assert eval_lm.evaluate(args)["perplexity"] == pytest.approx(whole["perplexity"])
    kept = sorted(path.name for path in run.glob("*.pt"))
    assert len(kept) == 3 and kept[1:] == ["checkpoint_best.pt", "checkpoint_last.pt"]


def times(run):
    return {path: path.stat().st_mtime_ns for path in run.glob("[!.]*")}


def test_a_finished_run_is_left_alone(trained):
    run, command, _ = trained
    before = times(run)
    again = script(*command)
    assert again.returncode == 0, again.stderr
    assert "training: already finished in" in again.stdout
    assert "evaluation: already in" in again.stdout
    assert times(run) == before
    other = script(*command, "--lr", "0.5")
    assert other.returncode == 1 and "started with other flags" in other.stderr
    assert results_lm.main(["--runs", str(run.parent)]) == 0


def test_a_model_without_carry_over_is_scored_by_segments_and_sliding_window(
    trained, data, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(trained[0], run, ignore=shutil.ignore_patterns("eval-*", "result.json"))
    record = json.loads((run / "run.json").read_text())
    record["command"] += " --no-carry-over"
    (run / "run.json").write_text(json.dumps(record))

    def scored(limit):
        assert lm_run.main([str(run), "--data", str(data), "--sliding-limit", str(limit)]) == 0
        found = json.loads((run / "result.json").read_text())["evaluations"]
        return [(one["method"], one["limit"], one["length"], one["tokens"]) for one in found]

    assert scored(0) == [("segments", None, 8, 90)]
    assert scored(20) == [
        *[("segments", None, 8, 90), ("segments", 20, 8, 20), ("sliding", 20, 8, 20)],
    ]


def test_a_run_that_diverged_at_once_has_a_result(trained, data, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(trained[0] / "run.json", run)
    (run / "train.log").write_text("")
    assert lm_run.main([str(run), "--data", str(data)]) == 1
    assert "holds no checkpoint_best.pt: train first" in capsys.readouterr().err
    run_record.end(run, diverged=12)
    assert lm_run.main([str(run), "--data", str(data)]) == 0
    result = json.loads((run / "result.json").read_text())
    assert (result["evaluations"], result["best_valid"], result["diverged"]) == ([], None, 12)
    assert lm_run.main([str(tmp_path), "--data", str(data)]) == 1
    assert "no run.json" in capsys.readouterr().err


def test_speed_leaves_out_validation():
    line = "| train_inner | loss=9, wps=1, wpb=4096, bsz=16, num_updates={}, train_wall={}\n"
    log = line.format(50, 10) + line.format(100, 10)
    assert lm_run.tokens_per_second(log) == 4096 * 100 / 20
    assert lm_run.tokens_per_second("") is None


@pytest.mark.parametrize("unit", ["character", "byte", "piece", "word", None])
def test_what_the_unit_of_the_data_allows(trained, data, tmp_path, capsys, unit):
    folder = shutil.copytree(data, tmp_path / "data")
    facts = json.loads((folder / "data.json").read_text()) | {"unit": unit}
    facts["splits"]["test"]["words"] = 45
    (folder / "data.json").write_text(json.dumps(facts))
    if unit is None:
        (folder / "data.json").unlink()
    out = tmp_path / "result.json"
    command = [str(trained[0] / "checkpoint_best.pt"), str(folder), "--json", str(out)]
    assert eval_lm.main(command) == 0
    text, found = capsys.readouterr().out, json.loads(out.read_text())
    if unit in ("character", "byte"):
        assert 2 ** found["bits_per_token"] == pytest.approx(found["perplexity"])
        assert f"bits per {unit}" in text
    assert ("bits_per_token" in found) == (unit in ("character", "byte"))
    if unit == "piece":  # 90 tokens of 45 words
        assert found["perplexity_per_word"] == pytest.approx(found["perplexity"] ** 2)
        assert eval_lm.main([*command, "--limit", "20"]) == 0
        found = json.loads(out.read_text())
    assert "perplexity_per_word" not in found


@pytest.mark.slow
def test_divergence_ends_a_run_with_a_result(data, tmp_path):
    command = ["elu-sum-streaming", "--data", data, "--runs", tmp_path, "--updates", 40]
    command += ["--tokens-per-sample", 8, "--batch-size", 2, "--lr", "1e38", *SHAPE, *OFTEN]
    done = script(*command)
    assert done.returncode == 0, done.stderr
    assert "training diverged" in done.stdout
    result = json.loads((tmp_path / "elu-sum-streaming-seed1" / "result.json").read_text())
    assert result["evaluations"] == [] and result["diverged"] < 20
    assert "already finished" in script(*command).stdout
