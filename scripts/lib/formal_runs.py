"""The runs of the formal-language study: models, sizes, where results are, one training."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lib.data_files import read_json, write_json
from lib.fairseq_jobs import fairseq_train

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = (
    "parity", "aa-star", "abab-star", "counter-2", "counter-3", "shuffle-2", "dyck-1",
    "reset_dyck",
)  # fmt: skip
PUBLISHED_IDS = {
    "0": "lstm", "1": "transformer", "2": "deltanet", "7": "recurrent_delta",
    "8": "linear_transformer", "10": "elstm", "12": "srwm",
}  # fmt: skip
NEGATIVE = "deltanet_negative"  # beta in (0, 2), keys of length one
MODELS = (
    "lstm", "elstm", "transformer", "linear_transformer", "deltanet", "recurrent_delta", "srwm",
    NEGATIVE,
)  # fmt: skip
FEW_STRINGS = ("aa-star", "abab-star", "counter-2", "counter-3")
SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Size:
    """Size of a model and how it is trained; what is None depends on the language."""

    layers: int = 1
    hidden: int = 32
    heads: int = 4
    ff_factor: int = 4
    lr: float = 0.003
    dropout: float = 0.0
    batch: int | None = None
    updates: int = 3000
    eval_every: int | None = None
    anneal: bool = False

    def of(self, task: str) -> "Size":
        """Fill in what depends on the language: few strings are few in a batch, soon evaluated."""
        few = task in FEW_STRINGS
        values = asdict(self)
        values["batch"] = self.batch or (16 if few else 64)
        values["eval_every"] = self.eval_every or (20 if few else 100)
        return Size(**values)

    @property
    def name(self) -> str:
        """What tells directories apart."""
        name = f"L{self.layers}D{self.hidden}H{self.heads}lr{self.lr:g}"
        plain = Size()
        if self.ff_factor != plain.ff_factor:
            name += f"f{self.ff_factor}"
        if self.dropout:
            name += f"p{self.dropout:g}"
        if self.batch != plain.batch:
            name += f"b{self.batch}"
        name += "a" if self.anneal else ""
        return name + (f"u{self.updates}" if self.updates != plain.updates else "")


# Tried one after the other, with every seed, until a model has every string of both bins right.
TRIALS = (Size(), Size(layers=2, heads=8), Size(layers=2, hidden=64, heads=8, lr=0.001))
# What solved a cell that the first of them does not solve. To count far takes wide heads: the
# fewer keys share a head's matrix, the less each write forgets of the others.
KNOWN = {
    ("deltanet", "dyck-1"): Size(hidden=64, heads=2, updates=6000),
    ("recurrent_delta", "counter-2"): Size(lr=0.001),
    ("srwm", "counter-2"): Size(hidden=64, heads=1, lr=0.002, updates=800, eval_every=2),
}


def default_size(model: str, task: str) -> Size:
    """Return the size that suits a model and a language."""
    return KNOWN.get((model, task), TRIALS[0])


@dataclass(frozen=True)
class Run:
    """One training."""

    data: Path
    out: Path
    task: str
    model: str
    size: Size
    seed: int
    as_published: bool = True

    @property
    def folder(self) -> Path:
        """Where its checkpoint and result are."""
        chosen = "" if self.as_published else "-bin0"
        return self.out / self.task / f"{self.model}-{self.size.name}-seed{self.seed}{chosen}"

    def command(self) -> list[str]:
        """Return fairseq-train's arguments."""
        size = self.size.of(self.task)
        negative = self.model == NEGATIVE
        return [
            str(self.data), "--user-dir", str(ROOT / "fairseq_fwm"), "--task", "formal_language",
            *(["--as-published"] if self.as_published else []),
            *("--arch", "sequence_tagger", "--mixer", "deltanet" if negative else self.model),
            *(["--negative-eigenvalues"] if negative else []),
            *("--layers", str(size.layers), "--hidden-size", str(size.hidden)),
            *("--heads", str(size.heads), "--ff-factor", str(size.ff_factor)),
            *("--dropout", str(size.dropout), "--criterion", "tagging", "--optimizer", "adam"),
            *("--adam-betas", "(0.9, 0.995)", "--adam-eps", "1e-9", "--lr", str(size.lr)),
            *("--lr-scheduler", "until_solved", "--solved-loss", "0", "--stop-min-lr", "0"),
            *(["--anneal"] if size.anneal else []),
            *("--unsolved-patience", "1000000", "--best-checkpoint-metric", "wrong"),
            *("--batch-size", str(size.batch), "--max-update", str(size.updates)),
            *("--eval-every", str(size.eval_every), "--seed", str(self.seed)),
            *("--save-dir", str(self.folder), "--no-epoch-checkpoints", "--no-last-checkpoints"),
            *("--num-workers", "0", "--log-format", "simple"),
        ]  # fmt: skip

    def result(self) -> dict[str, Any]:
        """Return what came out; nothing if it has not been run to the end."""
        return read_json(self.folder / "result.json")

    def train(self, *more: str) -> dict[str, Any]:
        """Train, evaluate the best checkpoint on all bins, and keep the result.

        Args:
            more: further flags for fairseq-train.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        best = self.folder / "checkpoint_best.pt"
        best.unlink(missing_ok=True)
        began = time.perf_counter()
        fairseq_train([*self.command(), *more])
        seconds = time.perf_counter() - began
        found = {
            "task": self.task,
            "model": self.model,
            "seed": self.seed,
            "size": asdict(self.size.of(self.task)),
            "as_published": self.as_published,
            **evaluate(best, self.data),
            "seconds": round(seconds, 1),
            "date": time.strftime("%Y-%m-%d"),
            "command": " ".join(["fairseq-train", *self.command()]).replace(f"{ROOT}/", ""),
        }
        write_json(self.folder / "result.json", found)
        return found


def evaluate(checkpoint: Path, data: Path) -> dict[str, Any]:
    """Return the percentage of right strings in every bin there is, and the number of updates."""
    import torch
    from fairseq import checkpoint_utils

    models, _, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(checkpoint)], arg_overrides={"data": str(data)}
    )
    model, found = models[0].eval(), {}
    for number, name in enumerate(("valid", "test", "bin2")):
        if not (data / f"{name}_{task.cfg.level}.src").exists():
            continue
        task.load_dataset(f"bin{number}")
        dataset, right = task.datasets[f"bin{number}"], 0
        batches = task.get_batch_iterator(dataset, max_sentences=64).next_epoch_itr(shuffle=False)
        with torch.no_grad():
            for sample in batches:
                same = model(**sample["net_input"]).argmax(-1) == sample["target"]
                right += int((same | (sample["target"] == task.pads[1])).all(1).sum())
        found[f"bin{number}"] = 100 * right / len(dataset.pairs)
    state = torch.load(checkpoint, weights_only=True)
    return {**found, "updates": state["optimizer_history"][-1]["num_updates"]}


def solved(result: dict[str, Any]) -> bool:
    """Return whether every string of Bin0 and Bin1 is right."""
    return result.get("bin0") == result.get("bin1") == 100


def best(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the run with the best Bin1, then Bin0, then Bin2."""
    return max(results, key=lambda r: (r["bin1"], r["bin0"], r.get("bin2", 0)))


def cell_runs(
    data: Path, out: Path, task: str, model: str, trials: int, updates: int | None
) -> Iterator[Run]:
    """Yield the runs of a cell in the order in which they are tried.

    Args:
        data: directory of all languages.
        out: where runs are kept.
        task: the language.
        model: the model.
        trials: how many sizes to try.
        updates: of every run; None: the size's own.
    """
    sizes = dict.fromkeys((default_size(model, task), *TRIALS))
    for size in list(sizes)[:trials]:
        for seed in SEEDS:
            chosen = replace(size, updates=updates or size.updates)
            yield Run(data / task, out, task, model, chosen, seed)
