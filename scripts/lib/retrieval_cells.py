"""The cells of the associative-retrieval grid: flags, published file names, logs."""

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

FEATURES = {"linear": "elu", "tanh": "tanh", "dpfp": "dpfp", "favor": "favor"}
ATTENTIONS = ("softmax", *FEATURES)
RULES = {"sum": "sum", "fwm": "fwm", "ours": "delta"}  # published name: ours
HEADER = ("step", "eval-loss")
NAME = re.compile(
    r"d(?P<hidden>\d+)_(?P<attention>[a-z]+)(?P<arg>\d*)_(?P<rule>[a-z]+)"
    r"_AssocSeq(?P<length>\d+)N(?P<n_keys>\d+)R(?P<replace>[01])"
)


class CellError(ValueError):
    """A combination that makes no sense; the message says why."""


@dataclass(frozen=True)
class Variant:
    """Attention and update rule, by their published names.

    Attributes:
        attention: one of :data:`ATTENTIONS`.
        arg: nu of dpfp, m of favor; 0 elsewhere.
        rule: one of :data:`RULES`; softmax has the rule ``cat``.
    """

    attention: str
    arg: int = 0
    rule: str = "sum"

    def __str__(self) -> str:
        return f"{self.attention}{self.arg or ''}_{self.rule}"

    def check(self, hidden: int = 64) -> None:
        """Raise CellError if this is no model."""
        name, arg = self.attention, self.arg
        if name == "softmax" and self.rule != "cat":
            raise CellError("softmax has no memory to update: leave --update_rule at sum")
        if name in ("dpfp", "favor") and arg < 1:
            what = "nu" if name == "dpfp" else "m"
            raise CellError(f"--attn_name {name} needs --attn_arg, its {what}, at least 1")
        if name == "dpfp" and arg > 2 * hidden - 1:
            raise CellError(
                f"--attn_arg {arg}: DPFP's nu is at most 2 * hidden_size - 1 = {2 * hidden - 1}"
            )
        if name not in ("dpfp", "favor") and arg:
            raise CellError(f"--attn_name {name} has no --attn_arg, found {arg}")
        if name == "tanh" and self.rule != "fwm":
            raise CellError(
                f"--update_rule {self.rule} divides by sums of features, and tanh takes both "
                "signs: use --update_rule fwm"
            )

    def flags(self) -> list[str]:
        """Return the model's flags for fairseq-train."""
        if self.attention == "softmax":
            return ["--fwm-rule", "softmax"]
        rule, phi = RULES[self.rule], FEATURES[self.attention]
        flags = ["--fwm-rule", rule, "--fwm-feature-map", phi]
        if phi in ("dpfp", "favor"):
            option = "--fwm-dpfp-nu" if phi == "dpfp" else "--fwm-favor-features"
            flags += [option, str(self.arg)]
        return flags


@dataclass(frozen=True)
class Cell:
    """One training: a variant and how much it has to remember.

    Attributes:
        variant: attention and rule.
        n_keys: S.
        replace: setting 2, sequences of 2 S drawn with replacement; else setting 1.
        hidden: d.
        batch: questions per update; None for the published choice.
    """

    variant: Variant
    n_keys: int
    replace: bool
    hidden: int = 64
    batch: int | None = None

    @property
    def length(self) -> int:
        """Length of a training sequence."""
        return 2 * self.n_keys if self.replace else self.n_keys

    @property
    def name(self) -> str:
        """The published name of its log, without `.csv`."""
        variant = str(self.variant)
        return f"d{self.hidden}_{variant}_AssocSeq{self.length}N{self.n_keys}R{int(self.replace)}"

    def command(self, seed: int, as_published: bool, eval_log: Path) -> list[str]:
        """Return fairseq-train's arguments."""
        slow = self.variant.attention == "tanh"  # published: smaller steps, larger batches
        flags = [
            *("--user-dir", str(Path(__file__).resolve().parents[2] / "fairseq_fwm")),
            *("--task", "associative_retrieval", "--n-keys", str(self.n_keys)),
            *(["--replace"] if self.replace else []),
            *("--arch", "associative_memory", "--hidden-size", str(self.hidden)),
            *self.variant.flags(),
            *("--criterion", "squared_error", "--optimizer", "adam"),
            *("--lr", "0.0001" if slow else "0.001", "--lr-scheduler", "until_solved"),
            *("--stop-min-lr", "0", "--batch-size", str(self.batch or (128 if slow else 32))),
            *("--max-update", "100000", "--seed", str(seed), "--eval-log", str(eval_log)),
            *("--no-save", "--num-workers", "0"),
        ]
        if as_published:
            flags.append("--as-published")
            if self.variant.attention == "favor":
                flags += ["--fwm-favor-variant", "retrieval"]
        return flags


def parse_name(name: str) -> Cell:
    """Return the cell of a log's published name.

    Raises:
        CellError: it is no such name.
    """
    found = NAME.fullmatch(name)
    if not found:
        raise CellError(
            f"{name!r} is not the name of a log, such as d64_linear_sum_AssocSeq20N20R0"
        )
    variant = Variant(found["attention"], int(found["arg"] or 0), found["rule"])
    return Cell(variant, int(found["n_keys"]), found["replace"] == "1", int(found["hidden"]))


SETTING1 = (
    Variant("softmax", rule="cat"),
    Variant("linear"),
    *(Variant("dpfp", nu) for nu in (1, 2, 3)),
    *(Variant("favor", m) for m in (64, 128, 512)),
)
SETTING2 = (
    Variant("dpfp", 1),
    Variant("dpfp", 1, "ours"),
    Variant("dpfp", 2, "ours"),
    Variant("linear", 0, "ours"),
    Variant("dpfp", 1, "fwm"),
    Variant("tanh", 0, "fwm"),
    *(Variant("favor", m, "ours") for m in (64, 128)),
)


def grid(variants: Sequence[Variant], sizes: Sequence[int], replace: bool) -> Iterator[Cell]:
    """Yield cells, small ones first."""
    for n_keys, variant in itertools.product(sizes, variants):
        yield Cell(variant, n_keys, replace)


PRESETS = {
    "setting1": tuple(grid(SETTING1, range(20, 601, 20), False)),
    "setting2": tuple(grid(SETTING2, range(20, 201, 20), True)),
}
QUICK = {
    "setting1": tuple(grid(SETTING1[:5], (20, 60, 100, 140), False)),
    "setting2": tuple(grid(SETTING2[:4], (20, 40, 60), True)),
}

Curve = list[tuple[int, float]]  # step, evaluation loss


def read_curve(path: Path) -> Curve:
    """Read a log; a last line that is being written is left out."""
    with path.open(newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) == len(HEADER)]
    return [(int(step), float(loss)) for step, loss in rows[1:]]


def read_logs(folder: Path) -> dict[Cell, Curve]:
    """Read the finished logs of a folder.

    Raises:
        CellError: there is none.
    """
    found = {}
    for path in sorted(folder.glob("*.csv")):
        if NAME.fullmatch(path.stem) and (curve := read_curve(path)):
            found[parse_name(path.stem)] = curve
    if not found:
        raise CellError(f"no logs in {folder}: run scripts/retrieval.py --log_dir {folder} first")
    return found


def read_published(path: Path) -> dict[Cell, Curve]:
    """Read the published losses: one table of all runs, a line per evaluation."""
    curves: dict[Cell, Curve] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            name = (
                f"d{row['hidden']}_{row['attention']}_{row['update_rule']}"
                f"_AssocSeq{row['train_len']}N{row['n_keys']}R{row['replace']}"
            )
            curves.setdefault(parse_name(name), []).append(
                (int(row["step"]), float(row["eval_loss"]))
            )
    return curves


def with_batch(cells: Sequence[Cell], batch: int | None) -> list[Cell]:
    """Return the cells with another batch size."""
    return [replace(cell, batch=batch) for cell in cells]
