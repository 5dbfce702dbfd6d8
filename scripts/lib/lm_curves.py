"""Draw the validation curves of language models (called by results_lm.py).

Colour says the feature map, line and marker the update rule, panel the context. The colours are
those of Okabe and Ito, which colour-blind people tell apart.
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from lib.result_tables import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BASELINE = "softmax"
COLOURS = {
    "softmax": "#000000",
    "elu": "#0072B2",
    "dpfp": "#D55E00",
    "favor": "#009E73",
    "transformer": "#CC79A7",
}
PANELS = {
    "positions": "context of one segment, positions",
    "no positions": "context of one segment, no positions",
    "carried": "state or memory carried along",
}
ELSEWHERE = {"color": "#8c8c8c", "linestyle": "-", "linewidth": 1.0}
"""How the baseline looks in the panels of other contexts."""
HIGHEST = 8.0
"""Values this many times the lowest one lie above the picture: a model that breaks down."""


def panel_of(variant: str) -> str:
    """Return which panel shows a variant of train_lm.sh."""
    if variant.endswith("-no-positions"):
        return "no positions"
    return "carried" if variant.endswith("-streaming") or "-xl" in variant else "positions"


def style_of(variant: str) -> dict[str, object]:
    """Return how a variant's curves look."""
    if "no-attn-norm" in variant:
        line, marker = ":", "^"
    else:
        line, marker = ("--", "s") if "-sum" in variant else ("-", "o")
    colour = COLOURS.get(variant.split("-")[0], "#999999")
    return {
        "color": colour,
        "linestyle": line,
        "marker": marker,
        "markersize": 3,
        "linewidth": 1.3,
    }


def points_of(run: Run, bits: bool) -> tuple[list[int], list[float]]:
    """Return updates, and bits per token or perplexities, of a run's validations."""
    valid = [one for one in run.result["validations"] if one["loss"] is not None]
    losses = [one["loss"] if bits else 2.0 ** min(one["loss"], 100) for one in valid]
    return [one["updates"] for one in valid], losses


def draw_panel(axes: "Axes", panel: str, runs: Sequence[Run], bits: bool) -> None:
    """Draw a panel's runs, and the baseline in grey.

    The legend has the labels from the highest end of a curve to the lowest.
    """
    ends = {}
    for label, group in groupby(runs, key=lambda run: run.label):
        for run in group:
            updates, values = points_of(run, bits)
            if not values:
                continue
            own = panel_of(run.result["variant"]) == panel
            style = style_of(run.result["variant"]) if own else ELSEWHERE
            (line,) = axes.plot(updates, values, label=label, **style)
            if run.result.get("diverged") is not None:
                axes.plot(updates[-1], values[-1], "X", color=style["color"], markersize=9)
            ends.setdefault(label, (values[-1], line))
    order = sorted(ends, key=lambda label: -ends[label][0])
    lines = [ends[label][1] for label in order]
    axes.legend(lines, order, frameon=False, fontsize="small", handlelength=3.2)


def set_scale(axes: "Axes", runs: Sequence[Run], bits: bool) -> None:
    """Choose the range of the value axis, logarithmic for perplexities."""
    values = [value for run in runs for value in points_of(run, bits)[1]]
    lowest, highest = min(values), max(values)
    if bits:
        axes.set_ylim(top=min(highest, 2.5 * lowest) * 1.02)
        return
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.set_ylim(lowest * 0.96, min(highest, HIGHEST * lowest) * 1.04)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def draw(runs: Sequence[Run], quantity: str, title: str, out: Path) -> bool:
    """Write the picture of a corpus.

    Args:
        runs: by label.
        quantity: of the value axis; logarithmic unless it is in bits.
        title: of the picture.
        out: file; its suffix says the format.

    Returns:
        Whether there is anything to draw.
    """
    bits = quantity.startswith("bits")
    runs = [run for run in runs if points_of(run, bits)[1]]
    panels = [p for p in PANELS if any(panel_of(run.result["variant"]) == p for run in runs)]
    if not panels:
        return False
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(
        1, len(panels), figsize=(1 + 4.4 * len(panels), 4.6), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axes, panel in zip(grid[0], panels, strict=True):
        shown = [
            run
            for run in runs
            if panel_of(run.result["variant"]) == panel or run.label == BASELINE
        ]
        draw_panel(axes, panel, shown, bits)
        axes.set(xlabel="updates", title=PANELS[panel])
        axes.title.set_fontsize("medium")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    set_scale(grid[0][0], runs, bits)
    grid[0][0].set_ylabel(f"validation, {quantity}")
    figure.suptitle(title)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)
    pyplot.close(figure)
    return True
