"""What is done to the lines of parallel text (called by mt_files.py): words, pieces, cleaning.

Long files go through several processes in blocks of lines; the result does not depend on how many.
"""

import io
import multiprocessing
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import chain, islice
from pathlib import Path

from lib.data_files import DataError, whole, write_whole

BLOCK = 1000  # lines that a process takes at once
SAMPLE = 2_000_000  # lines of a text that SentencePiece's model is learned from
Pair = tuple[str, str]
Lines = Callable[[list[str]], list[str]]
LINE_ENDS = dict.fromkeys((*range(32), 0x7F, 0x85, 0x2028, 0x2029), " ")


def read_lines(path: Path) -> Iterator[str]:
    r"""Yield a text's lines without their ends; only "\n" ends a line.

    Bytes that are no UTF-8 become U+FFFD: a crawled corpus is not lost for one of them.
    """
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for line in file:
            yield line.removesuffix("\n")


def write_lines(path: Path, lines: Iterable[str]) -> int:
    """Write lines, whole or not at all; return how many."""
    count = 0
    with whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for count, line in enumerate(lines, 1):  # noqa: B007
            file.write(f"{line}\n")
    return count


def one_line(text: str) -> str:
    """Return a text in which every reader sees one line, with single spaces."""
    return re.sub(" +", " ", text.translate(LINE_ENDS)).strip()


@cache
def unprintable() -> dict[int, str]:
    """Return what Moses's remove-non-printing-char takes out: control and format characters."""
    codes = range(sys.maxunicode + 1)
    return {code: " " for code in codes if unicodedata.category(chr(code)) in ("Cc", "Cf")}


def count_lines(path: Path) -> int:
    """Return the number of lines of a file."""
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def moses(lang: str, lowercase: str = "", normalise: bool = True) -> Callable[[str], str]:
    """Return what splits a line into words as the Moses scripts do.

    Args:
        lang: language of the text.
        lowercase: `before` or `after` the words are split, or not at all; what an abbreviation
            is, and so where a sentence's full stop goes, depends on its case.
        normalise: whether punctuation is normalised first.
    """
    from sacremoses import MosesPunctNormalizer, MosesTokenizer

    plain = MosesPunctNormalizer(lang, perl_parity=True).normalize if normalise else str.strip
    split = MosesTokenizer(lang).tokenize

    def words(line: str) -> str:
        line = line.lower() if lowercase == "before" else line
        # The Perl script sees the line end: `."` is treated differently before it.
        text = re.sub(" +", " ", split(plain(f"{line}\n"), return_str=True))
        return text.lower() if lowercase == "after" else text

    return words


def detokenise(lines: Iterable[str], lang: str) -> list[str]:
    """Return lines of Moses's words as plain text."""
    from sacremoses import MosesDetokenizer

    detokeniser = MosesDetokenizer(lang)
    return [detokeniser.detokenize(line.split()) for line in lines]


def moses_lines(lang: str, lowercase: str, normalise: bool, apostrophes: bool) -> Lines:
    """Return what :func:`moses` does to a block of lines.

    Args:
        lang: see :func:`moses`.
        lowercase: see :func:`moses`.
        normalise: also take unprintable characters out.
        apostrophes: whether ’ becomes '.
    """
    words = moses(lang, lowercase, normalise)
    table = unprintable() if normalise else {}
    table = table | ({ord("’"): "'"} if apostrophes else {})
    return lambda lines: [words(line.translate(table)).strip() for line in lines]


def bpe_lines(codes: Path) -> Lines:
    """Return what cuts the words of lines up by the merges of subword-nmt."""
    from subword_nmt.apply_bpe import BPE

    with codes.open(encoding="utf-8") as file:
        bpe = BPE(file)
    return lambda lines: [bpe.process_line(line) for line in lines]


def piece_lines(model: Path) -> Lines:
    """Return what cuts lines up into SentencePiece's pieces."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=str(model))
    return lambda lines: [
        " ".join(line) for line in processor.encode(lines, out_type=str, num_threads=1)
    ]


_worker: Lines | None = None


def _start(make: Callable[..., Lines], arguments: tuple) -> None:
    global _worker
    _worker = make(*arguments)


def _work(lines: list[str]) -> list[str]:
    assert _worker is not None
    return _worker(lines)


def map_file(
    source: Path, dest: Path, make: Callable[..., Lines], arguments: tuple, workers: int
) -> None:
    """Write what `make(*arguments)` makes of every line, unless the file is there.

    Args:
        source: text.
        dest: has its name as soon as it is complete.
        make: returns a function on blocks of lines; called once in each process.
        arguments: for `make`.
        workers: number of processes.
    """
    from tqdm import tqdm

    if dest.is_file():
        return
    total = count_lines(source)
    lines = read_lines(source)
    blocks = iter(lambda: list(islice(lines, BLOCK)), [])
    workers = min(workers, -(-total // BLOCK))
    with tqdm(total=total, desc=dest.name, unit=" lines", disable=None) as progress:

        def results(done: Iterable[list[str]]) -> Iterator[str]:
            for block in done:
                progress.update(len(block))
                yield from block

        if workers < 2:
            write_lines(dest, results(map(make(*arguments), blocks)))
            return
        with multiprocessing.Pool(workers, _start, (make, arguments)) as pool:
            write_lines(dest, results(pool.imap(_work, blocks, chunksize=1)))


def learn_bpe(texts: list[Path], codes: Path, merges: int, workers: int) -> None:
    """Learn merges from several texts together, unless the file is there.

    Raises:
        DataError: the texts are too short.
    """
    if codes.is_file():
        return
    from subword_nmt.learn_bpe import get_vocabulary
    from subword_nmt.learn_bpe import learn_bpe as learn

    counts: dict[str, int] = {}
    for path in texts:
        with path.open(encoding="utf-8") as file:
            for word, count in get_vocabulary(file, num_workers=workers).items():
                counts[word] = counts.get(word, 0) + count
    words = [f"{word} {count}" for word, count in counts.items() if word]
    if not words:
        raise DataError("nothing is left to learn BPE from: see --max-length and --max-ratio")
    with whole(codes) as temporary, temporary.open("w", encoding="utf-8") as file:
        learn(words, file, merges, is_dict=True)


def learn_pieces(texts: list[Path], model: Path, size: int, workers: int) -> None:
    """Learn a SentencePiece model from several texts together, unless the file is there.

    Of a long text every so many-th line is enough, and all that memory holds.

    Raises:
        DataError: the texts are too short for so many pieces.
    """
    if model.is_file():
        return
    from sentencepiece import SentencePieceTrainer

    found = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=chain.from_iterable(map(sample, texts)),
            model_writer=found,
            vocab_size=size,
            character_coverage=1.0,
            num_threads=workers,
            max_sentence_length=100_000,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(
            f"no model of {size} pieces can be learned from this text; ask for another "
            f"number, --bpe-codes N\n  {error}"
        ) from error
    write_whole(model, found.getvalue())


def sample(path: Path) -> Iterator[str]:
    """Yield at most SAMPLE lines of a text, evenly spaced."""
    return islice(read_lines(path), 0, None, -(-count_lines(path) // SAMPLE) or 1)


def clean(pair: Pair, longest: int, ratio: float) -> bool:
    """Return whether both sides have 1 to `longest` tokens, neither `ratio` times the other's."""
    a, b = (len(text.split()) for text in pair)
    return min(a, b) > 0 and max(a, b) <= min(longest, ratio * min(a, b))


def read_pairs(paths: tuple[Path, Path]) -> Iterator[Pair]:
    """Yield the lines of two texts side by side.

    Raises:
        DataError: one has more lines.
    """
    try:
        yield from zip(*map(read_lines, paths), strict=True)
    except ValueError:
        counts = [count_lines(path) for path in paths]
        raise DataError(
            f"{paths[0]} has {counts[0]:,} lines but {paths[1]} has {counts[1]:,}: "
            "line n of one must translate line n of the other"
        ) from None
