"""What is for the day that a GPU is there, as far as a machine without one can try it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("tqdm", reason="the progress bar needs tqdm: bash scripts/setup.sh")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import benchmark_cuda as benchmark  # noqa: E402
from lib import cuda_contestants as contestants  # noqa: E402
from lib import gpu_report  # noqa: E402

STEPS = ("machine", "build", "tests", "memcheck", "racecheck", "synccheck", "benchmark")
# Stands for Python on a machine with a GPU: notes what it is asked for, and is quick.
PYTHON = """#!/bin/bash
printf '%s %s\\n' "${FWM_TEST_CUDA_IMPL:-}" "$*" >>"$NOTES"
case "$*" in
  scripts/lib/gpu_report.py*) exec REAL "$@" ;;
  *cuda_home.py) exit 1 ;;
  *pytest*) echo "===== 3 passed, 1 skipped in 1.50s =====" ;;
  *doctor) echo "torch          2.14.1+cu130" ;;
  -*) cat >/dev/null; echo 9.0 ;;
esac
[[ "$*" != *"$FAILS"* ]]
"""


def check(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", ROOT / "scripts" / "gpu_check.sh", *arguments],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=120,
    )


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path):
    """Return a function that runs the check where a GPU seems to be, and what it asked for."""
    programs, notes = tmp_path / "bin", tmp_path / "notes"
    programs.mkdir()
    script(programs / "python", PYTHON.replace("REAL", sys.executable))
    script(programs / "nvidia-smi", "#!/bin/bash\necho 'Some GPU'\n")
    path = f"{programs}:{os.environ['PATH']}"

    def run(*arguments: str, fails: str = "nothing", sanitizer: bool = False):
        notes.write_text("")
        tool = programs / "compute-sanitizer"
        tool.unlink(missing_ok=True)
        if sanitizer:
            script(tool, "#!/bin/bash\necho '========= ERROR SUMMARY: 0 errors'\n")
        folder, page = tmp_path / "logs", tmp_path / "gpu.md"
        env = {"PATH": path, "NOTES": str(notes), "FAILS": fails, "VIRTUAL_ENV": str(tmp_path)}
        done = check("--dir", folder, "--page", page, *arguments, **env)
        return done, notes.read_text(), page.read_text() if page.exists() else ""

    return run


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU")
def test_without_gpu_it_stops_at_once_and_says_what_it_would_do() -> None:
    done = check()
    assert done.returncode == 3
    assert "no GPU here" in done.stderr
    assert all(step in done.stderr for step in (*STEPS, "report"))


def test_help_and_dry_run_tell_every_step() -> None:
    told, dry = check("--help"), check("--dry-run")
    assert told.returncode == dry.returncode == 0
    for step in (*STEPS, "report"):
        assert f"\n  {step} " in told.stdout
        assert f"{step} would run" in dry.stdout
    pytest_on_gpu = "FWM_TEST_CUDA_IMPL=cuda python -m pytest tests/test_cuda_chunkwise.py "
    assert f"{pytest_on_gpu}tests/test_cuda_kernels.py" in dry.stdout
    assert "PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool racecheck" in dry.stdout
    assert "python scripts/benchmark_cuda.py --json" in dry.stdout


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--what"], "unknown argument '--what'"),
        (["--steps"], "--steps wants a value"),
        (["--steps", "build,fly"], "no step 'fly': choose of machine build tests"),
    ],
)
def test_mistakes_are_named(arguments, error) -> None:
    done = check(*arguments)
    assert done.returncode == 1
    assert error in done.stderr


def test_everything_runs_and_is_reported(machine) -> None:
    done, asked, page = machine(sanitizer=True)
    assert done.returncode == 0, done.stderr
    assert "cuda -m pytest tests/test_cuda_chunkwise.py tests/test_cuda_kernels.py" in asked
    assert "--ignore=tests/test_cuda_recurrent.py tests" in asked
    assert "pip install --no-build-isolation --no-deps -e ." in asked
    assert "on Some GPU" in page
    assert "| tests | ok | 3 passed, 1 skipped in 1.50s |" in page
    assert "| memcheck | ok | ERROR SUMMARY: 0 errors |" in page
    assert "torch          2.14.1+cu130" in page


def test_an_interrupted_check_goes_on(machine) -> None:
    done, _, page = machine("--steps", "machine,tests,benchmark,report", fails="benchmark_cuda")
    assert done.returncode == 1
    assert "failed: benchmark" in done.stderr
    assert "| benchmark | **failed** (1) |" in page
    done, asked, page = machine("--steps", "machine,tests,benchmark,report")
    assert done.returncode == 0
    assert "tests: done before" in done.stdout
    assert "-m pytest" not in asked
    assert "benchmark_cuda.py" in asked
    assert "| benchmark | ok |" in page
    assert "-m pytest" in machine("--steps", "tests", "--force")[1]


def test_without_sanitizer_its_steps_are_skipped(machine) -> None:
    done, _, page = machine("--steps", "machine,racecheck,report")
    assert done.returncode == 0
    assert "racecheck: skipped, there is no compute-sanitizer" in done.stdout
    assert "| racecheck | skipped |" in page


def test_report_names_what_failed(tmp_path, capsys) -> None:
    assert gpu_report.main([str(tmp_path)]) == 1
    assert "no machine.log" in capsys.readouterr().err
    (tmp_path / "machine.log").write_text("commit abc on Some GPU\ntorch 2.14\nstatus 0, now\n")
    failing = "FAILED tests/test_cuda_kernels.py::test_odd_sizes[1-sum] - AssertionError\n"
    summary = "==== 1 failed, 2 passed in 9.99s ====\n"
    (tmp_path / "tests.log").write_text(f"commit abc\n{failing}{summary}status 1, now\n")
    assert gpu_report.main([str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "| tests | **failed** (1) | 1 failed, 2 passed in 9.99s |" in text
    assert "- tests: `tests/test_cuda_kernels.py::test_odd_sizes[1-sum]" in text


# ---- the benchmark


TINY = ["--device", "cpu", "--sizes", "16", "--steps", "40", "--tokens", "80", "--rounds", "2"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_benchmark_wants_a_gpu(capsys) -> None:
    assert benchmark.main([]) == 1
    assert "torch finds no GPU here" in capsys.readouterr().err


def test_benchmark_checks_before_it_times(tmp_path, monkeypatch, capsys) -> None:
    def wrong(problem, device):
        """A package that is wrong."""

        def run(q, k, v, *beta):
            return q @ (k.transpose(-1, -2) @ v) + sum(x.sum() for x in beta)

        yield contestants.Entrant("wrong", run, contestants.PEER)

    def broken(problem, device):
        """A package that is not there."""
        raise ModuleNotFoundError("No module named 'fla'")

    def quick(problem, device):
        """A package that is right."""
        yield contestants.Entrant("right", contestants._op(problem, "reference"), contestants.PEER)

    finders = (contestants.ours, wrong, broken, quick, contestants.sdpa)
    monkeypatch.setattr(contestants, "FINDERS", finders)
    file = tmp_path / "b.json"
    assert benchmark.main([*TINY, "--dtypes", "float32", "--json", str(file)]) == 0
    text = capsys.readouterr().out
    record = json.loads(file.read_text())
    assert len(record["cases"]) == 4  # two rules, two modes
    for case in record["cases"]:
        by_name = {entry["name"]: entry for entry in case["contestants"]}
        assert by_name["wrong"]["error"] > 5e-3 and not by_name["wrong"]["seconds"]
        assert by_name["right"]["error"] < 1e-5 and len(by_name["right"]["seconds"]) == 2
        assert by_name["softmax SDPA"]["error"] is None and by_name["softmax SDPA"]["seconds"]
        assert case["missing"] == {
            "A package that is not there": "ModuleNotFoundError: No module named 'fla'"
        }
    assert "wrong is off by more than 0.005 and was not timed" in text
    assert "### delta, float32, forward+backward" in text
    assert benchmark.main(["--from-json", str(file)]) == 0
    assert capsys.readouterr().out == text


def test_conditions_are_taken_back(monkeypatch) -> None:
    monkeypatch.setenv(contestants.FORM, "general")
    entrant = contestants.Entrant("ours", print, form="chunkwise")
    before = torch.backends.cuda.matmul.allow_tf32
    with entrant.conditions():
        assert os.environ[contestants.FORM] == "chunkwise"
        assert torch.backends.cuda.matmul.allow_tf32
    assert os.environ[contestants.FORM] == "general"
    assert torch.backends.cuda.matmul.allow_tf32 == before
