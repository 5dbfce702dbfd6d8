"""Learn one SentencePiece model for both languages of a parallel corpus and cut its files up.

    python -m fairseq_fwm.data.pieces DIR --source en --target de --size 1000

reads DIR/{train,valid,test}.{en,de} and writes DIR/pieces.model and DIR/{split}.pieces.{en,de},
which fairseq-preprocess takes; ``--remove-bpe sentencepiece`` turns a translation into text again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from .values import SPLITS, library


def learn(files: Sequence[Path], model: Path, size: int) -> None:
    """Write a byte-pair model of ``size`` pieces learned from ``files``.

    Digits stay single pieces, so that a number never seen is still made of known pieces.
    """
    prefix = model.with_suffix(".part")
    library("sentencepiece").SentencePieceTrainer.train(
        input=[str(file) for file in files],
        model_prefix=str(prefix),
        model_type="bpe",
        vocab_size=size,
        character_coverage=1.0,
        split_digits=True,
        normalization_rule_name="identity",  # the default writes m² as m2
        minloglevel=1,
    )
    prefix.with_name(f"{prefix.name}.vocab").unlink()
    prefix.with_name(f"{prefix.name}.model").replace(model)


def encode(model: Path, source: Path, destination: Path) -> None:
    """Write the lines of ``source`` as pieces with spaces between them."""
    processor = library("sentencepiece").SentencePieceProcessor(model_file=str(model))
    lines = source.read_text(encoding="utf-8").splitlines()
    pieces = processor.encode(lines, out_type=str)
    destination.write_text("".join(f"{' '.join(line)}\n" for line in pieces), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_fwm.data.pieces",
        description="Learn a joint SentencePiece model from train.* and encode every split.",
    )
    parser.add_argument("dir", type=Path, help="directory with {train,valid,test}.{source,target}")
    parser.add_argument("--source", default="en", help="language (default: %(default)s)")
    parser.add_argument("--target", default="de", help="language (default: %(default)s)")
    parser.add_argument("--size", type=int, default=1000, help="pieces (default: %(default)s)")
    args = parser.parse_args(argv)
    langs = (args.source, args.target)
    missing = [
        str(path)
        for split in SPLITS
        for lang in langs
        if not (path := args.dir / f"{split}.{lang}").is_file()
    ]
    if missing:
        parser.error(f"not there: {', '.join(missing)}; make them first")
    model = args.dir / "pieces.model"
    learn([args.dir / f"train.{lang}" for lang in langs], model, args.size)
    for split in SPLITS:
        for lang in langs:
            encode(model, args.dir / f"{split}.{lang}", args.dir / f"{split}.pieces.{lang}")


if __name__ == "__main__":
    main()
