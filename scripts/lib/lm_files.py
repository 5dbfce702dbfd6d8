"""Make a fairseq data directory of a language modelling corpus (called by prepare_*.sh).

What a corpus is (where from, checksums, published counts) the scripts say by flags. The steps are:
download, unpack and cut (lm_texts.py), binarise (lm_binarise.py), count and record (here). Each
step's result has its name only when it is complete, so that an interrupted run can go on.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lib import lm_binarise  # noqa: E402
from lib.data_files import DataError, digest_of, fetch, read_json, write_json  # noqa: E402
from lib.lm_texts import SPLITS, WHOLE, Corpus, Text, python_version, take, take_sources  # noqa: E402
from lib.lm_tokens import MODEL, UNITS, quiet_fairseq  # noqa: E402

RECORD = "data.json"
TEXTS_RECORD = "texts.json"
UNVERIFIED = "unverified"


def parse(argv: list[str] | None) -> tuple[Corpus, argparse.Namespace]:
    """Return what a command line says of the corpus, and what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    corpus = parser.add_argument_group("corpus")
    corpus.add_argument("--name", required=True)
    corpus.add_argument("--licence", required=True)
    corpus.add_argument("--unit", choices=UNITS, required=True, help="what a token is")
    corpus.add_argument("--url", default="", help="directory to download from")
    corpus.add_argument("--archive", nargs=2, metavar=("NAME", "DIGEST"))
    corpus.add_argument(
        "--text", nargs=3, action="append", default=[], metavar=("SPLIT", "NAME", "DIGEST")
    )
    corpus.add_argument("--tokens", nargs=3, type=int, metavar=SPLITS, help="published numbers")
    corpus.add_argument("--types", type=int, help="published number")
    wish = parser.add_argument_group("wish")
    wish.add_argument("--from", type=Path, dest="source", metavar="DIR")
    wish.add_argument("--out", type=Path, required=True, metavar="DIR")
    wish.add_argument("--small", action="store_true")
    wish.add_argument("--pieces", type=int, metavar="N")
    wish.add_argument("--no-verify", action="store_false", dest="verified")
    wish.add_argument("--workers", type=int, default=1, metavar="N")
    args = parser.parse_args(argv)
    texts = tuple(Text(*text) for text in args.text)
    if texts and {text.split for text in texts} not in ({WHOLE}, set(SPLITS)):
        parser.error(f"--text: either {', '.join(SPLITS)}, or {WHOLE}")
    if args.workers < 1:
        parser.error("--workers: at least 1")
    archive = tuple(args.archive) if args.archive else None
    tokens = tuple(args.tokens) if args.tokens else None
    url = args.url.rstrip("/")
    about = (args.name, args.licence, args.unit, url, archive, texts, tokens, args.types)
    return Corpus(*about), args


def say(corpus: Corpus, text: str) -> None:
    """Print a line with the script's name."""
    print(f"prepare_{corpus.name}.sh: {text}", flush=True)


def is_made(directory: Path, record: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Return whether a directory still holds what a record says.

    Raises:
        DataError: it was made with other settings.
    """
    if not record:
        return False
    there = record.get("settings", {})
    wanted = dict(settings)
    if UNVERIFIED not in there:
        wanted.pop(UNVERIFIED, None)  # verified data will do
    if there != wanted:
        raise DataError(
            f"{directory} holds data made with other settings\n"
            f"  there  {json.dumps(there)}\n"
            f"  wanted {json.dumps(settings)}\n"
            "  Name another directory (--out DIR) or delete that one"
        )
    return all(
        (directory / name).is_file() and digest_of(directory / name) == digest
        for name, digest in record["sha256"].items()
    )


def settings_of(corpus: Corpus, args: argparse.Namespace) -> dict[str, Any]:
    """Return what the data depend on besides the corpus."""
    settings: dict[str, Any] = {"corpus": corpus.name, "unit": corpus.unit}
    if args.small:
        settings["small"] = True
    if not args.verified:
        settings[UNVERIFIED] = True
    if corpus.unit == "piece":
        settings["pieces"] = args.pieces
    if not corpus.texts:
        settings["python"] = python_version() if args.source is None else "a given directory"
    return settings


def make_texts(
    corpus: Corpus, args: argparse.Namespace, settings: dict[str, Any], work: Path
) -> None:
    """Make `text/` of the data directory, unless it is there; it is whole as soon as it is there.

    Raises:
        DataError: the text cannot be had, is not what it should be, or is too short.
    """
    texts = args.out / "text"
    if texts.exists():
        if not (texts / TEXTS_RECORD).is_file():
            raise DataError(f"{texts} is not from this script: name another directory (--out DIR)")
        if is_made(texts, read_json(texts / TEXTS_RECORD), settings):
            say(corpus, f"text: already in {texts}")
            return
    record: dict[str, Any] = {"settings": settings}
    if not corpus.texts:
        record["files"] = take_sources(args.source, work)
        record["source"] = f"the library of Python: {settings['python']}"
    else:
        source = args.source or args.out / "download"
        if args.source is None:
            download(corpus, source, args.verified)
        record["source"] = corpus.url if args.source is None else "files at hand"
        say(corpus, f"unpacking and checking the text in {source}")
        take(corpus, source, work, args.verified, args.small)
    names = [f"{split}.txt" for split in SPLITS]
    for name in names:
        if not (work / name).stat().st_size:
            raise DataError(f"the text is too short: nothing is left for {name}")
    record["sha256"] = {name: digest_of(work / name) for name in names}
    write_json(work / TEXTS_RECORD, record)
    shutil.rmtree(texts, ignore_errors=True)
    os.replace(work, texts)


def download(corpus: Corpus, dest: Path, verified: bool) -> None:
    """Fetch the archive or the texts, unless they are there."""
    files = [corpus.archive] if corpus.archive else [text[1:] for text in corpus.texts]
    for name, digest in files:
        if not (dest / name).is_file():
            say(corpus, f"downloading {corpus.url}/{name}")
        fetch(f"{corpus.url}/{name}", dest / name, digest if verified else None)


def count(corpus: Corpus, texts: Path, data: Path) -> dict[str, dict[str, int]]:
    """Return the sizes of each split: of its text, and of what was made of it."""
    sizes = {}
    for split in SPLITS:
        text = (texts / f"{split}.txt").read_bytes()
        size = {"lines": text.count(b"\n"), "bytes": len(text)}
        if corpus.unit == "piece":
            size["words"] = sum(len(line.split()) for line in text.decode().split("\n"))
        sizes[split] = size | lm_binarise.count_tokens(data, split)
    return sizes


def make_data(corpus: Corpus, args: argparse.Namespace, data: Path) -> None:
    """Binarise the texts into `data`."""
    texts = args.out / "text"
    if corpus.unit == "word":
        lm_binarise.binarise_words(texts, data, args.workers)
    elif corpus.unit == "piece":
        lm_binarise.binarise_pieces(texts, data, args.pieces, args.workers)
    else:
        lm_binarise.binarise_characters(texts, data, corpus.unit)


def describe(corpus: Corpus, texts: Path, data: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the record of what was made, all but its source: sizes, versions, digests."""
    import fairseq
    import sentencepiece

    sizes = count(corpus, texts, data)
    types = (data / "dict.txt").read_bytes().count(b"\n")
    if corpus.unit in ("word", "piece"):  # two that dict.txt does not have: </s> and <unk>
        types += 1 + (sizes["train"]["unknown"] > 0)
    names = ["dict.txt"] + [f"{split}.{end}" for split in SPLITS for end in ("bin", "idx")]
    if corpus.unit == "piece":
        names.append(MODEL)
    return {
        "corpus": corpus.name,
        "licence": corpus.licence,
        "unit": corpus.unit,
        "settings": settings,
        "types": types,
        "splits": sizes,
        "versions": {
            "python": python_version(),
            "fairseq": fairseq.__version__,
            "sentencepiece": sentencepiece.__version__,
        },
        "sha256": {name: digest_of(data / name) for name in names},
    }


def check_published(corpus: Corpus, record: dict[str, Any], verified: bool) -> None:
    """Compare the number of tokens, and of different ones, with what was published.

    Raises:
        DataError: they differ.
    """
    pairs = []
    if corpus.tokens:
        for split, published in zip(SPLITS, corpus.tokens, strict=True):
            pairs.append((f"{split} tokens", record["splits"][split]["tokens"], published))
    if corpus.types:
        pairs.append(("different tokens", record["types"], corpus.types))
    wrong = [
        f"{what}: {found:,}, published {want:,}" for what, found, want in pairs if found != want
    ]
    if wrong and verified:
        raise DataError(
            "the data are not the published ones\n  " + "\n  ".join(wrong) + "\n"
            "  Fetch the text again, or go on with this one: --no-verify"
        )
    for line in wrong:
        say(corpus, f"note: {line}")


def summarise(corpus: Corpus, out: Path, record: dict[str, Any]) -> None:
    """Print what was made."""
    digests = read_json(out / "text" / TEXTS_RECORD).get("sha256", {})
    for split, size in record["splits"].items():
        numbers = ", ".join(f"{number:,} {what}" for what, number in size.items())
        digest = digests.get(f"{split}.txt")
        say(corpus, f"{split}: {numbers}" + (f"; text has SHA-256 {digest}" if digest else ""))
    say(corpus, f"{record['types']:,} different tokens; done: {out}")


def run(corpus: Corpus, args: argparse.Namespace) -> None:
    """Make the data directory, or what is missing of it.

    Raises:
        DataError: the text cannot be had or is not what it should be; says what to do.
    """
    say(corpus, f"licence: {corpus.licence}")
    if args.source is not None and not args.source.is_dir():
        raise DataError(f"{args.source} is not a directory")
    settings = settings_of(corpus, args)
    record = read_json(args.out / RECORD)
    if is_made(args.out, record, settings):
        say(corpus, f"already in {args.out}")
        summarise(corpus, args.out, record)
        return
    work = args.out / ".work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        make_texts(corpus, args, settings, work / "text")
        hint = " (about a minute for 25 MB and process)" if corpus.unit == "word" else ""
        say(corpus, f"binarising{hint}")
        data = work / "data"
        data.mkdir()
        make_data(corpus, args, data)
        record = describe(corpus, args.out / "text", data, settings)
        if not args.small:
            check_published(corpus, record, args.verified)
        for path in data.iterdir():
            os.replace(path, args.out / path.name)
    finally:
        shutil.rmtree(work)
    made = read_json(args.out / "text" / TEXTS_RECORD)
    record |= {key: made[key] for key in ("source", "files") if key in made}
    write_json(args.out / RECORD, record)
    summarise(corpus, args.out, record)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    corpus, args = parse(argv)
    quiet_fairseq()
    try:
        run(corpus, args)
    except DataError as error:
        reason = str(error)
    except UnicodeDecodeError as error:
        reason = f"the text is not UTF-8 ({error}): fetch it again"
    else:
        return 0
    print(f"prepare_{corpus.name}.sh: error: {reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
