"""What both benchmarks ask of the machine, and the warnings when it is not so."""

import os
from collections.abc import Iterator

# What scripts/keep_memory.sh sets.
MALLOC = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


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
