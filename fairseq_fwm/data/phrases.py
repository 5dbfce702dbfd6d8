"""English to German dates, times, prices and quantities: the demo's parallel text.

    python -m fairseq_fwm.data.phrases --out DIR [--seed 1] [--train N --valid N --test N]

Every sentence is a frame (``frames.py``) whose values Babel and num2words write in both languages
(``values.py``). What is tested is never seen in training: not the pair, and not one of its dates,
times or numbers. The same seed and library versions give the same files.
"""

import argparse
import random
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .frames import FRAMES, WORDS
from .values import SPLITS, Payload, Rendering, Value, fill, library, value_of

MAX_ATTEMPTS = 1000  # for one new sentence, before the request counts as too large
LOCALES = ("en_US", "en_GB")


@dataclass(frozen=True)
class Phrase:
    """A sentence in English and German, and the values that it states."""

    en: str
    de: str
    values: tuple[Value, ...]


def phrase(split: str, seed: int, rng: random.Random) -> Phrase:
    """Draw one sentence of ``split``; the same ``seed`` always splits the values the same way."""
    english, german = rng.choice(FRAMES)
    locale = rng.choice(LOCALES)
    names = [name for _, name, _, _ in string.Formatter().parse(english) if name]
    texts: dict[str, Rendering] = {}
    payloads: dict[str, Payload] = {}
    for name in names:
        slot = name.rstrip("2")
        if slot in WORDS:
            texts[name] = rng.choice([pair for pair in WORDS[slot] if pair not in texts.values()])
            continue
        payloads[name], texts[name] = fill(slot, split, seed, rng, locale)
        if slot != name and payloads[name] < payloads[slot]:
            texts[name], texts[slot] = texts[slot], texts[name]
    en = english.format(**{name: pair[0] for name, pair in texts.items()})
    de = german.format(**{name: pair[1] for name, pair in texts.items()})
    values = tuple(value_of(payload) for payload in payloads.values())
    return Phrase(en[0].upper() + en[1:], de[0].upper() + de[1:], values)


def phrases(split: str, count: int, seed: int = 1) -> Iterator[Phrase]:
    """Yield ``count`` sentences of ``split`` (train, valid or test), no English one twice.

    Raises:
        ValueError: If ``split`` is unknown or so many different sentences cannot be found.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    rng = random.Random(f"{seed}/{split}")
    seen: set[str] = set()
    for index in range(count):
        for _ in range(MAX_ATTEMPTS):
            found = phrase(split, seed, rng)
            if found.en not in seen:
                break
        else:
            raise ValueError(
                f"found only {index} different {split} sentences of the {count} asked for: "
                f"ask for fewer with --{split}"
            )
        seen.add(found.en)
        yield found


def write_split(out: Path, split: str, count: int, seed: int) -> None:
    """Write ``split`` as ``out/split.en`` and ``out/split.de``; whole files or none."""
    bar = library("tqdm").tqdm(phrases(split, count, seed), total=count, desc=split, disable=None)
    pairs = [(found.en, found.de) for found in bar]
    for lang, lines in zip(("en", "de"), zip(*pairs, strict=True), strict=True):
        partial = out / f"{split}.{lang}.part"
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        partial.replace(out / f"{split}.{lang}")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_fwm.data.phrases",
        description="Write English-German dates, times, prices and quantities as parallel text. "
        "No date, time or number of the valid and test files occurs in the training file.",
    )
    parser.add_argument("--out", type=Path, required=True, help="directory for the files")
    parser.add_argument("--seed", type=int, default=1, help="seed (default: %(default)s)")
    for split, count in zip(SPLITS, (40_000, 500, 1000), strict=True):
        parser.add_argument(
            f"--{split}",
            type=_positive,
            default=count,
            metavar="N",
            help=f"sentences in {split}.en and {split}.de (default: %(default)s)",
        )
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        write_split(args.out, split, getattr(args, split), args.seed)


if __name__ == "__main__":
    main()
