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
from pathlib import Path
from typing import Any

sys.path[:0] = map(str, (Path(__file__).resolve().parent, Path(__file__).resolve().parents[1]))
from fairseq_jobs import in_processes, quietly  # noqa: E402
from formal_runs import (  # noqa: E402
    LANGUAGES,
    MODELS,
    PUBLISHED_IDS,
    TRIALS,
    Run,
    Size,
    best,
    cell_runs,
    solved,
)

Cell = tuple[Path, Path, str, str, int, int]


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, plain = parser.add_argument, Size()
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
    add("--num_layer", type=int, default=plain.layers, help="default %(default)s")
    add("--hidden_size", type=int, default=plain.hidden, help="default %(default)s")
    add("--n_head", type=int, default=plain.heads, help="default %(default)s")
    add("--ff_factor", type=int, default=plain.ff_factor, help="default %(default)s")
    add("--dropout", type=float, default=plain.dropout, help="default %(default)s")
    add("--learning_rate", type=float, default=plain.lr, help="default %(default)s")
    add("--batch_size", type=int, help="default 64; 16 where strings are few")
    add("--updates", type=int, default=plain.updates, help="at most (default %(default)s)")
    add(
        "--report_every",
        type=int,
        help="updates between evaluations (default 100; 20 where strings are few)",
    )
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
    size = Size(
        args.num_layer, args.hidden_size, args.n_head, args.ff_factor, args.learning_rate,
        args.dropout, args.batch_size, args.updates, args.report_every,
    )  # fmt: skip
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
