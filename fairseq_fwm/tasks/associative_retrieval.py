"""``associative_retrieval``: say which value a key had (arXiv 2102.11174, Sec. 6.1)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
import torch
from fairseq.data import FairseqDataset
from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import register_task
from omegaconf import II
from torch import nn

from fairseq_fwm.data.retrieval import Question, draw_evaluation, draw_training
from fairseq_fwm.tasks.without_text import TaskWithoutText

PUBLISHED_EVAL_QUERIES = 200


@dataclass
class AssociativeRetrievalConfig(FairseqDataclass):
    """What is drawn, and how it is evaluated."""

    n_keys: int = field(
        default=20, metadata={"help": "S: number of keys, and of values; the memory has to hold S"}
    )
    replace: bool = field(
        default=False,
        metadata={
            "help": "setting 2: draw 2 S keys and values with replacement, so that keys come back "
            "with other values; otherwise setting 1: S distinct pairs"
        },
    )
    eval_length: Optional[int] = field(
        default=None,
        metadata={"help": "length of evaluated sequences with --replace; as in training if unset"},
    )
    eval_sequences: int = field(
        default=20, metadata={"help": "sequences per evaluation, asked for every key in them"}
    )
    eval_queries: Optional[int] = field(
        default=None, metadata={"help": "ask for so many keys at most, the smallest ones"}
    )
    eval_every: int = field(
        default=100, metadata={"help": "updates between evaluations; fairseq calls them an epoch"}
    )
    as_published: bool = field(
        default=False,
        metadata={
            "help": "evaluate as the published experiments did: sequences of S, 200 queries at "
            "most, the mean of the means over --batch-size of them; FAVOR+ drawn anew for every "
            "evaluated sequence; no eps under a key's sum"
        },
    )
    batch_size: Optional[int] = II("dataset.batch_size")
    seed: int = II("common.seed")


class Questions(FairseqDataset):
    """Questions drawn when a batch is asked for; equal seeds, epochs and indices give equal ones.

    Args:
        size: number of items.
        batch: items of a batch, if not --batch-size.
        seed: with the epoch and the first index of a batch, seeds what is drawn.
        draw: draws a batch of the given size.
    """

    def __init__(
        self,
        size: int,
        batch: Optional[int],
        seed: tuple[int, ...],
        draw: Callable[[np.random.Generator, int], Question],
    ) -> None:
        self.items, self.batch, self.seed, self.draw = size, batch, seed, draw
        self.epoch = 1

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, index: int) -> int:
        return index

    def set_epoch(self, epoch: int) -> None:
        """Draw other questions from now on."""
        self.epoch = epoch

    def batch_by_size(
        self, indices: np.ndarray, *_: Any, max_sentences: Optional[int] = None, **__: Any
    ) -> list[np.ndarray]:
        """Return the items of every batch."""
        size = self.batch or max_sentences or 1
        return [indices[i : i + size] for i in range(0, len(indices), size)]

    def collater(self, samples: Sequence[int]) -> dict[str, Any]:
        """Draw a batch, as fairseq wants it."""
        if not samples:
            return {}
        rng = np.random.default_rng((*self.seed, self.epoch, samples[0]))
        keys, values, queries, targets = map(torch.from_numpy, self.draw(rng, len(samples)))
        return {
            "id": torch.as_tensor(samples),
            "nsentences": len(samples),
            "ntokens": keys.numel(),
            "net_input": {"keys": keys, "values": values, "queries": queries},
            "target": targets,
        }


@register_task("associative_retrieval", dataclass=AssociativeRetrievalConfig)
class AssociativeRetrievalTask(TaskWithoutText):
    """Retrieval of values by keys; there is no data on disk and there are no dictionaries.

    Raises:
        ValueError: if the flags make no sense together.
    """

    def __init__(self, cfg: AssociativeRetrievalConfig) -> None:
        super().__init__(cfg)
        if cfg.n_keys < 1:
            raise ValueError(f"--n-keys must be at least 1, found {cfg.n_keys}")
        if not cfg.batch_size:
            raise ValueError("--task associative_retrieval draws batches: pass --batch-size (32)")
        if cfg.eval_length is not None and not cfg.replace:
            raise ValueError(
                "--eval-length is for --replace: without replacement every key occurs once"
            )
        self.length = 2 * cfg.n_keys if cfg.replace else cfg.n_keys
        published = (
            (cfg.n_keys, PUBLISHED_EVAL_QUERIES) if cfg.as_published else (self.length, None)
        )
        self.eval_length = cfg.eval_length or published[0]
        self.eval_queries = cfg.eval_queries or published[1]

    def load_dataset(self, split: str, combine: bool = False, **kwargs: Any) -> None:
        """Make a split: `train` is drawn for training, any other one for evaluation."""
        cfg = self.cfg
        if split == "train":
            self.datasets[split] = Questions(
                cfg.eval_every * cfg.batch_size,
                None,
                (cfg.seed, 0),
                lambda rng, size: draw_training(rng, size, cfg.n_keys, self.length, cfg.replace),
            )
        else:
            self.datasets[split] = Questions(
                cfg.eval_sequences,
                1,
                (cfg.seed, 1),
                lambda rng, size: draw_evaluation(
                    rng, cfg.n_keys, self.eval_length, cfg.replace, self.eval_queries
                ),
            )

    def begin_valid_epoch(self, epoch: int, model: nn.Module) -> None:
        """Ask about other sequences in every evaluation."""
        for split, dataset in self.datasets.items():
            if split != "train":
                dataset.set_epoch(epoch)
