"""Where the text of a translation corpus comes from (called by mt_files.py).

Either published archives, downloaded or at hand, or the files in them, or plain text of one's own.
"""

import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lib.data_files import (
    DataError,
    digest_of,
    fetch,
    find,
    open_plain,
    read_json,
    verify,
    write_json,
)
from lib.mt_text import one_line, write_lines

SPLITS = ("train", "valid", "test")
PLAIN_NAMES = {
    "train": ("train",),
    "valid": ("valid", "val", "dev"),
    "test": ("test",),
}
RECORD = "checksums.json"
SEGMENT = re.compile(r"<seg\b[^>]*>(.*?)</seg>", re.IGNORECASE)
# The lines of train.tags.* that are about a talk; its title and description are text.
ABOUT = re.compile(
    r"\s*</?(url|talkid|keywords|speaker|reviewer|translator|doc|transcript)\b", re.IGNORECASE
)
TEXT_TAGS = re.compile(r"</?(title|description)>", re.IGNORECASE)


@dataclass(frozen=True)
class Archive:
    """A file to download: what to call it, where from, its published digest if there is one."""

    name: str
    url: str
    digest: str | None


@dataclass(frozen=True)
class Part:
    """A piece of a split: its file of the source language and that of the target language."""

    split: str
    files: tuple[str, str]


def test_set(split: str, name: str, langs: tuple[str, str]) -> tuple[Archive, Part]:
    """Return where a test set of sacreBLEU's list comes from, by that list."""
    from sacrebleu.dataset import DATASETS

    known = DATASETS[name]
    files = known.langpairs["-".join(langs)]
    archive = Archive(f"{name.replace('/', '-')}-{known.data[0].rsplit('/', 1)[-1]}",
                      known.data[0], f"md5:{known.md5[0]}")  # fmt: skip
    return archive, Part(split, (files[0], files[1]))


def lines_of(name: str, file: Iterable[bytes]) -> Iterator[str]:
    """Yield the sentences of a file: SGML or XML segments, tagged talks, or plain lines."""
    texts = (line.decode("utf-8", "replace") for line in file)
    if name.endswith((".sgm", ".xml")):
        for text in texts:
            yield from map(one_line, SEGMENT.findall(text))
    elif name.startswith("train.tags."):
        for text in texts:
            if not ABOUT.match(text):
                yield one_line(TEXT_TAGS.sub("", text))
    else:
        yield from map(one_line, texts)


def plain_files(source: Path, langs: tuple[str, str]) -> dict[str, tuple[Path, Path]]:
    """Return the splits that a directory has as plain text: `train.en`, `valid.de.gz`, ..."""
    found = {}
    for split, names in PLAIN_NAMES.items():
        for name in names:
            pair = [find(source, f"{name}.{lang}") for lang in langs]
            if None not in pair:
                found[split] = (pair[0], pair[1])
                break
    return found


def take_plain(source: Path, langs: tuple[str, str], splits: Iterable[str], dest: Path) -> None:
    """Copy plain text into `dest` as `{split}.{lang}`.

    Raises:
        DataError: a split is missing.
    """
    found = plain_files(source, langs)
    for split in splits:
        if split not in found:
            raise DataError(
                f"{source} has no {split}.{langs[0]} and {split}.{langs[1]} (plain or .gz); "
                "without them take valid and test out of train: --carve N"
            )
        for lang, path in zip(langs, found[split], strict=True):
            with open_plain(path) as file:
                write_lines(dest / f"{split}.{lang}", lines_of("", file))


class Files:
    """The files of a corpus, in archives or unpacked, in one directory or a folder below."""

    def __init__(self, source: Path, archives: Iterable[Archive], stack: ExitStack) -> None:
        """Open the archives that are there, until `stack` is closed."""
        self.source = source
        self.missing = [archive.name for archive in archives if not self._path(archive.name)]
        self._open = {}
        for archive in archives:
            path = self._path(archive.name)
            if path is None:
                continue
            try:
                tar = stack.enter_context(tarfile.open(path))  # noqa: SIM115
                members = [member for member in tar if member.isfile()]
            except (tarfile.TarError, OSError, EOFError) as error:
                raise DataError(
                    f"{path} is damaged ({error}): delete it and fetch it again"
                ) from error
            self._open |= {Path(member.name).name: (tar, member) for member in members}

    def _path(self, name: str) -> Path | None:
        folders = [self.source, *sorted(path for path in self.source.iterdir() if path.is_dir())]
        return next((path for folder in folders if (path := find(folder, name))), None)

    def lines(self, name: str) -> Iterator[str]:
        """Yield the sentences of a file by its path in its archive, or wherever its name is.

        Raises:
            DataError: it is nowhere.
        """
        base = Path(name).name
        with ExitStack() as stack:
            path = self._path(base)
            if path:
                file: BinaryIO = stack.enter_context(open_plain(path))
            elif base in self._open:
                tar, member = self._open[base]
                file = stack.enter_context(tar.extractfile(member))
            else:
                raise DataError(
                    f"{self.source} lacks {base}, plain, .gz or in its archive "
                    f"(missing: {', '.join(self.missing) or 'none'}), and train text of your own"
                )
            yield from lines_of(base, file)


def take_parts(
    source: Path,
    archives: Iterable[Archive],
    parts: Iterable[Part],
    langs: tuple[str, str],
    dest: Path,
    say: Callable[[str], None],
) -> None:
    """Write the sentences of the parts of each split one after another to `{split}.{lang}`."""
    with ExitStack() as stack:
        files = Files(source, archives, stack)
        for split in SPLITS:
            names = [part.files for part in parts if part.split == split]
            for side, lang in enumerate(langs if names else ()):
                say(f"unpacking {split}.{lang}: {', '.join(Path(n[side]).name for n in names)}")
                chain = (line for name in names for line in files.lines(name[side]))
                write_lines(dest / f"{split}.{lang}", chain)


def check_archives(
    source: Path, archives: Iterable[Archive], record: Path | None, say: Callable[[str], None]
) -> dict[str, str]:
    """Compare archives with their published digests, or with those of their first download.

    Args:
        source: where they are; one that is not there is passed over.
        archives: what to check.
        record: directory that keeps the digests of what has no published one.
        say: tells what was done.

    Returns:
        The digest of each.

    Raises:
        DataError: one is another file.
    """
    known = read_json(record / RECORD) if record else {}
    digests = {}
    for archive in archives:
        path = find(source, archive.name)
        if path is None:
            continue
        expected = archive.digest or known.get(archive.name)
        if expected:
            say(f"checking {archive.name}")
            verify(path, expected)
        digests[archive.name] = expected or f"sha256:{digest_of(path)}"
        if not expected:
            say(f"{archive.name}: no published checksum; recorded {digests[archive.name]}")
            known[archive.name] = digests[archive.name]
    if record and known:
        write_json(record / RECORD, known)
    return digests


def download(archives: Iterable[Archive], dest: Path, say: Callable[[str], None]) -> None:
    """Fetch archives, unless they are there.

    Raises:
        DataError: one cannot be had.
    """
    for archive in archives:
        if not (dest / archive.name).is_file():
            say(f"downloading {archive.url}")
            fetch(archive.url, dest / archive.name)
