"""``formal_language``: say of every prefix of a string what may follow (arXiv 2310.16076)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from fairseq.data import FairseqDataset
from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import register_task
from omegaconf import II, MISSING
from torch import Tensor, nn

from fairseq_fwm.data.formal_languages import SPLITS
from fairseq_fwm.tasks.without_text import TaskWithoutText

BINS = {"valid": 0, "test": 1, "bin2": 2}


@dataclass
class FormalLanguageConfig(FairseqDataclass):
    """Which data, and what decides about checkpoints and the end."""

    data: str = field(
        default=MISSING, metadata={"help": "folder of {train,valid,test}_50.{src,tgt}"}
    )
    level: str = field(default="50", metadata={"help": "what follows `train_` in the file names"})
    eval_every: int = field(
        default=50, metadata={"help": "updates between evaluations; fairseq calls them an epoch"}
    )
    eval_limit: Optional[int] = field(
        default=None,
        metadata={"help": "strings of a bin to evaluate while training (default: all)"},
    )
    as_published: bool = field(
        default=False,
        metadata={
            "help": "choose the checkpoint, and end, by the mean accuracy of Bin0 and Bin1 (the "
            "longer strings) instead of Bin0's alone"
        },
    )
    batch_size: Optional[int] = II("dataset.batch_size")
    seed: int = II("common.seed")


Pair = tuple[Tensor, Tensor]


class Strings(FairseqDataset):
    """Strings and targets of one or more bins.

    Args:
        pairs: symbols and targets of every string.
        pads: what fills symbols and targets up.
        bins: the bin of every string; batches are of one bin.
        stream: with (items, seed) an epoch has so many items, and goes on in a stream of random
            permutations of the strings where the last one ended.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        pads: tuple[int, int],
        bins: Sequence[int],
        stream: Optional[tuple[int, int]] = None,
    ) -> None:
        self.pairs, self.pads, self.bins, self.stream = pairs, pads, bins, stream
        self.epoch = 1
        self.orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.stream[0] if self.stream else len(self.pairs)

    def __getitem__(self, index: int) -> int:
        if not self.stream:
            return index
        items, seed = self.stream
        turn, place = divmod((self.epoch - 1) * items + index, len(self.pairs))
        if turn not in self.orders:
            order = np.random.default_rng((seed, turn)).permutation(len(self.pairs))
            self.orders = {t: o for t, o in self.orders.items() if t >= turn - 1} | {turn: order}
        return int(self.orders[turn][place])

    def set_epoch(self, epoch: int) -> None:
        """Go to another part of the stream."""
        self.epoch = epoch

    def batch_by_size(
        self, indices: np.ndarray, *_: Any, max_sentences: Optional[int] = None, **__: Any
    ) -> list[np.ndarray]:
        """Return the items of every batch, each of one bin."""
        size = max_sentences or len(indices)
        parts = (
            [indices]
            if self.stream
            else [indices[np.asarray(self.bins) == number] for number in sorted(set(self.bins))]
        )
        return [part[i : i + size] for part in parts for i in range(0, len(part), size)]

    def collater(self, samples: Sequence[int]) -> dict[str, Any]:
        """Make a batch, filled up on the right."""
        if not samples:
            return {}
        pairs = [self.pairs[i] for i in samples]
        tokens, targets = (
            nn.utils.rnn.pad_sequence(part, batch_first=True, padding_value=pad)
            for part, pad in zip(zip(*pairs, strict=True), self.pads, strict=True)
        )
        return {
            "id": torch.as_tensor(samples),
            "nsentences": len(samples),
            "ntokens": sum(len(source) for source, _ in pairs),
            "net_input": {"tokens": tokens},
            "target": targets,
            "bin": self.bins[samples[0]],
        }


@register_task("formal_language", dataclass=FormalLanguageConfig)
class FormalLanguageTask(TaskWithoutText):
    """Tagging of strings; symbols and targets are those of the training data, in order.

    Raises:
        ValueError: if there is no --batch-size, or a file is missing or broken.
    """

    def __init__(self, cfg: FormalLanguageConfig) -> None:
        super().__init__(cfg)
        if not cfg.batch_size:
            raise ValueError("--task formal_language counts batches: pass --batch-size (32)")
        lines = self._lines("train")
        self.symbols, self.targets = (
            {symbol: i for i, symbol in enumerate(dict.fromkeys(s for line in part for s in line))}
            for part in zip(*lines, strict=True)
        )

    @property
    def pads(self) -> tuple[int, int]:
        """What fills symbols and targets up: the numbers after the last ones."""
        return len(self.symbols), len(self.targets)

    def load_dataset(self, split: str, combine: bool = False, **kwargs: Any) -> None:
        """Make a split: `train`; `valid`, which is Bin0 and Bin1; `bin0`, `bin1` and `bin2`.

        Raises:
            ValueError: if a file is missing or broken.
        """
        cfg = self.cfg
        if split == "train":
            pairs = self._pairs("train")
            stream = (cfg.eval_every * cfg.batch_size, cfg.seed)
            self.datasets[split] = Strings(pairs, self.pads, [0] * len(pairs), stream)
            return
        files = {"bin0": ["valid"], "bin1": ["test"], "bin2": ["bin2"]}.get(split, SPLITS[1:3])
        pairs, bins = [], []
        for name in files:
            found = self._pairs(name)[: cfg.eval_limit if split == "valid" else None]
            pairs += found
            bins += [BINS[name]] * len(found)
        self.datasets[split] = Strings(pairs, self.pads, bins)

    def _pairs(self, split: str) -> list[Pair]:
        names = (self.symbols, self.targets)
        try:
            return [
                tuple(
                    torch.tensor([known[symbol] for symbol in part])
                    for known, part in zip(names, pair, strict=True)
                )
                for pair in self._lines(split)
            ]
        except KeyError as error:
            raise ValueError(
                f"{split}_{self.cfg.level} has the symbol {error}, which the training data lack"
            ) from None

    def _lines(self, split: str) -> list[tuple[list[str], list[str]]]:
        stem = Path(self.cfg.data) / f"{split}_{self.cfg.level}"
        parts = []
        for end in ("src", "tgt"):
            path = stem.with_name(f"{stem.name}.{end}")
            if not path.is_file():
                raise ValueError(
                    f"{path} is not there: scripts/make_formal_language.py makes such files"
                )
            parts.append([line.split() for line in path.read_text().splitlines() if line.strip()])
        source, target = parts
        lengths = [list(map(len, part)) for part in parts]
        if not source or lengths[0] != lengths[1]:
            raise ValueError(
                f"{stem}.src and .tgt need as many symbols in every line as each other"
            )
        return list(zip(source, target, strict=True))
