"""Texts of a language modelling corpus to fairseq's binary form (called by lm_files.py).

Words go through fairseq-preprocess; pieces and characters have their numbers already and are
written with what it writes with. Of words and pieces, an item of the data is a line with `</s>` at
its end, and an empty line is a lone `</s>`, as in the published counts. A line end between
characters is a character like any other: `</s>` does not occur, and the items are only blocks for
fast reading (language modelling with `--sample-break-mode none` reads one after the other).
"""

import contextlib
import io
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lib.data_files import DataError
from lib.fairseq_jobs import fairseq_preprocess
from lib.lm_texts import SPLITS
from lib.lm_tokens import MODEL, characters_of, to_token

if TYPE_CHECKING:
    import numpy
    from fairseq.data import Dictionary
    from sentencepiece import SentencePieceProcessor

BLOCK = 1024


def binarise_words(texts: Path, dest: Path, workers: int) -> None:
    """Run fairseq-preprocess on `{train,valid,test}.txt`.

    Args:
        texts: directory of the texts.
        dest: gets `dict.txt` (the words of `train.txt` by frequency), `preprocess.log` and
            `{train,valid,test}.{bin,idx}`.
        workers: number of processes; the result does not depend on it.
    """
    # Words that do not exist would make the vocabulary larger than the published one.
    flags = ["--only-source", "--destdir", str(dest), "--padding-factor", "1"]
    flags += ["--workers", str(workers)]
    for split in SPLITS:
        flags += [f"--{split}pref", str(texts / f"{split}.txt")]
    fairseq_preprocess(flags)


def binarise_characters(texts: Path, dest: Path, unit: str) -> None:
    """Write one token for each character, or byte, of each text.

    The dictionary has the characters of all three texts, as is usual with enwik8 and text8 (an
    alphabet is known beforehand), in the order of their frequency in the training text.
    """
    from fairseq.data import Dictionary

    alphabet: dict[str, int] = {}
    for split in SPLITS:
        for character, count in count_characters(code_points(texts, split, unit)).items():
            alphabet.setdefault(character, count if split == "train" else 0)
    dictionary = Dictionary()
    for character, count in alphabet.items():
        dictionary.add_symbol(to_token(character, unit), count)
    dictionary.finalize(padding_factor=1)
    dictionary.save(str(dest / "dict.txt"))
    numbers = {character: dictionary.index(to_token(character, unit)) for character in alphabet}
    for split in SPLITS:
        points = code_points(texts, split, unit)
        count = -(-len(points) // BLOCK)
        write(dest / split, blocks(points, numbers), count, len(dictionary))


def code_points(texts: Path, split: str, unit: str) -> "numpy.ndarray":
    """Return the numbers of a text's characters in Unicode, or its bytes."""
    import numpy

    text = (texts / f"{split}.txt").read_bytes()
    if unit == "byte":
        return numpy.frombuffer(text, numpy.uint8)
    return numpy.frombuffer(characters_of(text, unit).encode("utf-32-le"), numpy.uint32)


def count_characters(points: "numpy.ndarray") -> Counter[str]:
    """Return how often each character occurs."""
    import numpy

    total: Counter[str] = Counter()
    for start in range(0, len(points), 1 << 24):
        found, counts = numpy.unique(points[start : start + (1 << 24)], return_counts=True)
        total.update(dict(zip(map(chr, found), counts.tolist(), strict=True)))
    return total


def blocks(points: "numpy.ndarray", numbers: dict[str, int]) -> Iterator["numpy.ndarray"]:
    """Yield a text's characters in blocks, as their numbers in the dictionary."""
    import numpy

    table = numpy.zeros(max(map(ord, numbers)) + 1, numpy.int32)
    for character, number in numbers.items():
        table[ord(character)] = number
    for start in range(0, len(points), BLOCK):
        yield table[points[start : start + BLOCK]]


def write(prefix: Path, items: Iterable["numpy.ndarray"], count: int, symbols: int) -> None:
    """Write `prefix.bin` and `prefix.idx`.

    Args:
        prefix: path without its suffix.
        items: numbers of the dictionary.
        count: how many items there are.
        symbols: size of the dictionary.
    """
    import torch
    from fairseq.data import indexed_dataset
    from tqdm import tqdm

    builder = indexed_dataset.make_builder(f"{prefix}.bin", impl="mmap", vocab_size=symbols)
    for item in tqdm(items, total=count, desc=f"write {prefix.name}", disable=None):
        builder.add_item(torch.from_numpy(item))
    builder.finalize(f"{prefix}.idx")


def binarise_pieces(texts: Path, dest: Path, size: int, workers: int) -> None:
    """Learn a byte-pair model from the training text and write every text in its pieces.

    The dictionary has every piece of the model: what the training text lacks is spelled in bytes,
    so that nothing is unknown.

    Raises:
        DataError: the training text is too short for so many pieces.
    """
    import numpy

    lines = {split: (texts / f"{split}.txt").read_text("utf-8").split("\n") for split in SPLITS}
    model = learn_pieces(lines["train"], size)
    # A text ends with a line end: what follows the last one is no line.
    coded = {split: model.encode(some[:-1], num_threads=workers) for split, some in lines.items()}
    counts = Counter(piece for line in coded["train"] for piece in line)
    dictionary = dictionary_of(model, counts)
    dictionary.save(str(dest / "dict.txt"))
    pieces = map(model.id_to_piece, range(model.get_piece_size()))
    table = numpy.array([dictionary.index(piece) for piece in pieces], numpy.int32)
    for split, some in coded.items():
        items = (numpy.append(table[line], dictionary.eos()) for line in some)
        write(dest / split, items, len(some), len(dictionary))
    (dest / MODEL).write_bytes(model.serialized_model_proto())


def learn_pieces(lines: list[str], size: int) -> "SentencePieceProcessor":
    """Return a byte-pair model whose pieces give back every line exactly, spaces included.

    Raises:
        DataError: the lines have too few different pieces.
    """
    from sentencepiece import SentencePieceProcessor

    # fairseq separates pieces by white space, so none may be in a piece: those other than the
    # space, and the sign that stands for the space, become characters of a private area.
    moved = [chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()]
    moved = [one for one in moved if one not in " \n"] + ["\u2581"]
    pairs = [(f"{ord(one):X}", f"{0xF0000 + ord(one):X}") for one in moved]
    model = io.BytesIO()
    # A model remembers the paths of its rules: relative ones are the same everywhere.
    with tempfile.TemporaryDirectory() as temporary, contextlib.chdir(temporary):
        Path("to.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in pairs))
        Path("from.tsv").write_text("".join(f"{b}\t{a}\n" for a, b in pairs))
        try:
            train_pieces(lines, size, model)
        except RuntimeError as error:
            raise DataError(f"no model of {size} pieces (--pieces): {error}") from error
    return SentencePieceProcessor(model_proto=model.getvalue())


def train_pieces(lines: list[str], size: int, model: io.BytesIO) -> None:
    """Write a model with the character maps `to.tsv` and `from.tsv` of the current directory."""
    from sentencepiece import SentencePieceTrainer

    SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        character_coverage=0.9999,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_tsv="to.tsv",
        denormalization_rule_tsv="from.tsv",
        # reserved, so that text that looks like fairseq's symbols is cut up
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        minloglevel=2,
    )


def dictionary_of(model: "SentencePieceProcessor", counts: Counter[int]) -> "Dictionary":
    """Return a model's pieces as a dictionary of fairseq, by frequency."""
    from fairseq.data import Dictionary

    dictionary = Dictionary()
    for piece in range(model.get_piece_size()):
        if not model.is_control(piece) and not model.is_unknown(piece):
            dictionary.add_symbol(model.id_to_piece(piece), counts[piece])
    dictionary.finalize(padding_factor=1)
    return dictionary


def count_tokens(data: Path, split: str) -> dict[str, int]:
    """Return the number of tokens of a binarised split and how many of them are unknown."""
    import numpy
    from fairseq.data import Dictionary, indexed_dataset

    dictionary = Dictionary.load(str(data / "dict.txt"))
    dtype = indexed_dataset.best_fitting_int_dtype(len(dictionary))
    numbers = numpy.memmap(data / f"{split}.bin", dtype, mode="r")
    unknown = numpy.count_nonzero(numbers == dictionary.unk())
    return {"tokens": len(numbers), "unknown": int(unknown)}
