#!/usr/bin/env python3
"""Continue a text with a trained language model.

A model that carries a state (fast weights without positions, Transformer-XL) takes the same time
for every token, however long the text is; any other reads its last `--window` tokens again for
every token, and the script says so.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from eval_lm import EvaluationError, load


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="checkpoint of a language model")
    add("data", type=Path, help="its data, as a prepare_*.sh script made it")
    add("--prompt", default="", help="text to continue (default: none); - reads standard input")
    add("--tokens", type=int, default=100, help="how many to add (default: 100)")
    add("--temperature", type=float, default=0.8, help="0 takes the likeliest (default: 0.8)")
    add("--top-k", type=int, default=0, metavar="K",
        help="sample among the K likeliest (default: all)")  # fmt: skip
    add("--seed", type=int, default=1, help="of the random numbers (default: 1)")
    add("--window", type=int, metavar="N",
        help="tokens read again without a state (default: --tokens-per-sample)")  # fmt: skip
    add("--threads", type=int, default=1, help="threads on the CPU (default: 1)")
    return parser


def sample(args: argparse.Namespace) -> None:
    """Print the prompt and its continuation, then how it was made.

    Raises:
        EvaluationError: if there is no such model or its data say not what a token is.
    """
    import torch

    from fairseq_fwm.lm_scoring import can_stream, continue_text
    from lib.lm_tokens import Codec

    if not (args.data / "data.json").is_file():
        raise EvaluationError(f"{args.data} has no data.json: a scripts/prepare_*.sh makes it")
    torch.set_num_threads(args.threads)
    model, cfg, task = load(args.checkpoint, args.data, "{}")
    model.eval()
    codec, dictionary = Codec(args.data), task.target_dictionary
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    known = codec.encode(prompt.encode()) if prompt else []
    window = args.window or cfg.task.tokens_per_sample
    special = {dictionary.bos(), dictionary.pad(), dictionary.unk()}
    if codec.unit in ("character", "byte"):
        special.add(dictionary.eos())
    tokens = continue_text(
        model,
        torch.tensor(known, dtype=torch.long),
        eos=dictionary.eos(),
        window=window,
        temperature=args.temperature,
        top_k=args.top_k,
        forbidden=tuple(special),
        generator=torch.Generator().manual_seed(args.seed),
    )
    start = time.perf_counter()
    new = list(itertools.islice(tokens, args.tokens))
    seconds = time.perf_counter() - start
    print(codec.decode([*known, *new]).decode("utf-8", "replace"))
    way = "the state alone" if can_stream(model) else f"the last {window:,} tokens read again"
    print(
        f"-- {len(new)} tokens in {seconds:.2f} s, each from {way}; seed {args.seed}, "
        f"temperature {args.temperature}",
        file=sys.stderr,
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    try:
        sample(make_parser().parse_args(argv))
    except EvaluationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
