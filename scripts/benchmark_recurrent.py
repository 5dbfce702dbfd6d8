#!/usr/bin/env python3
"""Compare training updates of Recurrent Delta and SRWM with a loop over time steps in PyTorch.

The formal-language model (scripts/formal.py's defaults: one layer of width 32, 4 heads) on batches
of parity strings, by the compiled kernel and by the reference, in turns in one process, with the
same parameters and batches; an update is the forward pass, the backward pass and Adam's step.

  source scripts/keep_memory.sh
  python scripts/benchmark_recurrent.py --out docs/results/formal_languages/speed.json
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = map(str, (Path(__file__).resolve().parent, Path(__file__).resolve().parents[1]))
import torch  # noqa: E402
from benchmark_conditions import environment, quieten, warnings_beside  # noqa: E402
from benchmark_sides import measure  # noqa: E402
from data_files import write_json  # noqa: E402
from torch import Tensor, nn  # noqa: E402

quieten()
import numpy as np  # noqa: E402

from fairseq_fwm.data.formal_languages import LANGUAGES, draw_strings  # noqa: E402
from fairseq_fwm.mixers.recurrent import RecurrentMixer  # noqa: E402
from fairseq_fwm.models.sequence_tagger import SequenceTagger, SequenceTaggerConfig  # noqa: E402

MIXERS = ("recurrent_delta", "srwm")
SIDES = {"kernel": "cpu", "loop": "reference"}


def batches(args: argparse.Namespace) -> list[tuple[Tensor, Tensor]]:
    """Draw batches of parity strings and their targets; 2 fills both up."""
    parity, rng = LANGUAGES["parity"], np.random.default_rng(args.seed)
    strings = draw_strings(parity, rng, (2, 50), args.batch_size * args.updates)
    found = []
    for i in range(0, len(strings), args.batch_size):
        part = strings[i : i + args.batch_size]
        pair = (
            [torch.tensor([int(symbol) for symbol in line]) for line in lines]
            for lines in (part, map(parity.targets, part))
        )
        found.append(tuple(nn.utils.rnn.pad_sequence(x, True, 2) for x in pair))
    return found


class Updates:
    """A model and its optimizer; a run is a number of updates."""

    def __init__(self, mixer: str, impl: str, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        cfg = SequenceTaggerConfig(
            mixer=mixer, layers=1, hidden_size=args.hidden_size, heads=args.heads
        )
        self.model = SequenceTagger(3, 3, cfg)
        for module in self.model.modules():
            if isinstance(module, RecurrentMixer):
                module.impl = impl
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=3e-3)
        self.args, self.losses = args, []

    def prepare(self) -> None:
        """Make the batches, the same ones for both sides, and warm up."""
        self.batches = batches(self.args)
        self._update(*self.batches[0])

    def run(self) -> None:
        """Do the updates."""
        for tokens, targets in self.batches:
            self._update(tokens, targets)

    def _update(self, tokens: Tensor, targets: Tensor) -> None:
        loss = nn.functional.cross_entropy(
            self.model(tokens).flatten(0, 1), targets.flatten(), ignore_index=2
        )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--hidden-size", type=int, default=32, help="width (default %(default)s)")
    add("--heads", type=int, default=4, help="default %(default)s")
    add("--batch-size", type=int, default=64, help="strings per update (default %(default)s)")
    add("--updates", type=int, default=4, help="per round (default %(default)s)")
    add("--rounds", type=int, default=7, help="rounds (default %(default)s)")
    add("--threads", type=int, default=1, help="default %(default)s")
    add("--seed", type=int, default=1, help="default %(default)s")
    add("--out", type=Path, metavar="FILE", help="write the result to FILE, too")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = make_parser().parse_args(arguments)
    args.argv, args.quick = list(arguments or sys.argv[1:]), False
    torch.set_num_threads(args.threads)
    for warning in warnings_beside(args.threads):
        print(f"warning: {warning}", file=sys.stderr)
    result = environment(Path(__file__).name, args)
    for mixer in MIXERS:
        works = {name: Updates(mixer, impl, args) for name, impl in SIDES.items()}
        times = measure(works, args.rounds, budget=300.0, label=mixer)
        losses = [work.losses[: args.updates] for work in works.values()]
        if not np.allclose(*losses, rtol=1e-3):
            raise SystemExit(f"{mixer}: the kernel's losses are {losses[0]}, not {losses[1]}")
        seconds = {name: statistics.median(t["cpu"]) / args.updates for name, t in times.items()}
        result[mixer] = {
            "updates_per_second": {name: 1 / value for name, value in seconds.items()},
            "ratio": seconds["loop"] / seconds["kernel"],
        }
    print(json.dumps(result, indent=2))
    if args.out:
        write_json(args.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
