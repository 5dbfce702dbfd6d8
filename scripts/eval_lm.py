#!/usr/bin/env python3
"""Score a text with a trained language model, by any of the published ways of giving it context.

sliding    every token after the LENGTH tokens before it; slow (one window a token)
segments   windows of LENGTH side by side, each from an empty context
streaming  segments of LENGTH with the carried state: fast weights without positions, or
           Transformer-XL

Prints the way, the perplexity, what a layer keeps of the text, and the seconds; `--json FILE`
keeps them. Perplexity is per token of the data, end-of-line included. What the data's own record
(data.json of the prepare_*.sh scripts) allows is added: bits per character or byte, or, of a whole
split in pieces, the perplexity per word.
"""

import argparse
import json
import math
import shlex
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:0] = map(str, (Path(__file__).resolve().parent, Path(__file__).resolve().parents[1]))
from lib.data_files import write_whole  # noqa: E402

METHODS = ("sliding", "segments", "streaming")


class EvaluationError(Exception):
    """Cannot evaluate; the message says why and what to do."""


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="checkpoint of a language model")
    add("data", type=Path, help="binarised data, with dict.txt")
    add("--split", default="test", help="which split (default: test)")
    add("--method", choices=METHODS, default="segments", help="see above (default: segments)")
    add("--length", type=int, metavar="LENGTH",
        help="of windows or segments (default: --tokens-per-sample of the training)")  # fmt: skip
    add("--batch-size", type=int, default=16, metavar="N",
        help="windows or segments at a time; streaming has one stream (default: 16)")  # fmt: skip
    add("--limit", type=int, metavar="N", help="score the first N tokens only")
    add("--overrides", default="{}", metavar="DICT",
        help="model settings to change, such as \"{'eval_mem_len': 128}\"")  # fmt: skip
    add("--device", default="cpu", help="cpu or cuda (default: cpu)")
    add("--threads", type=int, default=1, help="threads on the CPU (default: 1)")
    add("--json", type=Path, metavar="FILE", help="write the result to FILE, too")
    return parser


def load(checkpoint: Path, data: Path, overrides: str) -> tuple[Any, Any, Any]:
    """Return model, its configuration and its task.

    Raises:
        EvaluationError: if files are missing or the model is no language model.
    """
    import ast

    from fairseq import checkpoint_utils

    import fairseq_fwm  # noqa: F401  (registers models and tasks)

    for path, what in (checkpoint, "checkpoint"), (data / "dict.txt", "dictionary"):
        if not path.is_file():
            raise EvaluationError(f"there is no {what} {path}")
    (model,), cfg, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(checkpoint)], {**ast.literal_eval(overrides), "data": str(data)}
    )
    if not hasattr(model, "decoder") or hasattr(model, "encoder"):
        raise EvaluationError(f"{checkpoint} holds a {type(model).__name__}, no language model")
    return model, cfg, task


def load_text(data: Path, split: str, dictionary: Any) -> Any:
    """Return the tokens of a split, one after the other.

    Raises:
        EvaluationError: if there is no such split.
    """
    import torch
    from fairseq.data import data_utils

    lines = data_utils.load_indexed_dataset(str(data / split), dictionary)
    if lines is None:
        found = sorted(path.stem for path in data.glob("*.idx"))
        raise EvaluationError(f"no split {split!r} in {data}; found: {', '.join(found) or 'none'}")
    return torch.cat([lines[i] for i in range(len(lines))]).long()


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Score the split; return what is printed and kept."""
    import torch
    from tqdm import tqdm

    from fairseq_fwm import lm_scoring

    torch.set_num_threads(args.threads)
    model, cfg, task = load(args.checkpoint, args.data, args.overrides)
    model.eval().to(args.device)
    try:
        model.prepare_for_inference_(cfg)
    except ValueError as error:
        raise EvaluationError(str(error)) from None
    dictionary = task.target_dictionary
    text = load_text(args.data, args.split, dictionary)[: args.limit].to(args.device)
    length = args.length or cfg.task.tokens_per_sample
    options = {"eos": dictionary.eos()}
    if args.method != "streaming":
        options["batch_size"] = args.batch_size
    function = getattr(lm_scoring, f"score_{args.method}")
    start = time.perf_counter()
    with tqdm(total=len(text), desc=args.method, unit="token", unit_scale=True) as bar:
        try:
            found = function(model, text, length, progress=bar.update, **options)
        except ValueError as error:
            raise EvaluationError(f"{args.checkpoint}: {error}") from None
    seconds = time.perf_counter() - start
    nats = -found.double().sum().item()
    return {
        "command": shlex.join(["python", "scripts/eval_lm.py", *args.argv]),
        "method": args.method,
        "length": length,
        "split": args.split,
        "limit": args.limit,
        "tokens": len(text),
        "nats_per_token": nats / len(text),
        "perplexity": exponential(nats / len(text)),
        **by_unit(args, nats, len(text)),
        "state_per_layer": lm_scoring.state_per_layer(model, length, dictionary.eos()),
        "layers": len(model.decoder.layers),
        "seconds": seconds,
        "tokens_per_second": len(text) / seconds,
        "threads": args.threads,
    }


def by_unit(args: argparse.Namespace, nats: float, tokens: int) -> dict[str, Any]:
    """Return what else is usual for the unit of the data, as far as their record tells it."""
    path = args.data / "data.json"
    facts = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    unit = facts.get("unit")
    found: dict[str, Any] = {"unit": unit}
    if unit in ("character", "byte"):
        found["bits_per_token"] = nats / tokens / math.log(2)
    words = facts.get("splits", {}).get(args.split, {}).get("words")
    if unit == "piece" and words and args.limit is None:
        found["perplexity_per_word"] = exponential(nats / words)
    return found


def exponential(nats: float) -> float:
    """Return e to the power of a loss, which may have become very large."""
    return math.inf if nats > 700 else math.exp(nats)


def report(result: dict[str, Any]) -> str:
    """Return the result as lines for people."""
    lines = [
        f"{result['split']}: {result['tokens']:,} tokens, {result['method']}, "
        f"length {result['length']:,}",
        f"perplexity         {result['perplexity']:.2f}",
    ]
    if "perplexity_per_word" in result:
        lines.append(f"  per word         {result['perplexity_per_word']:.2f}")
    if "bits_per_token" in result:
        lines.append(f"{'bits per ' + result['unit']:18} {result['bits_per_token']:.3f}")
    lines += [
        f"state per layer    {result['state_per_layer']:,} numbers, {result['layers']} layers",
        f"time               {result['seconds']:.1f} s, "
        f"{result['tokens_per_second']:,.0f} tokens/s",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = make_parser().parse_args(argv)
    args.argv = sys.argv[1:] if argv is None else argv
    try:
        result = evaluate(args)
    except EvaluationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report(result))
    if args.json:
        write_whole(args.json, (json.dumps(result, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
