#!/usr/bin/env python
"""Collect the Multi30k runs' scores into markdown tables, with a paired bootstrap.

Reads `*/result.json` and the translations beside it, as scripts/train_multi30k.sh leaves them.
Prints the tables; `--out FILE` also puts them into FILE between the lines
`<!-- results:start -->` and `<!-- results:end -->`, and leaves the rest of FILE alone.
"""

import argparse
import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

START, END = "<!-- results:start -->", "<!-- results:end -->"
BASELINE = "softmax"
ORDER = [
    "softmax", "elu-sum", "favor-sum", "dpfp-sum", "elu-delta", "dpfp-delta", "sum-everywhere",
    "elu-sum-everywhere",
]  # fmt: skip


class ResultsError(Exception):
    """The runs at hand cannot be tabulated; the message says why."""


@dataclass(frozen=True)
class Run:
    """One scored run: its `result.json` and its translations."""

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


def load_runs(directory: Path) -> list[Run]:
    """Load every scored run below a directory, softmax first, seeds in order.

    A run is labelled by its directory's name without the seed, so that a run with other flags
    under a name of its own is not mixed with the variant that it started from.
    """
    runs = []
    for path in sorted(directory.glob("*/result.json")):
        label = re.sub(r"-seed\d+(-full)?$", "", path.parent.name)
        runs.append(Run(path.parent, label, json.loads(path.read_text("utf-8"))))
    if not runs:
        raise ResultsError(
            f"no */result.json under {directory}: run scripts/train_multi30k.sh first"
        )
    return sorted(runs, key=lambda run: (*rank(run.label), run.seed))


def rank(label: str) -> tuple[int, str]:
    """Return the sorting key of a label: known variants in their order, then others by name."""
    return (ORDER.index(label) if label in ORDER else len(ORDER), label)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def each(values: Sequence[float]) -> str:
    """Return the mean in bold, followed by the single values where there are several."""
    mean = f"**{fmean(values):.2f}**"
    return mean if len(values) == 1 else f"{mean} ({', '.join(f'{v:.2f}' for v in values)})"


def duration(seconds: float | None) -> str:
    """Return seconds as hours and minutes."""
    if seconds is None:
        return "?"
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d}"


def number(value: float | None, digits: int = 0) -> str:
    """Return a number with thousands separators, or a question mark where none was recorded."""
    return "?" if value is None else f"{value:,.{digits}f}"


def pairs_by_seed(runs: Sequence[Run], baseline: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Return (baseline, run) for every seed that both have."""
    by_seed = {run.seed: run for run in baseline}
    return [(by_seed[run.seed], run) for run in runs if run.seed in by_seed]


def summary_row(label: str, runs: Sequence[Run], baseline: Sequence[Run]) -> list[str]:
    """Return one variant's row of the main table."""
    pairs = pairs_by_seed(runs, baseline)
    if label == BASELINE or not pairs:
        difference = "" if label == BASELINE else "no softmax run of the same seed"
    else:
        value = fmean(run.result["bleu"] - base.result["bleu"] for base, run in pairs)
        difference = f"{value:+.2f}"
    nll = [run.result["last_valid"]["nll_loss"] for run in runs if run.result["last_valid"]]
    speeds = [s for run in runs if (s := run.result["words_per_second"]) is not None]
    return [
        label,
        ", ".join(str(run.seed) for run in runs),
        each([run.result["bleu"] for run in runs]),
        difference,
        each([run.result["sacrebleu"] for run in runs]),
        f"{fmean(nll):.3f}" if nll else "?",
        duration(fmean(run.result["train_wall_seconds"] for run in runs)),
        number(fmean(speeds) if speeds else None),
    ]


SUMMARY_HEADER = [
    "variant", "seeds", "tokenised BLEU", "against softmax", "sacreBLEU", "valid nll",
    "training, h:mm", "words/s",
]  # fmt: skip
BOOTSTRAP_HEADER = ["variant", "seed", "softmax", "variant's BLEU", "difference", "p"]
RUNS_HEADER = [
    "run", "architecture", "updates", "parameters", "best valid nll", "decoding, s", "tokens/s",
    "threads", "torch", "commit", "date",
]  # fmt: skip


def short_commit(commit: str | None) -> str:
    """Shorten a commit, keeping a plus sign where the tree differed from it."""
    if commit is None:
        return "?"
    return commit[:10] + ("+" if commit.endswith("-dirty") else "")


def runs_row(run: Run) -> list[str]:
    """Return one run's row of the table of runs."""
    result = run.result
    best = result["best_valid"]
    return [
        run.directory.name,
        result["arch"],
        number(result["updates"]),
        number(result["parameters"]),
        number(best["nll_loss"] if best else None, 3),
        number(result["decode_seconds"], 1),
        number(result["decode_tokens_per_second"]),
        str(result["threads"] or "?"),
        result["torch"],
        short_commit(result["git_commit"]),
        result["date"][:10],
    ]


def paired_bootstrap(
    baseline: Sequence[str], system: Sequence[str], references: Sequence[str]
) -> tuple[float, float, float]:
    """Compare two translations of the same tokenised text by paired bootstrap resampling.

    Returns:
        BLEU of the baseline, BLEU of the system, and the p-value of their difference.
    """
    from sacrebleu.metrics import BLEU
    from sacrebleu.significance import PairedTest

    metric = BLEU(tokenize="none", force=True)
    test = PairedTest(
        [("baseline", baseline), ("system", system)], {"BLEU": metric}, [references],
        test_type="bs",
    )  # fmt: skip
    _, scores = test()
    first, second = scores["BLEU"]
    # sacreBLEU counts only differences above the observed one: of equals it would find none.
    p_value = 1.0 if first.score == second.score else second.p_value
    return first.score, second.score, p_value


def bootstrap_rows(
    label: str, runs: Sequence[Run], baseline: Sequence[Run], progress: tqdm
) -> list[list[str]]:
    """Return one variant's rows of the bootstrap table: each seed, then all seeds together."""
    comparisons = [(str(run.seed), [(base, run)]) for base, run in pairs_by_seed(runs, baseline)]
    if len(comparisons) > 1:
        comparisons.append(("all", [pair for _, pairs in comparisons for pair in pairs]))
    rows = []
    for name, pairs in comparisons:
        for base, run in pairs:
            if base.lines("ref.tok.de") != run.lines("ref.tok.de"):
                raise ResultsError(
                    f"{base.directory} and {run.directory} were scored on different test sets"
                )
        base_lines = [line for base, _ in pairs for line in base.lines("hyp.tok.de")]
        lines = [line for _, run in pairs for line in run.lines("hyp.tok.de")]
        references = [line for _, run in pairs for line in run.lines("ref.tok.de")]
        first, second, p = paired_bootstrap(base_lines, lines, references)
        rows.append(
            [label, name, f"{first:.2f}", f"{second:.2f}", f"{second - first:+.2f}", f"{p:.3f}"]
        )
        progress.update()
    return rows


def notes(runs: Sequence[Run]) -> str:
    """Say how the scores were made, from the records themselves."""

    def distinct(key: str) -> str:
        return ", ".join(sorted({f"`{run.result[key]}`" for run in runs}))

    lines = [
        f"sacreBLEU signature: {distinct('signature')}; "
        f"its reference: {distinct('plain_reference')} text.",
        f"Processor: {distinct('cpu')}; device: {distinct('device')}.",
    ]
    for label, group in groupby(runs, key=lambda run: run.label):
        command = next((c for run in group if (c := run.result["command"])), None)
        if command:
            lines.append(f"\n{label}:\n\n```\n{command}\n```")
    return "\n".join(lines)


def section(budget: str, runs: Sequence[Run]) -> str:
    """Return the tables of one training budget."""
    baseline = [run for run in runs if run.label == BASELINE]
    groups = [(label, list(group)) for label, group in groupby(runs, key=lambda run: run.label)]
    tested = []
    with tqdm(desc=f"paired bootstrap, {budget} budget", unit="test") as progress:
        for label, group in groups:
            if label != BASELINE:
                tested += bootstrap_rows(label, group, baseline, progress)
    parts = [
        f"## {budget.capitalize()} budget",
        table(SUMMARY_HEADER, (summary_row(label, group, baseline) for label, group in groups)),
        "Differences are means over the seeds that both have.",
    ]
    if tested:
        parts += [
            "### Paired bootstrap against softmax",
            table(BOOTSTRAP_HEADER, tested),
            "sacreBLEU's paired bootstrap (1,000 resamples) on the tokenised text; 'all' is the "
            "seeds' translations one after another.",
        ]
    parts += ["### Runs", table(RUNS_HEADER, map(runs_row, runs)), notes(runs)]
    return "\n\n".join(parts)


def put_between_markers(path: Path, text: str) -> None:
    """Replace what stands between the markers of a file; make the file if there is none.

    Raises:
        ResultsError: the file exists without exactly one pair of markers.
    """
    old = path.read_text("utf-8") if path.exists() else f"# Multi30k\n\n{START}\n{END}\n"
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


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/multi30k"), metavar="DIR",
        help="directory of the runs (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE", help="markdown file to put them into")
    args = parser.parse_args(argv)
    logging.getLogger("sacrebleu").setLevel(logging.WARNING)
    try:
        runs = load_runs(args.runs)
        budgets = sorted({run.result["budget"] for run in runs}, reverse=True)
        text = "\n\n".join(
            section(budget, [run for run in runs if run.result["budget"] == budget])
            for budget in budgets
        )
        print(text)
        if args.out:
            put_between_markers(args.out, text)
    except ResultsError as error:
        print(f"results_multi30k.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
