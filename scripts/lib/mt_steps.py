"""The steps from a translation corpus to fairseq's binary form (called by mt_files.py)."""

import argparse
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lib import (
    mt_sources,
    mt_text,
)
from lib.data_files import DataError, whole, write_whole
from lib.fairseq_jobs import fairseq_preprocess
from lib.mt_sources import SPLITS, Archive, Part
from lib.mt_text import Pair, clean, count_lines, read_lines, read_pairs, write_lines

CODES = "bpe_codes"
MODEL = "sentencepiece.model"
PLAIN = "plain"  # {split}.plain.{target}: a carved split's text before it was tokenised


@dataclass(frozen=True)
class Job:
    """What is to be made.

    Attributes:
        args: the command line, see mt_files.parse.
        langs: source and target language.
        archives: what the text is in.
        parts: what the splits consist of.
        own: whether the text is not the published one, but `train.en` and so on at hand.
    """

    args: argparse.Namespace
    langs: tuple[str, str]
    archives: tuple[Archive, ...]
    parts: tuple[Part, ...]
    own: bool

    def say(self, text: str) -> None:
        """Print a line with the script's name."""
        print(f"prepare_{self.args.name}.sh: {text}", flush=True)

    def given(self) -> tuple[str, ...]:
        """Return the splits that have files of their own."""
        if self.args.carve:
            return ("train",)
        return ("train", "test") if self.args.valid_every else SPLITS

    def paths(self, folder: str | Path, split: str) -> tuple[Path, Path]:
        """Return the two texts of a split in a folder of the data directory."""
        directory = self.args.out / folder
        return directory / f"{split}.{self.langs[0]}", directory / f"{split}.{self.langs[1]}"


def take(job: Job, work: Path) -> dict[str, Any]:
    """Write the text of each split, one sentence a line, both languages checked against another.

    Returns:
        Where it is from, with the digests of the archives.
    """
    args = job.args
    if job.own:
        job.say(f"taking the text in {args.source}")
        mt_sources.take_plain(args.source, job.langs, job.given(), work)
        about: dict[str, Any] = {"source": "text at hand"}
    else:
        source = args.source or args.out / "download"
        if args.source is None:
            mt_sources.download(job.archives, source, job.say)
        record = source if args.source is None else None
        digests = {}
        if args.verified:
            digests = mt_sources.check_archives(source, job.archives, record, job.say)
        parts = [part for part in job.parts if part.split in job.given()]
        mt_sources.take_parts(source, job.archives, parts, job.langs, work, job.say)
        about = {"source": "files at hand" if args.source else "downloaded", "archives": digests}
    for split in job.given():
        paths = job.paths(work, split)
        pairs = sum(1 for _ in read_pairs(paths))
        if not pairs:
            raise DataError(f"{split} has no sentences")
        job.say(f"raw {split}: {pairs:,} pairs")
        published = dict(zip(SPLITS, args.pairs or (), strict=False)).get(split)
        if published not in (None, pairs) and not job.own:
            job.say(f"note: {split} was published with {published:,} pairs")
    return about


def tokenise(job: Job, work: Path) -> None:
    """Split every line into words, or keep it as it is where the form, or the text, wants that."""
    args = job.args
    for split in job.given():
        for lang, source in zip(job.langs, job.paths("raw", split), strict=True):
            if args.tokenised or args.form == "sentencepiece":
                link(source, work / source.name)
                continue
            job.say(f"tokenising {source.name} (Moses{', lower case' * bool(args.lowercase)})")
            mt_text.map_file(
                source,
                work / source.name,
                mt_text.moses_lines,
                (lang, args.lowercase, args.normalise, args.apostrophes),
                args.workers,
            )


def link(source: Path, dest: Path) -> None:
    """Give a file another name; copy it where the file system cannot."""
    dest.unlink(missing_ok=True)
    try:
        os.link(source, dest)
    except OSError:
        with whole(dest) as temporary:
            shutil.copyfile(source, temporary)


def cut(job: Job, work: Path) -> None:
    """Clean train by its words and take valid and test out of it, as far as that is asked for."""
    args = job.args
    for split in job.given():
        if split != "train":
            for source in job.paths("words", split):
                link(source, work / source.name)
    if not (args.carve or args.valid_every or args.clean_at == "words"):
        for source in job.paths("words", "train"):
            link(source, work / source.name)
        return
    kept = sum(1 for _ in clean_pairs(job))
    pairs = count_lines(job.paths("words", "train")[0])
    job.say(
        f"cleaning train by words (1 to {args.max_length}, ratio {args.max_ratio:g}): "
        f"{kept:,} of {pairs:,} pairs stay"
    )
    if args.carve and kept < 4 * args.carve:
        raise DataError(
            f"--carve {args.carve} takes {2 * args.carve:,} pairs out of {kept:,}: ask for fewer"
        )
    target = job.langs[1]
    with ExitStack() as stack:
        files = {}
        for split in set(SPLITS) - set(job.given()) | {"train"}:
            for kind in (*job.langs, *([f"{PLAIN}.{target}"] if split != "train" else [])):
                path = stack.enter_context(whole(work / f"{split}.{kind}"))
                files[split, kind] = stack.enter_context(path.open("w", encoding="utf-8"))
        for number, (pair, plain) in enumerate(clean_pairs(job), 1):
            split = where(number, kept, args.carve, args.valid_every)
            for lang, text in zip(job.langs, pair, strict=True):
                files[split, lang].write(f"{text}\n")
            if split != "train":
                files[split, f"{PLAIN}.{target}"].write(f"{plain}\n")


def clean_pairs(job: Job) -> Iterator[tuple[Pair, str]]:
    """Yield the pairs of train that are clean by their words, with the target text untokenised."""
    raw = read_lines(job.paths("raw", "train")[1])
    for pair, plain in zip(read_pairs(job.paths("words", "train")), raw, strict=True):
        if clean(pair, job.args.max_length, job.args.max_ratio):
            yield pair, plain


def where(number: int, count: int, carve: int | None, valid_every: int | None) -> str:
    """Return the split that the pair with a number, from 1 to `count`, belongs to."""
    if carve:
        turn, rest = divmod(number, count // (2 * carve))
        return "train" if rest or turn > 2 * carve else ("valid", "test")[turn % 2]
    return "valid" if valid_every and number % valid_every == 0 else "train"


def segment(job: Job, work: Path) -> None:
    """Learn pieces of words from train, cut every split up, and clean train by its pieces."""
    args = job.args
    train = list(job.paths("split", "train"))
    if args.form == "moses-bpe":
        job.say(f"learning {args.bpe_codes:,} joint BPE merges")
        model, make = work / CODES, mt_text.bpe_lines
        mt_text.learn_bpe(train, model, args.bpe_codes, args.workers)
    else:
        job.say(f"learning {args.bpe_codes:,} joint SentencePiece pieces")
        model, make = work / MODEL, mt_text.piece_lines
        mt_text.learn_pieces(train, model, args.bpe_codes, args.workers)
    by_pieces = args.clean_at == "pieces"
    for split in SPLITS:
        for source in job.paths("split", split):
            job.say(f"cutting up {source.name}")
            dest = work / (f"{source.name}.all" if split == "train" and by_pieces else source.name)
            mt_text.map_file(source, dest, make, (model,), args.workers)
    if by_pieces:
        clean_train(job, work)


def clean_train(job: Job, work: Path) -> None:
    """Write the clean pairs of train.*.all to train.*."""
    args = job.args
    sources = tuple(work / f"train.{lang}.all" for lang in job.langs)
    kept = pairs = 0
    with ExitStack() as stack:
        paths = [stack.enter_context(whole(path)) for path in job.paths(work, "train")]
        files = [stack.enter_context(path.open("w", encoding="utf-8")) for path in paths]
        for pairs, pair in enumerate(read_pairs(sources), 1):  # noqa: B007
            if clean(pair, args.max_length, args.max_ratio):
                kept += 1
                for file, text in zip(files, pair, strict=True):
                    file.write(f"{text}\n")
    job.say(
        f"cleaning train by pieces (1 to {args.max_length}, ratio {args.max_ratio:g}): "
        f"{kept:,} of {pairs:,} pairs stay"
    )
    if not kept:
        raise DataError("no pair of train is clean: see --max-length and --max-ratio")
    for path in sources:
        path.unlink()


def binarise(job: Job, dest: Path) -> None:
    """Run fairseq-preprocess with one dictionary for both languages."""
    source, target = job.langs
    flags = ["--source-lang", source, "--target-lang", target, "--joined-dictionary"]
    flags += ["--destdir", str(dest), "--workers", str(job.args.workers)]
    for split in SPLITS:
        flags += [f"--{split}pref", str(job.args.out / "text" / split)]
    fairseq_preprocess(flags)


def write_references(job: Job) -> None:
    """Write what translations are scored against.

    `ref/{valid,test}.detok.TARGET` is plain text, `.tok.` the words of the moses-bpe form.
    """
    target = job.langs[1]
    for split in SPLITS[1:]:
        words = job.paths("split", split)[1]
        plain = job.args.out / "split" / f"{split}.{PLAIN}.{target}"
        lines = read_lines(plain if plain.exists() else job.paths("raw", split)[1])
        if job.args.tokenised:
            lines = iter(mt_text.detokenise(read_lines(words), target))
        ref = job.args.out / "ref"
        write_lines(ref / f"{split}.detok.{target}", lines)
        if job.args.form == "moses-bpe":
            write_whole(ref / f"{split}.tok.{target}", words.read_bytes())


def describe(job: Job, data: Path) -> dict[str, Any]:
    """Return the record of what was made: sizes, versions, what the references are."""
    import fairseq
    from fairseq.data.indexed_dataset import MMapIndexedDataset

    source, target = job.langs
    splits: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        splits[split] = {"pairs": count_lines(job.paths("text", split)[0])}
        for lang in job.langs:
            items = MMapIndexedDataset(str(data / f"{split}.{source}-{target}.{lang}"))
            splits[split][f"{lang} tokens"] = int(items.sizes.sum())
    moses = job.args.form == "moses-bpe"
    return {
        "corpus": job.args.name,
        "licence": job.args.licence,
        "form": job.args.form,
        "langs": list(job.langs),
        # Text that is tokenised already keeps its case.
        "lowercase": moses and bool(job.args.lowercase) and not job.args.tokenised,
        "plain_reference": "detokenised" if job.args.tokenised else "raw",
        "splits": splits,
        "types": count_lines(data / f"dict.{source}.txt"),
        "versions": {"python": platform.python_version(), "fairseq": fairseq.__version__}
        | {name: found for name in ("sacremoses", "subword-nmt", "sentencepiece")
           if (found := installed(name))},
    }  # fmt: skip


def installed(package: str) -> str | None:
    """Return a package's version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
