"""scripts/benchmark_lm.py: measures what it says, on models small enough for a test."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq", reason="fairseq is not installed")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import benchmark_lm as benchmark  # noqa: E402
from lib import benchmark_lm_cases as cases  # noqa: E402
from lib import benchmark_lm_report as reporting  # noqa: E402
from lib import benchmark_sides as sides  # noqa: E402
from lib.result_tables import END, START, ResultsError  # noqa: E402

SMALL = ["--decoder-layers", "1", "--decoder-attention-heads", "2", "--decoder-ffn-embed-dim", "8"]
for kind in "embed", "input", "output":
    SMALL += [f"--decoder-{kind}-dim", "8"]
FLAGS = ["--quick", "--lengths", "8", "--segment", "4", "--tokens", "16"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Models of one layer and width 8."""
    monkeypatch.setattr(cases, "SHAPE", tuple(SMALL))
    monkeypatch.setattr(cases, "WORDS", 50)


@pytest.fixture
def no_processes(monkeypatch):
    """Stand in for processes of their own, where softmax exceeds limits from T = 16."""

    def alone(script, case, variant, *, runs, time_limit, **_):
        if variant == "softmax" and case.length >= 16:
            raise sides.TooMuch(f"more than {time_limit:g} s")
        times = {"cpu": [0.5] * runs, "wall": [1.0] * runs}
        memory = {"peak_mb": 300.0, "added_mb": float(case.length)}
        return times | memory | {"tokens": 16, "sentences": 16 // min(case.length, 4)}

    monkeypatch.setattr(benchmark, "alone", alone)


def test_page_tables_and_picture(no_processes, tmp_path, capsys):
    page, out = tmp_path / "page.md", tmp_path / "out"
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    assert benchmark.main([*FLAGS, "--out", str(out), "--page", str(page)]) == 0
    text = page.read_text()
    assert text.startswith(f"before\n{START}\n") and text.endswith(f"{END}\nafter\n")
    assert "old" not in text and text.count("A quick run") == 2
    for name in cases.VARIANTS:
        assert len(re.findall(rf"^\| 8 \| {name} \| [\d,.]+ \|", text, re.MULTILINE)) == 2, name
    assert "| 4 streams, segments of 4 | 300 | 8 |" in text
    assert "| one window of 8 | 300 | 8 |" in text and "| segments of 4, state |" in text
    assert (out / "language_modeling_speed.png").stat().st_size > 10_000

    page.write_text(f"{START}\n{END}\n")
    (out / "language_modeling_speed.png").unlink()
    capsys.readouterr()
    assert benchmark.main(["--from-json", str(out), "--page", str(page)]) == 0
    assert (out / "language_modeling_speed.png").exists()
    link, _, tables = page.read_text().removeprefix(f"{START}\n\n").partition("\n\n")
    assert link.endswith("(out/language_modeling_speed.png)")
    assert tables == capsys.readouterr().out + f"\n{END}\n"


def test_what_takes_too_much_is_not_measured_again_and_the_table_says_so(no_processes, tmp_path):
    flags = [*FLAGS, "--only", "evaluation", "--lengths", "8", "16", "32", "--time-limit", "5"]
    flags += ["--variants", "softmax", "elu-sum", "--out", str(tmp_path)]
    assert benchmark.main(flags) == 0
    record = json.loads((tmp_path / "evaluation.json").read_text())
    found = [(set(case["sides"]), case["missing"]) for case in record["cases"]]
    assert found == [
        ({"softmax", "elu-sum"}, {}),
        ({"elu-sum"}, {"softmax": "more than 5 s"}),
        ({"elu-sum"}, {"softmax": "more than 5 s at T = 16"}),
    ]
    text = reporting.evaluation_table(record)
    assert "| 16 | softmax | not measured: more than 5 s |  |" in text
    assert "| 32 | softmax | not measured: more than 5 s at T = 16 |  |" in text
    assert not re.search(r"^\| (16|32) \| softmax \| [\d,.]+ \|", text, re.MULTILINE)
    assert not record["environment"]["kept_heap"]


def test_record_holds_all_times_and_median_memory(no_processes, tmp_path):
    flags = [*FLAGS, "--variants", "elu-delta", "--rounds", "4", "--processes", "3"]
    assert benchmark.main([*flags, "--out", str(tmp_path)]) == 0
    sections = {
        name: json.loads((tmp_path / f"{name}.json").read_text()) for name in benchmark.SECTIONS
    }
    for name, runs in ("training", 4), ("evaluation", 3 * benchmark.RUNS_ALONE):
        for case in sections[name]["cases"]:
            side = case["sides"]["elu-delta"]
            assert len(side["cpu"]) == len(side["wall"]) == runs and min(side["cpu"]) > 0
    assert "--processes 3" in sections["training"]["environment"]["command"]
    one = {"cpu": [1.0], "wall": [1.0], "peak_mb": 0, "tokens": 1, "sentences": 1}
    assert benchmark.combine([one | {"added_mb": mb} for mb in (5, 65, 6)])["added_mb"] == 6


def test_a_process_of_its_own():
    """The real thing, with the model that is measured."""
    found = sides.alone(
        benchmark.__file__, cases.Evaluation(64, 16), "elu-delta", runs=2, threads=1, seed=1
    )
    assert 0 < found["added_mb"] < found["peak_mb"] and found["tokens"] == 64
    assert len(found["cpu"]) == len(found["wall"]) == 2


CHILD = """
import dataclasses, sys
sys.path.insert(0, {scripts!r})
import torch
from lib import benchmark_sides

@dataclasses.dataclass
class Case:
    megabytes: int
    def build(self, variant, seed):
        make = lambda: torch.ones(self.megabytes, 2**18)
        return type("Work", (), dict(run=make, prepare=int, tokens=1, sentences=1))

sys.exit(benchmark_sides.run_child(sys.argv[2], {{"fake": Case}}))
"""


def test_limits_of_a_process(tmp_path):
    from dataclasses import dataclass

    @dataclass
    class Case:
        megabytes: int
        kind = name = "fake"

    script = tmp_path / "child.py"
    script.write_text(CHILD.format(scripts=str(ROOT / "scripts")))
    options = {"variant": "x", "runs": 1, "threads": 1, "seed": 1}
    found = sides.alone(script, Case(100), memory_limit=2048, **options)
    assert 100 < found["added_mb"] < 150
    with pytest.raises(sides.TooMuch, match=r"^more than 2.0 GB$"):
        sides.alone(script, Case(4096), memory_limit=2048, **options)
    with pytest.raises(sides.TooMuch, match=r"^more than 0.1 s$"):
        sides.alone(script, Case(1), time_limit=0.1, **options)
    script.write_text("raise SystemExit('no such case')")
    with pytest.raises(sides.BenchmarkError, match="fake, x:\nno such case"):
        sides.alone(script, Case(1), **options)


@pytest.fixture
def trainers(monkeypatch):
    made, real = [], cases.Trainer

    def trainer(*args):
        made.append(real(*args))
        return made[-1]

    monkeypatch.setattr(cases, "Trainer", trainer)
    return made


@pytest.mark.parametrize("variant", cases.VARIANTS)
def test_an_update_changes_the_parameters(trainers, variant):
    work = cases.Training(8, 16, 4).build(variant, 1)
    (trainer,) = trainers
    before = [p.clone() for p in trainer.model.parameters()]
    work.run()
    assert work.tokens == 16 and trainer.get_num_updates() == 1
    changed = [not torch.equal(*pair) for pair in zip(before, trainer.model.parameters())]  # noqa: B905
    assert sum(changed) >= len(changed) - 1  # a bias of the keys has no gradient under softmax
    attention = trainer.model.decoder.layers[0].self_attn
    config = getattr(getattr(attention, "mixer", None), "config", None)
    if config is not None:
        assert variant == f"{config.feature_map}-{config.rule}"


def test_one_sequence_or_as_many_as_make_the_tokens():
    sizes = [(8, 4, 32), (64, 1, 64)]
    for length, sequences, tokens in sizes:
        work = cases.Training(length, 32, 4).build("elu-sum", 1)
        assert (work.sentences, work.tokens) == (sequences, tokens)


def test_transformer_xl_is_timed_with_a_full_memory(trainers):
    work = cases.Training(64, 16, 4).build(cases.XL, 1)
    assert (work.sentences, work.tokens) == (4, 64)  # four updates on four streams
    task = trainers[0].task
    assert task.next_segment == 0
    sides.measure({"": work}, 2, 9)
    assert task.next_segment == trainers[0].get_num_updates() == 12  # once before, untimed
    assert task.train_stream.states[0]["memory"].shape[:2] == (4, 4)


def test_scores_are_looked_at():
    work = cases.Evaluation(10, 4).build("dpfp-delta", 1)
    work.run()
    model = next(c.cell_contents for c in work.run.__closure__ if hasattr(c.cell_contents, "eval"))
    next(model.parameters()).data.fill_(float("nan"))
    with pytest.raises(cases.BenchmarkError, match="evaluation T=10, dpfp-delta: .* not finite"):
        work.run()


def fake(softmax, ours, growth, lengths=(256, 1024, 4096, 16384)):
    """Measurements of all lengths; softmax misses the longest."""

    def section(make):
        return {
            "environment": {"threads": 1, "quick": False},
            "cases": [{"shape": {"length": n}, "sides": make(n), "missing": {}} for n in lengths],
        }

    def side(value, added=10.0):
        return {"cpu": [value, 99.0], "wall": [99.0], "added_mb": added}

    names = reporting.STREAMING
    return {
        "training": section(
            lambda n: (
                {name: side(ours) for name in names}
                | ({"softmax": side(softmax)} if n < 16384 else {})
            )
        ),
        "evaluation": section(
            lambda n: {name: side(1.0, 10.0 * (growth if n > 1024 else 1)) for name in names}
        ),
    }


def verdicts(found):
    return [re.match(r"- \**([\w ]+)\**:", line)[1] for line in reporting.targets(found)]


def test_targets_met_missed_and_not_measured():
    assert verdicts(fake(6.0, 2.0, 1.1)) == ["met"] * 5
    assert verdicts(fake(6.0, 4.0, 1.1)) == ["missed"] * 2 + ["met"] * 3
    assert verdicts(fake(6.0, 2.0, 1.3)) == ["met"] * 2 + ["missed"] * 3
    assert verdicts(fake(6.0, 2.0, 1.1, lengths=(256, 1024))) == ["not measured"] * 5
    lines = reporting.targets(fake(6.0, 2.0, 1.3))
    assert "T = 4,096, dpfp-delta against softmax: 3.00x (wanted: 2.00x)" in lines[1]
    assert "T = 16,384 against 1,024: 1.30x (wanted: at most 1.20x)" in lines[2]
    found = fake(6.0, 2.0, 1.1)
    del found["training"]["cases"][2]["sides"]["softmax"]
    del found["evaluation"]["cases"][3]["sides"]["elu-sum"]  # given up at the longest text
    assert verdicts(found) == ["not measured"] * 3 + ["met"] * 2
    assert reporting.targets({}) == []


def test_errors_say_what_to_do(tmp_path, capsys):
    assert benchmark.main(["--from-json", str(tmp_path)]) == 1
    assert "run scripts/benchmark_lm.py first" in capsys.readouterr().err
    wrong = [["--variants", "linformer"], ["--lengths", "0"], ["--tokens", "100"]]
    for flags in wrong:
        with pytest.raises(SystemExit):
            benchmark.main(flags)
    errors = capsys.readouterr().err
    assert "unknown variant linformer: one of softmax, elu-sum" in errors
    assert "0 is not greater than zero" in errors
    assert "100 words an update hold no segment of 256" in errors
    with pytest.raises(ResultsError, match="no measurements"):
        reporting.load(tmp_path)


def test_page_of_the_project_has_its_place():
    text = (ROOT / "docs" / "results" / "language_modeling_speed.md").read_text()
    assert text.count(START) == text.count(END) == 1
