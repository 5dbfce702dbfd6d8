#!/usr/bin/env python3
"""Make the data of a formal language (arXiv 2310.16076): strings and what may follow each prefix.

Writes {train,valid,test,bin2}_50.{src,tgt} into a folder, a string per line, symbols and targets
separated by spaces. valid is Bin0, strings as long as in training; test is Bin1, longer ones; bin2
even longer ones, for a figure that no choice of a checkpoint has seen.

  python scripts/make_formal_language.py parity --out data/formal/parity
  python scripts/make_formal_language.py --all --out data/formal
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = map(str, (Path(__file__).resolve().parent, Path(__file__).resolve().parents[1]))
from fairseq_fwm.data.formal_languages import LANGUAGES, Language, make_splits  # noqa: E402
from lib.data_files import write_whole  # noqa: E402


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("language", nargs="?", choices=LANGUAGES, help="which")
    add("--all", action="store_true", help="every language, each in a folder of its own")
    add("--out", type=Path, required=True, metavar="DIR", help="where the files go")
    add("--seed", type=int, default=1, help="of the draws (default %(default)s)")
    for option, what in (
        ("--train-window", "training and Bin0"),
        ("--bin1-window", "Bin1"),
        ("--bin2-window", "Bin2"),
    ):
        add(option, type=int, nargs=2, metavar=("SHORTEST", "LONGEST"),
            help=f"lengths of {what}; of counters, n (default: the language's own)")  # fmt: skip
    add("--sizes", type=int, nargs=4, metavar=("TRAIN", "BIN0", "BIN1", "BIN2"),
        help="how many strings at most (default: the language's own)")  # fmt: skip
    return parser


def write(folder: Path, language: Language, splits: dict[str, list[list[str]]]) -> None:
    """Write the files of every split."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, strings in splits.items():
        pairs = (("src", strings), ("tgt", map(language.targets, strings)))
        for end, lines in pairs:
            text = "".join(" ".join(line) + "\n" for line in lines)
            write_whole(folder / f"{split}_50.{end}", text.encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    if bool(args.language) == args.all:
        parser.error(f"name one language, or --all: {', '.join(LANGUAGES)}")
    for name in LANGUAGES if args.all else [args.language]:
        language = LANGUAGES[name]
        given = (args.train_window, args.bin1_window, args.bin2_window)
        windows = [mine or own for mine, own in zip(given, language.windows, strict=True)]
        for shortest, longest in windows:
            if not 0 < shortest <= longest:
                parser.error(f"a window goes from 1 on upwards, not from {shortest} to {longest}")
        folder = args.out / name if args.all else args.out
        try:
            splits = make_splits(language, args.seed, windows, args.sizes)
        except ValueError as error:
            parser.error(f"{name}: {error}")
        write(folder, language, splits)
        counts = ", ".join(f"{split} {len(strings):,}" for split, strings in splits.items())
        print(f"{folder}: {counts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
