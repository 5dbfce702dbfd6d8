#!/usr/bin/env python3
"""Draw the figures of the associative-retrieval experiments (arXiv 2102.11174, Figs. 2-5).

From the logs of scripts/retrieval.py, beside the published ones if those are given: the folder
`logs` of the published code, or one table of all runs. Writes PNG and PDF:

  setting1         final loss against the number of keys
  setting2         the same with replacement, on a logarithmic axis
  setting1-curves  loss against training steps, for the largest number of keys at hand
  setting2-curves  the same with 20 keys, on a logarithmic axis

  python scripts/plot_retrieval.py --logs runs/retrieval --out runs/retrieval/figures
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from lib.retrieval_cells import (  # noqa: E402
    SETTING1,
    SETTING2,
    Cell,
    CellError,
    Curve,
    Variant,
    read_logs,
    read_published,
)

CURVES2 = (SETTING2[0], SETTING2[1], SETTING2[4], SETTING2[5])  # as in the paper
KEYS2 = 20
SOLVED = 1e-3
MARKERS = "osD^v<>P"


def label(variant: Variant) -> str:
    """Return a variant's name as the paper's figures have it."""
    if variant.rule == "fwm":
        with_map = f" with DPFP-{variant.arg}" if variant.attention == "dpfp" else ""
        return f"Schlag (2021){with_map}"
    names = {"softmax": "Softmax", "linear": "Linear", "tanh": "tanh"}
    names |= {"dpfp": f"DPFP-{variant.arg}", "favor": f"FAVOR+ ({variant.arg})"}
    rule = {"ours": " delta", "sum": " sum", "cat": ""}[variant.rule]
    return names[variant.attention] + rule


def final_losses(curves: Mapping[Cell, Curve], variant: Variant, replace: bool) -> Curve:
    """Return (number of keys, last loss) of a variant."""
    found = [
        (cell.n_keys, curve[-1][1])
        for cell, curve in curves.items()
        if (cell.variant, cell.replace) == (variant, replace)
    ]
    return sorted(found)


def style(number: int) -> dict[str, Any]:
    """Return a variant's colour and marker, the same in every figure of a setting."""
    return {"color": f"C{number}", "marker": MARKERS[number], "markersize": 4, "linewidth": 1.2}


def draw_sizes(axes: Any, curves: Mapping[Cell, Curve], replace: bool) -> None:
    """Draw final losses against the number of keys."""
    for number, variant in enumerate(SETTING2 if replace else SETTING1):
        points = final_losses(curves, variant, replace)
        points = [(n, loss) for n, loss in points if math.isfinite(loss)]
        if points:
            axes.plot(*zip(*points, strict=True), label=label(variant), **style(number))
    axes.set_xlabel("number of unique keys S")
    axes.tick_params(axis="x", labelsize=8)
    axes.xaxis.set_major_locator(multiples(40 if axes.get_xlim()[1] > 250 else 20))
    if replace:
        axes.set(yscale="log", ylim=(1e-4, 1e3))
        axes.axhline(SOLVED, color="0.6", linestyle=":", linewidth=1)
    else:
        axes.set_ylim(-0.02, 0.57)


def multiples(of: int) -> Any:
    """Return a locator of ticks."""
    from matplotlib.ticker import MultipleLocator

    return MultipleLocator(of)


def draw_curves(axes: Any, curves: Mapping[Cell, Curve], replace: bool, n_keys: int) -> None:
    """Draw loss against training steps for one number of keys."""
    order = SETTING2 if replace else SETTING1
    for variant in CURVES2 if replace else SETTING1:
        curve = curves.get(Cell(variant, n_keys, replace))
        points = [(step, loss) for step, loss in curve or () if math.isfinite(loss)]
        if points:
            look = style(order.index(variant)) | {"markersize": 2.5}
            axes.plot(*zip(*points, strict=True), label=label(variant), **look)
    axes.set_xlabel("training steps")
    if replace:
        axes.set(xscale="log", yscale="log", ylim=(5e-4, 100))
        axes.axhline(SOLVED, color="0.6", linestyle=":", linewidth=1)


def figures(sources: Mapping[str, Mapping[Cell, Curve]], out: Path) -> list[Path]:
    """Draw what there is; every source has a panel. Return the PNG files."""
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    ours = next(iter(sources.values()))
    written = []
    for replace in (False, True):
        sizes = sorted({cell.n_keys for cell in ours if cell.replace == replace})
        if not sizes:
            continue
        name = f"setting{1 + replace}"
        n_keys = KEYS2 if replace else sizes[-1]
        drawings = [(name, lambda axes, curves, r=replace: draw_sizes(axes, curves, r))]
        if n_keys in sizes:
            drawings.append(
                (
                    f"{name}-curves",
                    lambda axes, curves, r=replace, n=n_keys: draw_curves(axes, curves, r, n),
                )
            )
        for file, drawing in drawings:
            figure, panels = pyplot.subplots(
                1, len(sources), figsize=(5.6 * len(sources), 4.2),
                sharex=True, sharey=True, squeeze=False,
                layout="constrained",
            )  # fmt: skip
            about = f", S = {n_keys}" if file.endswith("curves") else ""
            for axes, (source, curves) in zip(panels[0], sources.items(), strict=True):
                drawing(axes, curves)
                axes.set_title(f"{source}{about}", fontsize=10)
                axes.grid(alpha=0.3)
                axes.spines[["top", "right"]].set_visible(False)
            panels[0, 0].set_ylabel("evaluation loss")
            panels[0, -1].legend(
                frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5)
            )
            out.mkdir(parents=True, exist_ok=True)
            for end in (".png", ".pdf"):
                figure.savefig(out / f"{file}{end}", dpi=150)
            pyplot.close(figure)
            written.append(out / f"{file}.png")
    return written


def read_any(path: Path) -> dict[Cell, Curve]:
    """Read published logs: a folder of them, or the table.

    Raises:
        CellError: there is nothing of the kind.
    """
    if path.is_dir():
        return read_logs(path)
    if not path.is_file():
        raise CellError(f"{path} is neither a folder of logs nor a table of them")
    return read_published(path)


def parser_of_logs(doc: str, logs: str, compares: bool) -> argparse.ArgumentParser:
    """Return a command line that takes our logs and the published ones.

    Args:
        doc: what `--help` says first.
        logs: where ours are, if nothing is said.
        compares: whether there is nothing to do without the published ones.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--logs", type=Path, default=Path(logs), metavar="DIR",
        help="our logs, those of other seeds in folders below (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--published", type=Path, required=compares, metavar="PATH",
        help="folder of the published logs, or a table of them",
    )  # fmt: skip
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = parser_of_logs(__doc__, "runs/retrieval", compares=False)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="where the pictures go"
    )
    args = parser.parse_args(arguments)
    try:
        sources = {"fairseq_fwm": read_logs(args.logs)}
        if args.published:
            sources["published"] = read_any(args.published)
    except CellError as error:
        print(f"plot_retrieval.py: error: {error}", file=sys.stderr)
        return 1
    for path in figures(sources, args.out):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
