"""Check, unpack, tokenise and reference the Multi30k files (called by prepare_multi30k.sh).

The raw files (`train.en.gz`, `val.de.gz`, ...) are those of the data set's repository; the BPE
files (`train.en`, `valid.de`, `test.2016.en`, `bpe_codes`, ...) are what lower-casing, Moses
tokenisation and 10,000 joint BPE merges make of them. Both are pinned by line count and SHA-256.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lib.data_files import DataError, fetch, find, read_text, write_whole  # noqa: E402
from lib.mt_text import detokenise, moses  # noqa: E402


class Expected(NamedTuple):
    """What a file must be: its lines and the SHA-256 of its uncompressed text."""

    lines: int
    sha256: str


RAW = {
    "train.en": Expected(
        29000, "460a15fbd157e34a7a9957ee388c1ca247fe47af3ef25fb50442af6c274e0fc6"
    ),
    "train.de": Expected(
        29000, "2c2b73fd2b548fbcde3a875e0a78d6ee94d498bfdee6bd3eae3945779e9ddf72"
    ),
    "val.en": Expected(1014, "1f2a23d992769b5b3d209b0a10dd0b77c08cceb1f20dfb97ed0aafa49d107227"),
    "val.de": Expected(1014, "660e09eb7e1da2f856ea13ee5ad3cf6d36b3d5b0b733c857e94c5747a3dfc660"),
    "test_2016_flickr.en": Expected(
        1000, "399a4382932c1aadd3ceb9bef1008d388a64c76d4ae4e9d4728c6f4301cac182"
    ),
    "test_2016_flickr.de": Expected(
        1000, "4be6b5b3236b79c25475c6bb829800a7ce559e9ba7a1f6c2394fe4d40be46d16"
    ),
}
BPE = {
    "train.en": Expected(
        29000, "0ffe3e3bac16e6aa33ef0dd6a7dca81587479b0d18dff0db2a92ac3f32b00c86"
    ),
    "train.de": Expected(
        29000, "b2c74def7ec129f7ea7023a51501c77174c377ef06c6ccc2f031adcfb5cfadbd"
    ),
    "valid.en": Expected(1014, "193d0d18fef5d1bc9d1cddafa13a644de3c5d6a24b45ac44476dcc5e96bfac6e"),
    "valid.de": Expected(1014, "eeb95680d6a06eafb13e3494eed9f9fa99783b892f4a3c72dd36e7ce2e000b68"),
    "test.2016.en": Expected(
        1000, "13b5fe3f92f78c54446d66afcaaa0a00a33ab653a8411f16812c9c5ca3795d6d"
    ),
    "test.2016.de": Expected(
        1000, "375c20d50f4c486149a78dfcfb161a430a04ddabe2b7d150f0c7811dc455ac60"
    ),
    "bpe_codes": Expected(
        10001, "5b545f318e49f24367c7399019c9aeb5e3720b6379a08f887c2792af71c37f2a"
    ),
}
FORMS = {"raw": RAW, "bpe": BPE}
TOKENISED_NAME = {"train": "train", "val": "valid", "test_2016_flickr": "test.2016"}


def recognise(directory: Path) -> str:
    """Return which form of the data set, `raw` or `bpe`, a directory holds.

    Raises:
        DataError: the directory holds neither form, or both.
    """
    if not directory.is_dir():
        raise DataError(f"{directory} is not a directory")
    missing = {
        form: [name for name in files if find(directory, name) is None]
        for form, files in FORMS.items()
    }
    complete = [form for form, names in missing.items() if not names]
    if len(complete) == 1:
        return complete[0]
    if complete:
        raise DataError(f"{directory} holds both the raw and the BPE'd files: split them up")
    raise DataError(
        f"{directory} holds neither form of the data set (each file plain or .gz).\n"
        f"  raw files missing:   {', '.join(missing['raw'])}\n"
        f"  BPE'd files missing: {', '.join(missing['bpe'])}"
    )


def check(path: Path, text: bytes, expected: Expected) -> None:
    """Compare a text with what it must be.

    Raises:
        DataError: line count or SHA-256 differ; names the file, the expected and the found value.
    """
    found = Expected(text.count(b"\n"), hashlib.sha256(text).hexdigest())
    if found == expected:
        return
    raise DataError(
        f"{path} is not the published file\n"
        f"  expected {expected.lines} lines, SHA-256 {expected.sha256}\n"
        f"  found    {found.lines} lines, SHA-256 {found.sha256}\n"
        "  Fetch it again, or go on with this text: --no-verify"
    )


def take(source: Path, names: Iterable[str], form: str, dest: Path, verify: bool) -> None:
    """Unpack the named files of one form from `source` into `dest`, checked."""
    for name in names:
        path = find(source, name)
        if path is None:
            raise DataError(f"{source} lacks {name} (or {name}.gz)")
        text = read_text(path)
        if verify:
            check(path, text, FORMS[form][name])
        write_whole(dest / name, text)


def check_directory(directory: Path, form: str, verify: bool) -> None:
    """Check that a directory holds every file of a form, and the two languages line by line."""
    for name, expected in FORMS[form].items():
        path = directory / name
        if not path.is_file():
            raise DataError(f"{path} is missing")
        if verify:
            check(path, path.read_bytes(), expected)
    for name in FORMS[form]:
        if name.endswith(".en"):
            pair = [directory / name, directory / f"{name.removesuffix('.en')}.de"]
            counts = [path.read_bytes().count(b"\n") for path in pair]
            if counts[0] != counts[1]:
                raise DataError(
                    f"{pair[0]} has {counts[0]} lines but {pair[1]} has {counts[1]}: "
                    "line n of one must translate line n of the other"
                )


def tokenise(lines: Iterable[str], lang: str) -> Iterator[str]:
    """Lower-case, normalise and tokenise lines as Moses's own scripts do."""
    return map(moses(lang, lowercase="before"), lines)


def tokenise_directory(source: Path, dest: Path) -> None:
    """Tokenise the raw files of `source` into `dest`, under the names of the BPE form."""
    from tqdm import tqdm

    for name in RAW:
        stem, lang = name.rsplit(".", 1)
        lines = (source / name).read_text("utf-8").split("\n")[:-1]
        progress = tqdm(lines, desc=f"tokenise {name}", unit=" lines", mininterval=1)
        text = "".join(f"{line}\n" for line in tokenise(progress, lang))
        write_whole(dest / f"{TOKENISED_NAME[stem]}.{lang}", text.encode())


def join_bpe(text: str) -> str:
    """Undo the BPE segmentation, as fairseq's `--remove-bpe` does."""
    return text.replace("@@ ", "")


def write_references(bpe: Path, raw: Path, out: Path) -> None:
    """Write what translations are scored against, and `data.json`, which says what it is.

    Args:
        bpe: directory of the BPE form.
        raw: directory that may hold the raw `test_2016_flickr.de`.
        out: data directory; gets `ref/test.tok.de`, `ref/test.detok.de` and `data.json`.
    """
    tokenised = join_bpe((bpe / "test.2016.de").read_text("utf-8"))
    write_whole(out / "ref" / "test.tok.de", tokenised.encode())
    published = raw / "test_2016_flickr.de"
    if published.is_file():
        kind = "raw"
        plain = published.read_bytes()
    else:
        kind = "detokenised"
        lines = detokenise(tokenised.split("\n")[:-1], "de")
        plain = "".join(f"{line}\n" for line in lines).encode()
    write_whole(out / "ref" / "test.detok.de", plain)
    record = {
        "form": "moses-bpe",
        "lowercase": True,
        "plain_reference": kind,
        "sha256": {name: hashlib.sha256((bpe / name).read_bytes()).hexdigest() for name in BPE},
    }
    write_whole(out / "data.json", (json.dumps(record, indent=2) + "\n").encode())


def main(argv: list[str] | None = None) -> int:
    """Run one step of scripts/prepare_multi30k.sh."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")

    def add(name: str, help_text: str, *paths: str) -> None:
        step = steps.add_parser(name, help=help_text, description=help_text)
        if name == "fetch":
            step.add_argument("url")
        for path in paths:
            step.add_argument(path, type=Path)
        if name in {"take", "take-reference", "check"}:
            step.add_argument("--form", choices=FORMS, default="raw")
            step.add_argument("--no-verify", action="store_true")

    add("fetch", "download the raw files from URL into DEST", "dest")
    add("form", "print which form, raw or bpe, SOURCE holds", "source")
    add("take", "unpack SOURCE's files into DEST, checked", "source", "dest")
    add("take-reference", "unpack the raw German test text only", "source", "dest")
    add("check", "check the unpacked files of SOURCE", "source")
    add("tokenise", "tokenise the raw files of SOURCE into DEST", "source", "dest")
    add("references", "write references and data.json into OUT", "bpe", "raw", "out")
    args = parser.parse_args(argv)
    try:
        run_step(args)
    except DataError as error:
        print(f"prepare_multi30k.sh: error: {error}", file=sys.stderr)
        return 1
    return 0


def run_step(args: argparse.Namespace) -> None:
    """Dispatch a parsed command line."""
    if args.step == "fetch":
        for name in RAW:
            fetch(f"{args.url}/{name}.gz", args.dest / f"{name}.gz")
    elif args.step == "form":
        print(recognise(args.source))
    elif args.step == "take":
        take(args.source, FORMS[args.form], args.form, args.dest, not args.no_verify)
    elif args.step == "take-reference":
        take(args.source, ["test_2016_flickr.de"], "raw", args.dest, not args.no_verify)
    elif args.step == "check":
        check_directory(args.source, args.form, not args.no_verify)
    elif args.step == "tokenise":
        tokenise_directory(args.source, args.dest)
    else:
        write_references(args.bpe, args.raw, args.out)


if __name__ == "__main__":
    sys.exit(main())
