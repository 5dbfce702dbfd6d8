"""Eight formal languages: strings, and what may follow each of their prefixes (arXiv 2310.16076).

The target at a position describes the string up to and including it. Strings are drawn as in
Bhattamishra, Ahuja and Goyal (arXiv 2009.11264), whose languages and windows of lengths these are.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Symbols = list[str]
Window = tuple[int, int]  # shortest and longest
BRACKETS = {")": "(", "]": "["}


# ---- targets


def parity_targets(string: Sequence[str]) -> Symbols:
    """Return 1 where the number of ones so far is even, else 0."""
    ones = np.cumsum([symbol == "1" for symbol in string])
    return [str(int(count % 2 == 0)) for count in ones]


def star_targets(period: int) -> Callable[[Sequence[str]], Symbols]:
    """Return the function that marks prefixes of a whole number of periods with 1."""
    return lambda string: [str(int(i % period == 0)) for i in range(1, len(string) + 1)]


def counter_targets(letters: str) -> Callable[[Sequence[str]], Symbols]:
    """Return the function for a^n b^n (c^n): which letter is due, `T` for the end.

    `a` stands for "a or b": only the first b says how many letters are to come.
    """

    def targets(string: Sequence[str]) -> Symbols:
        n = len(string) // len(letters)
        due = [*"a" * n, *"b" * (n - 1)]
        for letter in letters[2:]:
            due += letter * n
        return [*due, "T"]

    return targets


def bracket_targets(kinds: str) -> Callable[[Sequence[str]], Symbols]:
    """Return the function with a bit for each kind of closing bracket: 1 where it may follow.

    The symbol `1` closes everything.
    """

    def targets(string: Sequence[str]) -> Symbols:
        depth, found = dict.fromkeys(kinds, 0), []
        for symbol in string:
            if symbol == "1":
                depth = dict.fromkeys(kinds, 0)
            elif symbol in BRACKETS:
                depth[BRACKETS[symbol]] -= 1
            else:
                depth[symbol] += 1
            found.append("".join(str(int(depth[kind] > 0)) for kind in kinds))
        return found

    return targets


# ---- strings


def draw_parity(rng: np.random.Generator, window: Window) -> Symbols:
    """Draw bits, ones and zeros alike, and complete an odd number of ones."""
    stop = 1 / (1 + sum(window) // 2)
    bits = []
    while rng.random() >= stop:
        bits.append(str(rng.integers(2)))
    return [*bits, "1"] if bits.count("1") % 2 else bits


def draw_star(unit: str) -> Callable[[np.random.Generator, Window], Symbols]:
    """Return the function that repeats a unit: lengths are uniform."""
    return lambda rng, window: list(unit * (rng.integers(window[0], window[1] + 1) // len(unit)))


def draw_counter(letters: str) -> Callable[[np.random.Generator, Window], Symbols]:
    """Return the function that draws n, whose window this is."""

    def draw(rng: np.random.Generator, window: Window) -> Symbols:
        n = rng.integers(window[0], window[1] + 1)
        return [letter for letter in letters for _ in range(n)]

    return draw


def draw_brackets(kinds: str) -> Callable[[np.random.Generator, Window], Symbols]:
    """Return the function that draws well-nested brackets: S -> ( S ) 0.5 | S S 0.25 | empty."""
    closing = {opening: close for close, opening in BRACKETS.items()}

    def expand(rng: np.random.Generator, longest: int, depth: int) -> Symbols:
        if 2 * depth >= longest:
            return []
        chance = rng.random()
        if chance < 0.5:
            kind = kinds[rng.integers(len(kinds))]
            string = [kind, *expand(rng, longest, depth + 1), closing[kind]]
        elif chance < 0.75:
            string = expand(rng, longest, depth + 1) + expand(rng, longest, depth + 1)
        else:
            return []
        return string if len(string) <= longest else []

    return lambda rng, window: expand(rng, window[1], 0)


def draw_reset(rng: np.random.Generator, window: Window) -> Symbols:
    """Draw the beginning of one Dyck-1 string, a reset and a whole other one."""
    draw = draw_brackets("(")
    first, second = draw(rng, window), draw(rng, window)
    return [*first[: rng.integers(len(first) + 1)], "1", *second]


# ---- languages


@dataclass(frozen=True)
class Language:
    """A language and how its data sets are made.

    Attributes:
        targets: string -> target symbols.
        draw: (rng, window) -> a string, which may be too short or too long.
        windows: of training and Bin0, of Bin1 and of Bin2: lengths; of counters, n.
        sizes: of training, Bin0, Bin1 and Bin2.
        repeats: the strings are few: training has some of them several times, and so may Bin0.
        longest: of what a window's longest allows (a reset string is made of two).
    """

    targets: Callable[[Sequence[str]], Symbols]
    draw: Callable[[np.random.Generator, Window], Symbols]
    windows: tuple[Window, Window, Window] = ((2, 50), (52, 100), (102, 150))
    sizes: tuple[int, int, int, int] = (10_000, 2_000, 2_000, 2_000)
    repeats: bool = False
    longest: Callable[[int], int] = lambda longest: longest
    length: Callable[[Sequence[str]], int] = len


_STAR = ((2, 500), (501, 600), (601, 700))
_COUNTS = ((1, 50), (51, 100), (101, 150))
LANGUAGES = {
    "parity": Language(
        parity_targets, draw_parity, windows=((2, 50), (51, 100), (101, 150))
    ),
    "aa-star": Language(
        star_targets(2), draw_star("aa"), _STAR, (250, 50, 50, 50), repeats=True
    ),
    "abab-star": Language(
        star_targets(4), draw_star("abab"), _STAR, (125, 25, 25, 25), repeats=True
    ),
    "counter-2": Language(
        counter_targets("ab"), draw_counter("ab"), _COUNTS, (50, 50, 50, 50), repeats=True,
        length=lambda string: len(string) // 2,
    ),
    "counter-3": Language(
        counter_targets("abc"), draw_counter("abc"), _COUNTS, (50, 50, 50, 50), repeats=True,
        length=lambda string: len(string) // 3,
    ),
    "shuffle-2": Language(bracket_targets("(["), draw_brackets("([")),
    "dyck-1": Language(bracket_targets("("), draw_brackets("(")),
    "reset_dyck": Language(
        bracket_targets("("), draw_reset, windows=((2, 50), (51, 100), (101, 150)),
        longest=lambda longest: 2 * longest + 1,
    ),
}  # fmt: skip


def draw_strings(
    language: Language,
    rng: np.random.Generator,
    window: Window,
    size: int,
    distinct: bool = True,
    seen: Iterable[tuple[str, ...]] = (),
) -> list[Symbols]:
    """Draw strings of a window.

    Args:
        language: which.
        rng: where the randomness comes from.
        window: of lengths (of n, for counters).
        size: how many; fewer if so many distinct ones cannot be found.
        distinct: no string twice.
        seen: strings that may not be drawn.
    """
    found, taken, failures = [], set(seen), 0
    shortest, longest = window[0], language.longest(window[1])
    while len(found) < size and failures < 10_000 + 100 * size:
        string = language.draw(rng, window)
        fits = shortest <= language.length(string) <= longest
        if not string or not fits or (distinct and tuple(string) in taken):
            failures += 1
            continue
        taken.add(tuple(string))
        found.append(string)
    return found


SPLITS = ("train", "valid", "test", "bin2")
"""Names of the files: training, Bin0, Bin1 (as published) and Bin2."""


def make_splits(
    language: Language,
    seed: int,
    windows: Sequence[Window] | None = None,
    sizes: Sequence[int] | None = None,
) -> dict[str, list[Symbols]]:
    """Draw the strings of every split.

    Args:
        language: which.
        seed: of the draws.
        windows: of training and Bin0, Bin1 and Bin2, if not the language's own.
        sizes: of the four splits, likewise.

    Raises:
        ValueError: if a window has no string.
    """
    inside, above, far = windows or language.windows
    rng = np.random.default_rng(seed)
    found: dict[str, list[Symbols]] = {}
    for split, window, size in zip(
        SPLITS, (inside, inside, above, far), sizes or language.sizes, strict=True
    ):
        distinct = not (language.repeats and split == "train")
        # Where strings are few, Bin0 has those of the training data again.
        seen = () if language.repeats or split != "valid" else map(tuple, found["train"])
        found[split] = draw_strings(language, rng, window, size, distinct, seen)
        if not found[split]:
            raise ValueError(f"no string of the language lies between {window[0]} and {window[1]}")
    return found
