"""Formal languages: targets are what the definitions and the supplied files say, draws fit."""

import sys
from pathlib import Path

import numpy as np
import pytest

from fairseq_fwm.data.formal_languages import LANGUAGES, draw_strings, make_splits

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import make_formal_language  # noqa: E402

EXAMPLES = [
    ("parity", "1 0 1", "0 0 1"),
    ("aa-star", "a a a a", "0 1 0 1"),
    ("abab-star", "a b a b", "0 0 0 1"),
    ("counter-2", "a a b b", "a a b T"),
    ("counter-3", "a a b b c c", "a a b c c T"),
    ("counter-2", "a b", "a T"),
    ("shuffle-2", "[ ]", "01 00"),
    ("shuffle-2", "( [ ] )", "10 11 10 00"),
    ("dyck-1", "( ( ) )", "1 1 1 0"),
    ("reset_dyck", "( 1 ( )", "1 0 1 0"),
]


@pytest.mark.parametrize(("name", "string", "targets"), EXAMPLES)
def test_targets(name, string, targets):
    assert LANGUAGES[name].targets(string.split()) == targets.split()


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("name", LANGUAGES)
def test_targets_are_those_of_the_supplied_files(name, split, shared):
    folder = shared / "data/formal_languages" / name
    source = (folder / f"{split}_50.src").read_text().splitlines()
    target = (folder / f"{split}_50.tgt").read_text().splitlines()
    assert len(source) == len(target) > 0
    for string, wanted in zip(source, target, strict=True):
        assert LANGUAGES[name].targets(string.split()) == wanted.split()


MEMBERS = {
    "parity": lambda s: s.count("1") % 2 == 0 and set(s) <= set("01"),
    "aa-star": lambda s: set(s) == {"a"} and len(s) % 2 == 0,
    "abab-star": lambda s: s == "abab" * (len(s) // 4),
    "counter-2": lambda s: s == "a" * (len(s) // 2) + "b" * (len(s) // 2),
    "counter-3": lambda s: s == "".join(c * (len(s) // 3) for c in "abc"),
    "shuffle-2": lambda s: nested(s, "()[]"),
    "dyck-1": lambda s: nested(s, "()"),
    "reset_dyck": lambda s: s.count("1") == 1 and nested(s.split("1")[1], "()"),
}


def nested(string, alphabet):
    assert set(string) <= set(alphabet)
    while "()" in string or "[]" in string:
        string = string.replace("()", "").replace("[]", "")
    return not string


@pytest.mark.parametrize("name", LANGUAGES)
def test_splits(name):
    language = LANGUAGES[name]
    sizes = [min(size, 60) for size in language.sizes]
    splits = make_splits(language, 1, sizes=sizes)
    assert splits == make_splits(language, 1, sizes=sizes)
    assert splits != make_splits(language, 2, sizes=sizes)
    inside, above, far = language.windows
    for (split, strings), window in zip(splits.items(), (inside, inside, above, far), strict=True):
        assert strings, split
        for string in strings:
            assert MEMBERS[name]("".join(string))
            assert len(language.targets(string)) == len(string)
            assert window[0] <= language.length(string) <= language.longest(window[1])
        distinct = {tuple(string) for string in strings}
        if split != "train" or not language.repeats:
            assert len(distinct) == len(strings)
    if not language.repeats:
        train = set(map(tuple, splits["train"]))
        assert not any(tuple(string) in train for string in splits["valid"])


def test_few_strings_are_all_that_can_be_drawn():
    rng = np.random.default_rng(0)
    strings = draw_strings(LANGUAGES["counter-2"], rng, (3, 5), 50)
    assert sorted(map(len, strings)) == [6, 8, 10]


def test_script(tmp_path, capsys):
    sizes = ["--sizes", "30", "10", "10", "5"]
    assert make_formal_language.main(["--all", "--out", str(tmp_path), *sizes]) == 0
    for name, language in LANGUAGES.items():
        for split in ("train", "valid", "test", "bin2"):
            source, target = (
                [line.split() for line in (tmp_path / name / f"{split}_50.{end}").open()]
                for end in ("src", "tgt")
            )
            assert source and [language.targets(string) for string in source] == target
    assert "train 30, valid 10, test 10, bin2 5" in capsys.readouterr().out
    one = ["parity", "--out", str(tmp_path / "one"), "--bin1-window", "60", "62", *sizes]
    assert make_formal_language.main(one) == 0
    lengths = {len(line.split()) for line in (tmp_path / "one/test_50.src").open()}
    assert lengths <= {60, 61, 62}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "name one language, or --all"),
        ("parity --all", "name one language, or --all"),
        ("parity --train-window 5 2", "not from 5 to 2"),
        ("abab-star --train-window 1 3", "abab-star: no string of the language lies between 1"),
    ],
)
def test_what_makes_no_sense(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        make_formal_language.main([*flags.split(), "--out", str(tmp_path)])
    assert message in capsys.readouterr().err
