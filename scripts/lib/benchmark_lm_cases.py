"""What scripts/benchmark_lm.py measures: language models, random text, and one run of each."""

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.tasks import TASK_REGISTRY
from fairseq.tasks.language_modeling import LanguageModelingTask
from fairseq.trainer import Trainer
from torch import Tensor, nn

import fairseq_fwm  # noqa: F401  (registers models and tasks)
from fairseq_fwm.lm_scoring import score_segments, score_streaming
from fairseq_fwm.tasks.streaming_language_modeling import SEGMENT
from lib.benchmark_conditions import BenchmarkError
from lib.benchmark_models import SOFTMAX, Work, make_dictionary
from lib.benchmark_models import VARIANTS as SITES

XL = "transformer-xl"
FAST_WEIGHTS = ("elu-sum", "elu-delta", "dpfp-delta")
VARIANTS = (SOFTMAX, *FAST_WEIGHTS, XL)
STREAMING = "streaming_language_modeling"
WORDS = 1000
SHAPE: tuple[str, ...] = ()  # flags that change the tiny models' shape


def make_config(variant: str, length: int, seed: int) -> Any:
    """Return the configuration that ``fairseq-train`` makes of its flags.

    Args:
        variant: one of :data:`VARIANTS`.
        length: of a training sequence; of Transformer-XL's segment and memory.
        seed: of the weights.
    """
    if variant == XL:
        model = ["--task", STREAMING, "--arch", "transformer_xl_lm_tiny", "--mem-len", str(length)]
    else:
        model = ["--task", "language_modeling", "--arch", "fwm_transformer_lm_tiny"]
        for name in ("fwm_decoder_self", "fwm_feature_map"):
            model += ["--" + name.replace("_", "-"), SITES[variant][name]]
    flags = [
        *("unused", "--cpu", *model, *SHAPE, "--tokens-per-sample", str(length)),
        *("--criterion", "cross_entropy", "--optimizer", "adam", "--lr", "1e-3"),
        *("--seed", str(seed)),
    ]
    parser = options.get_training_parser()
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, flags))


def build_model(cfg: Any) -> tuple[nn.Module, LanguageModelingTask]:
    """Build a model and its task, on a dictionary made here."""
    task = TASK_REGISTRY[cfg.task._name](cfg.task, make_dictionary(WORDS))
    torch.manual_seed(cfg.common.seed)
    return task.build_model(cfg.model), task


def random_text(seed: int, *shape: int) -> Tensor:
    """Return words drawn at random."""
    special = make_dictionary(WORDS).nspecial
    return torch.randint(special, WORDS, shape, generator=torch.Generator().manual_seed(seed))


def make_batch(text: Tensor, segment: int) -> dict[str, Any]:
    """Return a batch as fairseq's language modelling makes it.

    Args:
        text: ``(N, T + 1)``: T words to read and, one later, to predict.
        segment: how many segments of the same streams came before.
    """
    sequences, length = text[:, 1:].shape
    return {
        "id": torch.arange(sequences),
        "nsentences": sequences,
        "ntokens": sequences * length,
        "net_input": {
            "src_tokens": text[:, :-1].contiguous(),
            "src_lengths": torch.full((sequences,), length),
        },
        "target": text[:, 1:].contiguous(),
        SEGMENT: segment,
    }


@dataclass(frozen=True)
class Training:
    """Updates of fairseq's own trainer: forward, cross entropy, backward, Adam.

    One update is on sequences of ``length`` words, each from an empty context: as many as make
    ``tokens``, at least one. Transformer-XL trains on streams: updates on ``tokens`` words in
    segments, with the memory of the segment before, until it has read as many words.
    """

    length: int
    tokens: int = 4096
    segment: int = 256
    kind: ClassVar[str] = "training"

    @property
    def name(self) -> str:
        """What the progress bar says."""
        return f"training T={self.length}"

    def build(self, variant: str, seed: int) -> Work:
        """Prepare one side."""
        streams = variant == XL
        length = min(self.segment, self.length) if streams else self.length
        sequences = max(1, self.tokens // length)
        updates = max(1, self.length // self.tokens) if streams else 1
        cfg = make_config(variant, length, seed)
        model, task = build_model(cfg)
        trainer = Trainer(cfg, task, model, task.build_criterion(cfg.criterion))
        trainer.begin_epoch(1)
        texts = random_text(seed, updates, sequences, length + 1)
        segments = itertools.count()

        def run() -> None:
            for text in texts:
                trainer.train_step([make_batch(text, next(segments))])

        # Transformer-XL's first segment has no memory and is faster than all others.
        return Work(run, updates * sequences * length, sequences, run if streams else lambda: None)


@dataclass(frozen=True)
class Evaluation:
    """Scoring a text of ``length`` words: softmax in one window, all others segment by segment."""

    length: int
    segment: int = 256
    kind: ClassVar[str] = "evaluation"

    @property
    def name(self) -> str:
        """What the progress bar says."""
        return f"evaluation T={self.length}"

    def build(self, variant: str, seed: int) -> Work:
        """Prepare one side."""
        whole = variant == SOFTMAX
        length = self.length if whole else self.segment
        cfg = make_config(variant, length, seed)
        model, task = build_model(cfg)
        model.eval()
        model.prepare_for_inference_(cfg)
        score = score_segments if whole else score_streaming
        text, eos = random_text(seed, self.length), task.target_dictionary.eos()

        def run() -> None:
            if not score(model, text, length, eos=eos).isfinite().all():
                raise BenchmarkError(f"{self.name}, {variant}: scores are not finite")

        return Work(run, self.length, 1)


CASES = {case.kind: case for case in (Training, Evaluation)}
