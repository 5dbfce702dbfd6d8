"""scripts/benchmark_training.py: measures what it says, on models small enough for a test."""

import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq", reason="fairseq is not installed")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import benchmark_training as benchmark  # noqa: E402
from lib import benchmark_models as models  # noqa: E402
from lib import benchmark_training_report as reporting  # noqa: E402
from lib.benchmark_conditions import MALLOC  # noqa: E402
from lib.result_tables import END, START, ResultsError  # noqa: E402

SMALL = [f"--{side}-{what}" for side in ("encoder", "decoder") for what in ("layers", "embed-dim")]
PAIR = ["softmax", "dpfp-delta"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Models of one layer and width 8."""
    sizes = ("1", "8", "1", "8")
    flags = [*(x for pair in zip(SMALL, sizes, strict=True) for x in pair)]
    flags += ["--encoder-attention-heads", "2", "--decoder-attention-heads", "2"]
    for name, arch in models.ARCHS.items():
        monkeypatch.setitem(
            models.ARCHS, name, replace(arch, types=50, flags=(*arch.flags, *flags))
        )
    monkeypatch.setattr(models, "LM_SMALL", models.StackShape(1, 8, 2, 16))


def run(out, *arguments):
    return benchmark.main(["--quick", "--no-memory", "--out", str(out), *map(str, arguments)])


def test_every_section_with_page_and_picture(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    assert run(tmp_path / "out", "--tokens", 64, "--lengths", 8, "--only", "lm") == 0
    assert run(tmp_path / "out", "--tokens", 64, "--only", "translation", "--variants", *PAIR) == 0
    lengths = ("--lengths", "5:9", "--variants", *PAIR)
    assert run(tmp_path / "out", "--only", "generation", *lengths, "--page", page) == 0
    text = page.read_text()
    assert text.startswith(f"before\n{START}\n") and text.endswith(f"{END}\nafter\n")
    assert "old" not in text and text.count("A quick run") >= 3
    for name in (*PAIR, "elu-sum", "dpfp-sum", "elu-delta", *models.STAND_INS):
        assert re.search(rf"^\| 8 \| {name} \|", text, re.MULTILINE), name
    assert re.search(r"^\| tiny \| 4 \| 9 \| 5 \| dpfp-delta \|", text, re.MULTILINE)
    assert "translation tiny, T ~ 16, dpfp-delta against softmax" in text
    assert (tmp_path / "out" / "end_to_end.png").stat().st_size > 5000

    page.write_text(f"{START}\n{END}\n")
    (tmp_path / "out" / "end_to_end.png").unlink()
    capsys.readouterr()
    assert benchmark.main(["--from-json", str(tmp_path / "out"), "--page", str(page)]) == 0
    assert (tmp_path / "out" / "end_to_end.png").exists()
    between = text.partition(START)[2].partition(END)[0]
    assert page.read_text() == f"{START}{between}{END}\n"
    link, text = between.strip().split("\n\n", 1)
    assert link == "![times the speed of softmax](out/end_to_end.png)"
    assert text == capsys.readouterr().out.strip()


def test_record_holds_times_machine_and_command(tmp_path):
    arguments = ("--only", "lm", "--lengths", 8, "--tokens", 16, "--variants", *PAIR)
    assert run(tmp_path, *arguments, "--rounds", 3) == 0
    record = json.loads((tmp_path / "lm.json").read_text())
    (case,) = record["cases"]
    assert set(case["sides"]) == {*PAIR, models.NO_ATTENTION, models.PROJECTIONS}
    for side in case["sides"].values():
        assert len(side["cpu"]) == len(side["wall"]) == 3 and min(side["cpu"]) > 0
        assert side["tokens"] == 16 and side["sentences"] == 2
    described = record["environment"]
    assert described["torch"] == torch.__version__ and described["quick"]
    assert "--rounds 3" in described["command"] and described["cpu"]


def test_cases_are_added_to_those_of_another_command(tmp_path, capsys):
    same = ("--only", "lm", "--tokens", 16, "--variants", *PAIR)
    assert run(tmp_path, *same, "--lengths", 8, 4) == 0
    assert run(tmp_path, *same, "--lengths", 8, 16, "--rounds", 1, "--add") == 0
    record = json.loads((tmp_path / "lm.json").read_text())
    assert [case["shape"]["length"] for case in record["cases"]] == [4, 8, 16]
    text = reporting.describe(record)
    commands = [line for line in text.splitlines() if line.startswith("    python")]
    assert len(commands) == 2 and "--add" in commands[1] and "best of 1 to 1" not in text
    capsys.readouterr()
    assert run(tmp_path, *same, "--lengths", 8, "--add", "--threads", 2) == 1
    assert "was measured with --threads 1" in capsys.readouterr().err


def test_softmax_is_fairseqs_own_and_stand_ins_do_no_more_than_they_say():
    from fairseq.modules import MultiheadAttention

    attention = {
        name: models.DecoderStack(models.LM_SMALL, name).layers[0].self_attn
        for name in (*models.VARIANTS, *models.STAND_INS)
    }
    assert type(attention["softmax"]) is MultiheadAttention
    cfg = models.fairseq_config(models.ARCHS["tiny"], "softmax", 1)
    model, _ = models.build_model(cfg, models.ARCHS["tiny"], "softmax")
    assert {type(m).__module__.split(".")[0] for m in model.modules()} <= {"fairseq", "torch"}
    assert attention["dpfp-delta"].mixer.config.rule == "delta"
    assert attention["elu-sum"].mixer.config.feature_map == "elu"
    assert not list(attention[models.NO_ATTENTION].parameters())
    sizes = {
        name: sum(p.numel() for p in attention[name].parameters())
        for name in ("softmax", models.PROJECTIONS)
    }
    assert len(set(sizes.values())) == 1, sizes
    stand_in, x = attention[models.PROJECTIONS], torch.randn(5, 2, 8, requires_grad=True)
    stand_in(x)[0].sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in (x, *stand_in.parameters()))


def test_batches_are_full_and_of_the_length_asked_for():
    dictionary = models.make_dictionary(30)
    batches = models.make_batches(dictionary, 16, 512, 3, seed=1)
    assert len(batches) == 3
    for batch in batches:
        target = batch["target"]
        assert 400 <= target.numel() <= 512
        assert batch["ntokens"] / batch["nsentences"] == pytest.approx(16, abs=4)
        assert (target == dictionary.eos()).sum() == len(target)
    assert sum(b["ntokens"] for b in batches) / 3 > 400
    again = models.make_batches(dictionary, 16, 512, 3, seed=1)
    assert torch.equal(batches[0]["target"], again[0]["target"])


def test_an_update_changes_the_parameters(monkeypatch):
    trainers = []
    monkeypatch.setattr(
        models, "Trainer", lambda *a, real=models.Trainer: trainers.append(real(*a)) or trainers[0]
    )
    work = models.Translation("tiny", 8, 64, 2).build("dpfp-delta", 1)
    before = [p.clone() for p in trainers[0].model.parameters()]
    work.run()
    assert trainers[0].get_num_updates() == 2
    changed = [not torch.equal(a, b) for a, b in zip(before, trainers[0].model.parameters())]  # noqa: B905
    assert all(changed[:5]) and work.tokens > 64


def test_generation_of_the_wrong_length_is_no_measurement(monkeypatch):
    work = models.Generation(6, 4, sentences=2, beam=2).build("dpfp-delta", 1)
    work.run()
    for small in ("dpfp-delta-int8", "softmax-bf16"):
        models.Generation(6, 4, sentences=1, beam=2).build(small, 1).run()
    monkeypatch.setattr(
        models.SequenceGenerator, "generate",
        lambda *a, **k: [[{"tokens": torch.zeros(3)}]],
    )  # fmt: skip
    with pytest.raises(models.BenchmarkError, match="2.* tokens generated, not 6"):
        work.run()


def test_rounds_end_when_the_budget_is_spent():
    calls = []
    works = {name: models.Work(lambda n=name: calls.append(n), 1, 1) for name in "ab"}
    times = benchmark.measure(works, rounds=9, budget=0)
    assert calls == ["a", "b"] and len(times["a"]["cpu"]) == 1
    calls.clear()
    benchmark.measure(works, rounds=3, budget=60)
    assert calls == ["a", "b"] * 3


def fake(softmax, ours, projections, threads=1):
    def section(*cases):
        return {"environment": {"threads": threads, "quick": False}, "cases": list(cases)}

    def case(**shape):
        sides = {"softmax": softmax, "dpfp-delta": ours, models.PROJECTIONS: projections}
        sides = {k: {"cpu": [v, 99.0], "wall": [2 * v]} for k, v in sides.items()}
        return {"shape": shape, "sides": sides}

    return {
        "translation": section(case(arch="tiny", length=16), case(arch="iwslt", length=16)),
        "lm": section(case(length=4096), case(length=256)),
        "generation": section(
            case(arch="tiny", length=512, source=512, beam=5, sentences=4),
            case(arch="tiny", length=32, source=32, beam=5, sentences=4),
        ),
    }


def test_targets_met_and_missed():
    lines = reporting.targets(fake(softmax=6.0, ours=2.0, projections=1.9))
    assert len(lines) == 4 and all(line.startswith("- **met**") for line in lines)
    assert "3.00x" in lines[1] and "95%" in lines[2] and "3.16x" in lines[2]
    lines = reporting.targets(fake(softmax=6.0, ours=4.0, projections=1.0))
    verdicts = [re.match(r"- \*\*(\w+)\*\*", line)[1] for line in lines]
    assert verdicts == ["met", "missed", "missed", "missed"]
    assert reporting.targets({}) == []


def test_memory_is_that_of_a_process_of_its_own(monkeypatch):
    found = benchmark.peak_memory(models.Stack(8, 16, layers=1), "dpfp-delta", 1, 1)
    assert 0 <= found["added_mb"] < found["peak_mb"]
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="KeyError: 'nothing'")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(models.BenchmarkError, match="LM-small stack T=8, nothing:\nKeyError"):
        benchmark.peak_memory(models.Stack(8, 16), "nothing", 1, 1)


def test_a_case_survives_the_way_to_another_process():
    for case in (models.Stack(8), models.Generation(4, 5), models.Translation("tiny", 6)):
        assert models.CASES[case.kind](**json.loads(json.dumps(asdict(case)))) == case


def test_profile_shows_ops_and_shares(capsys):
    arguments = ("--only", "lm", "--lengths", "8", "--tokens", "16", "--profile", "dpfp-delta")
    assert benchmark.main(["--quick", *arguments]) == 0
    out = capsys.readouterr().out
    assert "aten::" in out and re.search(r"\| matrix products \| [\d.]+ \| [\d.]+% \|", out)
    assert reporting.group_of("fwm::causal_delta_fwd") == "fast weight ops"
    assert reporting.group_of("AddmmBackward0").startswith("between ops")


def test_errors_say_what_to_do(tmp_path, capsys):
    assert benchmark.main(["--from-json", str(tmp_path)]) == 1
    assert "run scripts/benchmark_training.py first" in capsys.readouterr().err
    assert run(tmp_path, "--only", "lm", "--lengths", "long") == 1
    assert "length 'long' is not N or TARGET:SOURCE" in capsys.readouterr().err
    for wrong in (["--lengths", "8"], ["--variants", "linformer"]):
        with pytest.raises(SystemExit):
            run(tmp_path, *wrong)
    assert "unknown variant linformer" in capsys.readouterr().err
    with pytest.raises(ResultsError, match="no measurements"):
        reporting.load(tmp_path)


def test_warns_of_a_heap_that_is_not_kept(monkeypatch):
    args = benchmark.parse(["--quick"])
    for name in MALLOC:
        monkeypatch.delenv(name, raising=False)
    assert any("keep_memory.sh" in text for text in benchmark.warnings_of(args))
    for name in MALLOC:
        monkeypatch.setenv(name, "0")
    assert not any("keep_memory.sh" in text for text in benchmark.warnings_of(args))
    assert all(name in (ROOT / "scripts" / "keep_memory.sh").read_text() for name in MALLOC)
