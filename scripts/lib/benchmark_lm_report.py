"""Tables, picture and targets for scripts/benchmark_lm.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lib.benchmark_training_report import (
    MEMORY,
    SOFTMAX,
    load,
    markdown,
    memory,
    publish,
    rate,
    seconds,
    speed_up,
    target,
    times,
)
from lib.result_tables import table

SECTIONS = ("training", "evaluation")
DELTA, STREAMING = ("elu-delta", "dpfp-delta"), ("elu-sum", "elu-delta", "dpfp-delta")
XL = "transformer-xl"
AT, SPEED_UP = 4096, 2.0  # delta's tokens/s in training against softmax's
SHORTEST, GROWTH = 1024, 1.2  # the streaming memory at the longest text against that at this one

# Okabe and Ito's colours, for the colour-blind; markers and dashes for print without colour.
STYLES = {
    SOFTMAX: ("#000000", "s", "-"),
    "elu-sum": ("#56B4E9", "v", "-"),
    "elu-delta": ("#0072B2", "o", "-"),
    "dpfp-delta": ("#D55E00", "^", "-"),
    XL: ("#009E73", "D", "--"),
}

Section = dict[str, Any]


def missing_rows(case: dict[str, Any], cells: int) -> list[list[str]]:
    """Return rows that say why a side has no numbers."""
    length = str(case["shape"]["length"])
    return [
        [length, name, f"not measured: {reason}", *[""] * (cells - 1)]
        for name, reason in case["missing"].items()
    ]


def training_table(section: Section) -> str:
    """Return the table of training steps."""
    rows = []
    for case in section["cases"]:
        for name, side in case["sides"].items():
            best = seconds(section, side)
            rows.append([
                str(case["shape"]["length"]), name, rate(side["tokens"] / best),
                times(speed_up(section, case, name)), batch(case["shape"], name, side),
                *memory(side),
            ])  # fmt: skip
        rows += missing_rows(case, cells=5)
    header = ["T", "self-attention", "tokens/s", "against softmax", "an update", *MEMORY]
    return table(header, rows)


def batch(shape: dict[str, Any], name: str, side: dict[str, Any]) -> str:
    """Say what one update is on."""
    if name == XL:
        length = min(shape["segment"], shape["length"])
        return f"{side['sentences']} streams, segments of {length}"
    return f"{side['sentences']} x {shape['length']}"


def evaluation_table(section: Section) -> str:
    """Return the table of scored texts."""
    rows = []
    for case in section["cases"]:
        shape = case["shape"]
        for name, side in case["sides"].items():
            context = "state" if name != XL else f"memory of {shape['segment']}"
            streaming = f"segments of {shape['segment']}, {context}"
            rows.append([
                str(shape["length"]), name, rate(side["tokens"] / seconds(section, side)),
                times(speed_up(section, case, name)),
                f"one window of {shape['length']}" if name == SOFTMAX else streaming,
                *memory(side),
            ])  # fmt: skip
        rows += missing_rows(case, cells=5)
    header = ["T", "self-attention", "tokens/s", "against softmax", "context", *MEMORY]
    return table(header, rows)


TABLES: dict[str, tuple[str, Callable[[Section], str]]] = {
    "training": ("Training", training_table),
    "evaluation": ("Evaluation", evaluation_table),
}


def growth(section: Section, name: str) -> tuple[str, float | None]:
    """Return a side's memory at the longest text as a multiple of that at the shortest one.

    Returns:
        The two lengths in words, and the ratio; none if there are no two lengths of at least
        :data:`SHORTEST`, or the side was not measured at the longest.
    """
    cases = [case for case in section["cases"] if case["shape"]["length"] >= SHORTEST]
    added = {
        case["shape"]["length"]: case["sides"][name]["added_mb"]
        for case in cases
        if name in case["sides"]
    }
    if not added:
        return f"T >= {SHORTEST}", None
    first, last = min(added), max(case["shape"]["length"] for case in cases)
    text = f"T = {last:,} against {first:,}"
    if last == first or last not in added or added[first] <= 0:
        return text, None
    return text, added[last] / added[first]


def targets(found: dict[str, Section]) -> list[str]:
    """Say of every target whether it is met, with the number that says so."""
    lines = []
    if "training" in found:
        section = found["training"]
        for name in DELTA:
            cases = [case for case in section["cases"] if case["shape"]["length"] == AT]
            value = speed_up(section, cases[0], name) if cases else None
            text = f"training tokens/s at T = {AT:,}, {name} against softmax"
            lines.append(target(text, value, SPEED_UP, times))
    if "evaluation" in found:
        for name in STREAMING:
            lengths, value = growth(found["evaluation"], name)
            text = f"memory added by streaming evaluation, {name}, {lengths}"
            lines.append(target(text, value, GROWTH, times, at_most=True))
    return lines


PANELS: dict[str, tuple[str, str, Callable[[Section, dict[str, Any]], float]]] = {
    "training": (
        "Training", "tokens/s", lambda section, side: side["tokens"] / seconds(section, side)
    ),
    "evaluation": (
        "Evaluation of a text of T words", "added memory (MB)",
        lambda section, side: side["added_mb"],
    ),
}  # fmt: skip


def draw(found: dict[str, Section], path: Path) -> None:
    """Draw training tokens/s and evaluation memory against T, one panel each."""
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    figure, places = pyplot.subplots(
        1, len(found), figsize=(5.2 * len(found), 4.2), layout="constrained", squeeze=False
    )
    for axes, (kind, section) in zip(places[0], found.items(), strict=True):
        draw_panel(axes, kind, section)
    labels = {}
    for axes in places[0]:
        lines, names = axes.get_legend_handles_labels()
        labels |= dict(zip(names, lines, strict=True))
    figure.legend(
        labels.values(), labels.keys(), loc="outside lower center", frameon=False, fontsize=9,
        ncols=3 * len(found),
    )  # fmt: skip
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def draw_panel(axes: Any, kind: str, section: Section) -> None:
    """Draw what was measured of one section; a line ends where its side was given up."""
    from matplotlib import ticker

    title, label, value = PANELS[kind]
    for name, (color, marker, dashes) in STYLES.items():
        points = {
            case["shape"]["length"]: value(section, case["sides"][name])
            for case in section["cases"]
            if name in case["sides"]
        }
        if points:
            axes.plot(
                list(points), list(points.values()), dashes, color=color, marker=marker,
                markersize=6, linewidth=1.6, label=name,
            )  # fmt: skip
    lengths = [case["shape"]["length"] for case in section["cases"]]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", nonpositive="mask")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.minorticks_off()
    axes.set(title=title, xlabel="T", ylabel=label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def report(directory: Path, page: Path | None) -> None:
    """Print the tables, draw the picture, and fill the page.

    Raises:
        ResultsError: nothing measured, or a page without a place for it.
    """
    found = load(directory, SECTIONS, "benchmark_lm.py")
    picture = directory / "language_modeling_speed.png"
    draw(found, picture)
    text = markdown(found, targets(found), TABLES)
    publish(text, picture, "training tokens/s and evaluation memory against T", page)
