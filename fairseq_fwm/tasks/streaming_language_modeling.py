"""``streaming_language_modeling``: batches of text streams whose state goes on between segments.

A batch has ``--batch-size`` columns on every worker. Each column is one contiguous part of the
text and is read in segments of ``--tokens-per-sample`` tokens. The model's state at a segment's
end, without its gradient, is where the next one begins (arXiv 2102.11174, Sec. 6.3, "without
truncating context").
"""

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed
from fairseq.data import BaseWrapperDataset
from fairseq.data.iterators import EpochBatchIterator
from fairseq.tasks import register_task
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from torch import Tensor, nn

from fairseq_fwm.modules.stream import Stream

logger = logging.getLogger(__name__)

SEGMENT = "segment"
"""Key in a batch: how many segments of its columns came before."""


@dataclass
class StreamingLanguageModelingConfig(LanguageModelingConfig):
    """fairseq's language modelling configuration and what is special about streams."""

    no_carry_over: bool = field(
        default=False,
        metadata={"help": "begin every segment with the initial state; batches stay the same"},
    )


class StreamBatches:
    """Which blocks of a text make up which batch.

    Args:
        blocks: number of blocks of equal length.
        columns: streams on every worker.
        workers: number of workers.

    Raises:
        ValueError: if a stream would have no block.
    """

    def __init__(self, blocks: int, columns: int, workers: int) -> None:
        self.columns, self.workers = columns, workers
        self.segments = blocks // (columns * workers)
        if self.segments == 0:
            raise ValueError(
                f"{blocks} blocks of text cannot feed {columns} streams on each of {workers} "
                "workers: reduce --batch-size (or --batch-size-valid) or --tokens-per-sample"
            )

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the blocks of every batch, the workers taking turns."""
        for segment, worker in itertools.product(range(self.segments), range(self.workers)):
            first = worker * self.columns
            yield [c * self.segments + segment for c in range(first, first + self.columns)]

    def segment_of(self, block: int) -> int:
        """Return how many blocks of its stream come before a block."""
        return block % self.segments


class StreamDataset(BaseWrapperDataset):
    """Blocks of one text; its batches say which segment of their streams they are."""

    batches: StreamBatches

    def collater(self, samples: list[dict]) -> dict[str, Any]:
        """Make a batch of blocks."""
        batch = self.dataset.collater(samples)
        if batch:
            batch[SEGMENT] = self.batches.segment_of(int(batch["id"][0]))
        return batch


class CarriedBatches:
    """Batches whose model gets one stream; for whoever calls the model without this task."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict]:
        """Yield batches with the stream; the first segment begins with the initial state."""
        stream = Stream.empty()
        for sample in self.batches:
            if not sample[SEGMENT]:
                stream.states = []
            yield with_stream(sample, stream)


@register_task("streaming_language_modeling", dataclass=StreamingLanguageModelingConfig)
class StreamingLanguageModelingTask(LanguageModelingTask):
    """fairseq's language modelling over streams that carry their state along."""

    def __init__(self, args: Any, *rest: Any, **options: Any) -> None:
        super().__init__(args, *rest, **options)
        if args.sample_break_mode not in (None, "none"):
            raise ValueError(
                f"streams have no sentences: --sample-break-mode {args.sample_break_mode} does "
                "not go with --task streaming_language_modeling (use none)"
            )
        self.train_stream = self.valid_stream = Stream.empty()
        self.next_segment = 0
        self.all_streams: list[Stream] = []

    def build_model(self, args: Any, from_checkpoint: bool = False) -> nn.Module:
        """Build a model that can carry a state.

        Raises:
            ValueError: if it cannot, with the reason.
        """
        model = super().build_model(args, from_checkpoint)
        if not self.args.no_carry_over:
            why_not = getattr(model.decoder, "why_no_stream", None)
            reason = f"{type(model).__name__} knows no streams" if why_not is None else why_not()
            if reason:
                raise ValueError(f"--task streaming_language_modeling: {reason}")
        return model

    def load_dataset(self, split: str, *args: Any, **options: Any) -> None:
        """Load a split as blocks of equal length."""
        super().load_dataset(split, *args, **options)
        self.datasets[split] = StreamDataset(self.datasets[split])

    def get_batch_iterator(
        self,
        dataset: StreamDataset,
        max_sentences: int | None = None,
        seed: int = 1,
        num_shards: int = 1,
        shard_id: int = 0,
        num_workers: int = 0,
        epoch: int = 1,
        data_buffer_size: int = 0,
        **ignored: Any,
    ) -> EpochBatchIterator:
        """Return the batches of all streams in their order; one stream without a batch size."""
        columns = max_sentences or 1
        blocks = len(dataset)
        if columns * num_shards > 1 and dataset.sizes[-1] < dataset.sizes[0]:
            blocks -= 1
        dataset.batches = StreamBatches(blocks, columns, num_shards)
        return EpochBatchIterator(
            dataset=dataset,
            collate_fn=dataset.collater,
            batch_sampler=list(dataset.batches),
            seed=seed,
            num_shards=num_shards,
            shard_id=shard_id,
            num_workers=num_workers,
            epoch=epoch,
            buffer_size=data_buffer_size,
            disable_shuffling=True,
        )

    def train_step(
        self, sample: dict, model: nn.Module, *args: Any, **options: Any
    ) -> tuple[Tensor, Any, dict]:
        """Train on the next segment; what its end remembers is detached."""
        stream = self._stream(sample, self.train_stream)
        if sample[SEGMENT] and sample[SEGMENT] != self.next_segment:
            logger.warning(
                "segment %d of the streams follows on segment %d: the carried state is not the "
                "text's",
                sample[SEGMENT],
                self.next_segment - 1,
            )
        result = super().train_step(with_stream(sample, stream), model, *args, **options)
        if stream is not None:
            self.train_stream = stream.detach()
        self.next_segment = sample[SEGMENT] + 1
        return result

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        """Update; then every worker learns all states, since only one writes checkpoints."""
        super().optimizer_step(*args, **options)
        self.all_streams = gather(self.train_stream)

    def valid_step(self, sample: dict, *args: Any, **options: Any) -> tuple[Any, Any, dict]:
        """Validate on the next segment; a split begins with the initial state."""
        stream = self._stream(sample, self.valid_stream)
        result = super().valid_step(with_stream(sample, stream), *args, **options)
        if stream is not None:
            self.valid_stream = stream
        return result

    def eval_lm_dataloader(self, *args: Any, context_window: int = 0, **options: Any) -> Any:
        """Return batches for ``fairseq-eval-lm``, all with one stream.

        Raises:
            ValueError: for a context window: the state is the context.
        """
        if context_window:
            raise ValueError(
                "--context-window has no meaning for a carried state; use --task "
                "language_modeling for sliding windows"
            )
        batches = super().eval_lm_dataloader(*args, **options)
        return batches if self.args.no_carry_over else CarriedBatches(batches)

    def _stream(self, sample: dict, last: Stream) -> Stream | None:
        if self.args.no_carry_over:
            return None
        return last if sample[SEGMENT] else Stream.empty()

    def get_checkpoint_dict(self) -> dict[str, Any]:
        """Return the place in the streams and the states of all workers, for a checkpoint."""
        streams = self.all_streams or [self.train_stream]
        state = {
            "next_segment": self.next_segment,
            "streams": [stream.map(Tensor.cpu).states for stream in streams],
        }
        return {type(self).__name__: state}  # fairseq looks there

    def set_checkpoint_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`get_checkpoint_dict` was called."""
        workers, rank = world()
        if len(state["streams"]) != workers:
            logger.warning(
                "the checkpoint carries states of %d workers, there are %d: streams begin with "
                "the initial state",
                len(state["streams"]),
                workers,
            )
            return
        self.next_segment = state["next_segment"]
        self.all_streams = [Stream(states) for states in state["streams"]]
        self.train_stream = self.all_streams[rank]


def with_stream(sample: dict, stream: Stream | None) -> dict:
    """Return a batch whose model gets a stream, moved to where the batch is."""
    if stream is None:
        return sample
    tokens = sample["net_input"]["src_tokens"]
    stream.states = stream.map(lambda x: x.to(tokens.device)).states
    return {**sample, "net_input": {**sample["net_input"], "stream": stream}}


def world() -> tuple[int, int]:
    """Return the number of workers and which one this is."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return 1, 0
    return torch.distributed.get_world_size(), torch.distributed.get_rank()


def gather(stream: Stream) -> list[Stream]:
    """Return the streams of all workers on every worker; all must have the same shapes."""
    workers, _ = world()
    if workers == 1:
        return [stream]
    gathered = [Stream([{} for _ in stream.states]) for _ in range(workers)]
    for layer, state in enumerate(stream.states):
        for name, tensor in state.items():
            copies = [torch.empty_like(tensor) for _ in range(workers)]
            torch.distributed.all_gather(copies, tensor.contiguous())
            for target, copy in zip(gathered, copies, strict=True):
                target.states[layer][name] = copy
    return gathered
