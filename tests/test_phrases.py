"""The demo's data: right German, held-out values, the same seed the same files."""

import datetime
import importlib
import random
import re
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("babel", reason="the demo data needs babel: bash scripts/setup.sh")
pytest.importorskip("num2words", reason="the demo data needs num2words: bash scripts/setup.sh")

from fairseq_fwm.data import phrases, pieces, values
from fairseq_fwm.data.frames import FRAMES, WORDS

ROOT = Path(__file__).resolve().parents[1]
COUNTS = {"train": 3000, "valid": 300, "test": 600}


@pytest.fixture(scope="module")
def corpus() -> dict[str, list[phrases.Phrase]]:
    return {split: list(phrases.phrases(split, count)) for split, count in COUNTS.items()}


def write(slot: str, payload: values.Payload, locale: str = "en_US") -> set[tuple[str, str]]:
    """Return every form in which ``slot`` writes ``payload``."""
    kind = values.SLOTS[slot]
    return {
        values._plain_spaces(kind.write(payload, random.Random(seed), locale))
        for seed in range(40)
    }


# ---------------------------------------------------------------- nothing tested is trained on


def test_no_sentence_occurs_twice(corpus):
    sentences = [phrase.en for split in corpus.values() for phrase in split]
    assert len(sentences) == sum(COUNTS.values())
    assert max(Counter(sentences).values()) == 1


@pytest.mark.parametrize("seed", [1, 2])
def test_no_value_occurs_in_two_splits(seed):
    seen = {
        split: {value for found in phrases.phrases(split, 1000, seed) for value in found.values}
        for split in values.SPLITS
    }
    assert all(seen.values())
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["valid"]
    assert not seen["valid"] & seen["test"]


def test_held_out_values_cannot_be_read_in_any_training_sentence(corpus):
    """Look at the text alone: whatever the frame, currency or unit, the figures are new."""
    patterns = {
        "time": re.compile(r"\b\d{1,2}:\d\d(?: [AP]M\b| [ap]m\b)?"),
        "date": re.compile(r"\b(?:\w+ \d{1,2}, \d{4}|\d{1,2} \w+ \d{4}|\d+/\d+/\d+)\b"),
        "price": re.compile(r"\d[\d,]*\.\d\d\b"),
        "tenths": re.compile(r"\d[\d,]*\.\d\b(?!\d)"),
    }
    for name, pattern in patterns.items():
        found = {
            split: {match for phrase in corpus[split] for match in pattern.findall(phrase.en)}
            for split in corpus
        }
        assert len(found["test"]) > 20, name
        assert not found["train"] & found["test"], name


def test_the_small_numbers_that_all_others_are_made_of_are_not_held_out():
    for number in range(values.LARGEST_ATOM + 1):
        assert values.split_of(values.value_of(Decimal(number)), seed=1) == "train"


@given(
    date=st.dates(datetime.date(1950, 1, 1), datetime.date(2049, 12, 31)),
    seed=st.integers(0, 10),
)
def test_a_value_belongs_to_one_split_only(date, seed):
    value = values.value_of(date)
    assert values.split_of(value, seed) == values.split_of(values.value_of(date), seed)
    assert values.split_of(value, seed) in values.SPLITS


def test_a_tenth_of_the_values_is_held_out():
    shares = Counter(
        values.split_of(values.value_of(Decimal(number)), 1) for number in range(21, 10_021)
    )
    assert 900 < shares["test"] < 1100
    assert 900 < shares["valid"] < 1100


def test_one_number_is_one_value_in_every_notation():
    assert len({values.value_of(Decimal(text)) for text in ("12.5", "12.50", "012.500")}) == 1
    assert values.value_of(Decimal("1000")) == values.Value("number", "1000")


# ---------------------------------------------------------------- what the libraries write


def test_dates_take_the_case_of_their_place():
    date = datetime.date(2026, 3, 3)
    assert write("on_date", date) == {
        ("on Tuesday, March 3, 2026", "am Dienstag, dem 3. März 2026"),
        ("on March 3, 2026", "am 3. März 2026"),
    }
    assert write("is_date", date, "en_GB") == {
        ("Tuesday, 3 March 2026", "Dienstag, der 3. März 2026"),
        ("3 March 2026", "der 3. März 2026"),
    }
    assert ("3/3/26", "03.03.26") in write("numeric_date", date)
    assert ("Mar 3, 2026", "03.03.2026") in write("numeric_date", date)


@pytest.mark.parametrize(
    ("time", "english", "german"),
    [
        (datetime.time(19, 45), {"at 7:45 PM", "at 19:45"}, "um 19:45 Uhr"),
        (datetime.time(0, 5), {"at 12:05 AM", "at 00:05"}, "um 00:05 Uhr"),
        (datetime.time(12, 30), {"at 12:30 PM", "at 12:30"}, "um 12:30 Uhr"),
    ],
)
def test_times_of_twelve_hours_become_times_of_twenty_four(time, english, german):
    assert write("at_time", time) == {(text, german) for text in english}


def test_prices_units_and_numbers_follow_the_language():
    assert ("€1,234.50", "1.234,50 €") in write("price", Decimal("1234.5"))
    assert ("1,234.50 Swiss francs", "1.234,50 Schweizer Franken") in write(
        "price", Decimal("1234.5")
    )
    assert ("12.5%", "12,5 %") in write("percent", Decimal("12.5"))
    assert ("1 hour", "1 Stunde") in write("journey", Decimal(1))
    assert ("2.5 hours", "2,5 Stunden") in write("journey", Decimal("2.5"))
    assert ("2.5 km", "2,5 km") in write("length", Decimal("2.5"))
    assert ("2.5 kilometres", "2,5 Kilometer") in write("length", Decimal("2.5"), "en_GB")
    assert write("count_words", Decimal(2345)) == {
        (
            "two thousand, three hundred and forty-five",
            "zweitausenddreihundertfünfundvierzig",
        )
    }
    assert write("ordinal_words", Decimal(21)) == {("twenty-first", "einundzwanzigste")}
    assert write("ordinal", Decimal(21)) == {("21st", "21.")}


def test_counts_before_nouns_never_end_in_eins(corpus):
    for split in corpus.values():
        for phrase in split:
            assert not re.search(r"eins [A-ZÄÖÜ]", phrase.de), phrase.de


def test_every_sentence_is_complete(corpus):
    for split in corpus.values():
        for phrase in split:
            assert phrase.en[0] == phrase.en[0].upper()
            assert phrase.de[0] == phrase.de[0].upper()
            assert phrase.values
            for text in (phrase.en, phrase.de):
                assert "{" not in text
                assert text == " ".join(text.split())


def test_a_source_sentence_has_one_translation():
    """No sentence is ambiguous, whatever the seed: the same English is the same German."""
    german: dict[str, str] = {}
    for seed in range(3):
        for phrase in phrases.phrases("train", 3000, seed):
            assert german.setdefault(phrase.en, phrase.de) == phrase.de


def test_the_second_of_two_dates_or_prices_is_not_smaller(corpus):
    names = values.library("babel.dates").get_month_names(locale="de")
    months = {name: number for number, name in names.items()}
    found = 0
    for phrase in corpus["train"]:
        match = re.match(
            r"Der Vertrag läuft vom (\d+)\. (\w+) (\d+) bis zum (\d+)\. (\w+) (\d+)", phrase.de
        )
        if match:
            found += 1
            d1, m1, y1, d2, m2, y2 = match.groups()
            assert (int(y1), months[m1], int(d1)) <= (int(y2), months[m2], int(d2))
    assert found


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: frame[0])
def test_frames_have_known_slots_and_the_same_ones_in_both_languages(frame):
    english, german = (sorted(re.findall(r"{(\w+)}", text)) for text in frame)
    assert english == german
    assert {name.rstrip("2") for name in english} <= {*WORDS, *values.SLOTS}


# ---------------------------------------------------------------- seeds, files, errors


def test_the_seed_decides():
    first = list(phrases.phrases("test", 50, seed=3))
    assert first == list(phrases.phrases("test", 50, seed=3))
    assert first != list(phrases.phrases("test", 50, seed=4))


def test_command_line_writes_parallel_files_and_pieces_restore_them(tmp_path):
    phrases.main(["--out", str(tmp_path), "--train", "800", "--valid", "20", "--test", "30"])
    lines = {path.name: path.read_text("utf-8").splitlines() for path in tmp_path.iterdir()}
    assert {name: len(found) for name, found in lines.items()} == {
        f"{split}.{lang}": count
        for split, count in {"train": 800, "valid": 20, "test": 30}.items()
        for lang in ("en", "de")
    }
    pieces.main([str(tmp_path), "--size", "500"])
    cut = (tmp_path / "train.pieces.de").read_text("utf-8").splitlines()
    # What fairseq's --remove-bpe sentencepiece does.
    assert [line.replace(" ", "").replace("▁", " ").strip() for line in cut] == lines["train.de"]
    assert not list(tmp_path.glob("*.part*"))


def test_a_missing_library_is_named_with_its_cure(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    values.library.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"babel.*bash scripts/setup\.sh"):
        values.library("babel.dates")
    values.library.cache_clear()


def test_asking_for_too_much_says_so(monkeypatch):
    monkeypatch.setattr(phrases, "FRAMES", [("the interest rate is {percent}.", "x {percent}")])
    with pytest.raises(ValueError, match="ask for fewer with --test"):
        list(phrases.phrases("test", 10_000))
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        next(phrases.phrases("dev", 1))


def test_bad_arguments_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        phrases.main(["--out", str(tmp_path), "--train", "0"])
    assert "0 is not a positive number" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        pieces.main([str(tmp_path)])
    assert "train.en" in capsys.readouterr().err


def test_runs_without_fairseq(tmp_path):
    """The generator is for everyone with Babel: fairseq is not imported on its account."""
    blocker = "import sys; sys.modules['fairseq'] = None; sys.path.insert(0, sys.argv.pop(1)); "
    run = "from fairseq_fwm.data.values import SLOTS; from fairseq_fwm.data import phrases; "
    call = "phrases.main(['--out', sys.argv[1], '--train', '5', '--valid', '5', '--test', '5'])"
    subprocess.run(
        [sys.executable, "-c", blocker + run + call, str(ROOT), str(tmp_path)],
        check=True,
        timeout=120,
    )
    assert len((tmp_path / "test.de").read_text("utf-8").splitlines()) == 5
