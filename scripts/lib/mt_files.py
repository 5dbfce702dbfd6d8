"""Make a fairseq data directory of a translation corpus (called by prepare_*.sh).

What a corpus is (where from, checksums, how it is cleaned) the scripts say by flags. The steps
are raw (take the text), words (tokenise), split (clean, carve), text (BPE or pieces) and binarise;
each leaves a folder that has its name only when it is complete, so that an interrupted run can go
on.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lib import mt_steps  # noqa: E402
from lib.data_files import DataError, digest_of, read_json, write_json  # noqa: E402
from lib.lm_tokens import quiet_fairseq  # noqa: E402
from lib.mt_sources import SPLITS, Archive, Part, plain_files, test_set  # noqa: E402
from lib.mt_steps import Job  # noqa: E402

RECORD = "data.json"
SETTINGS = "settings.json"
STAGE = "step.json"
FORMS = ("moses-bpe", "sentencepiece")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return what a command line says of the corpus, and what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument_group("corpus").add_argument
    add("--name", required=True)
    add("--licence", required=True)
    add("--langs", nargs=2, required=True, metavar=("SOURCE", "TARGET"))
    add("--archive", nargs=3, action="append", default=[], metavar=("NAME", "URL", "DIGEST"),
        help="a file to download; DIGEST is - where none is published")  # fmt: skip
    add("--part", nargs=3, action="append", default=[], metavar=("SPLIT", "SOURCE", "TARGET"))
    add("--test-set", nargs=2, action="append", default=[], metavar=("SPLIT", "NAME"),
        help="a test set by its name in sacreBLEU's list")  # fmt: skip
    add("--pairs", nargs=3, type=int, metavar=SPLITS, help="published numbers")
    add("--normalise", action="store_true", help="normalise punctuation before tokenising")
    add("--apostrophes", action="store_true", help="make ’ an ' before tokenising")
    add("--lowercase", choices=("before", "after"), default="", help="tokenising (moses-bpe)")
    add("--valid-every", type=int, metavar="N", help="valid is every Nth clean pair of train")
    add("--clean-at", choices=("words", "pieces"), default="pieces", help="what lengths count")
    add = parser.add_argument_group("wish").add_argument
    add("--form", choices=FORMS, default=FORMS[0])
    add("--from", type=Path, dest="source", metavar="DIR")
    # Absolute: steps join it with the folder that they work in, which lies below it.
    add("--out", type=lambda text: Path(text).absolute(), required=True, metavar="DIR")
    add("--bpe-codes", type=int, required=True, metavar="N")
    add("--max-length", type=int, required=True, metavar="N")
    add("--max-ratio", type=float, required=True, metavar="R")
    add("--carve", type=int, metavar="N")
    add("--tokenised", action="store_true")
    add("--no-verify", action="store_false", dest="verified")
    add("--workers", type=int, default=1, metavar="N")
    args = parser.parse_args(argv)
    for flag in ("bpe_codes", "max_length", "workers", "carve"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            parser.error(f"--{flag.replace('_', '-')}: at least 1")
    if args.max_ratio < 1:
        parser.error("--max-ratio: at least 1")
    if args.tokenised and args.form != "moses-bpe":
        parser.error("--tokenised goes with --form moses-bpe: SentencePiece takes raw text")
    if args.tokenised and args.source is None:
        parser.error("--tokenised goes with --from DIR: what is downloaded is raw text")
    return args


def job_of(args: argparse.Namespace) -> Job:
    """Return what a command line says, in the terms of the steps."""
    langs = (args.langs[0], args.langs[1])
    archives = [Archive(name, url, None if d == "-" else d) for name, url, d in args.archive]
    parts = [Part(split, (source, target)) for split, source, target in args.part]
    for split, name in args.test_set:
        archive, part = test_set(split, name, langs)
        archives.append(archive)
        parts.append(part)
    own = args.source is not None and "train" in plain_files(args.source, langs)
    if args.tokenised and not own:
        raise DataError(
            f"--tokenised: {args.source} has no text of your own, train.{langs[0]} and "
            f"train.{langs[1]}; the published files are raw"
        )
    return Job(args, langs, tuple(archives), tuple(parts), own)


def settings_of(job: Job) -> dict[str, Any]:
    """Return what the data depend on besides the text."""
    args = job.args
    names = ("form", "bpe_codes", "max_length", "max_ratio", "carve", "tokenised")
    return {"corpus": args.name, **{name: getattr(args, name) for name in names}}


def check_settings(job: Job) -> None:
    """Keep the settings of a directory, or compare with what it was begun with.

    Raises:
        DataError: they differ, or the directory is something else's.
    """
    out, settings = job.args.out, settings_of(job)
    there = read_json(out / SETTINGS)
    if not there or not (out / "raw").exists():  # nothing was made with them yet
        if (out / RECORD).exists() or (out / "text").exists():
            raise DataError(f"{out} is not from this script: name another directory (--out DIR)")
        write_json(out / SETTINGS, settings)
    elif there != settings:
        raise DataError(
            f"{out} holds data made with other settings\n"
            f"  there  {json.dumps(there)}\n"
            f"  wanted {json.dumps(settings)}\n"
            "  Name another directory (--out DIR) or delete that one"
        )


def whole_record(directory: Path, path: Path) -> dict[str, Any]:
    """Return the record at `path` if the directory still holds what it says, else nothing."""
    record = read_json(path)
    good = all(
        (directory / name).is_file() and digest_of(directory / name) == digest
        for name, digest in record.get("sha256", {}).items()
    )
    return record if good else {}


def digests(directory: Path) -> dict[str, str]:
    """Return the digest of every file of a directory but its record."""
    names = sorted(path.name for path in directory.iterdir() if path.is_file())
    return {name: digest_of(directory / name) for name in names if name != STAGE}


def step(
    job: Job, name: str, needs: dict[str, str], make: Callable[[Job, Path], Any]
) -> dict[str, Any]:
    """Make a folder of the data directory, or keep it.

    What an interrupted run left is gone on with, if it was made of the same files.

    Args:
        job: what to make.
        name: of the folder.
        needs: digests of the files that it is made of.
        make: fills a folder; may return what else the record shall say.

    Returns:
        The record: `sha256` of its files, `needs`, and `about`.
    """
    final, part = job.args.out / name, job.args.out / f".{name}.part"
    record = whole_record(final, final / STAGE)
    if record.get("sha256") and record["needs"] == needs:
        job.say(f"{name}: already in {final}")
        return record
    if read_json(part / STAGE) != {"needs": needs}:
        shutil.rmtree(part, ignore_errors=True)
        write_json(part / STAGE, {"needs": needs})
    about = make(job, part)
    record = {"needs": needs, "about": about or {}, "sha256": digests(part)}
    write_json(part / STAGE, record)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(part, final)
    return record


def run(job: Job) -> None:
    """Make the data directory, or what is missing of it.

    Raises:
        DataError: the text cannot be had or is not what it should be; says what to do.
    """
    args, out = job.args, job.args.out
    job.say(f"licence: {args.licence}")
    check_settings(job)
    record = whole_record(out, out / RECORD)
    if record:
        job.say(f"already in {out}")
        summarise(job, record)
        return
    raw = step(job, "raw", {}, mt_steps.take)
    words = step(job, "words", raw["sha256"], mt_steps.tokenise)
    split = step(job, "split", words["sha256"], mt_steps.cut)
    text = step(job, "text", split["sha256"], mt_steps.segment)
    job.say("binarising with fairseq-preprocess (about a minute for a million pairs and process)")
    part = out / ".bin.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    mt_steps.binarise(job, part)
    facts = mt_steps.describe(job, part) | {"settings": settings_of(job)} | raw["about"]
    names = sorted(digests(part))
    for name in names:
        os.replace(part / name, out / name)
    part.rmdir()
    mt_steps.write_references(job)
    sha256 = {name: digest_of(out / name) for name in names if name != "preprocess.log"}
    sha256 |= {f"text/{name}": digest for name, digest in text["sha256"].items()}
    record = facts | {"sha256": sha256}
    write_json(out / RECORD, record)
    summarise(job, record)


def summarise(job: Job, record: dict[str, Any]) -> None:
    """Print what was made."""
    for split, size in record["splits"].items():
        job.say(f"{split}: " + ", ".join(f"{number:,} {what}" for what, number in size.items()))
    job.say(f"{record['types']:,} types in the joint dictionary; done: {job.args.out}")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    args = parse(argv)
    quiet_fairseq()
    try:
        if args.source is not None and not args.source.is_dir():
            raise DataError(f"{args.source} is not a directory")
        run(job_of(args))
    except DataError as error:
        print(f"prepare_{args.name}.sh: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
