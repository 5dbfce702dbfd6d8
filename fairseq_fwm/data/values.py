"""The values of the demo sentences, written in English and in German by Babel and num2words.

A *value* is a date, a time of day or a number. Every value belongs to exactly one of the splits
train, valid and test, by a seeded hash: a date, time or number of the test set never occurs in a
training sentence, whatever its format, currency or unit. A *slot* draws a value of a split and
writes it in both languages, in the grammatical form its place in a sentence asks for.
"""

import datetime
import functools
import hashlib
import importlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import ModuleType

SPLITS = ("train", "valid", "test")
HELD_OUT_PERCENT = 10  # of all values, for valid and for test each
LARGEST_ATOM = 20  # "twelve" and "1 hour" have to be seen to be known: never held out

Payload = datetime.date | datetime.time | Decimal
Rendering = tuple[str, str]  # English, German


@dataclass(frozen=True)
class Value:
    """One value of a sentence: ``space`` is date, time or number; ``key`` its canonical form."""

    space: str
    key: str


@dataclass(frozen=True)
class Slot:
    """What may stand at one kind of place in a sentence: how to draw it and how to write it."""

    draw: Callable[[random.Random], Payload]
    write: Callable[[Payload, random.Random, str], Rendering]


@functools.cache
def library(name: str) -> ModuleType:
    """Import a library only the data generator needs; say how to get it when it is missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        raise ModuleNotFoundError(
            f"the demo data needs the Python package {package}, which is not installed: "
            "run `bash scripts/setup.sh`"
        ) from error


def value_of(payload: Payload) -> Value:
    """Return the canonical value: 12.5, 12.50 and 12.500 are one number in every format."""
    if isinstance(payload, datetime.date):
        return Value("date", payload.isoformat())
    if isinstance(payload, datetime.time):
        return Value("time", payload.isoformat("minutes"))
    return Value("number", f"{payload.normalize():f}")


def split_of(value: Value, seed: int) -> str:
    """Return the only split in whose sentences ``value`` may occur."""
    if value.space == "number":
        number = Decimal(value.key)
        if number <= LARGEST_ATOM and number == number.to_integral_value():
            return "train"
    text = f"{seed}/{value.space}/{value.key}".encode()
    bucket = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") % 100
    if bucket < HELD_OUT_PERCENT:
        return "test"
    return "valid" if bucket < 2 * HELD_OUT_PERCENT else "train"


# ---------------------------------------------------------------- dates and times of day


def _draw_date(rng: random.Random) -> datetime.date:
    first, last = datetime.date(1950, 1, 1), datetime.date(2049, 12, 31)
    return first + datetime.timedelta(days=rng.randint(0, (last - first).days))


def _draw_time(rng: random.Random) -> datetime.time:
    minute = rng.randrange(24 * 60)
    return datetime.time(minute // 60, minute % 60)


def _date_writer(german_weekday: str, german_day: str, english: str = "{}") -> Callable:
    """Return a writer of dates, half of them with the weekday."""

    def write(date: Payload, rng: random.Random, locale: str) -> Rendering:
        format_date = library("babel.dates").format_date
        full = rng.random() < 0.5
        text = format_date(date, "full" if full else "long", locale=locale)
        pattern = german_weekday if full else german_day
        return english.format(text), format_date(date, pattern, locale="de")

    return write


def _write_plain_date(date: Payload, rng: random.Random, locale: str) -> Rendering:
    format_date = library("babel.dates").format_date
    return format_date(date, "long", locale=locale), format_date(date, "long", locale="de")


def _write_numeric_date(date: Payload, rng: random.Random, locale: str) -> Rendering:
    format_date = library("babel.dates").format_date
    if rng.random() < 0.5:  # 3/4/26 is March 4 in the United States, 4 March elsewhere
        return format_date(date, "short", locale="en_US"), format_date(date, "short", locale="de")
    return format_date(date, "medium", locale=locale), format_date(date, "medium", locale="de")


def _time_writer(english: str, german: str) -> Callable:
    """Return a writer of times: 7:45 PM or 19:45 in English, 19:45 Uhr in German."""

    def write(time: Payload, rng: random.Random, locale: str) -> Rendering:
        format_time = library("babel.dates").format_time
        text = format_time(time, rng.choice(["h:mm a", "HH:mm"]), locale=locale)
        return english.format(text), german.format(format_time(time, "short", locale="de"))

    return write


# ---------------------------------------------------------------- numbers


def _spread(rng: random.Random, low: float, high: float) -> float:
    """Draw evenly on a logarithmic scale, so that small and large numbers are both common."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _integers(low: int, high: int) -> Callable[[random.Random], Decimal]:
    return lambda rng: Decimal(int(_spread(rng, low, high + 1)))


def _tenths(low: int, high: int) -> Callable[[random.Random], Decimal]:
    """Draw whole numbers and numbers with one decimal alike; now and then a 1 (singular)."""

    def draw(rng: random.Random) -> Decimal:
        if low == 1 and rng.random() < 0.05:
            return Decimal(1)
        if rng.random() < 0.5:
            return _integers(low, high)(rng)
        return Decimal(int(_spread(rng, 10 * low + 1, 10 * high))) / 10

    return draw


def _draw_price(rng: random.Random) -> Decimal:
    return Decimal(int(_spread(rng, 200, 2_000_000))) / 100


def _write_price(amount: Payload, rng: random.Random, locale: str) -> Rendering:
    format_currency = library("babel.numbers").format_currency
    if rng.random() < 0.6:
        currency, style = rng.choice(["EUR", "USD", "GBP"]), "standard"
    else:
        currency, style = rng.choice(["EUR", "USD", "GBP", "CHF", "CZK"]), "name"
    english, german = (
        format_currency(amount, currency, locale=where, format_type=style)
        for where in (locale, "de")
    )
    return english, german


def _write_percent(percent: Payload, rng: random.Random, locale: str) -> Rendering:
    if rng.random() < 0.5:
        return _unit_writer(["concentr-percent"])(percent, rng, locale)
    format_percent = library("babel.numbers").format_percent
    english, german = (
        format_percent(percent / 100, locale=where, decimal_quantization=False)
        for where in (locale, "de")
    )
    return english, german


def _unit_writer(units: Sequence[str], short: bool = False) -> Callable:
    """Return a writer of a quantity in one of Babel's ``units``, half abbreviated if ``short``."""

    def write(number: Payload, rng: random.Random, locale: str) -> Rendering:
        format_unit = library("babel.units").format_unit
        unit = rng.choice(units)
        # Babel's short German forms of 1 are wrong for some units ("1 Meilen").
        length = "short" if short and number != 1 and rng.random() < 0.5 else "long"
        english, german = (
            format_unit(number, unit, length=length, locale=where) for where in (locale, "de")
        )
        return english, german

    return write


def _write_digits(number: Payload, rng: random.Random, locale: str) -> Rendering:
    format_decimal = library("babel.numbers").format_decimal
    return format_decimal(number, locale=locale), format_decimal(number, locale="de")


def _words_writer(form: str) -> Callable:
    """Return a writer of numbers in words; ``form`` is num2words' ``to``."""

    def write(number: Payload, rng: random.Random, locale: str) -> Rendering:
        num2words = library("num2words").num2words
        english, german = (num2words(int(number), lang=lang, to=form) for lang in ("en", "de"))
        return english, german

    return write


def _draw_count(rng: random.Random) -> Decimal:
    """Draw a number that stands before a plural noun: in German not ...eins, but ...ein."""
    number = Decimal(1)
    while number % 100 == 1:
        number = _integers(2, 9999)(rng)
    return number


def _draw_year(rng: random.Random) -> Decimal:
    return Decimal(rng.randint(1500, 2049))


def _plain_spaces(rendering: Rendering) -> Rendering:
    """Turn CLDR's several no-break spaces into plain ones: how a line breaks is not translated."""
    english, german = rendering
    return " ".join(english.split()), " ".join(german.split())


def _quantity(low: int, high: int, *units: str) -> Slot:
    """Return a slot of whole numbers and tenths in one of Babel's ``units``, long or short."""
    return Slot(_tenths(low, high), _unit_writer(units, short=True))


def _duration(high: int, *units: str) -> Slot:
    """Return a slot of durations; their short forms ("Tg.") are rare in German sentences."""
    return Slot(_tenths(1, high), _unit_writer([f"duration-{unit}" for unit in units]))


SLOTS: dict[str, Slot] = {
    "on_date": Slot(
        _draw_date, _date_writer("'am' EEEE, 'dem' d. MMMM y", "'am' d. MMMM y", "on {}")
    ),
    "is_date": Slot(_draw_date, _date_writer("EEEE, 'der' d. MMMM y", "'der' d. MMMM y")),
    "date": Slot(_draw_date, _write_plain_date),
    "numeric_date": Slot(_draw_date, _write_numeric_date),
    "at_time": Slot(_draw_time, _time_writer("at {}", "um {} Uhr")),
    "time": Slot(_draw_time, _time_writer("{}", "{} Uhr")),
    "price": Slot(_draw_price, _write_price),
    "percent": Slot(_tenths(2, 95), _write_percent),
    "count": Slot(_integers(2, 99_999), _write_digits),
    "count_words": Slot(_draw_count, _words_writer("cardinal")),
    "number_words": Slot(_integers(1, 9999), _words_writer("cardinal")),
    "year_words": Slot(_draw_year, _words_writer("year")),
    "ordinal_words": Slot(_integers(1, 199), _words_writer("ordinal")),
    "ordinal": Slot(_integers(1, 199), _words_writer("ordinal_num")),
    "journey": _duration(48, "hour"),
    "days": _duration(90, "hour", "day", "week", "month"),
    "cooking": _duration(90, "second", "minute", "hour"),
    "distance": _quantity(30, 2000, "length-kilometer", "length-mile"),
    "length": _quantity(1, 900, "length-meter", "length-kilometer", "length-centimeter"),
    "weight": _quantity(1, 90, "mass-kilogram"),
    "mass": _quantity(1, 900, "mass-kilogram", "mass-gram"),
    "area": _quantity(5, 900, "area-square-meter", "area-hectare"),
    "volume": _quantity(1, 900, "volume-liter", "volume-milliliter"),
    "speed": _quantity(20, 400, "speed-kilometer-per-hour", "speed-meter-per-second"),
    "energy": _quantity(5, 2000, "energy-kilowatt-hour"),
    "temperature": _quantity(1, 45, "temperature-celsius"),
    "size": _quantity(1, 999, "digital-megabyte", "digital-gigabyte", "digital-kilobyte"),
}


def fill(
    slot: str, split: str, seed: int, rng: random.Random, locale: str
) -> tuple[Payload, Rendering]:
    """Draw a value of ``split`` for ``slot``; return it with its English and German text."""
    kind = SLOTS[slot]
    while True:  # a tenth or more of every slot's values belongs to each split
        payload = kind.draw(rng)
        if split_of(value_of(payload), seed) == split:
            return payload, _plain_spaces(kind.write(payload, rng, locale))
