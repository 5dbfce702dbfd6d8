#!/usr/bin/env python3
"""Turn a model of the language-modelling toolkit of arXiv 2102.11174 into a checkpoint of ours.

    python scripts/import_lmtool.py STATE --vocabulary FILE --out CHECKPOINT \\
        --flags "--attn_type 24 --n_head 8 --tgt_len 256 --skip_attn_normalization ..."

STATE is a state dict saved with torch.save, FILE the toolkit's vocabulary, one word a line in the
order of its numbers; the flags are those of the toolkit's training, as they were. Types of
attention: 0 (Transformer-XL), 2, 24, 25, 26, 34, 35, 44, 45, 46. The dictionary dict.txt is
written beside CHECKPOINT. The mapping, and how to save STATE and FILE, are in docs/export.md.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from lib.lmtool_layout import TYPES, AttentionType, Sizes, Tensors, map_weights  # noqa: E402
from lib.new_checkpoint import (  # noqa: E402
    ImportingError,
    configuration,
    read_file,
    run,
    save_checkpoint,
)

END, UNKNOWN = "<eos>", "<unk>"
CUTOFFS = {"wt103": (20000, 40000, 200000), "lm1b": (60000, 100000, 640000)}
"""Of the toolkit's adaptive softmax, by ``--dataset``."""

REFUSED = {
    "pre_lnorm": "its residual branch is the normalised input, which no model here has",
    "not_tied": "input and output embeddings are one table here",
    "same_length": "every position sees all before it here",
    "remove_ff": "every layer has a feed-forward network here",
}
"""Flags of the toolkit that no model here can stand for."""


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("state", type=Path, help="state dict of the toolkit's model")
    add("--vocabulary", type=Path, required=True, metavar="FILE", help="its words, one a line")
    add("--out", type=Path, required=True, metavar="CHECKPOINT", help="file to write")
    add("--draw-projections", type=int, metavar="SEED",
        help="draw FAVOR+'s random matrices anew instead of reading them from STATE")  # fmt: skip
    add("--flags", required=True, help="of the toolkit's training, in quotes")
    return parser


def toolkit_parser() -> argparse.ArgumentParser:
    """Return the toolkit's command line, as far as it says what the model is."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add = parser.add_argument
    add("--attn_type", type=int, default=0)
    add("--n_head", type=int, default=10)
    add("--d_head", type=int)
    add("--dataset", default="wt103")
    add("--cutoffs", type=lambda text: tuple(map(int, text.split(","))))  # not the toolkit's
    add("--tgt_len", type=int, default=70)
    add("--mem_len", type=int, default=0)
    add("--ext_len", type=int, default=0)
    add("--clamp_len", type=int, default=-1)
    add("--div_val", type=int, default=1)
    add("--dpfp_n_roll", type=int, default=2)
    add("--performer_proj_dim", type=int, default=16)
    add("--dropout", type=float, default=0.0)
    add("--dropatt", type=float, default=0.0)
    for name in ("no_pos", "skip_attn_normalization", "carry_over_fast_weight", *REFUSED):
        add(f"--{name}", action="store_true")
    return parser


def read_flags(flags: list[str]) -> argparse.Namespace:
    """Return the toolkit's settings.

    Raises:
        ImportingError: for what no model here can stand for.
    """
    try:
        toolkit, _ = toolkit_parser().parse_known_args(flags)
    except argparse.ArgumentError as error:
        raise ImportingError(f"flags of the toolkit: {error}") from error
    for name, why in REFUSED.items():
        if getattr(toolkit, name):
            raise ImportingError(f"a model trained with --{name} cannot be imported: {why}")
    if toolkit.attn_type not in TYPES:
        raise ImportingError(
            f"--attn_type {toolkit.attn_type}: only {', '.join(map(str, TYPES))} can be imported"
        )
    if toolkit.div_val != 1 or toolkit.ext_len or toolkit.clamp_len > 0:
        raise ImportingError(
            "a model trained with --div_val above 1, --ext_len or --clamp_len cannot be imported: "
            "nothing here stands for these"
        )
    if toolkit.carry_over_fast_weight and not toolkit.no_pos:
        raise ImportingError(
            "--carry_over_fast_weight without --no_pos: positions that begin anew in every "
            "segment do not go with a carried state here"
        )
    toolkit.cutoffs = toolkit.cutoffs or CUTOFFS.get(toolkit.dataset)
    if toolkit.cutoffs is None:
        raise ImportingError(
            f"--dataset {toolkit.dataset}: the toolkit has no adaptive softmax for it, whose "
            "output bias fairseq's plain softmax has no place for; only models with --adaptive "
            "can be imported"
        )
    return toolkit


def our_order(words: list[str], cutoff: int) -> list[int]:
    """Return which of the toolkit's words each of ours is, -1 for one that it does not have.

    Ours begin with ``<s>``, ``<pad>``, ``</s>`` (the toolkit's ``<eos>``) and ``<unk>``.

    Args:
        words: the toolkit's.
        cutoff: how many of them are in the head of the adaptive softmax.

    Raises:
        ImportingError: if these words are not the toolkit's.
    """
    if not words or words[0] != END or len(set(words)) != len(words):
        raise ImportingError(
            f"the vocabulary must begin with {END} and have no word twice: one word a line, in "
            "the order of the toolkit's numbers"
        )
    unknown = words.index(UNKNOWN) if UNKNOWN in words else -1
    if unknown >= cutoff:
        raise ImportingError(
            f"{UNKNOWN} is word {unknown}, in a tail of the adaptive softmax (from {cutoff}): "
            "here it is always in the head"
        )
    return [-1, -1, 0, unknown, *(i for i in range(1, len(words)) if i != unknown)]


def our_flags(
    toolkit: argparse.Namespace, sizes: Sizes, kind: AttentionType, added: int
) -> list[str]:
    """Return the flags of ``fairseq-train`` for a model of the toolkit.

    Args:
        toolkit: its settings.
        sizes: of the model.
        kind: of attention.
        added: how many words the head of the adaptive softmax has that the toolkit's has not.
    """
    dim, length = str(sizes.dim), str(toolkit.tgt_len)
    cutoff = ",".join(str(end + added) for end in toolkit.cutoffs)
    flags = ["--cpu", "--optimizer", "adam", "--lr", "0.00025", "--criterion", "adaptive_loss"]
    flags += ["--tokens-per-sample", length, "--max-target-positions", length]
    for name, size in (
        ("embed", dim),
        ("input", dim),
        ("output", dim),
        ("ffn-embed", sizes.inner),
    ):
        flags += [f"--decoder-{name}-dim", str(size)]
    flags += ["--decoder-layers", str(sizes.layers), "--decoder-attention-heads"]
    flags += [str(sizes.heads), "--attention-dropout", str(toolkit.dropatt)]
    for name in ("", "activation-", "adaptive-softmax-"):
        flags += [f"--{name}dropout", str(toolkit.dropout)]
    flags += ["--adaptive-softmax-cutoff", cutoff, "--fwm-tied-adaptive-softmax"]
    streams = ["--task", "streaming_language_modeling"]
    if kind.rule == "xl":
        return [*flags, *streams, "--arch", "transformer_xl_lm", "--mem-len", str(toolkit.mem_len)]
    flags += streams if toolkit.carry_over_fast_weight else ["--task", "language_modeling"]
    if toolkit.no_pos:
        flags += ["--no-token-positional-embeddings"]
    flags += variant_flags(toolkit, kind)
    return [*flags, "--arch", "fwm_transformer_lm", "--fwm-no-projection-bias"]


def variant_flags(toolkit: argparse.Namespace, kind: AttentionType) -> list[str]:
    """Return the ``--fwm-*`` flags of a type of attention."""
    attn_norm = "none" if toolkit.skip_attn_normalization else kind.attn_norm
    variant = {
        "decoder-self": kind.rule,
        "feature-map": kind.feature_map,
        "dpfp-nu": toolkit.dpfp_n_roll,
        "favor-features": toolkit.performer_proj_dim,
        "favor-variant": "toolkit",
        "attn-norm": attn_norm,
        "output-scale": "rsqrt",
        "positions": "reversed",
    }
    return [x for name, value in variant.items() for x in (f"--fwm-{name}", str(value))]


def write_dictionary(path: Path, words: list[str], order: list[int]) -> None:
    """Write our ``dict.txt``; the toolkit's counts are not known, and nothing asks for them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{words[i]} 1\n" for i in order[4:]), "utf-8")


def draw_projections(
    tensors: Tensors, sizes: Sizes, toolkit: argparse.Namespace, seed: int
) -> None:
    """Add FAVOR+'s random matrices to a state dict that has none."""
    from fairseq_fwm.feature_maps import FavorFeatureMap

    d = sizes.dim // sizes.heads
    for i in range(sizes.layers):
        drawn = FavorFeatureMap(d, toolkit.performer_proj_dim, "toolkit", seed * 1009 + i)
        tensors.left[f"layers.{i}.dec_attn.proj_matrix"] = drawn.projection


def convert(args: argparse.Namespace) -> str:
    """Write the checkpoint; return what to say about it.

    Raises:
        ImportingError: if the model cannot be imported.
    """
    from fairseq import tasks

    toolkit = read_flags(shlex.split(args.flags))
    kind = TYPES[toolkit.attn_type]
    tensors = Tensors(read_file(args.state))
    sizes = Sizes.of(tensors, toolkit.n_head)
    words = read_words(args.vocabulary, sizes.words)
    order = our_order(words, toolkit.cutoffs[0])
    if args.draw_projections is not None and kind.feature_map == "favor":
        draw_projections(tensors, sizes, toolkit, args.draw_projections)
    weights = map_weights(tensors, sizes, kind, order)
    folder = args.out.parent
    write_dictionary(folder / "dict.txt", words, order)
    added = len(order) - len(words)
    cfg = configuration([str(folder), *our_flags(toolkit, sizes, kind, added)])
    try:
        model = tasks.setup_task(cfg.task).build_model(cfg.model)
        model.load_state_dict(complete(weights, model.state_dict()))
    except (RuntimeError, ValueError) as error:
        raise ImportingError(f"these weights do not fit the flags: {error}") from error
    save_checkpoint(args.out, cfg, model.state_dict())
    return f"{args.out}: {cfg.model._name}, {sizes.layers} layers of {sizes.dim}"


def complete(weights: dict[str, Any], of_model: dict[str, Any]) -> dict[str, Any]:
    """Add what a model keeps beside its weights: fairseq's version numbers."""
    versions = {name: x for name, x in of_model.items() if name.rpartition(".")[2] == "version"}
    return {**versions, **weights}


def read_words(path: Path, count: int) -> list[str]:
    """Return the toolkit's vocabulary.

    Raises:
        ImportingError: if there is no such file, or not as many words in it.
    """
    if not path.is_file():
        raise ImportingError(f"there is no vocabulary {path}")
    words = path.read_text("utf-8").split("\n")
    words = words[:-1] if words[-1] == "" else words
    if len(words) != count:
        raise ImportingError(f"{path} has {len(words)} words, the model {count}")
    return words


if __name__ == "__main__":
    sys.exit(run(convert, make_parser().parse_args()))
