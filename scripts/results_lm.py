#!/usr/bin/env python3
"""Collect the runs of train_lm.sh into markdown tables and pictures, one section for each corpus.

Reads every result.json below a directory. Prints the tables; `--out FILE` also puts them into
FILE between the lines `<!-- results:start -->` and `<!-- results:end -->`, leaves the rest of FILE
alone and draws the validation curves of each corpus into the directory FILE without its suffix.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from lib.lm_curves import draw  # noqa: E402
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
TRUNCATED = [
    "softmax", "elu-sum", "elu-delta", "dpfp-sum", "dpfp-delta", "favor-sum", "favor-delta",
]  # fmt: skip
ORDER = [
    *TRUNCATED, *(f"{name}-no-positions" for name in TRUNCATED), "elu-sum-streaming",
    "elu-sum-no-attn-norm-streaming", "elu-delta-streaming", "dpfp-delta-streaming",
    "transformer-xl",
]  # fmt: skip
UNITS = {
    "word": "perplexity",
    "piece": "perplexity per piece",
    "character": "bits per character",
    "byte": "bits per byte",
}
Score = Callable[[Run], float | None]


def quantity_of(run: Run) -> str:
    """Return what a run's numbers are."""
    return UNITS.get(run.result["unit"], "perplexity")


def digits_of(run: Run) -> int:
    """Return how many digits of a run's numbers mean something."""
    return 3 if quantity_of(run).startswith("bits") else 2


def evaluation(run: Run, method: str | None, limit: int | None) -> dict[str, Any]:
    """Return how a run did by a method (None: any) on so many first tokens (None: all)."""
    for found in run.result["evaluations"]:
        if found["limit"] == limit and method in (None, found["method"]):
            return found
    return {}


def score(run: Run, method: str | None = None, limit: int | None = None) -> float | None:
    """Return bits per character, or perplexity, of :func:`evaluation`; None if there is none."""
    found = evaluation(run, method, limit)
    return found.get("bits_per_token", found.get("perplexity"))


def with_context(limit: int) -> Score:
    """Return a score in which each of the first tokens has all the context the model takes."""

    def best(run: Run) -> float | None:
        sliding = score(run, "sliding", limit)
        return score(run, "streaming", limit) if sliding is None else sliding

    return best


def scores(runs: Sequence[Run], which: Score) -> list[float]:
    """Return the scores of the runs that have one."""
    return [value for run in runs if (value := which(run)) is not None]


def relative(runs: Sequence[Run], baseline: Sequence[Run], which: Score) -> str:
    """Return the relative difference from a baseline: the mean over the seeds that both have."""
    pairs = [(which(base), which(run)) for base, run in pairs_by_seed(runs, baseline)]
    found = [100 * (b / a - 1) for a, b in pairs if a is not None and b is not None]
    if not found:
        return "?"
    return f"{fmean(found):+.1f} %" if math.isfinite(sum(found)) else "breaks down"


def differences(label: str, groups: dict[str, list[Run]], which: Score) -> list[str]:
    """Return a variant's differences from softmax and from the sum rule of its feature map."""
    runs, rival = groups[label], label.replace("-delta", "-sum")
    softmax = "" if label == BASELINE else relative(runs, groups.get(BASELINE, []), which)
    return [softmax, "" if rival == label else relative(runs, groups.get(rival, []), which)]


def seeds(runs: Sequence[Run]) -> str:
    """Return the seeds, those that diverged marked."""
    marks = ["" if run.result.get("diverged") is None else "†" for run in runs]
    return ", ".join(f"{run.seed}{mark}" for run, mark in zip(runs, marks, strict=True))


def mean_of(runs: Sequence[Run], get: Callable[[Run], float | None], digits: int = 0) -> str:
    """Return the mean of what was recorded of the runs."""
    found = scores(runs, get)
    return number(fmean(found) if found else None, digits)


def summary_header(quantity: str) -> list[str]:
    """Return the header of the main table."""
    return [
        "variant", "seeds", "context", quantity, *(["per word"] if "piece" in quantity else []),
        "against softmax", "against sum", "best valid", "parameters", "training, h:mm", "tokens/s",
        "state per layer",
    ]  # fmt: skip


def best_valid(run: Run) -> float | None:
    """Return the best validation in the unit of the run."""
    best = run.result["best_valid"]
    if best is None:
        return None
    return best["loss"] if quantity_of(run).startswith("bits") else 2.0 ** best["loss"]


def summary_row(label: str, groups: dict[str, list[Run]]) -> list[str]:
    """Return one variant's row of the main table."""
    runs = groups[label]
    whole = [evaluation(run, None, None) for run in runs]
    found, digits = scores(runs, score), digits_of(runs[0])
    words = [e["perplexity_per_word"] for e in whole if "perplexity_per_word" in e]
    return [
        label,
        seeds(runs),
        ", ".join(sorted({e["method"] for e in whole if e})),
        each(found, digits) if found else "diverged",
        *([number(fmean(words), 2) if words else "?"] if "piece" in quantity_of(runs[0]) else []),
        *differences(label, groups, score),
        mean_of(runs, best_valid, digits),
        ", ".join(sorted({number(run.result["parameters"]) for run in runs})),
        duration(fmean(times) if (times := scores(runs, wall_seconds)) else None),
        mean_of(runs, lambda run: run.result["tokens_per_second"]),
        ", ".join(sorted({number(e["state_per_layer"]) for e in whole if e})),
    ]


def wall_seconds(run: Run) -> float | None:
    """Return how long training took, validation included."""
    return run.result.get("train_wall_seconds")


FIRST_HEADER = [
    "variant", "seeds", "segments", "sliding", "streaming", "against softmax", "against sum",
    "segments, tokens/s", "sliding, tokens/s", "streaming, tokens/s",
]  # fmt: skip
METHODS = ("segments", "sliding", "streaming")


def first_row(label: str, groups: dict[str, list[Run]], limit: int) -> list[str]:
    """Return one variant's row of the table of the first tokens."""
    runs = groups[label]
    digits = digits_of(runs[0])

    def cell(get: Callable[[dict[str, Any]], float | None], method: str, digits: int) -> str:
        found = [get(e) for run in runs if (e := evaluation(run, method, limit))]
        return number(fmean(found), digits) if found else ""

    value = [cell(lambda e: e.get("bits_per_token", e["perplexity"]), m, digits) for m in METHODS]
    speed = [cell(lambda e: e["tokens_per_second"], method, 0) for method in METHODS]
    return [label, seeds(runs), *value, *differences(label, groups, with_context(limit)), *speed]


def first_tables(groups: dict[str, list[Run]]) -> list[str]:
    """Return the tables of the first tokens, one for each number of them."""
    every = [e for runs in groups.values() for run in runs for e in run.result["evaluations"]]
    parts = []
    for limit in sorted({e["limit"] for e in every if e["limit"] is not None}):
        measured = {
            label: [
                run for run in runs if any(e["limit"] == limit for e in run.result["evaluations"])
            ]
            for label, runs in groups.items()
        }
        measured = {label: runs for label, runs in measured.items() if runs}
        parts += [
            f"### The first {limit:,} test tokens",
            table(FIRST_HEADER, (first_row(label, measured, limit) for label in measured)),
            "Differences compare what gives each token all the context that the model takes: "
            "sliding, or streaming where the state is carried.",
        ]
    return parts


RUNS_HEADER = [
    "run", "architecture", "updates", "segment", "best at update", "test, s", "threads", "torch",
    "commit", "date",
]  # fmt: skip


def runs_row(run: Run) -> list[str]:
    """Return one run's row of the table of runs."""
    result, whole = run.result, evaluation(run, None, None)
    updates = result.get("updates") if result.get("diverged") is None else result["diverged"]
    return [
        run.directory.name,
        result.get("arch", "?"),
        number(updates) + ("" if result.get("diverged") is None else ", diverged"),
        number(whole.get("length")),
        number(result["best_valid"]["updates"] if result["best_valid"] else None),
        number(whole.get("seconds"), 1),
        str(result["threads"]),
        result["torch"],
        short_commit(result["git_commit"]),
        result["date"][:10],
    ]


def corpus_of(run: Run) -> str:
    """Return the name of the data that a run was trained on."""
    return run.result["corpus"] + (", small" if run.result["data_settings"].get("small") else "")


def section(corpus: str, runs: Sequence[Run], picture: str | None) -> str:
    """Return the tables of one corpus.

    Raises:
        ResultsError: the runs were trained on different data.
    """
    for run in runs:
        if run.result["data_sha256"] != runs[0].result["data_sha256"]:
            raise ResultsError(
                f"{runs[0].directory} and {run.directory} were trained on different data of the "
                f"same name ({corpus}): tabulate them apart, with --runs"
            )
    groups = {label: list(group) for label, group in groupby(runs, key=lambda run: run.label)}
    quantity = quantity_of(runs[0])
    tokens = sorted({e["tokens"] for r in runs if (e := evaluation(r, None, None))})
    parts = [
        f"## {corpus}",
        table(summary_header(quantity), (summary_row(label, groups) for label in groups)),
        f"Test split: {' or '.join(map(number, tokens)) or '?'} tokens. Differences are relative, "
        "means over the seeds that both have; less is better; '?': no seed to compare. Streaming "
        "sees more than segments do; how it compares with full windows is in the next table. "
        "Training time includes validation, tokens/s do not.",
    ]
    if any(run.result.get("diverged") is not None for run in runs):
        parts.append("† training diverged: the best checkpoint before that, if there is one.")
    if picture:
        parts.append(f"![Validation, {quantity}, against updates]({picture})")
    parts += [*first_tables(groups), "### Runs", table(RUNS_HEADER, map(runs_row, runs))]
    parts.append(f"Processor: {distinct(runs, 'cpu')}; device: {distinct(runs, 'device')}.")
    for label, group in groups.items():
        parts.append(f"{label}:\n\n```\n{group[0].result['command']}\n```")
    return "\n\n".join(parts)


def pages(runs: Sequence[Run], out: Path | None) -> str:
    """Return all sections; draw the pictures beside the page."""
    by_corpus = sorted(runs, key=corpus_of)  # keeps the order within a corpus
    parts = []
    for corpus, group in groupby(by_corpus, key=corpus_of):
        members, picture = list(group), None
        if out:
            path = out.with_suffix("") / f"{corpus.replace(', ', '-')}.png"
            if draw(members, quantity_of(members[0]), corpus, path):
                picture = f"{path.parent.name}/{path.name}"
        parts.append(section(corpus, members, picture))
    return "\n\n".join(parts)


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--runs", type=Path, default=Path("runs/lm"), metavar="DIR",
        help="directory of the runs, at any depth (default %(default)s)")  # fmt: skip
    add("--out", type=Path, metavar="FILE", help="markdown file to put them into")
    args = parser.parse_args(argv)
    try:
        runs = load_runs(args.runs, "**/result.json", ORDER, "scripts/train_lm.sh")
        text = pages(runs, args.out)
        print(text)
        if args.out:
            put_between_markers(args.out, text, "Language modelling")
    except ResultsError as error:
        print(f"results_lm.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
