#!/usr/bin/env python3
"""Evaluate a trained language model and write its `result.json` (called by train_lm.sh).

The checkpoint with the best validation loss is scored on the test split by eval_lm.py: by segments
and, its first tokens, by sliding window, too; or by streaming where the model was trained with a
carried state. What is there already is kept.
"""

import argparse
import re
import shlex
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import eval_lm  # noqa: E402
from lib.data_files import read_json, write_json  # noqa: E402
from lib.run_record import (  # noqa: E402
    RunError,
    best_of,
    checkpoint_info,
    environment,
    threads,
    training_speed,
    validations,
)


def ways(carries: bool, limit: int) -> list[tuple[str, int | None]]:
    """Return how a model is evaluated: methods of eval_lm.py, on how many first tokens.

    Args:
        carries: whether it was trained with a carried state.
        limit: how many first tokens are enough for the sliding window; 0 leaves them out.
    """
    whole = "streaming" if carries else "segments"
    first = [(whole, limit)] + ([] if carries else [("sliding", limit)])
    return [(whole, None), *(first if limit else [])]


def evaluate(run: Path, data: Path, best: Path, method: str, limit: int | None) -> dict[str, Any]:
    """Return how the test split was scored in one way; do it unless it is done.

    Raises:
        RunError: the checkpoint cannot be evaluated.
    """
    path = run / f"eval-{method}{'' if limit is None else f'-{limit}'}.json"
    if path.is_file() and path.stat().st_mtime_ns > best.stat().st_mtime_ns:
        return read_json(path)
    import torch

    command = [str(best), str(data), "--method", method, "--json", str(path)]
    command += ["--threads", str(threads())]
    command += [] if limit is None else ["--limit", str(limit)]
    command += ["--device", "cuda"] if torch.cuda.is_available() else []
    if eval_lm.main(command) != 0:
        raise RunError(f"{best} was not evaluated (see above)")
    return read_json(path)


def tokens_per_second(log: str) -> float | None:
    """Return the speed of training without validation and saving.

    fairseq's own wps counts these as soon as they fall into the updates of one line of the log;
    here all updates have equally many tokens.
    """
    seconds = training_speed(log)["train_seconds"]
    lines = re.findall(r"\| train_inner \|.* wpb=([\d.]+), .*num_updates=(\d+)", log)
    updates = max((int(update) for _, update in lines), default=0)
    return round(float(lines[-1][0]) * updates / seconds, 1) if seconds else None


def describe(run: Path, data: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Say what a run is and how its training went."""
    last, log = run / "checkpoint_last.pt", (run / "train.log").read_text("utf-8")
    facts = read_json(data / "data.json")
    valid = validations(log)
    return {
        **record,
        **(checkpoint_info(last) if last.exists() else {}),
        **training_speed(log),
        "tokens_per_second": tokens_per_second(log),
        "corpus": facts.get("corpus", data.resolve().name),
        "unit": facts.get("unit"),
        "data_settings": facts.get("settings", {}),
        "data_sha256": facts.get("sha256", {}),
        "best_valid": best_of(valid),
        "validations": valid,
    }


def finish(run: Path, data: Path, limit: int) -> None:
    """Evaluate a run and write its `result.json`, unless it is there.

    Raises:
        RunError: it was not started by train_lm.sh, or cannot be evaluated.
    """
    record, best = read_json(run / "run.json"), run / "checkpoint_best.pt"
    if not record:
        raise RunError(f"{run} has no run.json: train with scripts/train_lm.sh")
    if not best.exists() and "diverged" not in record:
        raise RunError(f"{run} holds no checkpoint_best.pt: train first")
    carries = "--no-carry-over" not in shlex.split(record["command"])
    evaluations = [
        evaluate(run, data, best, *way) for way in ways(carries, limit) if best.exists()
    ]
    if read_json(run / "result.json").get("evaluations") == evaluations:
        print(f"evaluation: already in {run / 'result.json'}")
        return
    result = {**describe(run, data, record), "evaluations": evaluations, **environment()}
    write_json(run / "result.json", result)
    print(f"result: {run / 'result.json'}")


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("run", type=Path, help="directory of the run")
    add("--data", type=Path, required=True, help="what it was trained on")
    add("--sliding-limit", type=int, default=20000, metavar="N",
        help="score the first N tokens by sliding window; 0: none (default: 20000)")  # fmt: skip
    args = parser.parse_args(argv)
    try:
        finish(args.run, args.data, args.sliding_limit)
    except RunError as error:
        print(f"lm_run.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
