"""scripts/plot_loss.py: what it reads from logs and event files, what it draws, how it fails."""

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="plot_loss needs matplotlib: bash scripts/setup.sh")

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "plot_loss.py"

LOG = """\
2026-01-01 10:00:00 | INFO | fairseq_cli.train | training on 1 devices (GPUs/TPUs)
2026-01-01 10:00:01 | INFO | train_inner | epoch 001:     50 / 75 loss=8.5, nll_loss=8.1, ppl=274.37, wps=5441.7, ups=6.02, wpb=903.8, bsz=47.1, num_updates=50, lr=0.001, gnorm=2.4, train_wall=8, wall=10
2026-01-01 10:00:02 | INFO | valid | epoch 001 | valid on 'valid' subset | loss 6.25 | nll_loss 6.1 | ppl 76.11 | wps 15911.6 | wpb 1142.2 | bsz 62 | num_updates 75
2026-01-01 10:00:02 | INFO | train | epoch 001 | loss 7.9 | nll_loss 7.7 | ppl 207.9 | wps 4608.2 | ups 3.25 | wpb 1417.7 | bsz 77.1 | num_updates 75 | lr 0.0015 | gnorm 2.1 | train_wall 57 | wall 12
2026-01-01 10:00:03 | INFO | train_inner | epoch 002:     25 / 75 loss=5.5e-01, nll_loss=0.5, ppl=1.4, wps=5000, ups=6, wpb=900, bsz=47, num_updates=100, lr=0.002, gnorm=1.9, train_wall=8, wall=20
2026-01-01 10:00:04 | INFO | train_inner | epoch 002:     50 / 75 loss=nan, nll_loss=nan, ppl=nan, wps=5000, ups=6, wpb=900, bsz=47, num_updates=125, lr=0.002, gnorm=1.9, train_wall=8, wall=20
2026-01-01 10:00:05 | INFO | valid | epoch 002 | valid on 'valid' subset | loss 0.5 | nll_loss 0.4 | ppl 1.3 | wps 15911.6 | wpb 1142.2 | bsz 62 | num_updates 150 | best_loss 0.5
"""  # noqa: E501


@pytest.fixture(scope="module")
def plot_loss():
    spec = importlib.util.spec_from_file_location("plot_loss", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["plot_loss"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["plot_loss"]


@pytest.fixture
def log(tmp_path) -> Path:
    path = tmp_path / "one" / "train.log"
    path.parent.mkdir()
    path.write_text(LOG)
    return path


def write_events(directory: Path, points: dict[int, float]) -> None:
    torch_tensorboard = pytest.importorskip("torch.utils.tensorboard")
    with torch_tensorboard.SummaryWriter(str(directory)) as writer:
        for step, loss in points.items():
            writer.add_scalar("loss", loss, step)


def test_reads_a_log(plot_loss, log):
    assert plot_loss.read_log(log) == {
        "train": {50: 8.5, 100: 0.55},
        "valid": {75: 6.25, 150: 0.5},
    }


def test_reads_what_fairseq_writes_with_log_file(plot_loss, log):
    log.write_text("\n".join(line.split("| ", 3)[-1] for line in LOG.splitlines()))
    assert "INFO" not in log.read_text()
    assert plot_loss.read_log(log)["valid"] == {75: 6.25, 150: 0.5}
    assert plot_loss.read_log(log)["train"] == {50: 8.5, 100: 0.55}


def test_what_a_resumed_run_did_again_counts_once(plot_loss, log):
    again = LOG.replace("loss=8.5", "loss=8.0").replace("loss 6.25", "loss 6.0")
    log.write_text(LOG + again)
    assert plot_loss.read_log(log) == {"train": {50: 8.0, 100: 0.55}, "valid": {75: 6.0, 150: 0.5}}


def test_a_line_cut_short_is_passed_over(plot_loss, log):
    log.write_text(LOG + LOG.splitlines()[1][:90])
    assert plot_loss.read_log(log)["train"] == {50: 8.5, 100: 0.55}


def test_epochs_stand_in_where_no_update_was_logged(plot_loss, log):
    lines = [line for line in LOG.splitlines() if "train_inner" not in line]
    log.write_text("\n".join(lines))
    assert plot_loss.read_log(log)["train"] == {75: 7.9}


def test_reads_event_files(plot_loss, tmp_path):
    write_events(tmp_path / "train_inner", {50: 8.5, 100: 4.0, 150: float("nan")})
    write_events(tmp_path / "train", {100: 6.0})
    write_events(tmp_path / "valid", {100: 3.5, 200: 2.0})
    assert plot_loss.read_tensorboard(tmp_path) == {
        "train": {50: 8.5, 100: 4.0},
        "valid": {100: 3.5, 200: 2.0},
    }


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (["runs/demo/tensorboard"], ["tensorboard"]),
        (["a/softmax/train.log", "a/delta/train.log"], ["softmax", "delta"]),
        (["a/x.log", "a/y.log"], ["x", "y"]),
        (["a/x/s1/train.log", "a/y/s2/train.log"], ["x/s1", "y/s2"]),
        (["a/x.log", "a/x.log"], ["x", "x"]),
    ],
)
def test_labels_are_what_differs(plot_loss, paths, labels):
    assert plot_loss.labels_of([Path(path) for path in paths]) == labels


def test_draws_one_run_and_several(plot_loss, log, tmp_path):
    from PIL import Image

    other = tmp_path / "two" / "train.log"
    other.parent.mkdir()
    other.write_text(LOG.replace("loss=8.5", "loss=9.5"))
    for runs in ([log], [log, other]):
        out = tmp_path / "pictures" / "loss.png"
        assert plot_loss.main([*map(str, runs), "--out", str(out), "--title", "T"]) == 0
        with Image.open(out) as picture:
            assert picture.width > 800
            assert len(picture.convert("L").getcolors()) > 10  # lines and letters, not one colour
        out.unlink()


def test_the_picture_names_its_axes_and_lines(plot_loss, log, tmp_path):
    out = tmp_path / "loss.svg"
    # Text as text, not as outlines, so that the test can read it.
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        assert plot_loss.main([str(log), "--out", str(out), "--title", "A title"]) == 0
    text = out.read_text()
    for words in ("updates", "loss (bits per token)", "train", "valid", "A title"):
        assert f">{words}<" in text


def test_says_what_is_wrong(plot_loss, tmp_path, capsys):
    empty = tmp_path / "empty.log"
    empty.write_text("nothing of interest\n")
    out = tmp_path / "loss.png"
    assert plot_loss.main([str(tmp_path / "absent"), "--out", str(out)]) == 1
    assert "absent: not there" in capsys.readouterr().err
    assert plot_loss.main([str(empty), "--out", str(out)]) == 1
    assert "--log-format simple" in capsys.readouterr().err
    assert not out.exists()
