#!/usr/bin/env python3
"""Compare training updates of Recurrent Delta and SRWM with a loop over time steps in PyTorch.

The model that scripts/formal.py trains by default (one layer of width 32, 4 heads)
on batches of (aa)* strings of up to 500 symbols, or of parity strings of up to 50, by the compiled
kernel and by the reference, in turns in one process.

  source scripts/keep_memory.sh
  python scripts/benchmark_recurrent.py --out docs/results/formal_languages/speed.json
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

sys.path[:0] = map(str, (Path(__file__).resolve().parent, Path(__file__).resolve().parents[1]))
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from lib.benchmark_conditions import quieten  # noqa: E402
from lib.benchmark_updates import Updates, begin, compare, finish, make_parser  # noqa: E402

quieten()
import numpy as np  # noqa: E402

from fairseq_fwm.data.formal_languages import LANGUAGES, draw_strings  # noqa: E402
from fairseq_fwm.mixers.recurrent import RecurrentMixer  # noqa: E402
from fairseq_fwm.models.sequence_tagger import SequenceTagger, SequenceTaggerConfig  # noqa: E402

MIXERS = ("recurrent_delta", "srwm")
SIDES = {"kernel": "cpu", "loop": "reference"}
PAD = 2


def batches(args: argparse.Namespace) -> list[tuple[Tensor, Tensor]]:
    """Draw batches of strings and their targets, as numbers."""
    language, rng = LANGUAGES[args.task], np.random.default_rng(args.seed)
    size = args.batch_size
    strings = draw_strings(language, rng, language.windows[0], size * args.updates)
    given, wanted = (numbers(lines) for lines in (strings, map(language.targets, strings)))
    return list(zip(given.split(size), wanted.split(size), strict=True))


def numbers(lines: Iterable[Sequence[str]]) -> Tensor:
    """Return lines of at most two symbols as numbers; PAD fills them up."""
    lines = list(lines)
    symbols = sorted({symbol for line in lines for symbol in line})
    rows = [torch.tensor([symbols.index(symbol) for symbol in line]) for line in lines]
    return nn.utils.rnn.pad_sequence(rows, True, PAD)


def cross_entropy(model: SequenceTagger, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the loss of all positions."""
    tokens, targets = batch
    return nn.functional.cross_entropy(
        model(tokens).flatten(0, 1), targets.flatten(), ignore_index=PAD
    )


def side(mixer: str, impl: str, args: argparse.Namespace) -> Updates:
    """Return a model whose mixer runs by an implementation, with parameters by the seed."""
    torch.manual_seed(args.seed)
    cfg = SequenceTaggerConfig(
        mixer=mixer, layers=1, hidden_size=args.hidden_size, heads=args.heads
    )
    model = SequenceTagger(PAD + 1, PAD + 1, cfg)
    for module in model.modules():
        if isinstance(module, RecurrentMixer):
            module.impl = impl
    return Updates(model, partial(batches, args), cross_entropy, lr=3e-3)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = make_parser(__doc__, batch_size=16, updates=4)
    add = parser.add_argument
    add("--task", choices=("aa-star", "parity"), default="aa-star", help="default %(default)s")
    add("--hidden-size", type=int, default=32, help="width (default %(default)s)")
    add("--heads", type=int, default=4, help="default %(default)s")
    args = parser.parse_args(arguments)
    result = begin(args, __file__, arguments or sys.argv[1:])
    for mixer in MIXERS:
        works = {name: side(mixer, impl, args) for name, impl in SIDES.items()}
        result[mixer] = compare(works, args, mixer)
    finish(result, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
