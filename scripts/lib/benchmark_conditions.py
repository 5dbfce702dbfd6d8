"""What the benchmarks ask of the machine, the warnings when it is not so, and what they record."""

import argparse
import logging
import os
import shlex
import warnings
from collections.abc import Iterator
from typing import Any

from lib.fairseq_jobs import KEEP_MEMORY

MALLOC = tuple(KEEP_MEMORY)  # what scripts/keep_memory.sh sets


class BenchmarkError(Exception):
    """Nothing to measure, or not what was asked for; the message says why."""


def heap_is_kept() -> bool:
    """Return whether scripts/keep_memory.sh was sourced."""
    return all(name in os.environ for name in MALLOC)


def warnings_of(most_load: float) -> Iterator[str]:
    """Yield what makes the numbers to come worth less; ``most_load`` is what may run beside."""
    from fairseq_fwm import kernels_status

    status = kernels_status()
    if not status["extension"]:
        yield f"no compiled kernels ({status['reason']}): {status['cure']}"
    if not heap_is_kept():
        yield (
            "freed memory goes back to the kernel, which costs every side time; run "
            "'source scripts/keep_memory.sh' first"
        )
    if os.getloadavg()[0] > most_load:
        yield "other processes are busy: caches and memory bandwidth are shared with them"


def warnings_beside(threads: int) -> Iterator[str]:
    """Yield the same for measurements on so many threads: the other cores may be busy."""
    spare = (os.cpu_count() or 1) - threads
    return warnings_of(most_load=max(0.5, spare + 0.5))


def environment(script: str, args: argparse.Namespace) -> dict[str, Any]:
    """Describe the machine, the versions and the command.

    Args:
        script: name of the file.
        args: the command line; ``argv`` as it was given, ``quick``, ``threads`` and ``seed``.
    """
    import torch

    from fairseq_fwm import kernels_status
    from lib.run_record import cpu_model, git_commit, now

    status = kernels_status()
    return {
        "date": now(),
        "command": shlex.join(["python", f"scripts/{script}", *args.argv]),
        "quick": args.quick,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "threads": args.threads,
        "isa": torch.ops.fwm.cpu_isa() if status["extension"] else None,
        "torch": torch.__version__,
        "commit": git_commit(),
        "seed": args.seed,
        "kept_heap": heap_is_kept(),
    }


def quieten() -> None:
    """Keep what fairseq and hydra say about themselves away from the progress bars."""
    logging.basicConfig(level=logging.WARNING)
    warnings.filterwarnings("ignore", module=r"(hydra|fairseq|torch)\.")
    warnings.filterwarnings("ignore", message=r"\s*'config' is validated against ConfigStore")
