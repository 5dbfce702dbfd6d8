"""What the results_*.py scripts share: runs that are loaded, and tables that go into a page."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

START, END = "<!-- results:start -->", "<!-- results:end -->"


class ResultsError(Exception):
    """The runs at hand cannot be tabulated; the message says why."""


@dataclass(frozen=True)
class Run:
    """One finished run: its `result.json` and what lies beside it."""

    directory: Path
    label: str
    result: dict[str, Any]

    @property
    def seed(self) -> int:
        """The random seed."""
        return self.result["seed"]

    def lines(self, name: str) -> list[str]:
        """Return the lines of one of the run's text files."""
        return (self.directory / name).read_text("utf-8").split("\n")[:-1]


def load_runs(directory: Path, pattern: str, order: Sequence[str], script: str) -> list[Run]:
    """Load every finished run below a directory, known variants in order, seeds in order.

    A run is labelled by its directory's name without the seed, so that a run with other flags
    under a name of its own is not mixed with the variant that it started from.

    Args:
        directory: where the runs are.
        pattern: of the results below it.
        order: known variants.
        script: what to run, for the error.

    Raises:
        ResultsError: there is none.
    """
    runs = []
    for path in sorted(directory.glob(pattern)):
        label = re.sub(r"-seed\d+(-full)?$", "", path.parent.name)
        runs.append(Run(path.parent, label, json.loads(path.read_text("utf-8"))))
    if not runs:
        raise ResultsError(f"no {pattern} under {directory}: run {script} first")
    return sorted(runs, key=lambda run: (*rank(run.label, order), run.seed))


def rank(label: str, order: Sequence[str]) -> tuple[int, str]:
    """Return the sorting key of a label: known variants in their order, then others by name."""
    return (order.index(label) if label in order else len(order), label)


def pairs_by_seed(runs: Sequence[Run], baseline: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Return (baseline, run) for every seed that both have."""
    by_seed = {run.seed: run for run in baseline}
    return [(by_seed[run.seed], run) for run in runs if run.seed in by_seed]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def each(values: Sequence[float], digits: int = 2) -> str:
    """Return the mean in bold, followed by the single values where there are several."""
    mean = f"**{number(fmean(values), digits)}**"
    single = ", ".join(number(value, digits) for value in values)
    return mean if len(values) == 1 else f"{mean} ({single})"


def duration(seconds: float | None) -> str:
    """Return seconds as hours and minutes."""
    if seconds is None:
        return "?"
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d}"


def number(value: float | None, digits: int = 0) -> str:
    """Return a number with thousands separators, or a question mark where none was recorded."""
    return "?" if value is None else f"{value:,.{digits}f}"


def short_commit(commit: str | None) -> str:
    """Shorten a commit, keeping a plus sign where the tree differed from it."""
    if commit is None:
        return "?"
    return commit[:10] + ("+" if commit.endswith("-dirty") else "")


def distinct(runs: Sequence[Run], key: str) -> str:
    """Return the different values of an entry, as code."""
    return ", ".join(sorted({f"`{run.result[key]}`" for run in runs}))


def put_between_markers(path: Path, text: str, title: str = "Results") -> None:
    """Replace what stands between the markers of a file; make the file if there is none.

    Raises:
        ResultsError: the file exists without exactly one pair of markers.
    """
    old = path.read_text("utf-8") if path.exists() else f"# {title}\n\n{START}\n{END}\n"
    head, start, rest = old.partition(START)
    _, end, tail = rest.partition(END)
    if not start or not end or START in rest or END in tail:
        raise ResultsError(
            f"{path} needs exactly one line {START} and one line {END} after it; "
            "the tables go between them"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(f"{head}{START}\n\n{text}\n\n{END}{tail}", "utf-8")
    os.replace(temporary, path)
