"""Text to tokens and back, for each kind of corpus that the prepare_*.sh scripts make.

    python scripts/lib/lm_tokens.py DIR SPLIT

prints a binarised split as text again.

Where a token is a character (or, for enwik8, a byte), it stands for itself in the dictionary if
it can be printed; everything else, a space included, is written as its number: `<0x20>`. A token
of one character is always that character, so there is nothing to confuse it with.
"""

import argparse
import json
import logging
import re
import signal
import sys
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

UNITS = ("word", "piece", "character", "byte")
MODEL = "pieces.model"


def to_token(character: str, unit: str) -> str:
    """Return the dictionary's word for a character, or for a byte given as U+0000 ... U+00FF."""
    plain = character.isprintable() and not character.isspace()
    if plain and (unit == "character" or character.isascii()):
        return character
    return f"<0x{ord(character):02X}>"


def from_token(token: str) -> str:
    """Return the character of a dictionary's word.

    Raises:
        ValueError: the word is not one that `to_token` makes.
    """
    if len(token) == 1:
        return token
    if match := re.fullmatch(r"<0x([0-9A-F]{2,6})>", token):
        return chr(int(match[1], 16))
    raise ValueError(f"{token!r} is no character: the data have another unit")


def characters_of(text: bytes, unit: str) -> str:
    """Return a text as characters, its bytes as U+0000 ... U+00FF if they are the unit."""
    return text.decode("latin-1" if unit == "byte" else "utf-8")


class Codec:
    """Turns text into the numbers of a data directory's dictionary and back.

    Args:
        directory: what a prepare_*.sh script made.
    """

    def __init__(self, directory: Path) -> None:
        from fairseq.data import Dictionary

        self.directory = directory
        self.unit: str = json.loads((directory / "data.json").read_text("utf-8"))["unit"]
        self.dictionary = Dictionary.load(str(directory / "dict.txt"))

    @cached_property
    def _pieces(self) -> "SentencePieceProcessor":
        from sentencepiece import SentencePieceProcessor

        return SentencePieceProcessor(model_file=str(self.directory / MODEL))

    def encode(self, text: bytes) -> list[int]:
        """Return a text's numbers; a line end is `</s>`, or the character that it is."""
        if self.unit in ("character", "byte"):
            characters = characters_of(text, self.unit)
            return [self.dictionary.index(to_token(one, self.unit)) for one in characters]
        numbers: list[int] = []
        for position, line in enumerate(text.decode().split("\n")):
            if position:
                numbers.append(self.dictionary.eos())
            words = (
                line.split() if self.unit == "word" else self._pieces.encode(line, out_type=str)
            )
            numbers += [self.dictionary.index(word) for word in words]
        return numbers

    def decode(self, numbers: Iterable[int]) -> bytes:
        """Return the text of some numbers: the inverse of `encode`, but for spaces of words."""
        words = [self.dictionary[number] for number in numbers]
        if self.unit in ("character", "byte"):
            text = "".join(map(from_token, words))
            return text.encode("latin-1" if self.unit == "byte" else "utf-8")
        lines: list[list[str]] = [[]]
        for word in words:
            if word == self.dictionary.eos_word:
                lines.append([])
            else:
                lines[-1].append(word)
        join = " ".join if self.unit == "word" else self._pieces.decode
        return "\n".join(map(join, lines)).encode()


def quiet_fairseq() -> None:
    """Keep fairseq from saying what packages tasks lack that have nothing to do with text."""
    logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.WARNING)


def main(argv: list[str] | None = None) -> None:
    """Print a binarised split as text."""
    parser = argparse.ArgumentParser(description="Print a binarised split as text again.")
    parser.add_argument("directory", type=Path, help="what a prepare_*.sh script made")
    parser.add_argument("split", choices=("train", "valid", "test"))
    args = parser.parse_args(argv)
    quiet_fairseq()
    if not (args.directory / "data.json").is_file():
        parser.error(f"{args.directory} has no data.json: a prepare_*.sh script makes it")

    from fairseq.data.indexed_dataset import MMapIndexedDataset

    codec = Codec(args.directory)
    lines = codec.unit in ("word", "piece")  # an item is a line, then; its last token its end
    for item in MMapIndexedDataset(str(args.directory / args.split)):
        text = codec.decode(item[:-1].tolist() if lines else item.tolist())
        sys.stdout.buffer.write(text + b"\n" if lines else text)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without an error
    main()
