"""Many small trainings in few processes: each imports fairseq once, not once per training."""

import contextlib
import logging
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

# For workers' glibc: keep freed memory (scripts/keep_memory.sh).
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}


def fairseq_train(command: list[str]) -> None:
    """Run fairseq-train in this process."""
    from fairseq import checkpoint_utils
    from fairseq_cli.train import cli_main, should_stop_early

    # fairseq keeps the best loss so far on its functions: that of another run means nothing here.
    for function in (checkpoint_utils.save_checkpoint, should_stop_early):
        vars(function).pop("best", None)
    sys.argv = ["fairseq-train", *command]
    cli_main()


def fairseq_preprocess(flags: list[str]) -> None:
    """Run fairseq-preprocess in this process; it logs to its file only."""
    from fairseq import options
    from fairseq_cli import preprocess

    log = preprocess.logger
    before = list(log.handlers)
    log.propagate = False
    log.setLevel(logging.INFO)
    try:
        preprocess.main(options.get_preprocessing_parser().parse_args(flags))
    finally:
        for handler in set(log.handlers) - set(before):
            log.removeHandler(handler)
            handler.close()


def quietly(work: Callable[[], Any], output: Path) -> tuple[Any, str | None]:
    """Do something with all output in a file, which is removed if it went well.

    Returns:
        What the work returns, and None; or None and the output, if it failed.
    """
    with to_file(output):
        try:
            result, failed = work(), False
        except (Exception, SystemExit):
            traceback.print_exc()
            result, failed = None, True
    said = output.read_text(errors="replace") if failed else None
    output.unlink()
    return result, said


@contextlib.contextmanager
def to_file(path: Path) -> Iterator[None]:
    """Send all output of this process to a file; loggers hold on to the old streams."""
    kept = [os.dup(stream) for stream in (1, 2)]
    with path.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for stream, old in zip((1, 2), kept, strict=True):
                os.dup2(old, stream)
                os.close(old)


def one_thread() -> None:
    """Set a worker up: trainings run side by side, each on one thread."""
    import torch

    torch.set_num_threads(1)


def in_processes(
    work: Callable[[Any], Any], items: list[Any], jobs: int, waiting: Callable[[], None]
) -> Iterable[Any]:
    """Yield the results of work on every item as they come; call `waiting` every second."""
    if not items:
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["LOGLEVEL"] = "WARNING"  # fairseq's lines would be most of the work
    for name, value in KEEP_MEMORY.items():
        os.environ.setdefault(name, value)
    context = multiprocessing.get_context("spawn")
    with context.Pool(max(1, min(jobs, len(items))), one_thread) as pool:
        results = pool.imap_unordered(work, items)
        for _ in items:
            while True:
                try:
                    yield results.next(timeout=1.0)
                    break
                except multiprocessing.TimeoutError:
                    waiting()
