#!/usr/bin/env python3
"""Train the associative-retrieval experiments of arXiv 2102.11174, Sec. 6.1.

A cell is one small model that reads S pairs of keys and values and is asked for values by key:

  setting 1   S distinct pairs (no --replace): how many the memory holds
  setting 2   2 S pairs drawn with replacement (--replace): whether it can change its mind

The command line is the published one: one attention, one update rule, a range of S. Or take a
whole grid with --preset. Each cell trains until its evaluation loss is 0.001 at most (solved), or
has not improved in 11 evaluations, and leaves a log with the published name and columns, such as
d64_dpfp1_sum_AssocSeq80N40R1.csv with lines of step,eval-loss. Cells whose log is there are
skipped, so run it again to go on.

  python scripts/retrieval.py --begin 20 --end 600 --step 20 --attn_name dpfp --attn_arg 2 \\
      --update_rule sum
  python scripts/retrieval.py --preset setting2 --jobs 2 --as-published
  python scripts/retrieval.py --quick --jobs 2
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = map(str, (Path(__file__).resolve().parent, Path(__file__).resolve().parents[1]))
from lib.data_files import write_json  # noqa: E402
from lib.fairseq_jobs import fairseq_train, in_processes, quietly  # noqa: E402
from lib.retrieval_cells import (  # noqa: E402
    ATTENTIONS,
    PRESETS,
    QUICK,
    RULES,
    Cell,
    CellError,
    Variant,
    read_curve,
    with_batch,
)

ROOT = Path(__file__).resolve().parents[1]


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    one = parser.add_argument_group("one variant, as published")
    one.add_argument("--begin", type=int, default=20, help="first S (default %(default)s)")
    one.add_argument("--end", type=int, default=200, help="last S (default %(default)s)")
    one.add_argument("--step", type=int, default=20, help="between them (default %(default)s)")
    one.add_argument("--attn_name", choices=ATTENTIONS, help="attention")
    one.add_argument("--attn_arg", type=int, default=0, help="nu of dpfp, m of favor")
    one.add_argument("--update_rule", choices=[*RULES, "delta"], default="sum",
        help="sum, fwm, or delta, whose published name is ours (default %(default)s)")  # fmt: skip
    one.add_argument("--replace", action="store_true", help="setting 2")
    one.add_argument("--hidden_size", type=int, default=64, help="d (default %(default)s)")
    one.add_argument("--batch_size", type=int,
        help="questions per update (default 32; with tanh 128, as published)")  # fmt: skip
    many = parser.add_argument_group("a grid")
    many.add_argument("--preset", choices=PRESETS, help="every published cell of a setting")
    many.add_argument("--quick", action="store_true",
        help="a few cells only, of the preset or of both: 10 minutes on two cores")  # fmt: skip
    add = parser.add_argument
    add(
        "--as-published",
        action="store_true",
        help="evaluate as the published code did, defects included (docs/retrieval.md)",
    )
    add(
        "--seed",
        type=int,
        default=1,
        help="of all that is random (default %(default)s); others get a folder of their own",
    )
    add("--log_dir", type=Path, metavar="DIR",
        help="where logs go (default runs/retrieval, with --as-published "
        "runs/retrieval-as-published)")  # fmt: skip
    add("--jobs", type=int, default=1, help="cells at a time (default %(default)s)")
    add("--dry-run", action="store_true", help="print fairseq-train's command lines")
    return parser


def cells_of(args: argparse.Namespace) -> list[Cell]:
    """Return what is asked for.

    Raises:
        CellError: it makes no sense.
    """
    if args.preset or args.quick:
        if args.attn_name:
            raise CellError("--preset and --quick are grids of their own: leave --attn_name out")
        grids = QUICK if args.quick else PRESETS
        chosen = [args.preset] if args.preset else list(grids)
        return with_batch([cell for name in chosen for cell in grids[name]], args.batch_size)
    if not args.attn_name:
        raise CellError("say --attn_name, or --preset for a grid")
    rule = {"delta": "ours"}.get(args.update_rule, args.update_rule)
    if args.attn_name == "softmax" and rule == "sum":
        rule = "cat"
    variant = Variant(args.attn_name, args.attn_arg, rule)
    variant.check(args.hidden_size)
    sizes = range(args.begin, args.end + 1, args.step) if args.step > 0 else ()
    if not sizes or args.begin < 1:
        raise CellError(
            f"no S between --begin {args.begin} and --end {args.end} by --step {args.step}"
        )
    return [Cell(variant, n, args.replace, args.hidden_size, args.batch_size) for n in sizes]


def train(work: tuple[Cell, list[str], Path]) -> tuple[Cell, float, str | None]:
    """Train a cell in this process.

    Returns:
        The cell, how many seconds it took, and its output if it failed.
    """
    cell, command, output = work
    began = time.perf_counter()
    _, problem = quietly(lambda: fairseq_train(command), output)
    return cell, time.perf_counter() - began, problem


def run(cells: Sequence[Cell], folder: Path, args: argparse.Namespace) -> int:
    """Train the cells that are not there; return how many failed."""
    from tqdm import tqdm

    waiting = [cell for cell in cells if not (folder / f"{cell.name}.csv").exists()]
    if len(waiting) < len(cells):
        print(f"{len(cells) - len(waiting)} of {len(cells)} cells are there already")
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = {cell: folder / f"{cell.name}.csv.part" for cell in waiting}
    works = []
    for cell, part in unfinished.items():
        part.unlink(missing_ok=True)
        command = cell.command(args.seed, args.as_published, part)
        works.append((cell, command, folder / f"{cell.name}.output"))
    commands = {cell: command for cell, command, _ in works}
    failed = 0
    with tqdm(total=len(works), unit="cell") as bar:
        results = in_processes(
            train, works, args.jobs, lambda: bar.set_postfix_str(progress(unfinished))
        )
        for cell, seconds, problem in results:
            part = unfinished.pop(cell)
            if problem is None:
                keep(cell, part, seconds, commands[cell], args.seed)
                step, loss = read_curve(folder / f"{cell.name}.csv")[-1]
                bar.write(f"{cell.name}: loss {loss:.3g} after {step} steps, {seconds:.0f} s")
            else:
                failed += 1
                bar.write(f"{cell.name} failed:\n{problem}", file=sys.stderr)
            bar.update()
    return failed


def progress(unfinished: dict[Cell, Path]) -> str:
    """Say how far the running cells are."""
    running = []
    for cell, part in unfinished.items():
        if part.exists() and (curve := read_curve(part)):
            step, loss = curve[-1]
            running.append(f"{cell.variant} S={cell.n_keys}: step {step}, loss {loss:.2g}")
    return " | ".join(running)


def keep(cell: Cell, part: Path, seconds: float, command: list[str], seed: int) -> None:
    """Give a finished log its name, and say beside it how it was made."""
    path = part.with_suffix("")
    command = [("FILE.csv" if word == str(part) else word) for word in command]
    about = {
        "command": shlex.join(["fairseq-train", *command]).replace(f"{ROOT}/", ""),
        "seed": seed,
        "seconds": round(seconds, 1),
        "date": time.strftime("%Y-%m-%d"),
    }
    write_json(path.with_suffix(".json"), about)
    part.rename(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    try:
        cells = cells_of(args)
    except CellError as error:
        parser.error(str(error))
    default = "retrieval-as-published" if args.as_published else "retrieval"
    folder = args.log_dir or ROOT / "runs" / default
    if args.seed != 1:
        folder = folder / f"seed{args.seed}"
    if args.dry_run:
        for cell in cells:
            log = folder / f"{cell.name}.csv"
            command = cell.command(args.seed, args.as_published, log)
            print(shlex.join(["fairseq-train", *command]))
        return 0
    try:
        failed = run(cells, folder, args)
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to go on", file=sys.stderr)
        return 130
    print(f"logs: {folder}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
