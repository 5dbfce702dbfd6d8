#!/usr/bin/env python3
"""Measure language models against the length T of the text: softmax and fast weights, on a CPU.

training    tokens/s of fairseq's trainer (forward, cross entropy over 1,000 words, backward,
            Adam), fwm_transformer_lm_tiny on one sequence of T random words, or on as many as
            make --tokens; every sequence begins from an empty context
evaluation  tokens/s of scoring a text of T words as scripts/eval_lm.py does, and the memory it
            adds to a process with the model built: softmax in one window of T words, fast weights
            in segments of --segment words that carry their state along

Beside them transformer_xl_lm_tiny, with a memory as long as its segment: it trains on streams, in
updates of --tokens words whatever T, and evaluates segment by segment.

Every training runs first in a process of its own, where its memory is measured; what takes more
than --time-limit or --memory-limit there is not measured at that T nor at longer ones, and the
table says so. Then the sides take turns in one process. The evaluations run in --processes
processes of their own, in turns; memory is the median. Of all times the smallest counts: CPU time
with one thread, else wall time.

Writes OUT/{training,evaluation}.json after every T, OUT/language_modeling_speed.png, and prints
the tables; `--page FILE` puts them between the lines `<!-- results:start -->` and
`<!-- results:end -->` of FILE.
"""

import argparse
import gc
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from lib import benchmark_conditions  # noqa: E402
from lib.benchmark_conditions import BenchmarkError, environment, quieten  # noqa: E402
from lib.benchmark_sides import TooMuch, alone, measure, run_child  # noqa: E402

SECTIONS = ("training", "evaluation")
LENGTHS, QUICK_LENGTHS = [256, 1024, 4096, 16384], [1024, 4096]
RUNS_ALONE = 2  # the optimiser's state is there from the second update on

Sides = dict[str, dict[str, Any]]
Missing = dict[str, str]


def make_cases(args: argparse.Namespace) -> list[Any]:
    """Return the cases of the chosen sections, short texts first."""
    from lib.benchmark_lm_cases import Evaluation, Training

    make = {
        "training": lambda length: Training(length, args.tokens, args.segment),
        "evaluation": lambda length: Evaluation(length, args.segment),
    }
    return [make[section](length) for section in args.only for length in args.lengths]


def measure_alone(
    case: Any, names: Sequence[str], processes: int, args: argparse.Namespace
) -> tuple[Sides, Missing]:
    """Measure sides in processes of their own, in turns.

    Returns:
        Times of all processes and median memory of every side; why the others have none.
    """
    from tqdm import tqdm

    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    missing: Missing = {}
    turns = [name for _ in range(processes) for name in names]
    for name in tqdm(turns, desc=f"{case.name}, alone", unit="process", dynamic_ncols=True):
        if name in missing:
            continue
        try:
            found[name].append(alone(
                __file__, case, name, runs=RUNS_ALONE, threads=args.threads, seed=args.seed,
                time_limit=args.time_limit, memory_limit=args.memory_limit * 1024,
            ))  # fmt: skip
        except TooMuch as error:
            missing[name] = str(error)
    return {name: combine(found[name]) for name in names if name not in missing}, missing


def combine(processes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what several processes measured of one side."""
    side = dict(processes[0])
    for clock in ("cpu", "wall"):
        side[clock] = [seconds for one in processes for seconds in one[clock]]
    for memory in ("peak_mb", "added_mb"):
        side[memory] = median(one[memory] for one in processes)
    return side


def run_case(case: Any, args: argparse.Namespace, given_up: Missing) -> dict[str, Any]:
    """Measure all sides of a case but those that were given up."""
    names = [name for name in args.variants if name not in given_up]
    training = case.kind == "training"
    sides, missing = measure_alone(case, names, 1 if training else args.processes, args)
    if training:
        works = {name: case.build(name, args.seed) for name in sides}
        for name, times in measure(works, args.rounds, args.budget, case.name).items():
            sides[name] |= times
        works.clear()
        gc.collect()
    return {
        "kind": case.kind, "shape": asdict(case), "sides": sides, "missing": given_up | missing,
    }  # fmt: skip


def run_all(args: argparse.Namespace) -> None:
    """Measure the chosen sections; each one's file is written after every case."""
    from lib.data_files import write_json

    described = environment(Path(__file__).name, args)
    args.out.mkdir(parents=True, exist_ok=True)
    done: dict[str, list[dict[str, Any]]] = {section: [] for section in args.only}
    given_up: dict[str, Missing] = {section: {} for section in args.only}
    for case in make_cases(args):
        found = run_case(case, args, given_up[case.kind])
        done[case.kind].append(found)
        given_up[case.kind] |= {
            name: f"{reason} at T = {case.length}"
            for name, reason in found["missing"].items()
            if name not in given_up[case.kind]
        }
        alone_always = {"kept_heap": False} if case.kind == "evaluation" else {}
        record = {"environment": described | alone_always, "cases": done[case.kind]}
        write_json(args.out / f"{case.kind}.json", record)


def available_gb() -> float:
    """Return the memory that a new process could have, in GB (Linux)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith("MemAvailable"))
    return int(value) / 2**20


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION",
        help=f"any of: {', '.join(SECTIONS)} (default: both)")  # fmt: skip
    add("--variants", nargs="+", metavar="NAME",
        help="what to compare (default: softmax, elu-sum, elu-delta, dpfp-delta, "
        "transformer-xl)")  # fmt: skip
    add("--lengths", nargs="+", type=positive, metavar="T",
        help="default: 256 1024 4096 16384; quick: 1024 4096")  # fmt: skip
    add("--tokens", type=positive, help="words of an update (default 4096; quick: 1024)")
    add("--segment", type=positive, default=256,
        help="words of a segment and of Transformer-XL's memory (default %(default)s)",
        )  # fmt: skip
    add("--rounds", type=positive, help="runs of each training (default 5; quick: 2)")
    add("--processes", type=positive,
        help=f"of each evaluation; each scores the text {RUNS_ALONE} times (default 3; quick: 1)",
        )  # fmt: skip
    add("--budget", type=float, default=600, metavar="SECONDS",
        help="begin no further round of a training after this time (default %(default)s)",
        )  # fmt: skip
    add("--time-limit", type=float, default=300, metavar="SECONDS",
        help=f"for a process that does {RUNS_ALONE} updates, or scores its text as often "
        "(default %(default)s)")  # fmt: skip
    add("--memory-limit", type=float, metavar="GB",
        help="for such a process (default: 80%% of what is available at the start)")  # fmt: skip
    add("--threads", type=positive, default=1, help="default %(default)s")
    add("--seed", type=int, default=1, help="default %(default)s")
    add("--quick", action="store_true",
        help="minutes instead of half an hour, to see that it works; its numbers mean little",
        )  # fmt: skip
    add("--out", type=Path, default=Path("runs/benchmark_lm"), metavar="DIR",
        help="where the measurements are kept (default %(default)s)")  # fmt: skip
    add("--page", type=Path, metavar="FILE", help="markdown page to put the tables into")
    add("--from-json", type=Path, metavar="DIR",
        help="measure nothing: make tables and picture of DIR again")  # fmt: skip
    add("--child", help=argparse.SUPPRESS)
    return parser


def positive(text: str) -> int:
    """Read a number greater than zero."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not greater than zero")
    return value


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line and fill in the defaults that depend on each other."""
    parser = make_parser()
    args = parser.parse_args(argv)
    args.argv = list(argv)
    args.lengths = sorted(set(args.lengths or (QUICK_LENGTHS if args.quick else LENGTHS)))
    args.tokens = args.tokens or (1024 if args.quick else 4096)
    args.rounds = args.rounds or (2 if args.quick else 5)
    args.processes = args.processes or (1 if args.quick else 3)
    if args.child is None and args.from_json is None:
        from lib.benchmark_lm_cases import VARIANTS

        args.memory_limit = args.memory_limit or 0.8 * available_gb()
        args.variants = args.variants or list(VARIANTS)
        if unknown := set(args.variants) - set(VARIANTS):
            parser.error(f"unknown variant {', '.join(unknown)}: one of {', '.join(VARIANTS)}")
        if "training" in args.only and args.tokens < args.segment:
            parser.error(f"{args.tokens} words an update hold no segment of {args.segment}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    quieten()
    args = parse(sys.argv[1:] if argv is None else argv)
    if args.child is not None:
        from lib.benchmark_lm_cases import CASES

        return run_child(args.child, CASES)
    from lib.benchmark_lm_report import report
    from lib.result_tables import ResultsError

    try:
        if args.from_json is None:
            measure_all(args)
        report(args.from_json or args.out, args.page)
    except (BenchmarkError, ResultsError) as error:
        print(f"benchmark_lm: error: {error}", file=sys.stderr)
        return 1
    return 0


def measure_all(args: argparse.Namespace) -> None:
    """Warn of what makes the numbers worth less, then measure."""
    import torch

    torch.set_num_threads(args.threads)
    for text in benchmark_conditions.warnings_beside(args.threads):
        print(f"benchmark_lm: warning: {text}", file=sys.stderr)
    run_all(args)


if __name__ == "__main__":
    sys.exit(main())
