#!/usr/bin/env python3
"""Measure the CUDA kernels against flash-linear-attention and softmax attention, on a GPU.

Forward, and forward with backward, of the sum and the delta rule, general and chunkwise, over
sequences of 256 to 16384 steps with as many tokens in every batch. Correctness first: outputs
and gradients on a corner of every problem are compared with the fp64 reference of the rounded
inputs, and who computes something else is not timed. Those that remain take turns; before every
run the second-level cache is overwritten; the median of the rounds counts. Softmax attention
(SDPA) is another function, there for its speed.

`pip install flash-linear-attention` for the peers; what cannot be imported is left out with the
reason. Writes a JSON file after every case and prints the tables. `--device cpu` is for trying the
script itself; its numbers mean nothing.
"""

import argparse
import gc
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from torch import Tensor

from fairseq_fwm import kernels_status, ops
from lib.benchmark_conditions import BenchmarkError, quieten
from lib.cuda_contestants import Entrant, entrants
from lib.data_files import write_json
from lib.kernel_measure import corner, error_of, output_gradient, runner
from lib.kernel_peers import CONTEXT, LAYOUTS, OURS, PEER, Problem, arrange, reason
from lib.result_tables import short_commit, table
from lib.run_record import cpu_model, git_commit, now

FORWARD, BOTH = "forward", "forward+backward"
STEPS = (256, 1024, 4096, 16384)
SIZES = (64, 128)
CHANNELS = 1024  # of all heads together
DTYPES = ("bfloat16", "float16", "float32")
TOLERANCES = {"bfloat16": 5e-2, "float16": 2e-2, "float32": 5e-3}  # float32 may be tf32
CACHE = 256 << 20  # bytes that overwrite any second-level cache
WARM_UP = 3

Case = dict[str, Any]


def problems(args: argparse.Namespace) -> Iterator[Problem]:
    """Yield the problems: as many tokens in each."""
    for rule in args.rules:
        for size in args.sizes:
            for steps in args.steps:
                batch = max(1, args.tokens // steps)
                heads = max(1, CHANNELS // size) if args.tokens >= 1024 else 2
                yield Problem(f"D{size} T{steps}", rule, batch, heads, steps, size, size)


def rounded(problem: Problem, dtype: torch.dtype, seed: int) -> tuple[Tensor, ...]:
    """Return the inputs as the dtype holds them, in fp32."""
    return tuple(x.to(dtype).float() for x in problem.inputs(seed))


def expected(problem: Problem, dtype: torch.dtype, seed: int) -> list[Tensor]:
    """Return y and the gradients on the corner from the fp64 reference."""
    inputs = [corner(x).double().requires_grad_() for x in rounded(problem, dtype, seed)]
    op = ops.causal_delta if problem.rule == "delta" else ops.causal_sum
    y, _ = op(*inputs, impl="reference")
    g = corner(output_gradient(problem, seed)).to(dtype).double()
    return [y.detach(), *torch.autograd.grad(y, inputs, g)]


def prepare(
    entrant: Entrant, problem: Problem, mode: str, dtype: torch.dtype, args: argparse.Namespace
) -> tuple[Callable[[], list[Tensor]], Tensor]:
    """Make an entrant's inputs on the device; return what is timed, and its gradient of y."""
    inputs = tuple(x.to(args.device, dtype) for x in rounded(problem, dtype, args.seed))
    leaves = entrant.leaves(inputs)
    g = output_gradient(problem, args.seed).to(args.device, dtype)
    g = arrange(g, LAYOUTS[entrant.layout])
    run = runner(entrant, leaves, g, mode)

    def under_conditions() -> list[Tensor]:
        with entrant.conditions():
            return run()

    return under_conditions, g


class Clock:
    """Times one run: by the GPU's own events, or on the CPU by the wall clock."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self._cache = torch.empty(CACHE, dtype=torch.int8, device=device) if self._cuda else None

    def seconds(self, run: Callable[[], Any]) -> float:
        """Return how long a run takes with nothing in the second-level cache."""
        if not self._cuda:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._cache.zero_()
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3

    def peak_bytes(self, run: Callable[[], Any]) -> int | None:
        """Return how much more device memory than before a run holds at its peak."""
        if not self._cuda:
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


def measure(problem: Problem, mode: str, dtype_name: str, args: argparse.Namespace) -> Case:
    """Check and time everybody on one problem."""
    dtype = getattr(torch, dtype_name)
    wanted = expected(problem, dtype, args.seed)
    everybody, missing = entrants(problem, args.device)
    clock = Clock(args.device)
    entries, runs = [], {}
    for entrant in everybody:
        entry: Case = {"name": entrant.name, "role": entrant.role, "error": None, "seconds": []}
        try:
            run, g = prepare(entrant, problem, mode, dtype, args)
            found = run()
            if entrant.role != CONTEXT:
                found = [x.float().cpu() for x in found]
                entry["error"] = error_of(entrant, found, wanted)
            if entrant.role == CONTEXT or entry["error"] <= TOLERANCES[dtype_name]:
                g.normal_()  # from now on a gradient everywhere
                entry["peak_bytes"] = clock.peak_bytes(run)
                runs[entrant.name] = run
        except Exception as error:  # no memory, a dtype that a package refuses
            missing[entrant.name] = reason(error)
            continue
        finally:
            found = None
        entries.append(entry)
    times = in_turns(runs, clock, args.rounds, args.budget)
    for entry in entries:
        entry["seconds"] = times.get(entry["name"], [])
    return {
        "problem": asdict(problem), "mode": mode, "dtype": dtype_name,
        "contestants": entries, "missing": missing,
    }  # fmt: skip


def in_turns(
    runs: dict[str, Callable], clock: Clock, rounds: int, budget: float
) -> dict[str, list[float]]:
    """Return everybody's seconds in each round; no further round after ``budget`` seconds."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    for run in runs.values():
        for _ in range(WARM_UP):
            run()
    gc.collect()
    for i in range(rounds):
        if i and time.perf_counter() - start > budget:
            break
        for name, run in runs.items():
            times[name].append(clock.seconds(run))
    return times


# ---- tables


def pages(record: dict[str, Any]) -> str:
    """Return the tables, one for each rule, dtype and mode."""
    about = record["environment"]
    parts = [
        f"{about['date'][:10]}, commit {short_commit(about['commit'])}, {about['device']}, "
        f"torch {about['torch']}:\n\n    {about['command']}",
        "Milliseconds, the median; the fastest of those that compute the same is in bold.",
    ]
    groups: dict[tuple[str, str, str], list[Case]] = {}
    for case in record["cases"]:
        key = (case["problem"]["rule"], case["dtype"], case["mode"])
        groups.setdefault(key, []).append(case)
    for (rule, dtype, mode), cases in groups.items():
        parts += [f"### {rule}, {dtype}, {mode}", _times(cases)]
        parts.append("\n".join(f"- {line}" for line in _remarks(cases)))
    return "\n\n".join(parts)


def _times(cases: Sequence[Case]) -> str:
    names = list(dict.fromkeys(entry["name"] for case in cases for entry in case["contestants"]))
    rows = []
    for case in cases:
        problem = case["problem"]
        times = {e["name"]: statistics.median(e["seconds"]) for e in _timed(case)}
        same = [t for e in _timed(case) if e["role"] != CONTEXT for t in [times[e["name"]]]]
        peer = min((times[e["name"]] for e in _timed(case) if e["role"] == PEER), default=None)
        mine = min((times[e["name"]] for e in _timed(case) if e["role"] == OURS), default=None)
        cells = [_cell(times.get(name), min(same, default=None)) for name in names]
        ratio = f"{peer / mine:.2f}" if peer and mine else ""
        sizes = [str(problem["K"]), str(problem["T"]), f"{problem['N']} x {problem['H']}"]
        rows.append([*sizes, *cells, ratio])
    header = ["D", "T", "batch x heads", *names, "best peer / ours"]
    return table(header, rows)


def _timed(case: Case) -> list[Case]:
    return [entry for entry in case["contestants"] if entry["seconds"]]


def _cell(seconds: float | None, best: float | None) -> str:
    if seconds is None:
        return ""
    text = f"{1e3 * seconds:.3g}"
    return f"**{text}**" if seconds == best else text


def _remarks(cases: Sequence[Case]) -> Iterator[str]:
    """Yield who computes something else, who is missing, and the largest errors."""
    worst: dict[str, float] = {}
    for case in cases:
        for entry in case["contestants"]:
            if entry["error"] is not None:
                worst[entry["name"]] = max(entry["error"], worst.get(entry["name"], 0.0))
    listed = ", ".join(f"{name} {error:.1e}" for name, error in worst.items())
    if listed:
        yield f"largest error, relative: {listed}"
    limit = TOLERANCES[cases[0]["dtype"]]
    for name, error in worst.items():
        if not error <= limit:
            yield f"{name} is off by more than {limit:g} and was not timed where it is"
    told = {(name, why) for case in cases for name, why in case["missing"].items()}
    yield from (f"without {name}: {why}" for name, why in sorted(told))


def environment(args: argparse.Namespace) -> dict[str, Any]:
    """Describe the machine, the versions and the command."""
    cuda = args.device == "cuda"
    return {
        "date": now(),
        "command": shlex.join(["python", "scripts/benchmark_cuda.py", *args.argv]),
        "commit": git_commit(),
        "device": torch.cuda.get_device_name() if cuda else f"{cpu_model()} (no GPU)",
        "capability": list(torch.cuda.get_device_capability()) if cuda else None,
        "torch": torch.__version__,
        "cuda_archs": kernels_status()["cuda_archs"],
        "rounds": args.rounds,
        "seed": args.seed,
    }


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=Path, default=Path("runs/benchmark_cuda.json"), metavar="FILE",
        help="what is measured (default %(default)s)")  # fmt: skip
    add("--from-json", type=Path, metavar="FILE", help="only print the tables of FILE")
    add("--rules", nargs="+", choices=("sum", "delta"), default=["sum", "delta"])
    add("--modes", nargs="+", choices=(FORWARD, BOTH), default=[FORWARD, BOTH])
    add("--dtypes", nargs="+", choices=DTYPES, default=["bfloat16", "float32"])
    add("--sizes", nargs="+", type=int, default=list(SIZES), metavar="D",
        help="key and value features (default: %(default)s)")  # fmt: skip
    add("--steps", nargs="+", type=int, default=list(STEPS), metavar="T",
        help="lengths of the sequences (default: %(default)s)")  # fmt: skip
    add("--tokens", type=int, default=32768, help="of a batch, at least one sequence")
    add("--rounds", type=int, default=20, help="times that everybody runs (default %(default)s)")
    add("--budget", type=float, default=30, metavar="SECONDS",
        help="begin no further round of a case after this time (default %(default)s)")  # fmt: skip
    add("--seed", type=int, default=1, help="default %(default)s")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the script itself")
    return parser


def check_machine(args: argparse.Namespace) -> None:
    """Raise :class:`BenchmarkError` unless there is a GPU with kernels for it."""
    if args.device == "cpu":
        return
    if not torch.cuda.is_available():
        raise BenchmarkError("torch finds no GPU here: 'python -m fairseq_fwm.doctor' tells more")
    status = kernels_status()
    if status["reason"]:
        raise BenchmarkError(f"{status['reason']}: {status['cure']}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    from tqdm import tqdm

    quieten()
    args = make_parser().parse_args(argv)
    args.argv = sys.argv[1:] if argv is None else list(argv)
    if args.from_json:
        print(pages(json.loads(args.from_json.read_text("utf-8"))))
        return 0
    try:
        check_machine(args)
    except BenchmarkError as error:
        print(f"benchmark_cuda.py: error: {error}", file=sys.stderr)
        return 1
    record: dict[str, Any] = {"environment": environment(args), "cases": []}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    plan = list(product(args.dtypes, problems(args), args.modes))
    with tqdm(plan, unit="case", dynamic_ncols=True) as bar:
        for dtype, problem, mode in bar:
            bar.set_description(f"{problem.name} {problem.rule} {dtype} {mode}")
            record["cases"].append(measure(problem, mode, dtype, args))
            write_json(args.json, record)
    print(pages(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
