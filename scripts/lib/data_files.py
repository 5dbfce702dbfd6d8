"""Fetch, check and write data files: what the prepare_*.sh scripts share."""

import gzip
import hashlib
import json
import os
import shutil
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO

ATTEMPTS = 3
HEADERS = {"User-Agent": "fairseq_fwm"}  # some hosts refuse the one that Python sends


class DataError(Exception):
    """The files at hand are not the data set; the message says what to do."""


def find(directory: Path, name: str) -> Path | None:
    """Return `directory/name` or its gzipped twin, or None when neither exists."""
    candidates = (directory / name, directory / f"{name}.gz")
    return next((path for path in candidates if path.is_file()), None)


@contextmanager
def open_plain(path: Path) -> Iterator[BinaryIO]:
    """Open a file, plain or .gz, for reading its uncompressed bytes.

    Raises:
        DataError: while reading, if a gzip file is damaged or cut short.
    """
    if path.suffix != ".gz":
        with path.open("rb") as file:
            yield file
        return
    try:
        with gzip.open(path) as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}): delete it and fetch it again") from error


def read_text(path: Path) -> bytes:
    """Return a file's uncompressed bytes.

    Raises:
        DataError: a gzip file is damaged or cut short.
    """
    with open_plain(path) as file:
        return file.read()


def digest_of(path: Path, algorithm: str = "sha256") -> str:
    """Return the hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def verify(path: Path, expected: str, name: object = None) -> None:
    """Compare a file with its published digest.

    Args:
        path: the file.
        expected: algorithm and hexadecimal digest, such as `sha256:01ba...`.
        name: what to call the file in the error (default: its path).

    Raises:
        DataError: they differ; names the file, the expected and the found digest.
    """
    algorithm, _, value = expected.partition(":")
    found = digest_of(path, algorithm)
    if found != value:
        raise DataError(
            f"{name or path} is not the published file\n"
            f"  expected {algorithm} {value}\n"
            f"  found    {algorithm} {found} ({path.stat().st_size:,} bytes)\n"
            "  Fetch it again, or go on with this one: --no-verify"
        )


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path that takes the name `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    yield temporary
    os.replace(temporary, path)


def write_whole(path: Path, text: bytes) -> None:
    """Write a file under its name only when it is complete."""
    with whole(path) as temporary:
        temporary.write_bytes(text)


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record, whole or not at all."""
    write_whole(path, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a record; an absent file is an empty one."""
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def copy_whole(source: BinaryIO, path: Path, expected: str | None, name: object) -> None:
    """Copy a stream to a file; see `verify` for `expected`, None checks nothing."""
    with whole(path) as temporary:
        with temporary.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        if expected:
            verify(temporary, expected, name)


def fetch(url: str, path: Path, expected: str | None = None) -> None:
    """Download a file, unless it is there; goes on where an earlier download stopped.

    The file has its name only when all of it has come and its digest is right.

    Args:
        url: where from.
        path: where to.
        expected: published digest, see `verify`.

    Raises:
        DataError: the file cannot be had, or is another one; says what to do.
    """
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _download(url, part)
            break
        except (OSError, HTTPException) as error:
            if _is_final(error, part) or attempt == ATTEMPTS:
                raise DataError(
                    f"cannot download {url}: {error}\n"
                    "  Run this again to go on, or, without network access, fetch the file "
                    "elsewhere and name its directory: --from DIR"
                ) from error
    if expected:
        try:
            verify(part, expected, url)
        except DataError:
            part.unlink()
            raise
    os.replace(part, path)


def _is_final(error: Exception, part: Path) -> bool:
    """Return whether another try is useless; drop a beginning that the server cannot continue."""
    if isinstance(error, urllib.error.HTTPError):
        if error.code == 416:
            part.unlink(missing_ok=True)
            return False
        return error.code < 500
    return isinstance(error, urllib.error.URLError)


def _download(url: str, part: Path) -> None:
    from tqdm import tqdm

    have = part.stat().st_size if part.is_file() else 0
    headers = {**HEADERS, "Range": f"bytes={have}-"} if have else HEADERS
    with urllib.request.urlopen(
        urllib.request.Request(url, headers=headers), timeout=30
    ) as answer:
        if answer.status != 206:  # the whole file, whatever was asked for
            have = 0
        length = answer.headers["Content-Length"]
        total = have + int(length) if length else None
        progress = tqdm(
            total=total,
            initial=have,
            desc=url.rsplit("/", 1)[-1],
            unit="B",
            unit_scale=True,
            disable=None,
        )
        with part.open("ab" if have else "wb") as file, progress:
            while block := answer.read(1 << 16):
                file.write(block)
                progress.update(len(block))
            size = file.tell()
    if total is not None and size != total:
        raise ConnectionError(f"the connection broke after {size:,} of {total:,} bytes")
