"""Sides that take turns in one process, and one side in a process of its own."""

import errno
import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lib.benchmark_conditions import MALLOC, BenchmarkError

Times = dict[str, list[float]]
NO_MEMORY = 3  # exit status of a process that needed more memory than it may have


class TooMuch(BenchmarkError):
    """A side needs more time or memory than it may have; the message says how much that is."""


def measure(
    works: Mapping[str, Any], rounds: int, budget: float, label: str = ""
) -> dict[str, Times]:
    """Run every side once a round, in turns.

    Args:
        works: the sides by name; each is prepared first, untimed.
        rounds: how many rounds; the first warms up, and counts.
        budget: seconds after which no further round begins.
        label: what the progress bar says; none without.

    Returns:
        For every side the CPU and wall seconds of each round.
    """
    times = {name: {"cpu": [], "wall": []} for name in works}
    for work in works.values():
        work.prepare()
    gc.collect()
    gc.freeze()  # what is there now need not be looked through before every run
    start = time.perf_counter()
    with tqdm(
        total=rounds * len(works), desc=label, unit="run", dynamic_ncols=True, disable=not label
    ) as progress:
        for _ in range(rounds):
            for name, work in works.items():
                progress.set_postfix_str(name)
                gc.collect()
                cpu, wall = time.process_time(), time.perf_counter()
                work.run()
                times[name]["cpu"].append(time.process_time() - cpu)
                times[name]["wall"].append(time.perf_counter() - wall)
                progress.update()
            if time.perf_counter() - start > budget:
                break
    gc.unfreeze()
    return times


def clock_of(threads: int) -> str:
    """Return which of the times counts: with one thread CPU time, which leaves others out."""
    return "cpu" if threads == 1 else "wall"


def memory_of_process() -> dict[str, float]:
    """Return this process's memory and its peak, in MB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines if line.startswith(("VmHWM", "VmRSS")))
    return {name: int(value.split()[0]) / 1024 for name, value in values.items()}


def is_lack_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory cannot be had; torch has no type for it."""
    return (
        isinstance(error, MemoryError)
        or getattr(error, "errno", None) == errno.ENOMEM
        or "can't allocate memory" in str(error)
    )


def run_child(text: str, cases: Mapping[str, Any]) -> int:
    """Run one side and print its times and its peak memory; the other end of :func:`alone`.

    Args:
        text: what :func:`alone` sends.
        cases: what can be measured, by kind.

    Returns:
        The exit status.
    """
    import torch

    job = json.loads(text)
    torch.set_num_threads(job["threads"])
    case = cases[job["kind"]](**job["case"])
    work = case.build(job["variant"], job["seed"])
    gc.collect()
    with suppress(OSError):  # not everywhere
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory_of_process()["VmRSS"]
    if job["memory_limit"] is not None:
        limit = int(job["memory_limit"] * 2**20)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        times = measure({"": work}, job["runs"], budget=float("inf"))[""]
    except Exception as error:
        if is_lack_of_memory(error):
            return NO_MEMORY
        raise
    peak = memory_of_process()["VmHWM"]
    found = {"peak_mb": round(peak, 1), "added_mb": round(peak - before, 1)}
    print(json.dumps(times | found | {"tokens": work.tokens, "sentences": work.sentences}))
    return 0


def alone(
    script: str | Path,
    case: Any,
    variant: str,
    *,
    runs: int,
    threads: int,
    seed: int,
    time_limit: float | None = None,
    memory_limit: float | None = None,
) -> dict[str, Any]:
    """Measure one side in a process of its own, with the C library's usual settings.

    Args:
        script: what calls :func:`run_child` when it gets ``--child``.
        case: a dataclass with a ``kind``, a ``name`` and ``build(variant, seed)``.
        variant: which side.
        runs: how often it runs.
        threads: of torch.
        seed: of weights and data.
        time_limit: seconds for the whole process.
        memory_limit: MB of data that it may have while it runs.

    Returns:
        CPU and wall seconds of every run, tokens and sentences of one, the peak memory, and what
        the runs added to the process with the model built.

    Raises:
        TooMuch: the side needs more than a limit.
        BenchmarkError: it failed.
    """
    job = {
        "kind": case.kind, "case": asdict(case), "variant": variant, "runs": runs,
        "threads": threads, "seed": seed, "memory_limit": memory_limit,
    }  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, str(script), "--child", json.dumps(job)],
            # Kept heap would count as used.
            env={name: value for name, value in os.environ.items() if name not in MALLOC},
            capture_output=True,
            text=True,
            timeout=time_limit,
        )
    except subprocess.TimeoutExpired:
        raise TooMuch(f"more than {time_limit:g} s") from None
    if done.returncode == NO_MEMORY:
        raise TooMuch(f"more than {memory_limit / 1024:.1f} GB")
    if done.returncode:
        raise BenchmarkError(f"measuring the memory of {case.name}, {variant}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
