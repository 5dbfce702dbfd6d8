#!/usr/bin/env python3
"""Compare fairseq_fwm.nn.DPFPformer with others that have its call shapes.

One forward and backward pass of three layers on random vectors:

  fairseq_fwm    the module as it is
  loop           the same module, whose delta rule is a Python loop over time steps: what autograd
                 differentiates keeps a memory of every step
  dpfp-pytorch   that package's DPFPAttention (pip install dpfp-pytorch==0.3.0 einops) in our
                 blocks, because its DPFPformer raises a TypeError: a DIFFERENT FUNCTION on the
                 CPU, where every position reads what the last one left

Sides take turns in one process; memory is what a pass adds to a process of its own.

  source scripts/keep_memory.sh
  python scripts/benchmark_modules.py --page docs/results/modules.md
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path[:0] = map(str, (Path(__file__).resolve().parent, Path(__file__).resolve().parents[1]))
import torch  # noqa: E402

from lib.benchmark_conditions import BenchmarkError, quieten  # noqa: E402
from lib.benchmark_sides import alone, clock_of, measure, run_child  # noqa: E402
from lib.benchmark_updates import begin  # noqa: E402
from lib.data_files import write_json  # noqa: E402
from lib.result_tables import put_between_markers, short_commit, table  # noqa: E402

quieten()
from torch import nn  # noqa: E402

from fairseq_fwm.nn import DPFPformer  # noqa: E402

PEER = "dpfp-pytorch"
LABELS = {
    "fairseq_fwm": "fairseq_fwm",
    "loop": "the same as a loop over time steps",
    PEER: "dpfp-pytorch 0.3.0 (another function: not causal)",
}


class Pass:
    """A model and its input; a run is a forward and a backward pass."""

    def __init__(self, model: nn.Module, x: torch.Tensor) -> None:
        self.model, self.x = model, x
        self.tokens, self.sentences = x.shape[0] * x.shape[1], x.shape[0]

    def prepare(self) -> None:
        """Nothing to do."""

    def run(self) -> None:
        """Differentiate the sum of what comes out by the input and all parameters."""
        self.x.grad = None
        self.model.zero_grad()
        self.model(self.x).sum().backward()


@dataclass
class Size:
    """A DPFPformer and its input."""

    dim: int = 128
    depth: int = 3
    nu: int = 1
    batch: int = 16
    length: int = 512
    kind: str = "modules"
    name: str = "DPFPformer"

    def build(self, side: str, seed: int) -> Pass:
        """Return a side, ready to run.

        Raises:
            BenchmarkError: its package is not installed.
        """
        torch.manual_seed(seed)
        model = DPFPformer(self.dim, self.depth, nu=self.nu)
        for layer in model.layers:
            if side == "loop":
                mixer = layer.attention.mixer
                mixer.config = replace(mixer.config, impl="reference")
            elif side == PEER:
                layer.attention = Peer(self.dim, self.nu)
        x = torch.randn(self.batch, self.length, self.dim, requires_grad=True)
        return Pass(model, x)


class Peer(nn.Module):
    """The peer's attention behind the surface of ours."""

    def __init__(self, dim: int, nu: int) -> None:
        super().__init__()
        try:
            from dpfp_pytorch import DPFPAttention
        except ImportError as error:
            raise BenchmarkError(
                f"{PEER} is not there ({error}): pip install {PEER}==0.3.0 einops"
            ) from None
        self.attention = DPFPAttention(dim, nu=nu)

    def forward(self, x: torch.Tensor, *_: Any) -> torch.Tensor:
        """Attend, from an empty memory."""
        return self.attention(x, x.new_zeros(self.attention.get_memory_shape(len(x))))[0]


def compare(size: Size, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Measure all sides that are there; check that the loop computes the same."""
    works: dict[str, Pass] = {}
    for side in LABELS:
        try:
            works[side] = size.build(side, args.seed)
        except BenchmarkError as reason:
            print(f"left out: {reason}", file=sys.stderr)
    with torch.no_grad():
        x = works["loop"].x[:, :16]
        torch.testing.assert_close(works["fairseq_fwm"].model(x), works["loop"].model(x))
    # Memory first: what this process has had it may keep.
    options = {"runs": 2, "threads": args.threads, "seed": args.seed}
    found = {
        side: {"added_mb": alone(Path(__file__), size, side, **options)["added_mb"]}
        for side in works
    }
    clock = clock_of(args.threads)
    for side, times in measure(works, args.rounds, 1200.0, "passes").items():
        found[side]["seconds"] = min(times[clock][1:] or times[clock])
    for side in found:
        found[side]["times_ours"] = found[side]["seconds"] / found["fairseq_fwm"]["seconds"]
    return found


def page(found: dict[str, dict[str, Any]], size: Size, about: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    rows = [
        [
            LABELS[side],
            f"{1e3 * one['seconds']:,.0f}",
            f"{one['times_ours']:.1f}",
            f"{one['added_mb']:,.0f}",
        ]
        for side, one in found.items()
    ]
    what = f"`DPFPformer({size.dim}, {size.depth}, nu={size.nu})`"
    head = (
        f"{what}, forward and backward, batch {size.batch}, T = {size.length}, "
        f"threads: {about['threads']}, {about['cpu']}, torch {about['torch']}, seed "
        f"{about['seed']}, {about['date'][:10]}, load {about['load']} at the start, "
        f"{'freed memory kept' if about['kept_heap'] else 'freed memory returned to the kernel'}, "
        f"commit {short_commit(about['commit'])}:"
    )
    header = ["", "ms", "times as long as ours", "memory added, MB"]
    return "\n\n".join([head, f"    {about['command']}", table(header, rows)])


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    plain = Size()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dim", type=int, default=plain.dim, help="default %(default)s")
    add("--depth", type=int, default=plain.depth, help="layers (default %(default)s)")
    add("--nu", type=int, default=plain.nu, help="of DPFP (default %(default)s)")
    add("--batch", type=int, default=plain.batch, help="sequences (default %(default)s)")
    add("--length", type=int, default=plain.length, help="T (default %(default)s)")
    add("--rounds", type=int, default=4, help="the first warms up (default %(default)s)")
    add("--threads", type=int, default=1, help="default %(default)s")
    add("--seed", type=int, default=1, help="default %(default)s")
    add("--out", type=Path, metavar="FILE", help="write the numbers to FILE")
    add("--page", type=Path, metavar="FILE", help="put the table between the markers of FILE")
    add("--child", help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = make_parser().parse_args(arguments)
    if args.child:
        return run_child(args.child, {"modules": Size})
    about = begin(args, __file__, arguments or sys.argv[1:])
    size = Size(args.dim, args.depth, args.nu, args.batch, args.length)
    found = compare(size, args)
    text = page(found, size, about)
    print(text)
    if args.out:
        write_json(args.out, about | {"sides": found})
    if args.page:
        put_between_markers(args.page, text, "Modules without fairseq")
    return 0


if __name__ == "__main__":
    sys.exit(main())
