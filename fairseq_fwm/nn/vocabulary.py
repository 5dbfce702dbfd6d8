"""fairseq's dictionary files without fairseq."""

from collections.abc import Iterable
from pathlib import Path

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
"""The first symbols of every dictionary, which its file leaves out."""


class Vocabulary:
    """Words and their indices.

    Args:
        symbols: all of them, in the order of their indices.

    >>> vocabulary = Vocabulary([*SPECIAL, "a", "b"])
    >>> vocabulary.encode("b a c")
    [5, 4, 3, 2]
    >>> vocabulary.decode([5, 4, 2])
    'b a'
    """

    def __init__(self, symbols: Iterable[str]) -> None:
        self.symbols = list(symbols)
        self.indices = {symbol: i for i, symbol in enumerate(self.symbols)}

    @classmethod
    def from_file(cls, path: Path) -> "Vocabulary":
        """Read a ``dict.txt`` of fairseq: a word and its count on every line.

        Raises:
            ValueError: naming a line that is none.
        """
        symbols = list(SPECIAL)
        for number, line in enumerate(path.read_text("utf-8").split("\n")[:-1], 1):
            word, _, count = line.removesuffix(" #fairseq:overwrite").rpartition(" ")
            if not word or not count.isdigit():
                raise ValueError(f"{path}, line {number}: {line!r} is no word with its count")
            symbols.append(word)
        return cls(symbols)

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, line: str) -> list[int]:
        """Return the indices of the words of a line, which spaces part, and of its end."""
        unknown, end = SPECIAL.index("<unk>"), SPECIAL.index("</s>")
        return [*(self.indices.get(word, unknown) for word in line.split()), end]

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the words of indices, without beginnings, ends and padding."""
        silent = {SPECIAL.index(symbol) for symbol in ("<s>", "<pad>", "</s>")}
        return " ".join(self.symbols[token] for token in tokens if token not in silent)
