#!/usr/bin/env python3
"""Make tables and a heat map of the formal-language runs; fill docs/results/formal_languages.md.

python scripts/results_formal.py --runs runs/formal --out docs/results/formal_languages.md
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from lib.data_files import read_json, write_json  # noqa: E402
from lib.formal_runs import LANGUAGES, MODELS, Size, best, solved  # noqa: E402
from lib.result_tables import ResultsError, put_between_markers, table  # noqa: E402

Result = dict[str, Any]
Cells = Mapping[tuple[str, str], list[Result]]  # (model, language)


def load(folder: Path, kept: Sequence[Result] = ()) -> Cells:
    """Read all results below a folder.

    Args:
        folder: where runs are.
        kept: results to have beside them, of runs that may be elsewhere by now.

    Raises:
        ResultsError: there is none.
    """
    found = [read_json(path) for path in sorted(folder.glob("**/result.json"))]
    runs = {run_name(result): result for result in (*kept, *found)}
    if not runs:
        raise ResultsError(f"no result.json under {folder}: run scripts/formal.py --grid first")
    cells: dict[tuple[str, str], list[Result]] = {}
    for result in runs.values():
        cells.setdefault((result["model"], result["task"]), []).append(result)
    return cells


def run_name(result: Result) -> tuple[Any, ...]:
    """Return what tells runs apart."""
    names = (result[key] for key in ("model", "task", "seed", "as_published"))
    # Results of before a size had all its fields have the others' usual values.
    return *names, Size(**result["size"])


def percent(value: float | None) -> str:
    """Return a percentage, whole ones without decimals."""
    if value is None:
        return "-"
    # Cut, not rounded: 99.95 is not 100.
    return f"{value:.0f}" if value in (0, 100) else f"{math.floor(10 * value + 1e-6) / 10:.1f}"


def accuracy_row(model: str, cells: Cells) -> list[str]:
    """Return a model's row: Bin0 / Bin1 of its best run, and Bin2 where both are 100."""
    row = [model]
    for task in LANGUAGES:
        if (model, task) not in cells:
            row.append("")
            continue
        result = best(cells[model, task])
        text = f"{percent(result['bin0'])} / {percent(result['bin1'])}"
        if solved(result):
            text = f"**{text}** ({percent(result.get('bin2'))})"
        row.append(text)
    return row


def each_seed(results: Sequence[Result]) -> str:
    """Return Bin1 of every run, size by size."""
    sizes: dict[str, list[str]] = {}
    for result in sorted(results, key=lambda r: r["seed"]):
        sizes.setdefault(size_text(result), []).append(percent(result["bin1"]))
    return "; ".join(f"{size}: {', '.join(values)}" for size, values in sizes.items())


def size_text(result: Result) -> str:
    """Return a run's size, and what of its training is not as usual."""
    size, usual = result["size"], asdict(Size().of(result["task"]))
    heads = f"{size['heads']} head{'s' * (size['heads'] > 1)}"
    unusual = [
        f", {what} {size[name]:g}"
        for name, what in (
            ("ff_factor", "ff"),
            ("batch", "batch"),
            ("dropout", "dropout"),
            ("updates", "updates at most"),
        )
        if size[name] != usual[name]
    ]
    unusual += [", annealed"] * bool(size.get("anneal"))
    text = f"{size['layers']} x {size['hidden']}, {heads}, lr {size['lr']:g}"
    return text + "".join(unusual)


def run_row(model: str, task: str, results: Sequence[Result]) -> list[str]:
    """Return a cell's row of the table of runs."""
    chosen = best(results)
    return [
        model,
        task,
        size_text(chosen),
        str(chosen["seed"]),
        f"{chosen['updates']:,}",
        f"{chosen['seconds']:.0f}",
        f"{sum(result['seconds'] for result in results):.0f}",
        each_seed(results),
    ]


RUN_HEADER = [
    "model", "language", "best size (layers x width)", "seed", "updates", "its seconds",
    "all runs, s", "Bin1 of every run, seeds 1, 2, 3",
]  # fmt: skip


def draw(cells: Cells, path: Path) -> None:
    """Draw Bin1 of every cell as a heat map."""
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    models = [model for model in MODELS if any((model, task) in cells for task in LANGUAGES)]
    values = [
        [
            best(cells[model, task])["bin1"] if (model, task) in cells else float("nan")
            for task in LANGUAGES
        ]
        for model in models
    ]
    figure, axes = pyplot.subplots(figsize=(8.5, 0.5 * len(models) + 1.6), layout="constrained")
    shades = pyplot.get_cmap("RdYlGn").with_extremes(bad="0.9")
    image = axes.imshow(values, vmin=0, vmax=100, cmap=shades, aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if value == value:
                axes.text(x, y, percent(value), ha="center", va="center", fontsize=9)
    axes.set_xticks(range(len(LANGUAGES)), LANGUAGES, rotation=25, ha="right")
    axes.set_yticks(range(len(models)), models)
    axes.set_title("Bin1: strings longer than in training, percent wholly right", fontsize=10)
    figure.colorbar(image, ax=axes, fraction=0.03)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def page(cells: Cells, picture: str | None) -> str:
    """Return what goes between the markers."""
    models = [model for model in MODELS if any(key[0] == model for key in cells)]
    runs = [result for results in cells.values() for result in results]
    dates = sorted({result["date"] for result in runs})
    hours = sum(result["seconds"] for result in runs) / 3600
    absent = [
        f"{model} on {task}"
        for model in MODELS
        for task in LANGUAGES
        if (model, task) not in cells
    ]
    parts = [
        "Percent of strings that are wholly right, Bin0 / Bin1, of the best run of a cell; bold "
        "where both are 100, with Bin2, on which nothing was chosen, in brackets.",
        table(["", *LANGUAGES], (accuracy_row(model, cells) for model in models)),
        *([f"![Bin1 of every model and language]({picture})"] if picture else []),
        f"{len(runs)} runs, {hours:.1f} hours of one thread each, "
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}.",
        *([f"Not run yet: {'; '.join(absent)}."] if absent else []),
        "### Runs",
        table(
            RUN_HEADER,
            (
                run_row(model, task, cells[model, task])
                for task in LANGUAGES
                for model in models
                if (model, task) in cells
            ),
        ),
    ]
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--runs", type=Path, default=Path("runs/formal"), metavar="DIR",
        help="what scripts/formal.py was given as --out (default %(default)s)")  # fmt: skip
    add("--out", type=Path, metavar="FILE", help="page to put the tables into, pictures beside it")
    add("--add", action="store_true",
        help="keep the runs that FILE has already, wherever they were made")  # fmt: skip
    args = parser.parse_args(arguments)
    if args.add and not args.out:
        parser.error("--add keeps what a page has: name it with --out")
    try:
        folder = args.out.with_suffix("") if args.out else Path()
        kept = read_json(folder / "results.json").get("runs", []) if args.add else []
        cells = load(args.runs, kept)
        picture = None
        if args.out:
            draw(cells, folder / "bin1.png")
            picture = f"{folder.name}/bin1.png"
            runs = [result for results in cells.values() for result in results]
            write_json(folder / "results.json", {"runs": runs})
        text = page(cells, picture)
        print(text)
        if args.out:
            put_between_markers(args.out, text, "Formal languages")
    except ResultsError as error:
        print(f"results_formal.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
