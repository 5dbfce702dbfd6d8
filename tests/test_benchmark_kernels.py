"""scripts/benchmark_kernels.py: correctness first, the tables, the page and the picture."""

import json
import sys
from pathlib import Path

import pytest
import torch

from fairseq_fwm import kernels_status

pytest.importorskip("matplotlib", reason="the picture needs matplotlib: bash scripts/setup.sh")
pytest.importorskip("tqdm", reason="the progress bar needs tqdm: bash scripts/setup.sh")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import benchmark_kernels as benchmark  # noqa: E402
from lib import kernel_measure as measure  # noqa: E402
from lib import kernel_peers as peers  # noqa: E402
from lib import kernel_report as report  # noqa: E402
from lib import kernel_steps as steps  # noqa: E402

TINY = ["--quick", "--shape", "tiny=2,2,20,16,8"]
SEQUENCES = [*TINY, "--modes", "forward", "forward+backward"]


@pytest.fixture
def races(monkeypatch):
    """Leave public packages out, and add a peer that is quick because it is wrong."""

    def not_causal(problem):
        """A peer that reads what is written later."""

        def run(q, k, v, *beta):
            return q @ (k.transpose(-1, -2) @ v) + sum(x.sum() for x in beta)

        yield peers.Contestant("not causal", run)

    def broken(problem):
        """A package that is not there."""
        raise ImportError("No module named 'x' in /some/folder/x.py")
        yield

    monkeypatch.setattr(peers, "FINDERS", {
        "sum": [peers.loops, peers.chunks, peers.quadratic, not_causal, broken],
        "delta": [peers.loops, peers.chunks, not_causal],
    })  # fmt: skip
    monkeypatch.setattr(benchmark, "STEPS", {"B1": (1, 2, 8, 8, 0), "beams": (6, 2, 8, 8, 3)})
    monkeypatch.setattr(steps, "transformers_module", lambda: next(broken(None)))


def results(path):
    return json.loads(path.read_text())


def test_contestants_are_checked_and_timed(races, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- results:start -->\n<!-- results:end -->\nafter\n")
    assert benchmark.main([*SEQUENCES, "--page", str(page)]) == 0
    record = results(tmp_path / "page" / "results.json")
    assert [(report.key(case)[1], case["mode"]) for case in record["cases"]] == [
        (rule, mode) for rule in ("sum", "delta") for mode in report.MODES
    ]
    for case in record["cases"]:
        by_name = {entry["name"]: entry for entry in case["contestants"]}
        assert not report.is_correct(by_name["not causal"])
        assert by_name["not causal"]["seconds"], "a wrong peer is timed all the same"
        right = [e for e in case["contestants"] if e["role"] == "peer" and report.is_correct(e)]
        assert len(right) == len(by_name) - 3, "all but ours, the wrong one and softmax"
        assert report.best_peer(case)["name"] != "not causal"
        assert by_name["fairseq_fwm"]["error"] < 1e-5
        assert "error" not in by_name["softmax SDPA"] or not by_name["softmax SDPA"]["error"]
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    assert "| not causal |" in text and "**different function**" in text
    assert "left out: A package that is not there (ImportError: No module named 'x' in x.py)" in (
        " ".join(text.split())
    )
    assert "![times as fast as the best peer](page/ratios.png)" in text
    assert (tmp_path / "page" / "ratios.png").read_bytes().startswith(b"\x89PNG")
    assert "## Whole sequences" in capsys.readouterr().out


def test_from_json_draws_again_without_measuring(races, tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    assert benchmark.main([*SEQUENCES, "--json", str(path)]) == 0
    (tmp_path / "ratios.png").unlink()
    monkeypatch.setattr(benchmark, "run_all", None)
    page = tmp_path / "page.md"
    page.write_text("<!-- results:start --><!-- results:end -->")
    assert benchmark.main(["--from-json", str(path), "--page", str(page)]) == 0
    assert "| tiny | delta |" in page.read_text()
    assert (tmp_path / "page" / "ratios.png").exists()


def test_nothing_to_draw(tmp_path, capsys):
    assert benchmark.main(["--from-json", str(tmp_path / "none.json")]) == 1
    assert "run scripts/benchmark_kernels.py first" in capsys.readouterr().err


def test_steps_fused_and_threads(races, tmp_path):
    path = tmp_path / "results.json"
    modes = ["--modes", "decode", "fused", "threads"]
    assert benchmark.main([*TINY, *modes, "--json", str(path)]) == 0
    record = results(path)
    decode = report.of_kind(record, "decode")
    assert [report.key(case) for case in decode] == [
        (name, rule) for name in ("B1", "beams") for rule in ("sum", "delta")
    ]
    for case in decode:
        assert report.ratio(case) > 0 and report.best_peer(case)["error"] < 1e-5
    forward, both = report.of_kind(record, "fused")
    assert forward["problem"]["nu"] == 1
    assert report.best_peer(both)["name"] == "PyTorch DPFP + our delta kernel"
    if kernels_status()["extension"]:
        assert report.ours(both)["saved_bytes"] < report.best_peer(both)["saved_bytes"]
    assert len(report.of_kind(record, "threads")) == 4


def test_ours_being_wrong_is_an_error(races, tmp_path, monkeypatch, capsys):
    right = peers.ops.causal_sum
    wrong = staticmethod(lambda *x, impl="auto", **o: (
        right(*x, impl=impl, **o)[0] * (1 if impl == "reference" else 1.01), None
    ))  # fmt: skip
    monkeypatch.setattr(peers.ops, "causal_sum", wrong)
    path = tmp_path / "results.json"
    assert benchmark.main([*TINY, "--modes", "forward", "--json", str(path)]) == 1
    assert "ours is wrong or did not run: tiny sum forward" in capsys.readouterr().err


@pytest.mark.parametrize("rule", ["sum", "delta"])
def test_layouts(rule):
    """Who wants time first, or a scaled q, gets the same gradients out."""
    problem = peers.Problem("tiny", rule, 2, 3, 10, 6, 4)
    wanted = measure.expected(problem, seed=3)
    op = peers.ops.causal_delta if rule == "delta" else peers.ops.causal_sum

    def run(*leaves):
        q, *rest = (x.transpose(1, 2) for x in leaves)
        return op(q / 7, *rest)[0].transpose(1, 2)

    one = peers.Contestant("x", run, layout="NTH", q_factor=7.0)
    assert measure.check(one, problem, measure.BOTH, 3, wanted)[1] < 1e-5
    other = peers.Contestant("x", run, layout="NTH")
    assert measure.check(other, problem, measure.BOTH, 3, wanted)[1] > 0.1


def test_slow_and_large_ones_are_left_out(monkeypatch):
    problem = peers.Problem("long", "delta", 1, 1, 4096, 8, 8)
    loop = peers.Contestant("loop", None, slices_time=True, bytes_needed=1 << 40)
    assert "quadratic in T" in measure.obstacle(loop, problem, measure.BOTH)
    assert measure.obstacle(loop, problem, measure.FORWARD) is None
    large = peers.Contestant("large", None, bytes_needed=1 << 60)
    assert "GB are free" in measure.obstacle(large, problem, measure.BOTH)
    with pytest.raises(measure.TooSlow, match=r"longer than 0\.01 s"), measure.time_limit(0.01):
        while True:
            pass


def test_memory_of_a_run():
    """A tensor of 8 MB that is let go and two that stay, of which one is 4 MB."""
    problem = peers.Problem("tiny", "sum", 1, 2, 8192, 64, 64)
    job = {"problem": vars(problem), "mode": measure.FORWARD, "name": "fairseq_fwm", "seed": 1}
    peak = measure.peak_bytes(ROOT / "scripts" / "benchmark_kernels.py", job | {"peers": None})
    y = 4 * 2 * 8192 * 64
    assert y <= peak < 12 * y


def test_peak_of_the_processor():
    found = measure.peak_gflops("baseline")
    assert found["torch_mm"] > 0.1
    assert found.get("fma_loop", 1) > 0.1


def test_unknown_shape(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--shapes", "none"])
    assert "unknown shape none: one of small32" in capsys.readouterr().err


def test_targets():
    case = {
        "kind": "sequence", "mode": "forward", "problem": {"name": "mt", "rule": "delta", "nu": 0},
        "contestants": [
            {"name": "a", "role": "ours", "seconds": [2.0, 1.0], "error": 1e-7},
            {"name": "b", "role": "peer", "seconds": [8.0], "error": 1e-7},
            {"name": "c", "role": "peer", "seconds": [0.5], "error": 0.2},
        ],
    }  # fmt: skip
    assert list(report.checks({"cases": [case]})) == [
        (False, "mt delta forward: 8.00 (wanted: at least 9)")
    ]
    case["contestants"][1]["seconds"] = [9.5]
    assert next(report.checks({"cases": [case]}))[0]


def test_idle_torch_threads_are_restored():
    before = torch.get_num_threads()
    measure.by_threads(lambda: None, (1, 2), 1)
    assert torch.get_num_threads() == before
