#!/usr/bin/env python3
"""Reproduce a table of arXiv 2102.11174: train and score its rows, print published against ours.

  python scripts/reproduce.py --table 1 --scale tiny
  python scripts/reproduce.py --table 2 --scale full --gpus 2
  python scripts/reproduce.py --table 2 --scale full --collect

  1  WMT14 English to German, softmax and sum rules
  2  WikiText-103, softmax, sum and delta rules
  3  WikiText-103, positions and normalisation of the delta rule
  4  WikiText-103, state carried along
  5  WikiText-103, small models with more capacity
  6  key features of FAVOR+ and DPFP: counted, nothing is trained

--scale full is the published size: days on GPUs for every row. --scale tiny rehearses every step
of it with small models on small data (Multi30k; Python's own library), within half an hour on
two cores; its numbers make no claim. What is finished is kept: run it again to go on; tables
share the runs that they have in common. --collect only makes the table of what is there.
"""

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path[:0] = map(str, (Path(__file__).resolve().parent, Path(__file__).resolve().parents[1]))
from lib.data_files import write_json, write_whole  # noqa: E402
from lib.published_tables import CONVERSIONS, HEAD_DIM, LANGUAGE, TABLES, Row, Table  # noqa: E402
from lib.reproduce_steps import PLANS, SPLITS, Plan, Step  # noqa: E402
from lib.result_tables import table as markdown  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
NO_CLAIM = (
    "**These numbers make no claim.** Small models were trained for minutes on other data, to "
    "rehearse every step; they say nothing about the published ones beside them."
)


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--table", type=int, required=True, choices=(*TABLES, 6), help="which one")
    add("--scale", choices=("full", "tiny"), required=True, help="see above")
    add("--collect", action="store_true", help="run nothing")
    add("--dry-run", action="store_true", help="print the commands, run nothing")
    add(
        "--only",
        nargs="+",
        metavar="RUN",
        help="only these rows, each a VARIANT of train_wmt14.sh or a ROW of train_wikitext103.sh",
    )
    add("--data", type=Path, metavar="DIR",
        help="prepared data (default: below the runs; made if it is not there)")  # fmt: skip
    add(
        "--from",
        dest="source",
        type=Path,
        metavar="DIR",
        help="the corpus's files, for the prepare script, instead of downloading them",
    )
    add("--runs", type=Path, default=ROOT / "runs/reproduce", metavar="DIR",
        help="where runs and tables are kept (default: the project's runs/reproduce)")  # fmt: skip
    add("--gpus", type=int, default=1, help="for one training (default %(default)s)")
    add("--cpu", action="store_true", help="without a GPU; --scale tiny never takes one")
    add("--seed", type=int, help="of every training (default: the training script's)")
    add(
        "--jobs",
        type=int,
        help="rows at a time (default 1; with --scale tiny as many as there are cores)",
    )
    return parser


@dataclass
class Outcome:
    """What is known of the rows' runs.

    Attributes:
        failed: logs of the steps that failed, by run.
        running: the steps under way.
        stopped: no further step may begin.
    """

    failed: dict[str, Path] = field(default_factory=dict)
    running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    stopped: bool = False

    def stop(self) -> None:
        """End the steps under way, with all that they started, and begin no other."""
        self.stopped = True
        for process in list(self.running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)


def run_step(step: Step, log: Path, threads: int | None, outcome: Outcome) -> bool:
    """Run a step with its output in a log; return whether it went well."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if threads:
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    program = sys.executable if step.command[0] == "python" else step.command[0]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        print(f"$ {shlex.join(step.command)}", file=file, flush=True)
        process = subprocess.Popen(
            [program, *step.command[1:]], stdout=file, stderr=subprocess.STDOUT, cwd=ROOT,
            env=environment, start_new_session=True,
        )  # fmt: skip
        outcome.running.add(process)
        try:
            return process.wait() == 0
        finally:
            outcome.running.discard(process)


def steps_of(plan: Plan, table: Table, rows: Iterable[Row]) -> list[Step]:
    """Return the steps of rows that share a run."""
    rows = list(rows)
    scores = [plan.score(table, row, split) for row in rows for split in SPLITS]
    return [plan.train(rows[0]), *scores]


def run_rows(steps: list[Step], outcome: Outcome, bar: Any, threads: int | None) -> None:
    """Train and score what shares a run; a failure ends its steps."""
    for number, step in enumerate(steps):
        if outcome.stopped:
            return
        if step.done():
            bar.update()
            continue
        log = steps[0].made.with_name("reproduce.log")
        bar.write(f"reproduce.py: {step.name}; log: {log}", file=sys.stderr)
        if not run_step(step, log, threads, outcome) and not outcome.stopped:
            bar.write(f"reproduce.py: {step.name} failed: see the end of {log}", file=sys.stderr)
            outcome.failed[steps[0].made.parent.name] = log
            bar.update(len(steps) - number)
            return
        bar.update()


def refused(plan: Plan, rows: Iterable[Row]) -> str:
    """Return why a row's training would not begin, as its script says; empty if all would."""
    for command in dict.fromkeys(plan.train(row).command for row in rows):
        done = subprocess.run([*command, "--print"], capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            return done.stderr.strip()
    return ""


def run_all(
    plan: Plan, table: Table, rows: list[Row], args: argparse.Namespace, outcome: Outcome
) -> None:
    """Prepare the data, then run every row; note what fails."""
    from tqdm import tqdm

    prepare = plan.prepare()
    groups = [steps_of(plan, table, same) for _, same in groupby(rows, key=lambda row: row.run)]
    jobs = args.jobs or ((os.cpu_count() or 1) if plan.tiny else 1)
    threads = 1 if jobs > 1 else None
    with (
        tqdm(total=sum(map(len, groups)), unit="step", disable=None) as bar,
        ThreadPoolExecutor(jobs) as pool,
    ):
        try:
            if args.data is None and not prepare.done():
                log = plan.runs / "prepare.log"
                bar.write(f"reproduce.py: {prepare.name}; log: {log}", file=sys.stderr)
                if not pool.submit(run_step, prepare, log, None, outcome).result():
                    outcome.failed["data"] = log
                    return
            list(pool.map(lambda steps: run_rows(steps, outcome, bar, threads), groups))
        except KeyboardInterrupt:
            outcome.stop()
            raise


def interrupt(*_: Any) -> None:
    """Take a signal as Ctrl-C."""
    raise KeyboardInterrupt


def result_of(plan: Plan, table: Table, row: Row) -> dict[str, Any]:
    """Return what is known of a row: `valid` and `test` where scored, and more columns."""
    found: dict[str, Any] = {"parameters": plan.parameters(row)}
    if (update := plan.diverged(row)) is not None:
        found["training"] = f"diverged after {update:,} updates"
    for split in SPLITS:
        step = plan.score(table, row, split)
        if step.made.is_file():
            read = plan.read(step.made)
            found |= {split: read["value"], **read["more"]}
    return found


def table_of(table: Table, results: list[dict[str, Any]]) -> str:
    """Return the table, published against ours."""
    more = list(dict.fromkeys(key for found in results for key in found if key not in SPLITS))
    header = [*table.header, "valid, published", "valid, here", "test, published", "test, here"]

    def number(found: dict[str, Any], split: str) -> str:
        nothing = "diverged" if "training" in found else "not run"
        return f"**{found[split]:,.2f}**" if split in found else nothing

    lines = [
        [*row.cells, row.valid, number(found, "valid"), row.test, number(found, "test"),
         *(found.get(key, "") for key in more)]
        for row, found in zip(table.rows, results, strict=True)
    ]  # fmt: skip
    return markdown([*header, *more], lines)


def write_page(number: int, text: str, args: argparse.Namespace, record: Any) -> Path:
    """Write a table to the runs' directory; return where."""
    seed = "" if args.seed is None else f"-seed{args.seed}"
    path = args.runs / args.scale / f"table{number}{seed}.md"
    write_whole(path, f"{text}\n".encode())
    write_json(path.with_suffix(".json"), record)
    return path


def conversions(args: argparse.Namespace) -> int:
    """Make Table 6: nothing is trained, the feature maps themselves are asked."""
    import torch

    from fairseq_fwm.feature_maps import build_feature_map

    x = torch.randn(1, HEAD_DIM, generator=torch.Generator().manual_seed(1))
    rows, record = [], []
    for features, m, nu in CONVERSIONS:
        sizes = [build_feature_map("favor", HEAD_DIM, m=m, seed=1)(x).shape[-1],
                 build_feature_map("dpfp", HEAD_DIM, nu=nu)(x).shape[-1]]  # fmt: skip
        rows.append([str(features), str(m), str(sizes[0]), str(nu), str(sizes[1])])
        record.append({"published": features, "m": m, "favor": sizes[0], "nu": nu,
                       "dpfp": sizes[1]})  # fmt: skip
    header = ["key features, published", "m of FAVOR+", "features here", "nu of DPFP",
              "features here"]  # fmt: skip
    title = f"# Table 6: key features of a head of {HEAD_DIM}"
    text = f"{title}\n\nCounted from what the feature maps return; the scale means nothing here.\n"
    text += f"\n{markdown(header, rows)}"
    print(text)
    print(f"\nreproduce.py: {write_page(6, text, args, record)}")
    return 0 if all(one["favor"] == one["dpfp"] == one["published"] for one in record) else 1


def publish(table: Table, plan: Plan, args: argparse.Namespace) -> None:
    """Print and keep the table of all that is there, whatever was run now."""
    results = [result_of(plan, table, row) for row in table.rows]
    parts = [f"# Table {args.table}: {table.title}, {args.scale}"]
    parts += [NO_CLAIM] if plan.tiny else []
    parts.append(table_of(table, results))
    runs = "single runs" + ("" if args.seed is None else f", seed {args.seed}")
    some = ", the first 2,000 tokens of a split" * (plan.tiny and table.corpus == LANGUAGE)
    parts.append(
        f"Published: arXiv 2102.11174, Table {args.table}. Here: {plan.scores} of {runs}{some}."
    )
    text = "\n\n".join(parts)
    record = [{"cells": row.cells, "run": row.run, "published": [row.valid, row.test], **found}
              for row, found in zip(table.rows, results, strict=True)]  # fmt: skip
    print(text)
    print(f"\nreproduce.py: {write_page(args.table, text, args, record)}")


def from_root(path: Path | None) -> Path | None:
    """Return a path as the steps take it, which run in the project's root."""
    return None if path is None else Path(os.path.relpath(path.resolve(), ROOT))


def plan_of(table: Table, args: argparse.Namespace) -> Plan:
    """Return how a table's rows are run."""
    tiny = args.scale == "tiny"
    runs = args.runs / args.scale / table.corpus
    devices = ("--cpu",) if tiny or args.cpu else ("--gpus", str(args.gpus))
    data = args.data or runs / "data"
    return PLANS[table.corpus](tiny, data, args.source, runs, args.seed, devices)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.data and args.source:
        parser.error("--data names prepared data, --from what they are made of: give one of them")
    args.runs, args.data, args.source = map(from_root, (args.runs, args.data, args.source))
    os.chdir(ROOT)
    if args.table == 6:
        return conversions(args)
    table = TABLES[args.table]
    unknown = set(args.only or ()) - {row.run for row in table.rows}
    if unknown:
        parser.error(f"--only {' '.join(sorted(unknown))}: table {args.table} has "
                     f"{', '.join(dict.fromkeys(row.run for row in table.rows))}")  # fmt: skip
    if args.gpus < 1 or (args.jobs is not None and args.jobs < 1):
        parser.error("--gpus and --jobs are at least 1")
    if (args.jobs or 1) > 1 and args.scale == "full" and not args.cpu:
        parser.error(
            "--jobs is for the CPU: trainings beside each other would share GPUs. Start one for "
            "each, with CUDA_VISIBLE_DEVICES and --only"
        )
    rows = [row for row in table.rows if not args.only or row.run in args.only]
    plan, outcome = plan_of(table, args), Outcome()
    if not args.collect and (problem := refused(plan, rows)):
        parser.error(problem)
    if args.dry_run:
        steps = [step for row in rows for step in steps_of(plan, table, [row])]
        steps = steps if args.data else [plan.prepare(), *steps]
        for command in dict.fromkeys(step.command for step in steps):
            print(shlex.join(command))
        return 0
    if not args.collect:
        try:
            run_all(plan, table, rows, args, outcome)
        except KeyboardInterrupt:
            print("reproduce.py: stopped; run it again to go on", file=sys.stderr)
            return 130
    publish(table, plan, args)
    for name, log in outcome.failed.items():
        print(f"reproduce.py: error: {name} failed: see the end of {log}", file=sys.stderr)
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    sys.exit(main())
