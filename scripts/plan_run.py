#!/usr/bin/env python3
"""Plan a training run: memory, operations, tokens that fit a GPU, hours; computed, not measured.

Everything is computed from the model itself on torch's meta device (scripts/lib/plan_model.py): no
weights are allocated and no GPU is needed. Examples:

    python scripts/plan_run.py --row wmt14_dpfp_nu2
    python scripts/plan_run.py --lengths 512,16384 --arch fwm_transformer_wmt_en_de_big \\
        --share-all-embeddings --fwm-decoder-self delta --fwm-dpfp-nu 4 --checkpoint-activations
    python scripts/plan_run.py --table

What it assumes: fp16 with fairseq's FP16 optimizer and Adam (20 bytes a parameter; 2 more with
several GPUs, for the all-reduce), sentences of equal length without padding, our CUDA kernels
(--no-kernels: without), fairseq's softmax attention as a GPU runs it. GB are 10^9 bytes; of a
GPU's, 1 GB is left to CUDA and 5 % to fragmentation. Hours are the operations of matrix products
and fast weight updates over an assumed part of the GPU's fp16 peak: an estimate, no measurement.
"""

import argparse
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logging.disable(logging.INFO)
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from torch import nn  # noqa: E402
from tqdm import tqdm  # noqa: E402

import fairseq_fwm  # noqa: E402, F401
from lib.plan_model import (  # noqa: E402
    Decoding,
    as_on_gpu,
    build,
    decoding,
    parameters_of,
    settings,
    training_step,
    workspace,
)

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "translation"
# Dense fp16 peaks of the tensor cores in NVIDIA's data sheets, operations a second.
GPUS = {"V100": 125e12, "A100": 312e12, "H100": 989e12}
SIZES = (16, 40, 80)
CONTEXT, FRAGMENTS = 1e9, 0.05
STATIC = {"fp16 weights and gradients": 4, "fp32 weights and gradients": 8, "Adam's moments": 8}
ALL_REDUCE = 2
RECIPE_LENGTH = 32
ENOUGH_TOKENS = 4096


@dataclass(frozen=True)
class Corpus:
    """What hours are estimated from.

    Attributes:
        tokens: of the target side in an epoch.
        words: size of the joint dictionary.
        utilisation: assumed part of the GPU's peak.
        why: how tokens and utilisation come about.
    """

    tokens: float
    words: int
    utilisation: float
    why: str


CORPORA = {
    "wmt14": Corpus(
        4.5e6 * 29, 32768, 0.25, "4.5 M pairs of 29 sub-words; a wide model with large batches"
    ),
    "iwslt14": Corpus(
        160e3 * 25, 10000, 0.05, "160 k pairs of 25 sub-words; a narrow model leaves most idle"
    ),
}
BIG = ["--arch", "fwm_transformer_wmt_en_de_big", "--share-all-embeddings", "--dropout", "0.3"]
EVERYWHERE = [x for s in ("encoder-self", "decoder-self", "cross") for x in (f"--fwm-{s}", "sum")]


# ---------------------------------------------------------------- computing


class Plan:
    """A model and what it costs.

    Args:
        model: fairseq's configuration of it.
        words: size of the joint dictionary.
        kernels: with our CUDA kernels.
    """

    def __init__(self, model: Any, words: int, kernels: bool = True) -> None:
        self.model: nn.Module = build(model, words).half()
        self.parameters = parameters_of(self.model)
        self.kernels = kernels
        self._at: dict[int, Length] = {}

    def at(self, length: int) -> "Length":
        """Return what micro-batches of sentences of a length cost."""
        if length not in self._at:
            self._at[length] = self._measure(length)
        return self._at[length]

    def _measure(self, length: int) -> "Length":
        # Of few tokens the peak is elsewhere: at the gradient of the embedding.
        count = math.ceil(ENOUGH_TOKENS / length)
        with as_on_gpu(self.kernels):
            one, two = (training_step(self.model, n, length) for n in (count, 2 * count))
        extra = workspace(self.model, length) if self.kernels else 0
        return Length(
            length,
            kept=(two.kept - one.kept) / count,
            peak=(two.peak - one.peak) / count + extra,
            fixed=max(0, 2 * one.peak - two.peak),
            flops=(two.flops - one.flops) / count,
        )

    def static(self, gpus: int = 1) -> float:
        """Return the bytes that do not depend on the batch."""
        return self.parameters * (sum(STATIC.values()) + (ALL_REDUCE if gpus > 1 else 0))

    def fits(self, length: int, gigabytes: float, gpus: int = 1) -> int:
        """Return how many tokens of a side a micro-batch may have on a GPU, whole sentences."""
        at = self.at(length)
        room = gigabytes * 1e9 * (1 - FRAGMENTS) - CONTEXT - self.static(gpus) - at.fixed
        return max(0, int(room // at.peak)) * length

    def hours(self, tokens: float, peak: float, utilisation: float, gpus: int = 1) -> float:
        """Estimate the hours of training on so many target tokens and as many source tokens."""
        at = self.at(RECIPE_LENGTH)
        return at.flops / at.length * tokens / (peak * utilisation * gpus) / 3600


@dataclass(frozen=True)
class Length:
    """What one more sentence of a length costs.

    Attributes:
        length: tokens of its source, and of its target.
        kept: bytes that wait for the backward pass.
        peak: bytes at the worst moment.
        fixed: bytes at that moment without any sentence.
        flops: operations, forward and backward.
    """

    length: int
    kept: float
    peak: float
    fixed: float
    flops: float


def trained_tokens(cfg: Any, corpus: Corpus) -> float:
    """Return how many target tokens a recipe trains on, from its epochs or its updates."""
    recipe = cfg.optimization
    if recipe.max_epoch:
        return recipe.max_epoch * corpus.tokens
    world = cfg.distributed_training.distributed_world_size
    return recipe.max_update * cfg.dataset.max_tokens * recipe.update_freq[0] * world


# ---------------------------------------------------------------- one model


def describe(plan: Plan, lengths: Iterable[int]) -> Iterable[str]:
    """Say what a model costs, line by line."""
    p = plan.parameters
    yield f"parameters: {p / 1e6:.1f} M"
    parts = ", ".join(f"{name} {p * size / 1e9:.2f} GB" for name, size in STATIC.items())
    yield f"fixed memory: {plan.static() / 1e9:.2f} GB ({parts})"
    yield f"  several GPUs: {p * ALL_REDUCE / 1e9:.2f} GB more for the all-reduce"
    yield f"  --memory-efficient-fp16: {p * 12 / 1e9:.2f} GB instead"
    for length in lengths:
        at = plan.at(length)
        fit = ", ".join(f"{size} GB: {plan.fits(length, size):,}" for size in SIZES)
        yield f"sentences of {length} tokens on each side, per token of a side:"
        yield (
            f"  kept for the backward pass {at.kept / length / 1e6:.2f} MB, at the peak "
            f"{at.peak / length / 1e6:.2f} MB; {at.flops / length / 1e9:.2f} G operations"
        )
        yield f"  tokens that fit one GPU: {fit}"
        yield "  decoding: " + decoding_line(decoding(plan.model, length))


def decoding_line(one: Decoding) -> str:
    """Say what decoding keeps."""
    return (
        f"{one.hypothesis / 1e6:.2f} MB a hypothesis and {one.sentence / 1e6:.2f} MB a sentence "
        f"(softmax: {one.hypothesis_softmax / 1e6:.2f} and {one.sentence_softmax / 1e6:.2f} MB)"
    )


def estimate(plan: Plan, cfg: Any, corpus: Corpus, args: argparse.Namespace) -> Iterable[str]:
    """Say how long a recipe takes, line by line."""
    tokens = trained_tokens(cfg, corpus)
    part = args.utilisation or corpus.utilisation
    for gpus in (1, 8):
        hours = plan.hours(tokens, GPUS[args.gpu], part, gpus)
        yield f"estimated: {hours_text(hours)} hours on {gpus} {args.gpu}"
    yield (
        f"  for {tokens / 1e9:.2f} G target tokens; assumed on every GPU: {part:.0%} of its peak "
        f"of {GPUS[args.gpu] / 1e12:.0f} T operations a second ({corpus.why})"
    )


def hours_text(hours: float) -> str:
    """Round hours to what an estimate is worth."""
    return f"{hours:.0f}" if hours >= 10 else f"{hours:.1f}"


# ---------------------------------------------------------------- the table


def table_variants() -> dict[str, tuple[int | None, list[str]]]:
    """Return the rows of the table: key features of a head of 64, and flags."""
    everywhere = [*EVERYWHERE, "--fwm-feature-map"]
    delta = ["--fwm-decoder-self", "delta", "--fwm-feature-map"]
    rows = {"softmax": (None, ["--fwm-decoder-self", "softmax"])}
    rows["linear (ELU + 1)"] = (64, [*everywhere, "elu"])
    for nu in (1, 2, 3, 4):
        rows[f"DPFP, nu = {nu}"] = (128 * nu, [*everywhere, "dpfp", "--fwm-dpfp-nu", str(nu)])
    for m in (32, 64, 128, 192, 256):
        rows[f"FAVOR+, m = {m}"] = (2 * m, [*everywhere, "favor", "--fwm-favor-features", str(m)])
    rows["ELU + 1, delta in the decoder"] = (64, [*delta, "elu"])
    for nu in (1, 2, 3, 4):
        flags = [*delta, "dpfp", "--fwm-dpfp-nu", str(nu)]
        rows[f"DPFP, nu = {nu}, delta in the decoder"] = (128 * nu, flags)
    for nu in (1, 4):
        flags = ["--fwm-encoder-self", "sum", "--fwm-cross", "sum", *delta, "dpfp"]
        name = f"DPFP, nu = {nu}, delta in the decoder, sum elsewhere"
        rows[name] = (128 * nu, [*flags, "--fwm-dpfp-nu", str(nu)])
    return rows


Cell = Callable[[Plan, int], str]


def markdown(
    plans: dict[str, tuple[int | None, Plan]], lengths: list[int], titles: dict[str, Cell]
) -> Iterable[str]:
    """Return a table: a row per variant, the same columns for every length."""
    columns = [f"{title}, T = {length:,}" for title in titles for length in lengths]
    yield f"| variant | key features | {' | '.join(columns)} |"
    yield f"| --- | {' | '.join(['---:'] * (1 + len(columns)))} |"
    for name, (keys, plan) in plans.items():
        cells = [cell(plan, length) for cell in titles.values() for length in lengths]
        yield f"| {name} | {keys or ''} | {' | '.join(cells)} |"


def table_plans(args: argparse.Namespace) -> dict[str, tuple[int | None, Plan]]:
    """Compute every row of the table, with a progress bar."""
    plans = {}
    bar = tqdm(table_variants().items(), desc="variants", disable=not sys.stderr.isatty())
    for name, (keys, flags) in bar:
        cfg = settings([*BIG, *flags, *args.fairseq])
        words = args.vocabulary or CORPORA["wmt14"].words
        plans[name] = (keys, Plan(cfg.model, words, args.kernels))
        for length in (*args.lengths, RECIPE_LENGTH):
            plans[name][1].at(length)
    return plans


def print_table(args: argparse.Namespace) -> None:
    """Print what the big model costs in every variant."""
    corpus, plans = CORPORA["wmt14"], table_plans(args)
    softmax = plans["softmax"][1]
    part, tokens = args.utilisation or corpus.utilisation, 45 * corpus.tokens
    print(
        f"`{BIG[1]}`, {softmax.parameters / 1e6:.0f} M parameters: "
        f"{softmax.static() / 1e9:.1f} GB besides activations ({softmax.static(2) / 1e9:.1f} GB "
        "with several GPUs).\n\nMemory in MB and operations in G, per token of a side, and hours "
        "of 45 epochs of WMT14:\n"
    )
    titles = {
        "memory": lambda plan, t: f"{plan.at(t).peak / t / 1e6:.2f}",
        "operations": lambda plan, t: f"{plan.at(t).flops / t / 1e9:.2f}",
    }
    lines = list(markdown(plans, args.lengths, titles))
    ends = [f" 1 {args.gpu}, h | 8 {args.gpu}, h |", " ---: | ---: |"]
    for _, plan in plans.values():
        both = (plan.hours(tokens, GPUS[args.gpu], part, n) for n in (1, 8))
        ends.append("".join(f" {hours_text(x)} |" for x in both))
    print("\n".join(line + end for line, end in zip(lines, ends, strict=True)))
    print("\nTokens of a side that fit one GPU:\n")
    titles = {f"{size} GB": lambda plan, t, size=size: f"{plan.fits(t, size):,}" for size in SIZES}
    print("\n".join(markdown(plans, args.lengths, titles)))
    print(
        "\nDecoding keeps, in MB a hypothesis (decoder self-attention) and a sentence (source):\n"
    )
    titles = {
        "hypothesis": lambda plan, t: f"{decoding(plan.model, t).hypothesis / 1e6:.1f}",
        "sentence": lambda plan, t: f"{decoding(plan.model, t).sentence / 1e6:.1f}",
    }
    print("\n".join(markdown(plans, args.lengths, titles)))
    print(
        f"\nHours: {tokens / 1e9:.1f} G target tokens ({corpus.why.split(';')[0]}, 45 epochs), "
        f"{part:.0%} of {GPUS[args.gpu] / 1e12:.0f} T operations a second assumed."
    )


# ---------------------------------------------------------------- command line


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [--row NAME | --table] [OPTIONS] [MODEL FLAGS OF FAIRSEQ-TRAIN]",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--row", metavar="NAME", help="a row of configs/translation, such as wmt14_linear")
    add("--table", action="store_true", help="Markdown tables of the big model in all variants")
    add("--lengths", type=lengths_of, metavar="T,T", help="sentence lengths (default: 32,512; "
        "for --table 128,1024,16384)")  # fmt: skip
    add("--vocabulary", type=int, metavar="N", help="joint dictionary (default: the corpus's)")
    add("--corpus", choices=CORPORA, default="wmt14", help="without --row (default: wmt14)")
    add("--gpu", choices=GPUS, default="A100", help="for the hours (default: A100)")
    add("--utilisation", type=float, metavar="PART", help="of its peak (default: the corpus's)")
    add("--no-kernels", dest="kernels", action="store_false", help="without our CUDA kernels")
    return parser


def lengths_of(text: str) -> list[int]:
    """Read lengths, separated by commas.

    Raises:
        argparse.ArgumentTypeError: they are no positive whole numbers.
    """
    try:
        lengths = [int(part) for part in text.split(",")]
    except ValueError:
        lengths = [0]
    if min(lengths) < 1:
        raise argparse.ArgumentTypeError(f"positive whole numbers and commas, not {text!r}")
    return lengths


def configuration(args: argparse.Namespace) -> tuple[Any, Corpus]:
    """Return fairseq's configuration and the corpus that a command line asks for.

    Raises:
        SystemExit: there is no such row, or it comes with other flags.
    """
    if not args.row:
        recipe = ["--max-epoch", "45", "--max-tokens", "3584"]
        return settings([*recipe, *(args.fairseq or BIG)]), CORPORA[args.corpus]
    from lib.config_rows import load_row

    rows = sorted(path.stem for path in CONFIGS.glob("*_*.yaml"))
    if args.row not in rows:
        raise SystemExit(
            f"plan_run.py: error: no row {args.row!r}: choose one of {', '.join(rows)}"
        )
    if args.fairseq:
        raise SystemExit(f"plan_run.py: error: --row says it all; unknown: {args.fairseq[0]}")
    cfg = load_row(CONFIGS, args.row, "common.user_dir=none", "task.data=none")
    return cfg, CORPORA[args.row.split("_")[0]]


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    warnings.simplefilter("ignore")  # of hydra, about its own future
    args, args.fairseq = make_parser().parse_known_args(argv)
    args.lengths = args.lengths or ([128, 1024, 16384] if args.table else [RECIPE_LENGTH, 512])
    if args.table:
        print_table(args)
        return 0
    cfg, corpus = configuration(args)
    plan = Plan(cfg.model, args.vocabulary or corpus.words, args.kernels)
    for line in (*describe(plan, args.lengths), *estimate(plan, cfg, corpus, args)):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
