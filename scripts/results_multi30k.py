#!/usr/bin/env python
"""Collect the Multi30k runs' scores into markdown tables, with a paired bootstrap.

Reads `*/result.json` and the translations beside it, as scripts/train_multi30k.sh leaves them.
Prints the tables; `--out FILE` also puts them into FILE between the lines
`<!-- results:start -->` and `<!-- results:end -->`, and leaves the rest of FILE alone.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent))
from lib.mt_scoring import paired_bootstrap  # noqa: E402
from lib.result_tables import (  # noqa: E402
    ResultsError,
    Run,
    distinct,
    duration,
    each,
    load_runs,
    number,
    pairs_by_seed,
    put_between_markers,
    short_commit,
    table,
)

BASELINE = "softmax"
ORDER = [
    "softmax", "elu-sum", "favor-sum", "dpfp-sum", "elu-delta", "dpfp-delta", "sum-everywhere",
    "elu-sum-everywhere",
]  # fmt: skip


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
    lines = [
        f"sacreBLEU signature: {distinct(runs, 'signature')}; "
        f"its reference: {distinct(runs, 'plain_reference')} text.",
        f"Processor: {distinct(runs, 'cpu')}; device: {distinct(runs, 'device')}.",
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
        script = "scripts/train_multi30k.sh"
        runs = load_runs(args.runs, "*/result.json", ORDER, script)
        budgets = sorted({run.result["budget"] for run in runs}, reverse=True)
        text = "\n\n".join(
            section(budget, [run for run in runs if run.result["budget"] == budget])
            for budget in budgets
        )
        print(text)
        if args.out:
            put_between_markers(args.out, text, "Multi30k")
    except ResultsError as error:
        print(f"results_multi30k.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
