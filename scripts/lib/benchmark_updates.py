"""Compare ways to do the same training updates: the frame of benchmark_{retrieval,recurrent}.py.

Sides take turns in one process, with the same parameters and the same batches; an update is the
forward pass, the backward pass and Adam's step.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lib.benchmark_conditions import environment, warnings_beside
from lib.benchmark_sides import clock_of, measure
from lib.data_files import write_json


class Updates:
    """A model and its optimizer; a run is a number of updates.

    Args:
        model: what is trained.
        batches: makes the batches of a run, the same ones for every side.
        loss: (model, batch) -> what is minimised.
        lr: Adam's.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Callable[[], list[Any]],
        loss: Callable[[nn.Module, Any], Tensor],
        lr: float,
    ) -> None:
        self.model, self._make, self._loss = model, batches, loss
        self._optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        self.losses: list[float] = []

    def prepare(self) -> None:
        """Make the batches and warm up."""
        self._batches = self._make()
        self._update(self._batches[0])

    def run(self) -> None:
        """Do the updates."""
        for batch in self._batches:
            self._update(batch)

    def _update(self, batch: Any) -> None:
        loss = self._loss(self.model, batch)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self.losses.append(loss.item())


def make_parser(description: str | None, batch_size: int, updates: int) -> argparse.ArgumentParser:
    """Return a command line with what these benchmarks share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--batch-size", type=int, default=batch_size, help="per update (default %(default)s)")
    add("--updates", type=int, default=updates, help="per round (default %(default)s)")
    add("--rounds", type=int, default=7, help="default %(default)s")
    add("--threads", type=int, default=1, help="default %(default)s")
    add("--seed", type=int, default=1, help="default %(default)s")
    add("--out", type=Path, metavar="FILE", help="write the result to FILE, too")
    return parser


def begin(args: argparse.Namespace, script: str, argv: Sequence[str]) -> dict[str, Any]:
    """Set threads, warn of what disturbs, and return what a result says of its circumstances."""
    args.argv, args.quick = list(argv), False
    torch.set_num_threads(args.threads)
    for warning in warnings_beside(args.threads):
        print(f"warning: {warning}", file=sys.stderr)
    return environment(Path(script).name, args)


def compare(
    works: Mapping[str, Updates], args: argparse.Namespace, label: str
) -> dict[str, dict[str, float]]:
    """Measure all sides against the one named ``loop``.

    Raises:
        SystemExit: a side's losses are not those of the loop.
    """
    times = measure(works, args.rounds, budget=600.0, label=label)
    expected = works["loop"].losses[: args.updates]
    for name, work in works.items():
        found = work.losses[: args.updates]
        if not np.allclose(found, expected, rtol=1e-3):
            raise SystemExit(f"{label}: {name} computes something else: {found}, not {expected}")
    clock = clock_of(args.threads)
    seconds = {name: statistics.median(t[clock]) / args.updates for name, t in times.items()}
    return {
        "updates_per_second": {name: 1 / value for name, value in seconds.items()},
        "ratio_to_loop": {name: seconds["loop"] / value for name, value in seconds.items()},
    }


def finish(result: dict[str, Any], out: Path | None) -> None:
    """Print a result, and write it if asked for."""
    print(json.dumps(result, indent=2))
    if out:
        write_json(out, result)
