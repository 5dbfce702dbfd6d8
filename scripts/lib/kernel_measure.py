"""Correctness, time and memory of the contestants of scripts/benchmark_kernels.py."""

import argparse
import ctypes
import gc
import json
import math
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq_fwm import ops
from lib.benchmark_conditions import MALLOC
from lib.kernel_peers import CONTEXT, INVERSE, LAYOUTS, Contestant, Problem, arrange

FORWARD, BOTH = "forward", "forward+backward"
CHECKED_ROWS, CHECKED_STEPS = 2, 512


class TooSlow(Exception):
    """The time limit of one run has passed."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`TooSlow` in the block once the time has passed."""

    def stop(*_: object) -> None:
        raise TooSlow(f"its first run took longer than {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def obstacle(contestant: Contestant, problem: Problem, mode: str) -> str | None:
    """Return why a contestant cannot run a problem in sensible time and memory, if so."""
    if mode == FORWARD:
        needed = contestant.bytes_needed if contestant.name.endswith("masked product") else 0
    else:
        needed = contestant.bytes_needed
        if contestant.slices_time and problem.T > 1024:
            return "its backward is quadratic in T: it indexes its inputs step by step"
    free = available_bytes()
    if needed > free / 2:
        return f"would need about {needed / 2**30:.0f} GB, {free / 2**30:.0f} GB are free"
    return None


def available_bytes() -> float:
    """Return how much memory is free, as Linux counts it."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


# --- correctness ---------------------------------------------------------------------------------


def corner(x: Tensor) -> Tensor:
    """Return the part of a tensor in the layout NHT that is compared with the reference."""
    return x[:CHECKED_ROWS, :, :CHECKED_STEPS]


def output_gradient(problem: Problem, seed: int) -> Tensor:
    """Make the gradient of y: zero outside the corner, so that its gradients stay inside."""
    make = torch.Generator().manual_seed(seed + 1)
    g = torch.zeros(problem.N, problem.H, problem.T, problem.V)
    corner(g).copy_(torch.randn(corner(g).shape, generator=make))
    return g


def expected(problem: Problem, seed: int) -> list[Tensor]:
    """Return y and the gradients on the corner from the reference, in fp64."""
    inputs = [corner(x).double().requires_grad_() for x in problem.inputs(seed)]
    op = ops.causal_delta if problem.rule == "delta" else ops.causal_sum
    y, _ = op(*inputs, features=problem.features, impl="reference")
    g = corner(output_gradient(problem, seed)).double()
    return [y.detach(), *torch.autograd.grad(y, inputs, g)]


def relative_error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Return the largest difference, each tensor relative to its own largest number."""
    errors = [
        ((a.double() - b).abs().max() / b.abs().max()).item()
        for a, b in zip(found, wanted, strict=True)
    ]
    return math.inf if any(map(math.isnan, errors)) else max(errors)


def runner(
    contestant: Contestant, leaves: Sequence[Tensor], g: Tensor, mode: str
) -> Callable[[], list[Tensor]]:
    """Return the function that is timed: to y, and to the gradients where they are wanted."""

    def forward() -> list[Tensor]:
        with torch.no_grad():
            return [contestant.run(*leaves)]

    def both() -> list[Tensor]:
        y = contestant.run(*leaves)
        return [y, *torch.autograd.grad(y, leaves, g)]

    return forward if mode == FORWARD else both


def error_of(contestant: Contestant, found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Compare what a runner returned with the reference."""
    back = INVERSE[contestant.layout]
    found = [corner(arrange(x.detach(), back)) for x in found]
    if len(found) > 1:
        found[1] = found[1] * contestant.q_factor
    return relative_error(found, wanted[: len(found)])


def prepare(
    contestant: Contestant, problem: Problem, mode: str, seed: int
) -> tuple[Callable[[], list[Tensor]], Tensor]:
    """Make a contestant's inputs; return what is to be timed, and its gradient of y."""
    leaves = contestant.leaves(problem.inputs(seed))
    g = arrange(output_gradient(problem, seed), LAYOUTS[contestant.layout])
    return runner(contestant, leaves, g, mode), g


def check(
    contestant: Contestant, problem: Problem, mode: str, seed: int, wanted: Sequence[Tensor]
) -> tuple[Callable[[], list[Tensor]], float | None]:
    """Run a contestant once on the whole problem.

    Returns:
        What is to be timed, and the error on the corner (None for a function of its own).
    """
    run, g = prepare(contestant, problem, mode, seed)
    found = run()
    error = None if contestant.role == CONTEXT else error_of(contestant, found, wanted)
    g.normal_()  # from now on a gradient everywhere
    return run, error


# --- time ----------------------------------------------------------------------------------------


def once(run: Callable[[], Any], clock: Callable[[], float], repeats: int = 1) -> float:
    """Return the seconds of one run, or of one of several in a row."""
    start = clock()
    for _ in range(repeats):
        result = run()
    seconds = (clock() - start) / repeats
    del result
    return seconds


def in_turns(
    runs: dict[str, Callable[[], Any]],
    rounds: int,
    budget: float,
    keep: Callable[[dict[str, float]], set[str]] = set,
    target_seconds: float = 0.0,
) -> dict[str, list[float]]:
    """Time functions in turns, by the CPU time of the process.

    Args:
        runs: the functions by name.
        rounds: how many rounds.
        budget: seconds after which no further round begins.
        keep: from the best times so far to those that are measured in all rounds; the others
            (too slow to matter) in two.
        target_seconds: repeat short functions for about as long within a round.

    Returns:
        For every name its seconds in each round.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    repeats = {
        name: max(1, round(target_seconds / max(once(run, time.process_time), 1e-7)))
        for name, run in runs.items()
        if target_seconds
    }
    start, active = time.perf_counter(), set(runs)
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            if i and time.perf_counter() - start > budget:
                break
            if i == 2:
                active = keep({name: min(found) for name, found in times.items()}) or active
            for name in [name for name in runs if name in active]:
                times[name].append(once(runs[name], time.process_time, repeats.get(name, 1)))
    finally:
        gc.enable()
    return times


def by_threads(
    run: Callable[[], Any], threads: Sequence[int], rounds: int
) -> dict[int, list[float]]:
    """Return the wall seconds of a function for each number of threads, in turns."""
    before = torch.get_num_threads()
    times: dict[int, list[float]] = {n: [] for n in threads}
    try:
        for _ in range(rounds):
            for n in threads:
                torch.set_num_threads(n)
                run()  # the threads have to start first
                times[n].append(once(run, time.perf_counter))
    finally:
        torch.set_num_threads(before)
    return times


# --- the peak of the processor -------------------------------------------------------------------

FMA_LOOP = """
typedef float vec __attribute__((vector_size(WIDTH)));
#define EACH(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11)
#define DECLARE(i) vec a##i = y * (float)i;
#define STEP(i) a##i = a##i * x + y;
#define ADD(i) sum += a##i;
extern "C" float fma_loop(long n, float factor, float added) {
  vec x = vec{} + factor, y = vec{} + added, sum = {};
  EACH(DECLARE)
  for (long t = 0; t < n; ++t) { EACH(STEP) }
  EACH(ADD)
  return sum[0];
}
"""
FLAGS = {
    "avx512": (64, ["-mavx512f"]),
    "avx2": (32, ["-mavx2", "-mfma"]),
    "baseline": (16, []),
}


@cache
def fma_loop(isa: str) -> tuple[Callable[..., float], int] | None:
    """Compile a loop that only multiplies and adds in registers; None without a C++ compiler."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        return None
    width, flags = FLAGS[isa]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "fma.so")
        command = [compiler, "-x", "c++", "-O3", *flags, f"-DWIDTH={width}", "-shared", "-fPIC"]
        done = subprocess.run([*command, "-", "-o", library], input=FMA_LOOP.encode())
        if done.returncode:
            return None
        loop = ctypes.CDLL(str(library)).fma_loop
    loop.argtypes = [ctypes.c_long, ctypes.c_float, ctypes.c_float]
    loop.restype = ctypes.c_float
    return loop, 12 * width // 4 * 2


def peak_gflops(isa: str) -> dict[str, float]:
    """Measure one thread's peak in GF/s: a loop in registers, and torch's matrix product."""
    found = {}
    compiled = fma_loop(isa)
    if compiled:
        loop, flops = compiled
        n = 1_000_000
        best = min(once(lambda: loop(n, 0.999, 0.001), time.process_time) for _ in range(5))
        found["fma_loop"] = n * flops / best / 1e9
    a = torch.rand(1024, 1024)
    best = min(once(lambda: torch.mm(a, a), time.process_time) for _ in range(3))
    return found | {"torch_mm": 2 * 1024**3 / best / 1e9}


# --- memory --------------------------------------------------------------------------------------


def tensor_bytes(problem: Problem, seed: int, mode: str) -> tuple[int, int]:
    """Return the bytes of the inputs, and of all that has to be: with y, and with gradients."""
    inputs = sum(x.nbytes for x in problem.inputs(seed))
    y = 4 * problem.N * problem.H * problem.T * problem.V
    return inputs, inputs + y + (inputs if mode == BOTH else 0)


def saved_bytes(contestant: Contestant, problem: Problem, seed: int) -> int:
    """Return the bytes of the different tensors that the forward keeps for the backward."""
    storages = {}

    def note(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    leaves = contestant.leaves(problem.inputs(seed))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        y = contestant.run(*leaves)
    del y
    return sum(storages.values())


def memory_kb(name: str) -> int:
    """Return a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def added_bytes(run: Callable[[], Any]) -> int:
    """Return how far a run raises the memory of this process, at its highest."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory_kb("VmRSS")
    result = run()
    peak = memory_kb("VmHWM") - before
    del result
    return 1024 * peak


def peak_bytes(script: Path, job: dict[str, Any]) -> int | None:
    """Measure what a run allocates at its highest, in a process of its own; None if it cannot."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    # Every tensor above the threshold goes back to the system as soon as it is freed.
    env |= {"MALLOC_MMAP_THRESHOLD_": "32768", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), "--child", json.dumps(job)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        print(f"memory not measured: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


# --- the machine ---------------------------------------------------------------------------------


def environment(args: argparse.Namespace) -> dict[str, Any]:
    """Describe the machine, the versions and the command."""
    import torch

    from fairseq_fwm import kernels_status
    from lib.run_record import cpu_model, git_commit, now

    status = kernels_status()
    words = ["DIR" if word == str(args.peers) else word for word in args.argv]
    return {
        "date": now(),
        "command": shlex.join(["python", "scripts/benchmark_kernels.py", *words]),
        "quick": args.quick,
        "rounds": args.rounds,
        "seed": args.seed,
        "cpu": cpu_model(),
        "family": cpu_family(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "isa": torch.ops.fwm.cpu_isa() if status["extension"] else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": git_commit(),
        "peers": peer_versions(),
        "malloc": {name: os.environ.get(name) for name in MALLOC},
    }


def cpu_family() -> str:
    """Return family and model of the processor, which its name may not tell apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    found = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    return f"family {found.get('cpu family', '?')}, model {found.get('model', '?')}"


def peer_versions() -> dict[str, str]:
    """Return the versions of the public packages that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in (
        "transformers", "flash-linear-attention", "fla-core", "pytorch-fast-transformers",
        "dpfp-pytorch",
    ):  # fmt: skip
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
