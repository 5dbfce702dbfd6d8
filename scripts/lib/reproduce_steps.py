"""What scripts/reproduce.py runs for a row of a published table, and what it leaves."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.data_files import read_json
from lib.published_tables import LANGUAGE, TRANSLATION, Row, Table
from lib.run_record import training_speed

SPLITS = ("valid", "test")
TINY_FACTOR = 4  # Transformer-XL's memories and segments are divided by it

# Widths of heads as published, so that features are as many; all else as small as it goes.
TINY_TRANSLATION = shlex.split(
    "--arch fwm_transformer_tiny --encoder-attention-heads 2 --decoder-attention-heads 2 "
    "--max-tokens 1024 --update-freq 1 --max-update 200 --max-epoch 0 --warmup-updates 100 "
    "--lr 0.003 --num-workers 0 --log-interval 25 --eval-bleu-args"
) + ['{"beam": 1, "max_len_a": 1.2, "max_len_b": 10}']
TINY_LANGUAGE = {
    "small": {"width": 64, "segment": 64},
    "medium": {"width": 128, "segment": 96},
}


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: what it does, for people.
        command: with paths from the project's root.
        done: returns whether it need not be run.
        made: a file that it leaves.
    """

    name: str
    command: tuple[str, ...]
    done: Callable[[], bool]
    made: Path


def best_of(folder: Path) -> Path:
    """Return the checkpoint of a run that is scored."""
    return folder / "checkpoint_best.pt"


@dataclass(frozen=True)
class Plan:
    """How the rows of one corpus are run.

    Attributes:
        tiny: the rehearsal instead of the published size.
        data: prepared data; from `source` if it is not there.
        source: a directory of the corpus's files; None: they are downloaded.
        runs: where runs are kept.
        seed: of all of them; None: what the training script has.
        devices: how the training script is told where to run.
    """

    tiny: bool
    data: Path
    source: Path | None
    runs: Path
    seed: int | None
    devices: tuple[str, ...]

    script = ""  # of the training
    prepare_scripts = ("", "")  # full, tiny
    scores = "BLEU"

    def prepare(self) -> Step:
        """Return the step that makes the data."""
        name = self.prepare_scripts[self.tiny]
        command = ["bash", f"scripts/{name}", "--out", str(self.data)]
        command += ["--from", str(self.source)] if self.source else []
        made = self.data / "data.json"
        return Step("preparing the data", tuple(command), made.is_file, made)

    def folder(self, row: Row) -> Path:
        """Return the directory of a row's run."""
        return self.runs / (row.run if self.seed is None else f"{row.run}-seed{self.seed}")

    def train(self, row: Row) -> Step:
        """Return the step that trains a row's model, or goes on with it."""
        folder = self.folder(row)
        command = ["bash", f"scripts/{self.script}", row.run, "--data", str(self.data)]
        command += ["--runs", str(self.runs), "--name", folder.name, *self.devices]
        command += [] if self.seed is None else ["--seed", str(self.seed)]
        command += self.tiny_flags(row) if self.tiny else []
        made = folder / "run.json"
        return Step(
            f"training {row.run}",
            tuple(command),
            lambda: bool(read_json(made).get("finished")),
            made,
        )

    def diverged(self, row: Row) -> int | None:
        """Return after which update training diverged; None if it did not."""
        return read_json(self.folder(row) / "run.json").get("diverged")

    def score(self, table: Table, row: Row, split: str) -> Step:
        """Return the step that scores a row's model on a split."""
        command, made = self.scoring(table, row, split)
        best = best_of(self.folder(row))

        def done() -> bool:
            if not best.is_file():  # diverged before the first one, or deleted since
                return made.is_file() or self.diverged(row) is not None
            return made.is_file() and made.stat().st_mtime_ns >= best.stat().st_mtime_ns

        return Step(f"scoring {row.run} on {split}", tuple(command), done, made)

    def tiny_flags(self, row: Row) -> Sequence[str]:
        """Return what a rehearsal trains otherwise."""
        raise NotImplementedError

    def scoring(self, table: Table, row: Row, split: str) -> tuple[list[str], Path]:
        """Return the command that scores, and the file it leaves."""
        raise NotImplementedError

    def read(self, made: Path) -> dict[str, Any]:
        """Return from such a file the `value` for the table and `more` columns."""
        raise NotImplementedError

    def parameters(self, row: Row) -> str:
        """Return how many a model has, as its training says."""
        log = self.folder(row) / "train.log"
        text = log.read_text("utf-8", errors="replace") if log.is_file() else ""
        found = training_speed(text)["parameters"]
        return f"{found:,}" if found else ""


class Translation(Plan):
    """WMT14 by train_wmt14.sh and score.sh; rehearsed on Multi30k."""

    script = "train_wmt14.sh"
    prepare_scripts = ("prepare_wmt14_ende.sh", "prepare_multi30k.sh")

    def tiny_flags(self, row: Row) -> Sequence[str]:
        """Return what a rehearsal trains otherwise."""
        return TINY_TRANSLATION

    def scoring(self, table: Table, row: Row, split: str) -> tuple[list[str], Path]:
        """Return the command that scores, and the file it leaves."""
        folder = self.folder(row)
        out = folder / f"reproduce-{split}"
        command = ["bash", "scripts/score.sh", f"{row.run}={folder}", "--data", str(self.data)]
        command += ["--subset", split, "--beam", "4", "--lenpen", "0.6", "--out", str(out)]
        flags = ["--cpu"] if "--cpu" in self.devices else []
        flags += ["--max-len-a", "1.2", "--max-len-b", "10"] if self.tiny else []
        return [*command, *(["--", *flags] if flags else [])], out / "score.json"

    def read(self, made: Path) -> dict[str, Any]:
        """Return sacreBLEU, and compound-split BLEU beside it."""
        system = read_json(made)["systems"][0]
        return {
            "value": system["sacrebleu"],
            "more": {"compound-split BLEU": f"{system['compound_split_bleu']:.2f}"},
        }


class Language(Plan):
    """WikiText-103 by train_wikitext103.sh and eval_lm.py; rehearsed on Python's own library."""

    script = "train_wikitext103.sh"
    prepare_scripts = ("prepare_wikitext103.sh", "prepare_stdlib.sh")
    scores = "perplexity"

    def tiny_flags(self, row: Row) -> Sequence[str]:
        """Return what a rehearsal trains otherwise."""
        size = TINY_LANGUAGE[row.run.partition("_")[0]]
        settings = {
            **{
                f"model.decoder_{side}_dim": size["width"] for side in ("embed", "input", "output")
            },
            "model.decoder_layers": 4,
            "model.decoder_attention_heads": 4,
            "model.decoder_ffn_embed_dim": 256,
            "model.adaptive_softmax_cutoff": "'500,1000,2000'",
            "task.tokens_per_sample": size["segment"],
            "dataset.batch_size": 16,
            "dataset.max_valid_steps": 50,
            "optimization.lr": "[0.002]",
            "optimization.max_update": 300,
            "lr_scheduler.warmup_updates": 30,
            "lr_scheduler.lr_period_updates": 300,
            "common.log_interval": 25,
        }
        if row.memory is not None:
            settings["model.mem_len"] = size["segment"]
        return [f"{name}={value}" for name, value in settings.items()]

    def scoring(self, table: Table, row: Row, split: str) -> tuple[list[str], Path]:
        """Return the command that scores, and the file it leaves."""
        folder, factor = self.folder(row), TINY_FACTOR if self.tiny else 1
        made = folder / f"reproduce-{table.method}-{split}.json"
        command = ["python", "scripts/eval_lm.py", str(best_of(folder))]
        command += [str(self.data), "--split", split, "--method", table.method]
        if row.memory is not None and row.segment is not None:
            memory, segment = row.memory // factor, max(1, row.segment // factor)
            made = made.with_name(f"reproduce-memory{memory}-{split}.json")
            command += ["--length", str(segment), "--overrides", f"{{'eval_mem_len': {memory}}}"]
        command += ["--limit", "2000"] if self.tiny else []
        command += [] if "--cpu" in self.devices else ["--device", "cuda"]
        return [*command, "--json", str(made)], made

    def read(self, made: Path) -> dict[str, Any]:
        """Return the perplexity, and how many numbers all layers keep."""
        found = read_json(made)
        kept = found["state_per_layer"] * found["layers"]
        return {"value": found["perplexity"], "more": {"numbers kept": f"{kept:,}"}}


PLANS: dict[str, type[Plan]] = {TRANSLATION: Translation, LANGUAGE: Language}
