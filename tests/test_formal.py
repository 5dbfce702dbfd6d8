"""scripts/formal.py and results_formal.py: one run, the grid, what is kept, tables."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("fairseq", reason="fairseq is not installed")

from fairseq_fwm.data import formal_languages as library
from fairseq_fwm.models.sequence_tagger import MIXERS

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import formal  # noqa: E402
import make_formal_language  # noqa: E402
import results_formal  # noqa: E402
from lib.formal_runs import (  # noqa: E402
    FEW_STRINGS,
    LANGUAGES,
    MODELS,
    NEGATIVE,
    PUBLISHED_IDS,
    Run,
    Size,
    cell_runs,
)

# One process for all: data and runs are made once.
pytestmark = pytest.mark.xdist_group("formal")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Small data of two languages."""
    folder = tmp_path_factory.mktemp("data")
    flags = "--train-window 2 14 --bin1-window 16 20 --bin2-window 22 26 --sizes 200 50 50 20"
    for name in ("dyck-1", "reset_dyck"):
        make_formal_language.main([name, "--out", str(folder / name), *flags.split()])
    return folder


@pytest.fixture(scope="module")
def trained(data, run, tmp_path_factory):
    """The folder of runs and what the script printed."""
    out = tmp_path_factory.mktemp("runs")
    command = [ROOT / "scripts/formal.py", "--data_dir", data / "dyck-1", "--task", "dyck-1",
               "--model_type", "2", "--out", out, "--learning_rate", "0.01",
               "--remove_pos_enc", "--select_bin0"]  # fmt: skip
    return out, command, run(*command).stdout


def test_one_run_ends_in_its_accuracies(trained):
    out, _, said = trained
    last = said.splitlines()[-1].split()
    assert last[::2] == ["bin0", "bin1", "bin2"] and last[1] == "100.00"
    (result,) = (json.loads(path.read_text()) for path in out.glob("**/result.json"))
    assert (result["model"], result["task"], result["seed"]) == ("deltanet", "dyck-1", 1)
    assert f"{result['bin1']:.2f}" == last[3] and 0 < result["updates"] < 3000
    assert "--mixer deltanet" in result["command"] and str(ROOT) not in result["command"]


def test_a_finished_run_is_left_alone(trained, run):
    out, command, said = trained
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert run(*command).stdout.splitlines()[-1] == said.splitlines()[-1]
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_grid_and_its_page(data, run, tmp_path):
    out = tmp_path / "runs"
    flags = "--grid --trials 1 --updates 100 --tasks dyck-1 reset_dyck --models deltanet"
    grid = [ROOT / "scripts/formal.py", "--data_dir", data, "--out", out, *flags.split()]
    done = run(*grid)
    assert "deltanet on dyck-1: bin0 " in done.stdout
    count = len(list(out.glob("**/result.json")))
    assert count == 2 * 3 and not list(out.glob("**/output"))
    run(*grid)
    assert len(list(out.glob("**/result.json"))) == count
    page = tmp_path / "page.md"
    assert results_formal.main(["--runs", str(out), "--out", str(page)]) == 0
    text = page.read_text()
    assert "| deltanet |" in text and "page/bin1.png" in text
    assert "Not run yet: lstm on parity;" in text
    assert (tmp_path / "page/bin1.png").stat().st_size > 5000
    kept = (tmp_path / "page/results.json").read_text()
    assert len(json.loads(kept)["runs"]) == count
    # Runs of another folder come beside those that the page has; the same ones count once.
    for path in list(out.glob("**/result.json")):
        result = json.loads(path.read_text())
        if result["seed"] == 1:
            path.write_text(json.dumps({**result, "bin0": -1}))
        else:
            path.unlink()
    assert results_formal.main(["--runs", str(out), "--out", str(page), "--add"]) == 0
    runs = json.loads((tmp_path / "page/results.json").read_text())["runs"]
    assert len(runs) == count and [run["bin0"] for run in runs].count(-1) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model_type 3 --task parity", "--model_type 3: one of lstm,"),
        ("--model_type srwm", "--task says which language"),
    ],
)
def test_command_lines_that_make_no_sense(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        formal.main(["--data_dir", str(tmp_path), "--out", str(tmp_path), *flags.split()])
    assert message in capsys.readouterr().err


def test_missing_data_are_named(run, tmp_path):
    flags = ["--task", "parity", "--model_type", "lstm", "--out", tmp_path / "out"]
    done = run(ROOT / "scripts/formal.py", "--data_dir", tmp_path, *flags, status=1)
    assert "train_50.src is not there: scripts/make_formal_language.py" in done.stderr
    assert results_formal.main(["--runs", str(tmp_path)]) == 1


def test_runs_have_folders_of_their_own_and_their_flags(tmp_path):
    runs = list(
        cell_runs(tmp_path, tmp_path, "aa-star", "deltanet_negative", trials=3, updates=10)
    )
    assert len(runs) == 9 and len({run.folder for run in runs}) == 9
    other = Run(tmp_path, tmp_path, "aa-star", "srwm", Size(dropout=0.1), 1, as_published=False)
    assert other.folder.name.endswith("p0.1-seed1-bin0")
    assert "--as-published" not in other.command()
    command = runs[0].command()
    assert "--negative-eigenvalues" in command and "deltanet" in command
    assert command[command.index("--batch-size") + 1] == "16"
    assert set(PUBLISHED_IDS.values()) < set(MODELS) and len(LANGUAGES) == 8


def test_names_are_those_of_the_library():
    """Spelled out in the scripts too, whose --help should not wait for torch."""
    assert tuple(library.LANGUAGES) == LANGUAGES
    assert tuple(n for n, x in library.LANGUAGES.items() if x.repeats) == FEW_STRINGS
    assert (*MIXERS, NEGATIVE) == MODELS
