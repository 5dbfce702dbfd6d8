#!/usr/bin/env python3
"""Train the formal-language experiments of arXiv 2310.16076: seven models, eight languages.

  python scripts/formal.py --data_dir data/formal/parity --task parity --model_type srwm \\
      --out runs/formal
  python scripts/formal.py --data_dir data/formal --out runs/formal --grid --jobs 2

The first trains one model on one language, with good defaults, until every string of Bin0 (as
long as in training) and Bin1 (longer) is right, and ends in a line `bin0 100.00 bin1 100.00`. The
second does so for every model and language, a few sizes and three seeds until one solves it;
finished runs are kept, so run it again to go on. scripts/make_formal_language.py makes the data,
and with them Bin2, even longer strings, on which no checkpoint is chosen. The other flags are
those of the published code; a model is named, or has its published number (0, 1, 2, 7, 8, 10, 12).
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[:0] = map(str, (Path(__file__).resolve().parent, Path(__file__).resolve().parents[1]))
from lib.fairseq_jobs import in_processes, quietly  # noqa: E402
from lib.formal_runs import (  # noqa: E402
    FEW_STRINGS,
    LANGUAGES,
    MODELS,
    PUBLISHED_IDS,
    TRIALS,
    Run,
    Size,
    best,
    cell_runs,
    default_size,
    solved,
)

Cell = tuple[Path, Path, str, str, int, int | None]
# The published flags, the field of Size that each sets, and what it is.
SIZE_FLAGS = {
    "--num_layer": ("layers", "layers"),
    "--hidden_size": ("hidden", "width"),
    "--n_head": ("heads", "heads of a layer"),
    "--ff_factor": ("ff_factor", "inner width of the feed-forward layers, in widths"),
    "--dropout": ("dropout", "dropout"),
    "--learning_rate": ("lr", "learning rate"),
    "--batch_size": ("batch", "strings of an update"),
    "--updates": ("updates", "at most so many updates"),
    "--report_every": ("eval_every", "updates between evaluations"),
}


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--data_dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of {train,valid,test}_50.{src,tgt}; with --grid, of a folder per language",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="where runs are kept")
    add("--task", choices=LANGUAGES, help="which language it is")
    add("--model_type", metavar="MODEL", help=f"{', '.join(MODELS)}, or a published number")
    add("--seed", type=int, default=1, help="of weights and order (default %(default)s)")
    size = parser.add_argument_group(
        "size and training; defaults suit the model and the language "
        "(KNOWN in scripts/lib/formal_runs.py)"
    )
    size.add_argument(
        "--anneal",
        action=argparse.BooleanOptionalAction,
        help="let the learning rate fall to 1/100 by half a cosine, instead of the published, "
        "constant one; counts are then kept for longer",
    )
    plain, few = Size().of("parity"), Size().of(FEW_STRINGS[0])
    for flag, (name, text) in SIZE_FLAGS.items():
        value, of_few = getattr(plain, name), getattr(few, name)
        usual = f"{value}" if value == of_few else f"{value}; {of_few} where strings are few"
        size.add_argument(flag, type=type(value), dest=name, help=f"{text} (usually {usual})")
    add("--grad_cummulate", type=int, default=1, help="batches per update (default %(default)s)")
    add("--level", default="50", help="what follows `train_` in the file names (default 50)")
    add("--remove_pos_enc", action="store_true",
        help="accepted: no model here has positions, as in the published commands")  # fmt: skip
    add("--use_wandb", metavar="PROJECT", nargs="?", const="fairseq_fwm",
        help="log to Weights & Biases through fairseq")  # fmt: skip
    add(
        "--select_bin0",
        action="store_true",
        help="choose the checkpoint by Bin0 alone, not, as published, by Bin0 and Bin1",
    )
    grid = parser.add_argument_group("the grid")
    grid.add_argument("--grid", action="store_true", help="every model and language")
    grid.add_argument("--jobs", type=int, default=1, help="cells at a time (default %(default)s)")
    grid.add_argument("--trials", type=int, default=2, choices=range(1, len(TRIALS) + 1),
        help="sizes to try (default %(default)s)")  # fmt: skip
    grid.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="only these")
    grid.add_argument("--tasks", nargs="+", choices=LANGUAGES, default=LANGUAGES,
        help="only these languages")  # fmt: skip
    return parser


def line(result: dict[str, Any]) -> str:
    """Return a result as the last line has it."""
    return " ".join(f"{b} {result[b]:.2f}" for b in ("bin0", "bin1", "bin2") if b in result)


def one(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Train one model."""
    model = PUBLISHED_IDS.get(args.model_type, args.model_type)
    if model not in MODELS:
        parser.error(f"--model_type {args.model_type}: one of {', '.join(MODELS)}")
    if not args.task:
        parser.error("--task says which language the data are of; or --grid for all")
    names = (name for name, _ in SIZE_FLAGS.values())
    given = {
        name: value for name in (*names, "anneal") if (value := getattr(args, name)) is not None
    }
    size = replace(default_size(model, args.task), **given)
    run = Run(args.data_dir, args.out, args.task, model, size, args.seed, not args.select_bin0)
    result = run.result()
    if not result:
        more = ["--level", args.level, "--update-freq", str(args.grad_cummulate)]
        if args.use_wandb:
            more += ["--wandb-project", args.use_wandb]
        try:
            result = run.train(*more)
        except ValueError as error:  # the data's or the model's, with its cure
            print(f"formal.py: error: {error}", file=sys.stderr)
            return 1
    print(f"{run.folder}: the best checkpoint is of update {result['updates']}")
    print(line(result))
    return 0


def fill(cell: Cell) -> tuple[Cell, list[dict[str, Any]], str | None]:
    """Run a cell's runs until one solves it."""
    results: list[dict[str, Any]] = []
    for run in cell_runs(*cell):
        result = run.result()
        if not result:
            run.folder.mkdir(parents=True, exist_ok=True)
            result, problem = quietly(run.train, run.folder / "output")
            if problem is not None:
                return cell, results, problem
        results.append(result)
        if solved(result):
            break
    return cell, results, None


def grid(args: argparse.Namespace) -> int:
    """Run the grid; return the exit status."""
    from tqdm import tqdm

    cells = [
        (args.data_dir, args.out, task, model, args.trials, args.updates)
        for task in args.tasks
        for model in args.models
    ]
    failed = 0
    with tqdm(total=len(cells), unit="cell") as bar:
        for cell, results, problem in in_processes(fill, cells, args.jobs, bar.refresh):
            _, _, task, model, *_ = cell
            if problem is not None:
                failed += 1
                bar.write(f"{model} on {task} failed:\n{problem}", file=sys.stderr)
            else:
                bar.write(f"{model} on {task}: {line(best(results))} ({len(results)} runs)")
            bar.update()
    return int(bool(failed))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    args.data_dir, args.out = args.data_dir.resolve(), args.out.resolve()
    if args.grid:
        try:
            return grid(args)
        except KeyboardInterrupt:
            print("\nstopped; run the same command again to go on", file=sys.stderr)
            return 130
    return one(args, parser)


if __name__ == "__main__":
    sys.exit(main())
