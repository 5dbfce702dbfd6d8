"""What scripts/benchmark_training.py measures: the models, their data and one run of each."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from fairseq import options
from fairseq.data import Dictionary, LanguagePairDataset
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models.transformer import TransformerModel
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase
from fairseq.sequence_generator import SequenceGenerator
from fairseq.tasks.translation import TranslationTask
from fairseq.trainer import Trainer
from torch import Tensor, nn

import fairseq_fwm  # noqa: F401  (registers the architectures)
from fairseq_fwm.models.fwm_transformer import FWMTransformerConfig
from fairseq_fwm.modules.layers import FWMTransformerDecoderLayer
from lib.benchmark_conditions import BenchmarkError

SOFTMAX, FAST_SOFTMAX, BEST = "softmax", "softmax-fast", "dpfp-delta"
SMALL = {"bf16": "bfloat16", "int8": "int8"}  # generation only: the flag's values by their suffix
NO_ATTENTION, PROJECTIONS = "no attention", "projections only"


def _sites(decoder: str, feature_map: str, others: str = SOFTMAX) -> dict[str, str]:
    return {
        "fwm_encoder_self": others,
        "fwm_decoder_self": decoder,
        "fwm_cross": others,
        "fwm_feature_map": feature_map,
    }


# The first is fairseq's own transformer, without anything of ours.
VARIANTS = {
    SOFTMAX: _sites(SOFTMAX, "dpfp"),
    FAST_SOFTMAX: _sites(SOFTMAX, "dpfp") | {"fwm_fast_decoding": "on"},
    "elu-sum": _sites("sum", "elu"),
    "dpfp-sum": _sites("sum", "dpfp"),
    "elu-delta": _sites("delta", "elu"),
    BEST: _sites("delta", "dpfp"),
    "sum-everywhere": _sites("sum", "dpfp", "sum"),
    "elu-sum-everywhere": _sites("sum", "elu", "sum"),
}
VARIANTS |= {
    f"{name}-{suffix}": VARIANTS[name] | {"fwm_inference_precision": precision}
    for name in (SOFTMAX, "elu-sum", "elu-delta", BEST)
    for suffix, precision in SMALL.items()
}


@dataclass(frozen=True)
class Arch:
    """A translation model and how it is trained."""

    name: str
    types: int
    flags: tuple[str, ...]


ARCHS = {
    "tiny": Arch(
        "fwm_transformer_tiny", 10_000,
        ("--share-all-embeddings", "--dropout", "0.3", "--lr", "0.004"),
    ),
    "iwslt": Arch(
        "fwm_transformer_iwslt_de_en", 8_000,
        ("--share-decoder-input-output-embed", "--dropout", "0.3", "--lr", "5e-4"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class StackShape:
    """The decoder-only stack; the defaults are the small language model of arXiv 2102.11174."""

    layers: int = 16
    dim: int = 128
    heads: int = 8
    ffn: int = 2048
    dropout: float = 0.1


LM_SMALL = StackShape()


@dataclass
class Work:
    """Something to time: one call does `tokens` tokens of `sentences` sentences."""

    run: Callable[[], None]
    tokens: int
    sentences: int
    prepare: Callable[[], None] = lambda: None  # before the first timed call


def make_dictionary(types: int) -> Dictionary:
    """Make a dictionary of so many types, fairseq's special symbols included."""
    dictionary = Dictionary()
    for index in range(types - len(dictionary)):
        dictionary.add_symbol(f"w{index}")
    return dictionary


def make_pairs(dictionary: Dictionary, lengths: Tensor, sources: Tensor, seed: int):
    """Make random sentence pairs of given lengths, end of sentence included.

    Returns:
        A ``LanguagePairDataset``.
    """
    generator = torch.Generator().manual_seed(seed)

    def sentence(length: int) -> Tensor:
        ids = torch.randint(dictionary.nspecial, len(dictionary), (length,), generator=generator)
        ids[-1] = dictionary.eos()
        return ids

    sides = [[sentence(n) for n in side.tolist()] for side in (sources, lengths)]
    return LanguagePairDataset(
        sides[0], sources.numpy(), dictionary, sides[1], lengths.numpy(), dictionary, shuffle=False
    )


def make_batches(dictionary: Dictionary, length: int, tokens: int, count: int, seed: int) -> list:
    """Make batches as ``fairseq-train --max-tokens`` does, of lengths from 3/4 to 5/4 of one.

    Source and target of a pair are equally long.
    """
    generator = torch.Generator().manual_seed(seed)
    low, high = max(2, length * 3 // 4), length * 5 // 4
    if tokens < high:
        raise BenchmarkError(f"a batch of {tokens} tokens cannot hold a sentence of {high}")
    pairs = -(-count * tokens // low)  # enough of them whatever is drawn
    lengths = torch.randint(low, high + 1, (pairs,), generator=generator)
    data = make_pairs(dictionary, lengths, lengths, seed + 1)
    batches = data.batch_by_size(data.ordered_indices(), max_tokens=tokens)
    # Evenly from the shortest to the longest; the last one is seldom full.
    step = max(1, (len(batches) - 1) // count)
    chosen = batches[step // 2 :: step][:count]
    return [data.collater([data[i] for i in batch]) for batch in chosen]


def fairseq_config(arch: Arch, variant: str, seed: int, extra: Sequence[str] = ()) -> Any:
    """Return the configuration that ``fairseq-train`` makes of its flags."""
    flags = [
        *("unused", "--task", "translation", "-s", "s", "-t", "t", "--arch", arch.name, "--cpu"),
        *("--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1"),
        *("--optimizer", "adam", "--adam-betas", "(0.9, 0.98)", "--lr-scheduler", "inverse_sqrt"),
        *("--warmup-init-lr", "1e-7", "--warmup-updates", "1000", "--seed", str(seed)),
        *arch.flags,
        *extra,
    ]
    for name, value in VARIANTS[variant].items():
        flags += ["--" + name.replace("_", "-"), value]
    parser = options.get_training_parser()
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, flags))


def build_model(cfg: Any, arch: Arch, variant: str) -> tuple[nn.Module, TranslationTask]:
    """Build a model and its translation task, on a dictionary made here."""
    dictionary = make_dictionary(arch.types)
    task = TranslationTask(cfg.task, dictionary, dictionary)
    torch.manual_seed(cfg.common.seed)
    if variant == SOFTMAX:
        return TransformerModel.build_model(cfg.model, task), task
    return task.build_model(cfg.model), task


@dataclass(frozen=True)
class Translation:
    """Updates of fairseq's own trainer: forward, loss, backward, Adam."""

    arch: str
    length: int
    tokens: int = 4096
    batches: int = 2
    kind: ClassVar[str] = "translation"

    @property
    def name(self) -> str:
        """What the progress bar says."""
        return f"translation {self.arch} T={self.length}"

    def build(self, variant: str, seed: int) -> Work:
        """Prepare one side."""
        arch = ARCHS[self.arch]
        cfg = fairseq_config(arch, variant, seed)
        model, task = build_model(cfg, arch, variant)
        trainer = Trainer(cfg, task, model, task.build_criterion(cfg.criterion))
        trainer.begin_epoch(1)
        batches = make_batches(
            task.target_dictionary, self.length, self.tokens, self.batches, seed
        )

        def run() -> None:
            for batch in batches:
                trainer.train_step([batch])

        tokens = sum(batch["ntokens"] for batch in batches)
        return Work(run, tokens, sum(batch["nsentences"] for batch in batches))


class _StandIn(nn.Module):
    """As much of an attention as fairseq's layer wants to see."""

    def _get_input_buffer(self, incremental_state: Any) -> dict[str, Tensor]:
        return {}


class _NoAttention(_StandIn):
    """In the place of an attention: gives back what it gets."""

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, query: Tensor, **_: Any) -> tuple[Tensor, None]:
        return query, None


class _FreeAttention(torch.autograd.Function):
    """q | k | v to something of the size of the output, and back, without any work."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        *shape, width = projected.shape
        return projected.flatten()[: projected.numel() // 3].view(*shape, width // 3)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient, None


class _Projections(_StandIn):
    """In the place of an attention: its matrix products alone, forward and backward."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.gradient: Tensor | None = None

    def forward(self, query: Tensor, **_: Any) -> tuple[Tensor, None]:
        projected = self.in_proj(query)
        if self.gradient is None:
            self.gradient = torch.randn_like(projected) / projected.numel()
        return self.out_proj(_FreeAttention.apply(projected, self.gradient)), None


STAND_INS = {NO_ATTENTION: _NoAttention, PROJECTIONS: _Projections}


class DecoderStack(nn.Module):
    """fairseq's decoder layers without encoder, embedding and output layer."""

    def __init__(self, shape: StackShape, variant: str) -> None:
        super().__init__()
        cfg = FWMTransformerConfig()
        cfg.dropout = shape.dropout
        cfg.decoder.embed_dim, cfg.decoder.ffn_embed_dim = shape.dim, shape.ffn
        cfg.decoder.attention_heads = shape.heads
        for name, value in VARIANTS.get(variant, VARIANTS[SOFTMAX]).items():
            setattr(cfg, name, value)
        layer = TransformerDecoderLayerBase if variant == SOFTMAX else FWMTransformerDecoderLayer
        self.layers = nn.ModuleList(layer(cfg, no_encoder_attn=True) for _ in range(shape.layers))
        if variant in STAND_INS:
            for layer in self.layers:
                layer.self_attn = STAND_INS[variant](shape.dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Process ``(T, N, C)`` under fairseq's causal mask."""
        for layer in self.layers:
            x, *_ = layer(x, self_attn_mask=mask)
        return x


@dataclass(frozen=True)
class Stack:
    """Forward and backward of a mean-square loss through the decoder stack."""

    length: int
    tokens: int = 4096
    layers: int | None = None
    kind: ClassVar[str] = "lm"

    @property
    def name(self) -> str:
        """What the progress bar says."""
        return f"LM-small stack T={self.length}"

    def build(self, variant: str, seed: int) -> Work:
        """Prepare one side; also the stand-ins in the place of the attention."""
        if self.tokens < self.length:
            raise BenchmarkError(f"{self.tokens} tokens a step hold no sequence of {self.length}")
        torch.manual_seed(seed)
        shape = LM_SMALL
        if self.layers is not None:
            shape = StackShape(self.layers, shape.dim, shape.heads, shape.ffn, shape.dropout)
        stack = DecoderStack(shape, variant).train()
        sequences = self.tokens // self.length
        x = torch.randn(self.length, sequences, shape.dim, requires_grad=True)
        mask = torch.full((self.length, self.length), -torch.inf).triu(1)

        def run() -> None:
            x.grad = None
            stack.zero_grad(set_to_none=True)
            stack(x, mask).pow(2).mean().backward()

        return Work(run, sequences * self.length, sequences)


@dataclass(frozen=True)
class Generation:
    """Beam search by fairseq's own generator; every hypothesis gets exactly `length` tokens."""

    length: int
    source: int
    arch: str = "tiny"
    sentences: int = 4
    beam: int = 5
    kind: ClassVar[str] = "generation"

    @property
    def name(self) -> str:
        """What the progress bar says."""
        return f"generation {self.arch} {self.sentences} x {self.source} -> {self.length}"

    def build(self, variant: str, seed: int) -> Work:
        """Prepare one side, with random weights."""
        arch, positions = ARCHS[self.arch], str(max(self.length, self.source) + 8)
        limits = ("--max-source-positions", positions, "--max-target-positions", positions)
        cfg = fairseq_config(arch, variant, seed, limits)
        model, task = build_model(cfg, arch, variant)
        model.eval()
        model.prepare_for_inference_(cfg)
        sizes = torch.full((self.sentences,), self.source)
        data = make_pairs(task.source_dictionary, sizes, sizes, seed)
        sample = data.collater([data[i] for i in range(self.sentences)])
        generator = SequenceGenerator(
            [model], task.target_dictionary,
            beam_size=self.beam, max_len_b=self.length, min_len=self.length,
        )  # fmt: skip

        def run() -> None:
            for hypotheses in generator.generate([model], sample):
                lengths = {len(hypothesis["tokens"]) - 1 for hypothesis in hypotheses}
                if lengths != {self.length}:
                    raise BenchmarkError(f"{lengths} tokens generated, not {self.length}")

        return Work(run, self.sentences * self.length, self.sentences)


Case = Translation | Stack | Generation
CASES = {case.kind: case for case in (Translation, Stack, Generation)}
