"""Where the texts of a language modelling corpus come from (called by lm_files.py).

Every function here writes `train.txt`, `valid.txt` and `test.txt`: what is at hand is unpacked,
checked and, where one text is all there is, cut in three.
"""

import hashlib
import platform
import sysconfig
import tokenize
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lib.data_files import DataError, copy_whole, find, open_plain, write_whole

SPLITS = ("train", "valid", "test")
WHOLE = "all"
"""The name of a split that is to be cut in three."""

# Left out of the standard library, so that one version of Python is one corpus everywhere: parts
# that distributions pack apart or drop, what an install makes, and tables and texts made by a
# program rather than written.
LEFT_OUT = {
    "test", "tests", "idle_test", "idlelib", "turtledemo", "tkinter", "lib2to3", "distutils",
    "ensurepip", "encodings", "pydoc_data", "site-packages", "dist-packages", "__pycache__",
}  # fmt: skip
MADE_BY_INSTALL = ("_sysconfigdata", "_sysconfig_vars", "sitecustomize", "usercustomize")


class Text(NamedTuple):
    """One published text: its split (or `all`), its file's name and its digest (see `verify`)."""

    split: str
    name: str
    digest: str


class Corpus(NamedTuple):
    """What a prepare_*.sh script says of its corpus.

    Attributes:
        name: short name.
        licence: who may use it.
        unit: what a token is, one of `lm_tokens.UNITS`.
        url: directory to download from; empty for the standard library.
        archive: name and digest of a zip file that holds the texts, or None.
        texts: train, valid and test, or `all`; empty for the standard library.
        tokens: published number of tokens of train, valid and test, line ends included, or None.
        types: published number of different tokens, the line end included, or None.
    """

    name: str
    licence: str
    unit: str
    url: str = ""
    archive: tuple[str, str] | None = None
    texts: tuple[Text, ...] = ()
    tokens: tuple[int, ...] | None = None
    types: int | None = None


def take(corpus: Corpus, source: Path, dest: Path, verified: bool, small: bool) -> None:
    """Write a corpus's three texts.

    Args:
        corpus: what is wanted.
        source: directory with the texts, each plain or .gz, or with the archive.
        dest: gets `{train,valid,test}.txt`.
        verified: whether to compare the texts with their digests.
        small: do without the training text, cut the validation text instead: nine tenths of its
            lines to train, the rest to validate.

    Raises:
        DataError: a text is missing, damaged or another one.
    """
    archive = corpus.archive[0] if corpus.archive else None
    for text in corpus.texts:
        if small and text.split == "train":
            continue
        digest = text.digest if verified else None
        with open_text(source, archive, text) as (file, name):
            copy_whole(file, dest / f"{text.split}.txt", digest, name)
    if corpus.texts[0].split == WHOLE:
        whole = dest / f"{WHOLE}.txt"
        parts = cut_whole(whole.read_bytes(), corpus.unit)
        for split, part in zip(SPLITS, parts, strict=True):
            write_whole(dest / f"{split}.txt", part)
        whole.unlink()
    elif small:
        train, valid = cut_lines((dest / "valid.txt").read_bytes())
        write_whole(dest / "train.txt", train)
        write_whole(dest / "valid.txt", valid)


@contextmanager
def open_text(source: Path, archive: str | None, text: Text) -> Iterator[tuple[BinaryIO, str]]:
    """Yield a text, opened, and what to call it.

    A text may be in the directory or one folder below, under its own name or its split's
    (`train.tokens`, `train.txt`), or in the archive.
    """
    names = [text.name]
    if text.split != WHOLE:
        names += [f"{text.split}.tokens", f"{text.split}.txt"]
    folders = [source, *sorted(path for path in source.iterdir() if path.is_dir())]
    paths = (find(folder, name) for folder in folders for name in names)
    path = next((path for path in paths if path), None)
    if path:
        with open_plain(path) as file:
            yield file, str(path)
    elif archive and (source / archive).is_file():
        with open_member(source / archive, text.name) as file:
            yield file, f"{source / archive}: {text.name}"
    else:
        wanted = f"{text.name} (plain or .gz)" + (f" or {archive}" if archive else "")
        raise DataError(f"{source} does not hold {wanted}")


@contextmanager
def open_member(archive: Path, name: str) -> Iterator[BinaryIO]:
    """Open a file of a zip archive by its name, whichever folder it is in."""
    try:
        with zipfile.ZipFile(archive) as file:
            members = [path for path in file.namelist() if Path(path).name == name]
            if len(members) != 1:
                raise DataError(f"{archive} holds {len(members)} files called {name}, not one")
            with file.open(members[0]) as member:
                yield member
    except (zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{archive} is damaged ({error}): delete it and fetch it again") from error


def cut_whole(text: bytes, unit: str) -> tuple[bytes, bytes, bytes]:
    """Cut a text into the first 90 % of its bytes, the next 5 % and the rest.

    Where the unit is a character, one that would be cut in two stays with the earlier part.
    """
    ends = [len(text) * percent // 100 for percent in (90, 95)]
    if unit == "character":
        for number, end in enumerate(ends):
            while end < len(text) and text[end] & 0xC0 == 0x80:  # goes on a UTF-8 character
                end += 1
            ends[number] = end
    return text[: ends[0]], text[ends[0] : ends[1]], text[ends[1] :]


def cut_lines(text: bytes) -> tuple[bytes, bytes]:
    """Cut a text into the first nine tenths of its lines and the rest."""
    lines = text.splitlines(keepends=True)
    end = len(lines) * 9 // 10
    return b"".join(lines[:end]), b"".join(lines[end:])


def split_of(path: str) -> str:
    """Return the split of a source file, from a hash of its path in the library: 90, 5 and 5 %."""
    bucket = int(hashlib.sha256(path.encode()).hexdigest(), 16) % 20
    return {0: "valid", 1: "test"}.get(bucket, "train")


def take_sources(source: Path | None, dest: Path) -> dict[str, int]:
    """Write the Python standard library's source files as three texts.

    Args:
        source: the library's directory (default: this Python's).
        dest: gets `{train,valid,test}.txt`, whole files in the order of their paths, and
            `files.tsv`, which says what went where.

    Returns:
        The number of files in each split.

    Raises:
        DataError: the directory holds no Python files, or one that cannot be read.
    """
    from tqdm import tqdm

    root = source or Path(sysconfig.get_path("stdlib"))
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    paths = [path for path in paths if is_wanted(path)]
    if not paths:
        raise DataError(f"{root} holds no Python files: name the library's folder, --from DIR")
    texts: dict[str, list[str]] = {split: [] for split in SPLITS}
    table = []
    for path in tqdm(paths, desc="read", unit=" files", disable=None):
        try:
            with tokenize.open(root / path) as file:  # in the encoding that the file declares
                text = file.read()
        except (SyntaxError, UnicodeDecodeError) as error:
            raise DataError(f"{root / path} cannot be read as Python source: {error}") from error
        if text and not text.endswith("\n"):
            text += "\n"
        texts[split_of(path)].append(text)
        table.append(f"{split_of(path)}\t{path}\t{len(text.encode())}\n")
    for split, parts in texts.items():
        write_whole(dest / f"{split}.txt", "".join(parts).encode())
    write_whole(dest / "files.tsv", "".join(table).encode())
    return {split: len(parts) for split, parts in texts.items()}


def is_wanted(path: str) -> bool:
    """Return whether a source file, by its path in the library, belongs to the corpus."""
    *folders, name = path.split("/")
    if any(folder in LEFT_OUT or folder.startswith("config-") for folder in folders):
        return False
    return not name.startswith(MADE_BY_INSTALL)


def python_version() -> str:
    """Return the version of this Python, whose library is the corpus."""
    return platform.python_version()
