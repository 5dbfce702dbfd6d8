#!/usr/bin/env python3
"""Draw what the fast weight memories of a trained model do while they read a text.

For every fast weight layer, in DIR:

  LAYER-history.png  heads x tokens: the write strength beta; the size of the memory (Frobenius
                     norm) and how many directions it uses (effective rank), after each token; and
                     how much each write changes, against what lay at its key before
  LAYER-erasure.png  tokens x tokens, a map for each head: which earlier tokens' writes each write
                     erases, and what is left of each at the end (not of the sum rule: it erases
                     nothing)
  memory.json        all the numbers

What they mean to the letter: docs/inspect_memory.md. Language models read TEXT; translation models
read --source and are made to write TEXT.

  python scripts/inspect_memory.py runs/lm/stdlib/elu-delta-seed1/checkpoint_best.pt \\
      --data runs/lm/data/stdlib --text 'def add(self, x):' --out runs/memory
"""

import argparse
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[:0] = map(str, (Path(__file__).resolve().parent, Path(__file__).resolve().parents[1]))
from lib.data_files import write_whole  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lib.memory_figures import Memory

BPE_FILES = {
    "sentencepiece": "sentencepiece_model",
    "subword_nmt": "bpe_codes",
    "fastbpe": "bpe_codes",
}
"""What fairseq calls the file of each kind of pieces."""


class InspectionError(Exception):
    """Nothing to draw; the message says why and what to do."""


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="checkpoint of a model with fast weights")
    add("--text", required=True, help="what the decoder reads; - reads standard input")
    add("--source", help="what the encoder reads (translation models)")
    add("--data", type=Path, metavar="DIR",
        help="its data, with the dictionary (default: where the training found them)")  # fmt: skip
    add("--out", type=Path, required=True, metavar="DIR", help="where the pictures go")
    add("--bpe", choices=BPE_FILES, help="cut words into pieces as fairseq's --bpe does (default: "
        "as the data's record or the training says, else words between spaces)")  # fmt: skip
    add("--bpe-model", type=Path, metavar="FILE", help="its codes or its model")
    add("--max-tokens", type=int, default=120, metavar="N", help="cut longer texts (default: "
        "%(default)s); above 64 not every token is named")  # fmt: skip
    add("--threads", type=int, default=1, help="threads on the CPU (default: 1)")
    return parser


def load(args: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Return model, its configuration and its task.

    Raises:
        InspectionError: if files are missing.
    """
    from fairseq import checkpoint_utils

    import fairseq_fwm  # noqa: F401  (registers models and tasks)

    if not args.checkpoint.is_file():
        raise InspectionError(f"there is no checkpoint {args.checkpoint}")
    overrides = {} if args.data is None else {"data": str(args.data)}
    try:
        (model,), cfg, task = checkpoint_utils.load_model_ensemble_and_task(
            [str(args.checkpoint)], overrides
        )
    except FileNotFoundError as error:
        raise InspectionError(
            f"the model's dictionary is not there ({error.filename or error}): name the folder "
            "with its dict*.txt by --data"
        ) from None
    return model.eval(), cfg, task


class Words:
    """Turns a text into a dictionary's numbers, in the way the data were made.

    Args:
        args: the command line.
        cfg: the training's configuration.
        task: the model's task.
    """

    def __init__(self, args: argparse.Namespace, cfg: Any, task: Any) -> None:
        from lib.lm_tokens import Codec

        self.codec = self.bpe = self.tokenizer = None
        data = Path(args.data or cfg.task.data)
        record = data / "data.json"
        if record.is_file() and "unit" in json.loads(record.read_text("utf-8")):
            self.codec = Codec(data)
        elif args.bpe:
            self.bpe = task.build_bpe(self._named(args))
        else:
            self.tokenizer = task.build_tokenizer(cfg.tokenizer)
            self.bpe = task.build_bpe(cfg.bpe)

    @staticmethod
    def _named(args: argparse.Namespace) -> argparse.Namespace:
        if args.bpe_model is None or not args.bpe_model.is_file():
            raise InspectionError(f"--bpe {args.bpe} needs its file: --bpe-model FILE")
        file = {BPE_FILES[args.bpe]: str(args.bpe_model)}
        return argparse.Namespace(bpe=args.bpe, bpe_separator="@@", **file)

    def encode(self, text: str, dictionary: Any) -> list[int]:
        """Return the numbers of a text, without an end of sentence.

        Raises:
            InspectionError: if it is empty, or most of it is unknown to the dictionary.
        """
        if self.codec is not None:
            numbers = self.codec.encode(text.encode())
        else:
            text = text if self.tokenizer is None else self.tokenizer.encode(text)
            text = text if self.bpe is None else self.bpe.encode(text)
            numbers = [dictionary.index(word) for word in text.split()]
        unknown = numbers.count(dictionary.unk())
        if not numbers:
            raise InspectionError("the text is empty")
        if 2 * unknown > len(numbers):
            raise InspectionError(
                f"{unknown} of {len(numbers)} tokens are not in the dictionary: give the text as "
                "the data were (lower-cased, tokenised, in pieces), or the pieces by --bpe and "
                "--bpe-model"
            )
        return numbers


def read_texts(
    model: "nn.Module", words: Words, task: Any, args: argparse.Namespace
) -> tuple[list[int], list[int]]:
    """Return the numbers that the decoder and the encoder read; none for one that is not there.

    Raises:
        InspectionError: if a text is missing or not understood.
    """
    target, text = task.target_dictionary, sys.stdin.read() if args.text == "-" else args.text
    read = [target.eos(), *words.encode(text.rstrip("\n"), target)][: args.max_tokens]
    if not hasattr(model, "encoder"):
        return read, []
    if args.source is None:
        raise InspectionError("a translation model reads a source, too: --source TEXT")
    dictionary = task.source_dictionary
    source = words.encode(args.source, dictionary)[: args.max_tokens - 1]
    return read, [*source, dictionary.eos()]


def run_model(
    model: "nn.Module", words: Words, task: Any, args: argparse.Namespace
) -> dict[str, tuple[Any, list[str], "Tensor"]]:
    """Run the model once; return layer, tokens and slow network's output of each memory.

    Raises:
        InspectionError: if the model has no fast weights, or a text is missing.
    """
    import torch

    from fairseq_fwm.modules.attention import FastWeightCrossAttention, MixerAttention

    layers = {name: m for name, m in model.named_modules() if isinstance(m, MixerAttention)}
    if not layers:
        raise InspectionError(
            f"{args.checkpoint} holds a {type(model).__name__} without fast weights: train one "
            "with --fwm-decoder-self delta or sum"
        )
    read, source = read_texts(model, words, task, args)
    found: dict[str, Tensor] = {}
    for name, layer in layers.items():
        crosses = isinstance(layer, FastWeightCrossAttention)
        projection = layer.kv_proj if crosses else layer.in_proj
        projection.register_forward_hook(
            lambda module, inputs, output, name=name: found.update({name: output})
        )
    encoder = (torch.tensor([source]), torch.tensor([len(source)])) if source else ()
    with torch.no_grad():
        model(*encoder, torch.tensor([read]))
    heard = [task.source_dictionary[i] for i in source]
    said = [task.target_dictionary[i] for i in read]
    return {
        name: (layers[name], heard if reads_source(name) else said, output)
        for name, output in found.items()
    }


def reads_source(name: str) -> bool:
    """Return whether the memory of a layer holds the source and not the target."""
    return name.startswith("encoder.") or name.endswith(".encoder_attn")


def memories_of(name: str, layer: Any, tokens: list[str], output: "Tensor") -> list["Memory"]:
    """Follow the memory of a layer; both of one that reads in both directions."""
    from fairseq_fwm.inspection import trace_mixer
    from lib.memory_figures import Memory

    side, number = re.fullmatch(r"(\w+)\.layers\.(\d+)\..*", name).groups()
    site = "cross-attention" if name.endswith("encoder_attn") else "self-attention"
    title = f"{side.capitalize()} layer {int(number) + 1}, {site}"
    file = f"{side}-{int(number) + 1}-{site.split('-')[0]}"
    mixer, projected = layer.mixer, layer._to_heads(output)
    config = getattr(mixer, "config", None)
    rule = "recurrent delta" if config is None else config.rule
    both = not getattr(layer, "causal", True) and not mixer.rule.order_free
    found = []
    for backwards in (False, True)[: 1 + both]:
        (trace,) = trace_mixer(mixer, projected.flip(2) if backwards else projected)
        way = ("", "")
        if both:
            way = (", right to left", "-back") if backwards else (", left to right", "")
        k, v, _ = mixer.writes(projected[:, :, :1])
        written = tokens[::-1] if backwards else tokens
        shape = (k.shape[-1], v.shape[-1])
        found.append(Memory(title + way[0], file + way[1], rule, *shape, written, trace))
    return found


def as_record(memory: "Memory") -> dict[str, Any]:
    """Return the numbers of a memory for JSON, four digits each."""
    import torch

    def rounded(x: Any) -> Any:
        return [rounded(y) for y in x] if isinstance(x, list) else float(f"{x:.4g}")

    trace = {
        name: rounded(x.tolist()) if isinstance(x, torch.Tensor) else None
        for name, x in memory.trace._asdict().items()
    }
    return {**memory._asdict(), "trace": trace}


def inspect(args: argparse.Namespace) -> list[Path]:
    """Write the pictures and the numbers; return where they are.

    Raises:
        InspectionError: if there is nothing to draw.
    """
    import torch
    from tqdm import tqdm

    from lib.lm_tokens import quiet_fairseq

    if importlib.util.find_spec("matplotlib") is None:
        raise InspectionError("matplotlib is not installed: pip install matplotlib")
    quiet_fairseq()
    torch.set_num_threads(args.threads)
    model, cfg, task = load(args)
    from lib.memory_figures import draw_erasure, draw_history

    layers = run_model(model, Words(args, cfg, task), task, args)
    args.out.mkdir(parents=True, exist_ok=True)
    written, records, skipped = [], [], []
    for name, (layer, tokens, output) in tqdm(layers.items(), desc="memories", unit="layer"):
        if not hasattr(layer.mixer, "writes"):
            skipped.append(f"{name} ({type(layer.mixer).__name__})")
            continue
        for memory in memories_of(name, layer, tokens, output):
            pictures = {"history": draw_history}
            if memory.rule != "sum":
                pictures["erasure"] = draw_erasure
            for kind, draw in pictures.items():
                written.append(args.out / f"{memory.file}-{kind}.png")
                draw(memory, written[-1])
            records.append(as_record(memory))
    if not records:
        raise InspectionError(
            f"keys and values are written to none of these memories: {', '.join(skipped)}"
        )
    if skipped:
        print(f"not drawn, no keys and values are written: {', '.join(skipped)}", file=sys.stderr)
    record = {"checkpoint": str(args.checkpoint), "memories": records}
    write_whole(args.out / "memory.json", (json.dumps(record) + "\n").encode())
    return [*written, args.out / "memory.json"]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    try:
        written = inspect(make_parser().parse_args(argv))
    except InspectionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(map(str, written)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
