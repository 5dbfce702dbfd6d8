#!/usr/bin/env python3
"""Draw the training and validation loss of fairseq runs as one picture; see --help."""

import argparse
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Points = dict[int, float]  # update -> loss

# What fairseq logs, on the terminal with more in front of it, with --log-file just so:
#   epoch 001:     50 / 804 loss=8.5, nll_loss=8.1, ..., num_updates=50, ...
#   epoch 001 | valid on 'valid' subset | loss 6.25 | ... | num_updates 804
#   epoch 001 | loss 7.9 | nll_loss 7.7 | ... | num_updates 804 | ...
NUMBER = r"[= ](\d+(?:\.\d+)?(?:e[-+]\d+)?)"  # not nan or inf: no place on the axis
UPDATE = rf"[ ,].*\bnum_updates{NUMBER}"
KINDS = {
    "train_inner": re.compile(rf"epoch \d+: +\d+ / \d+ loss{NUMBER}{UPDATE}"),
    "valid": re.compile(rf"epoch \d+ \| valid on .* subset \| loss{NUMBER}{UPDATE}"),
    "train": re.compile(rf"epoch \d+ \| loss{NUMBER}{UPDATE}"),
}
TRAIN_TAGS = ("train_inner", "train")  # every few updates, or at least every epoch


class NoLossError(Exception):
    """A run that has no loss to draw; the message says what is wrong and what helps."""


@dataclass
class Run:
    """The losses of one run by name: train and valid."""

    label: str
    losses: dict[str, Points] = field(default_factory=dict)


def _collect(points: Iterator[tuple[str, int, float]]) -> dict[str, Points]:
    """Sort the points by tag; what a resumed run did again replaces what it did before."""
    tags: dict[str, Points] = {}
    for tag, update, loss in points:
        if math.isfinite(loss):
            tags.setdefault(tag, {})[update] = loss
    train = next((tags[tag] for tag in TRAIN_TAGS if len(tags.get(tag, ())) > 1), None)
    named = {"train": train or tags.get("train"), "valid": tags.get("valid")}
    return {name: dict(sorted(found.items())) for name, found in named.items() if found}


def read_log(path: Path) -> dict[str, Points]:
    """Return the losses in a log of fairseq-train with ``--log-format simple``."""

    def points() -> Iterator[tuple[str, int, float]]:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                for kind, pattern in KINDS.items():
                    if match := pattern.search(line):
                        yield kind, int(match[2]), float(match[1])

    return _collect(points())


def read_tensorboard(path: Path) -> dict[str, Points]:
    """Return the losses in a directory of fairseq-train's ``--tensorboard-logdir``."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def points() -> Iterator[tuple[str, int, float]]:
        for tag in (*TRAIN_TAGS, "valid"):
            if not (path / tag).is_dir():
                continue
            events = EventAccumulator(str(path / tag), size_guidance={"scalars": 0})
            events.Reload()
            if "loss" in events.Tags()["scalars"]:
                for event in sorted(events.Scalars("loss"), key=lambda event: event.wall_time):
                    yield tag, event.step, event.value

    return _collect(points())


def read_run(path: Path, label: str) -> Run:
    """Read a run from its log file or its tensorboard directory.

    Raises:
        NoLossError: If ``path`` is missing or has no loss in it.
    """
    if not path.exists():
        raise NoLossError(f"{path}: not there")
    losses = read_tensorboard(path) if path.is_dir() else read_log(path)
    if not losses:
        raise NoLossError(
            f"{path}: no loss found; give a log that fairseq-train wrote with --log-format "
            "simple, or the directory of its --tensorboard-logdir"
        )
    return Run(label, losses)


def labels_of(paths: Sequence[Path]) -> list[str]:
    """Return the shortest names that tell the runs apart: the parts of the paths that differ."""
    parts = [path.absolute().parts for path in paths]
    if len(paths) == 1:
        return [paths[0].name]
    columns = list(zip(*parts, strict=False))
    differing = [i for i, column in enumerate(columns) if len(set(column)) > 1]
    if differing:
        first, last = differing[0], differing[-1] + 1
        same_length = len({len(part) for part in parts}) == 1
        names = ["/".join(part[first:last] if same_length else part[first:]) for part in parts]
    else:
        names = [path.name for path in paths]
    return [name.removesuffix(".log") for name in names]


def draw(runs: Sequence[Run], out: Path, title: str) -> None:
    """Write ``out``: a colour a run, thin lines for the training, dots for the validation loss."""
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.5), layout="constrained")
    for number, run in enumerate(runs):
        for name, points in run.losses.items():
            valid = name == "valid"
            single = len(runs) == 1
            axes.plot(
                list(points),
                list(points.values()),
                color=f"C{number + (single and valid)}",
                label=name if single else f"{run.label}, {name}",
                linewidth=1.6 if valid else 1.0,
                alpha=1.0 if valid or single else 0.45,
                marker="o" if valid else None,
                markersize=3.5,
            )
    losses = [loss for run in runs for points in run.losses.values() for loss in points.values()]
    if min(losses) > 0 and max(losses) > 20 * min(losses):
        axes.set_yscale("log")  # on a linear scale the second half would lie on the axis
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="updates", ylabel="loss (bits per token)", title=title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description="Draw the training and validation loss of one or more fairseq runs.",
        epilog="example: python scripts/plot_loss.py runs/demo/tensorboard --out loss.png",
    )
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="LOG_OR_TBDIR",
        help="log of fairseq-train (--log-format simple), or its --tensorboard-logdir",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="the picture: FILE.png, .svg, .pdf"
    )
    parser.add_argument("--title", default="", help="a line above the picture")
    args = parser.parse_args(argv)
    try:
        runs = [read_run(*run) for run in zip(args.runs, labels_of(args.runs), strict=True)]
    except NoLossError as error:
        print(f"plot_loss: {error}", file=sys.stderr)
        return 1
    draw(runs, args.out, args.title)
    return 0


if __name__ == "__main__":
    sys.exit(main())
