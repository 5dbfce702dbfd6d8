#!/usr/bin/env python3
"""Compare the associative-retrieval logs with the published ones; fill docs/results/retrieval.md.

A cell is solved (final loss at most 0.001), failed (above 0.02) or between. The verdict on a cell
that the published run solved or failed: the same class with one of the seeds at hand, and, of a
failed one, a loss within a factor of 1.5. Cells that are between in either are listed, not judged.

  python scripts/results_retrieval.py --logs runs/retrieval-as-published --published LOGS \\
      --out docs/results/retrieval.md
"""

import csv
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from lib.data_files import read_json  # noqa: E402
from lib.result_tables import ResultsError, put_between_markers, table  # noqa: E402
from lib.retrieval_cells import (  # noqa: E402
    PRESETS,
    SETTING1,
    SETTING2,
    Cell,
    CellError,
    Curve,
    Variant,
    read_logs,
)
from plot_retrieval import SOLVED, figures, label, parser_of_logs, read_any  # noqa: E402

FAILED, FACTOR = 0.02, 1.5
# What has to agree: variants and the largest S, by setting.
JUDGED = {
    False: (SETTING1[:5], 300),
    True: (SETTING2[:4], 120),
}
NOT_JUDGED = {Cell(Variant("dpfp", 2, "ours"), 100, True): "the published log is cut short"}


def class_of(loss: float) -> str:
    """Return solved, failed or between; what is not a number has failed."""
    if loss <= SOLVED:
        return "solved"
    return "between" if loss <= FAILED else "failed"


@dataclass(frozen=True)
class Comparison:
    """A cell: its published loss, and ours by seed."""

    cell: Cell
    published: float
    ours: Mapping[int, float]

    @property
    def judged(self) -> bool:
        """Whether the cell is one of those that have to agree."""
        variants, most = JUDGED[self.cell.replace]
        return (
            self.cell.variant in variants
            and self.cell.n_keys <= most
            and self.cell not in NOT_JUDGED
        )

    @property
    def between(self) -> bool:
        """Whether the published run, or each of ours, is neither solved nor failed."""
        ours = {class_of(loss) for loss in self.ours.values()}
        return class_of(self.published) == "between" or ours == {"between"}

    @property
    def agrees(self) -> bool:
        """Whether a seed has the published class and, if failed, nearly the published loss."""
        return any(
            class_of(loss) == class_of(self.published)
            and (class_of(loss) == "solved" or near(loss, self.published))
            for loss in self.ours.values()
        )


def near(a: float, b: float) -> bool:
    """Whether two losses are within the factor of each other."""
    return math.isfinite(a) and math.isfinite(b) and max(a, b) <= FACTOR * min(a, b)


def by_seed(folder: Path) -> dict[int, dict[Cell, Curve]]:
    """Read the logs of every seed: the folder's own are seed 1's.

    Raises:
        CellError: there is none.
    """
    found = {1: read_logs(folder)}
    for more in sorted(folder.glob("seed*")):
        found[int(more.name.removeprefix("seed"))] = read_logs(more)
    return found


def compare(
    ours: Mapping[int, Mapping[Cell, Curve]], published: Mapping[Cell, Curve]
) -> list[Comparison]:
    """Return every published cell that was run, small ones first within a variant."""
    cells = (*PRESETS["setting1"], *PRESETS["setting2"])
    found = []
    for cell in cells:
        losses = {seed: logs[cell][-1][1] for seed, logs in ours.items() if cell in logs}
        if losses and cell in published:
            found.append(Comparison(cell, published[cell][-1][1], losses))
    return found


def shown(loss: float) -> str:
    """Return a loss as the tables have it."""
    if not math.isfinite(loss):
        return "NaN"
    return f"{loss:.1e}" if loss < 0.0095 else f"{loss:.3g}"


def cell_text(comparison: Comparison) -> str:
    """Return ours, by seed, and the published loss."""
    ours = ", ".join(shown(loss) for loss in comparison.ours.values())
    mark = ""
    if comparison.judged and not comparison.between:
        mark = "" if comparison.agrees else " ✗"
    elif comparison.judged:
        mark = " ~"
    return f"{ours} / {shown(comparison.published)}{mark}"


def setting_table(comparisons: Sequence[Comparison], replace: bool) -> str:
    """Return a setting's table: a line for every S, a column for every variant."""
    variants = SETTING2 if replace else SETTING1
    found = {(c.cell.variant, c.cell.n_keys): c for c in comparisons if c.cell.replace == replace}
    sizes = sorted({n for _, n in found})
    rows = [
        [str(n), *(cell_text(found[v, n]) if (v, n) in found else "" for v in variants)]
        for n in sizes
    ]
    return table(["S", *map(label, variants)], rows)


def listed(comparisons: Iterable[Comparison]) -> str:
    """Name cells with their losses."""
    return "; ".join(
        f"{label(c.cell.variant)} S = {c.cell.n_keys}"
        f"{' (setting 2)' if c.cell.replace else ''}: {cell_text(c)}"
        for c in comparisons
    )


def verdict(comparisons: Sequence[Comparison]) -> str:
    """Say how many of the cells that have to agree do, and name the others."""
    wanted = {
        cell for preset in PRESETS.values() for cell in preset if Comparison(cell, 0.0, {}).judged
    }
    judged = [c for c in comparisons if c.judged]
    clear = [c for c in judged if not c.between]
    wrong = [c for c in clear if not c.agrees]
    lines = [
        f"Of the {len(wanted)} cells that have to agree, {len(judged)} were run; {len(clear)} are "
        f"solved or failed in both, and {len(clear) - len(wrong)} of these agree: the same class "
        f"with one of the seeds and, where failed, a loss within a factor of {FACTOR}.",
    ]
    if wrong:
        lines.append(f"They do not agree (✗): {listed(wrong)}.")
    if between := [c for c in judged if c.between]:
        lines.append(f"Between solved and failed in either (~), not judged: {listed(between)}.")
    return "\n\n".join(lines)


def missing(comparisons: Sequence[Comparison]) -> str:
    """Name the published cells that were not run."""
    there = {c.cell for c in comparisons}
    parts = []
    for replace, variants in ((False, SETTING1), (True, SETTING2)):
        for variant in variants:
            absent = [
                cell.n_keys
                for cell in PRESETS[f"setting{1 + replace}"]
                if cell.variant == variant and cell not in there
            ]
            if absent:
                where = f"setting {1 + replace}, {label(variant)}"
                parts.append(f"{where}: S = {ranges(absent)}")
    return "; ".join(parts) or "nothing"


def ranges(sizes: Sequence[int], step: int = 20) -> str:
    """Write 20, 40, 60, 100 as `20-60, 100`."""
    groups: list[list[int]] = []
    for size in sizes:
        if groups and size == groups[-1][-1] + step:
            groups[-1].append(size)
        else:
            groups.append([size])
    return ", ".join(str(g[0]) if len(g) == 1 else f"{g[0]}-{g[-1]}" for g in groups)


def cost(folder: Path) -> str:
    """Say how long the runs took."""
    records = [read_json(path) for path in folder.glob("**/d*.json")]
    seconds = sum(record["seconds"] for record in records)
    dates = sorted({record["date"] for record in records})
    return (
        f"{len(records)} cells, {seconds / 3600:.1f} hours of one thread each, "
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}."
    )


def save_finals(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Keep our final losses in one small table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(("log", "seed", "eval-loss"))
        for c in comparisons:
            for seed, loss in c.ours.items():
                lines.writerow((c.cell.name, seed, f"{loss:.6g}"))


def page(folder: Path, comparisons: Sequence[Comparison], pictures: Sequence[str]) -> str:
    """Return what goes between the markers."""
    parts = [verdict(comparisons), cost(folder), f"Not run: {missing(comparisons)}."]
    for replace in (False, True):
        if any(c.cell.replace == replace for c in comparisons):
            name = f"setting{1 + replace}"
            parts += [
                f"## Setting {1 + replace}",
                "Final evaluation loss, ours (by seed) / published.",
                setting_table(comparisons, replace),
                *(f"![{p}]({p})" for p in pictures if Path(p).name.startswith(name)),
            ]
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = parser_of_logs(__doc__, "runs/retrieval-as-published", compares=True)
    add = parser.add_argument
    add("--out", type=Path, metavar="FILE", help="page to put the tables into, pictures beside it")
    args = parser.parse_args(arguments)
    try:
        ours, published = by_seed(args.logs), read_any(args.published)
        comparisons = compare(ours, published)
        if not comparisons:
            raise CellError(f"no published cell in {args.logs}")
        pictures: list[str] = []
        if args.out:
            folder = args.out.with_suffix("")
            drawn = figures({"fairseq_fwm": ours[1], "published": published}, folder)
            pictures = [f"{folder.name}/{path.name}" for path in drawn]
            save_finals(folder / "final_losses.csv", comparisons)
        text = page(args.logs, comparisons, pictures)
        print(text)
        if args.out:
            put_between_markers(args.out, text, "Associative retrieval")
    except (CellError, ResultsError) as error:
        print(f"results_retrieval.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
