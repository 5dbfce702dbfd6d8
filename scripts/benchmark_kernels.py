#!/usr/bin/env python3
"""Measure the CPU kernels of the causal updates against everything public that does the same.

Modes:
  forward            whole sequences, no gradients
  forward+backward   whole sequences and the gradients of q, k, v and beta
  decode             one step with the state in place, also with a beam's reordering
  fused              DPFP and the delta rule in one op against one after the other
  threads            two threads against one, wall time

Correctness comes first: every contestant's output and gradients are compared with the fp64
reference; a wrong one is called a "different function" and is not raced against. Those who compute
the same take turns in one process and one thread, each in its own native layout; the smallest CPU
time counts. The peak memory is measured in a process of its own. "Nominal" flops are 4 N H T K V
(sum) and 6 (delta) forward, 14 and 20 with the backward, whatever is really executed.

Peers that cannot be imported are left out with the reason; `--peers DIR` adds a folder made by
`pip install --target DIR`. Writes a JSON file after every case, a picture beside it, and prints
the tables; `--page FILE` puts them between the lines `<!-- results:start -->` and
`<!-- results:end -->` of FILE, JSON and picture into the folder of the same name beside it.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

MODES = ("forward", "forward+backward", "decode", "fused", "threads")
SHAPES = {  # batch, heads, time, key features, value features
    "small32": (32, 8, 256, 32, 16),
    "small96": (32, 8, 256, 96, 16),
    "mt": (64, 8, 48, 128, 64),
    "mt384": (64, 8, 48, 384, 64),
    "medium": (8, 8, 384, 64, 32),
    "long4k64": (1, 8, 4096, 64, 64),
    "long16k64": (1, 8, 16384, 64, 64),
}
STEPS = {  # batch, heads, key features, value features, beam
    "B1 128x64": (1, 8, 128, 64, 0),
    "B40 128x64": (40, 8, 128, 64, 0),
    "B40 128x64 reordered": (40, 8, 128, 64, 5),
    "B1 32x16": (1, 8, 32, 16, 0),
    "B40 384x64": (40, 8, 384, 64, 0),
}
FLOPS = {("sum", "forward"): 4, ("sum", "forward+backward"): 14,
         ("delta", "forward"): 6, ("delta", "forward+backward"): 20}  # fmt: skip
HOPELESS = 3  # times the best peer's time: measured in two rounds only
STEP_SECONDS = 0.01  # steps of one round

Case = dict[str, Any]


def sequence_problems(args: argparse.Namespace, fused: bool = False) -> Iterator[Any]:
    """Yield the problems over whole sequences, of raw q and k for DPFP if ``fused``."""
    from lib.kernel_peers import Problem

    for name in args.shapes:
        N, H, T, K, V = args.sizes[name]
        if args.quick:
            N, T = 1, min(T, 64)
        if not fused:
            yield from (Problem(name, rule, N, H, T, K, V) for rule in ("sum", "delta"))
        elif K % (2 * V) == 0 and (name.startswith("small") or name not in SHAPES):
            yield Problem(name, "delta", N, H, T, K, V, nu=K // (2 * V))


def step_problems(args: argparse.Namespace) -> Iterator[Any]:
    """Yield the decoding steps."""
    from lib.kernel_steps import StepProblem

    for name, (N, H, K, V, beam) in STEPS.items():
        if args.quick and N > 1:
            N, K = 5, 32
        yield from (StepProblem(name, rule, N, H, K, V, beam) for rule in ("sum", "delta"))


def planned(args: argparse.Namespace) -> list[tuple[Any, Any, str]]:
    """Return the cases: the function that measures one, its problem and its mode."""
    whole = [mode for mode in MODES[:2] if mode in args.modes]
    plan = [(measure_sequence, p, mode) for p in sequence_problems(args) for mode in whole]
    if "fused" in args.modes:
        fused = list(sequence_problems(args, fused=True))
        plan += [(measure_sequence, p, mode) for p in fused for mode in MODES[:2]]
    if "decode" in args.modes:
        plan += [(measure_step, p, "decode") for p in step_problems(args)]
    if "threads" in args.modes:
        plan += [(measure_threads, p, m) for p in sequence_problems(args) for m in MODES[:2]]
    return plan


def measure_sequence(problem: Any, mode: str, args: argparse.Namespace, bar: Any) -> Case:
    """Check and time everything that computes a problem."""
    from lib import kernel_measure as measure
    from lib.kernel_peers import contestants, reason

    found, missing = contestants(problem, args.compile)
    wanted = measure.expected(problem, args.seed)
    entries, runs = [], {}
    for one in found:
        bar.set_postfix_str(f"checking {one.name}")
        entry: dict[str, Any] = {"name": one.name, "role": one.role, "seconds": []}
        entries.append(entry)
        entry["not_run"] = measure.obstacle(one, problem, mode)
        if entry["not_run"]:
            continue
        try:
            with measure.time_limit(args.time_limit):
                runs[one.name], entry["error"] = measure.check(
                    one, problem, mode, args.seed, wanted
                )
                if problem.nu and mode == measure.BOTH:
                    entry["saved_bytes"] = measure.saved_bytes(one, problem, args.seed)
        except Exception as error:  # other people's packages may raise anything
            entry["not_run"] = reason(error)
    bar.set_postfix_str("timing")
    time_contestants(entries, runs, args)
    runs.clear()
    inputs, all_bytes = measure.tensor_bytes(problem, args.seed, mode)
    case = {
        "kind": "fused" if problem.nu else "sequence", "problem": asdict(problem), "mode": mode,
        "flops": FLOPS[problem.rule, mode] * problem.states_bytes // 4,
        "input_bytes": inputs, "tensor_bytes": all_bytes, "missing": missing,
        "contestants": entries,
    }  # fmt: skip
    if args.memory:
        add_memory(case, args, bar)
    return case


def time_contestants(
    entries: Sequence[dict[str, Any]], runs: dict[str, Any], args: argparse.Namespace
) -> None:
    """Time the runs in turns and put the seconds into the entries."""
    from lib import kernel_measure as measure
    from lib.kernel_report import is_correct

    by_name = {entry["name"]: entry for entry in entries}

    def keep(best: dict[str, float]) -> set[str]:
        rivals = [
            seconds for name, seconds in best.items()
            if by_name[name]["role"] == "peer" and is_correct(by_name[name])
        ]  # fmt: skip
        limit = HOPELESS * min(rivals, default=float("inf"))
        ours = {name for name in best if by_name[name]["role"] == "ours"}
        return ours | {name for name, seconds in best.items() if seconds <= limit}

    for name, seconds in measure.in_turns(runs, args.rounds, args.budget, keep).items():
        by_name[name]["seconds"] = seconds


def add_memory(case: Case, args: argparse.Namespace, bar: Any) -> None:
    """Measure the peak memory of ours and of the best peer."""
    from lib import kernel_measure as measure
    from lib.kernel_report import best_peer, ours

    for entry in filter(None, (ours(case), best_peer(case))):
        if entry["name"].startswith("torch.compile"):
            continue
        bar.set_postfix_str(f"memory of {entry['name']}")
        job = {"problem": case["problem"], "mode": case["mode"], "name": entry["name"],
               "seed": args.seed, "peers": args.peers and str(args.peers)}  # fmt: skip
        entry["peak_bytes"] = measure.peak_bytes(Path(__file__), job)


def run_child(text: str) -> None:
    """Print the peak memory of one contestant; the other end of kernel_measure.peak_bytes."""
    import torch

    from lib import kernel_measure as measure
    from lib.kernel_peers import Problem, contestants

    job = json.loads(text)
    add_peers(job["peers"])
    torch.set_num_threads(1)
    problem = Problem(**job["problem"])
    small = replace(problem, N=1, T=min(problem.T, 64))
    for size in (small, problem):  # the small one loads what is loaded once
        one = next(x for x in contestants(size)[0] if x.name == job["name"])
        run, _ = measure.prepare(one, size, job["mode"], job["seed"])
        added = measure.added_bytes(run)
    print(added)


def measure_step(problem: Any, mode: str, args: argparse.Namespace, bar: Any) -> Case:
    """Check and time everything that does a decoding step."""
    import torch

    from lib import kernel_measure as measure
    from lib.kernel_peers import reason
    from lib.kernel_steps import steppers

    found, missing = steppers(problem)
    y, S = problem.expected(args.seed)
    entries, runs = [], {}
    for one in found:
        bar.set_postfix_str(one.name)
        entry: dict[str, Any] = {"name": one.name, "role": one.role, "seconds": []}
        entries.append(entry)
        try:
            with torch.no_grad():
                runs[one.name] = step = one.make(problem.inputs(args.seed))
                found_y, found_S = step()
            if one.role != "context":
                results = (found_y.reshape(y.shape), found_S.reshape(S.shape))
                entry["error"] = measure.relative_error(results, (y, S))
        except Exception as error:  # other people's packages may raise anything
            entry["not_run"] = reason(error)
            runs.pop(one.name, None)
    seconds = 0.001 if args.quick else STEP_SECONDS
    with torch.no_grad():
        times = measure.in_turns(runs, args.rounds, args.budget, target_seconds=seconds)
    for entry in entries:
        entry["seconds"] = times.get(entry["name"], [])
    return {"kind": "decode", "problem": asdict(problem), "mode": mode, "missing": missing,
            "state_bytes": problem.state_bytes, "contestants": entries}  # fmt: skip


def measure_threads(problem: Any, mode: str, args: argparse.Namespace, bar: Any) -> Case:
    """Time this project's op with one thread and with two."""
    from lib import kernel_measure as measure
    from lib.kernel_peers import ours

    run, g = measure.prepare(next(ours(problem)), problem, mode, args.seed)
    g.normal_()
    times = measure.by_threads(run, (1, 2), args.rounds)
    return {"kind": "threads", "problem": asdict(problem), "mode": mode, "seconds": times}


def add_peers(folder: str | Path | None) -> None:
    """Let packages of a folder be found, after those that are installed."""
    if folder and str(folder) not in sys.path:
        sys.path.append(str(folder))


def run_all(args: argparse.Namespace) -> None:
    """Measure the chosen cases; the file is written after every one."""
    import torch
    from tqdm import tqdm

    from lib import kernel_measure as measure
    from lib.data_files import write_json

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    described = measure.environment(args)
    record: dict[str, Any] = {"environment": described, "peak_gflops": {}, "cases": []}
    isa = described["isa"] or "baseline"
    args.json.parent.mkdir(parents=True, exist_ok=True)
    with tqdm(planned(args), unit="case", dynamic_ncols=True) as bar:
        for function, problem, mode in bar:
            bar.set_description(f"{problem.name} {problem.rule} {mode}")
            for name, value in measure.peak_gflops(isa).items():
                record["peak_gflops"][name] = max(value, record["peak_gflops"].get(name, 0))
            record["cases"].append(function(problem, mode, args, bar))
            write_json(args.json, record)


def shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read NAME=N,H,T,K,V."""
    name, _, sizes = text.partition("=")
    numbers = tuple(map(int, sizes.split(",")))
    if not name or len(numbers) != 5 or min(numbers) < 1:
        raise ValueError(text)
    return name, numbers


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shapes", nargs="+", metavar="NAME",
        help=f"any of: {', '.join(SHAPES)} (default: all)")  # fmt: skip
    add("--shape", type=shape, action="append", default=[], metavar="NAME=N,H,T,K,V",
        help="another shape: batch, heads, time, key features, value features")  # fmt: skip
    add("--modes", nargs="+", choices=MODES, default=list(MODES), metavar="MODE",
        help=f"any of: {', '.join(MODES)} (default: all)")  # fmt: skip
    add("--rounds", type=int, help="times that everybody runs (default 15; quick: 2)")
    add("--budget", type=float, default=60, metavar="SECONDS",
        help="begin no further round of a case after this time (default %(default)s)")  # fmt: skip
    add("--time-limit", type=float, default=60, metavar="SECONDS",
        help="leave out who takes longer for the first run (default %(default)s)")  # fmt: skip
    add(
        "--compile",
        action="store_true",
        help="also torch.compile of the chunk form (slow to compile; --time-limit holds)",
    )
    add("--no-memory", dest="memory", action="store_false", help="leave the memory out")
    add("--peers", type=Path, metavar="DIR", help="folder with packages to compare with")
    add("--seed", type=int, default=1, help="default %(default)s")
    add(
        "--quick",
        action="store_true",
        help="batch 1, at most 64 steps, no memory: to see that it works, nothing more",
    )
    add("--json", type=Path, metavar="FILE",
        help="where the measurements are kept (default runs/benchmark_kernels/results.json, or "
        "beside the page)")  # fmt: skip
    add("--page", type=Path, metavar="FILE", help="markdown page to put the tables into")
    add("--from-json", type=Path, metavar="FILE",
        help="measure nothing: make tables, page and picture of FILE again")  # fmt: skip
    add("--child", help=argparse.SUPPRESS)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line and fill in the defaults that depend on each other."""
    parser = make_parser()
    args = parser.parse_args(argv)
    args.argv = list(argv)
    args.rounds = args.rounds or (2 if args.quick else 15)
    args.memory = args.memory and not args.quick
    args.sizes = SHAPES | dict(args.shape)
    args.shapes = args.shapes or list(dict(args.shape)) or list(SHAPES)
    unknown = [name for name in args.shapes if name not in args.sizes]
    if unknown:
        parser.error(f"unknown shape {', '.join(unknown)}: one of {', '.join(args.sizes)}")
    folder = args.page.with_suffix("") if args.page else Path("runs/benchmark_kernels")
    args.json = args.json or folder / "results.json"
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    # What the packages that are compared with say about themselves would break the progress bar.
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    args = parse(sys.argv[1:] if argv is None else argv)
    if args.child is not None:
        run_child(args.child)
        return 0
    from lib.benchmark_conditions import warnings_of
    from lib.kernel_report import report
    from lib.result_tables import ResultsError

    add_peers(args.peers)
    if not args.from_json:
        for text in warnings_of(most_load=0.7):
            print(f"benchmark_kernels: warning: {text}", file=sys.stderr)
        run_all(args)
    try:
        return report(args.from_json or args.json, args.page)
    except ResultsError as error:
        print(f"benchmark_kernels: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
