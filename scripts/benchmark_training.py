#!/usr/bin/env python3
"""Measure training and generation from end to end, softmax against fast weights, on a CPU.

translation  updates of fairseq's trainer (forward, label-smoothed cross entropy, backward, Adam)
             on random sentence pairs, fwm_transformer_tiny and fwm_transformer_iwslt_de_en, in
             batches as `--max-tokens` makes them
lm           forward and backward through 16 decoder layers (width 128, 8 heads, FFN 2048) without
             embedding and output layer; beside the variants the same stack without attention, and
             with the projections of the attention alone: no attention can be faster than that
generation   fairseq's beam search with random weights, every hypothesis of exactly the length
             asked for (lengths are TARGET or TARGET:SOURCE; the source is as long as the target
             otherwise; int8 and bf16 by --fwm-inference-precision)

The variants change the decoder's self-attention and leave the rest softmax; 'softmax' is fairseq's
own transformer. All variants of a case are in one process and take turns, so that their ratios
mean something on a busy machine too; the smallest time of all rounds counts: CPU time of the
process with one thread, else wall time. Memory is the peak of a process of its own, with the C
library's usual settings.

Writes OUT/{translation,lm,generation}.json after every case, OUT/end_to_end.png, and prints the
tables; `--page FILE` puts them between the lines `<!-- results:start -->` and
`<!-- results:end -->` of FILE.
"""

import argparse
import gc
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from lib import benchmark_conditions  # noqa: E402
from lib.benchmark_conditions import environment, quieten  # noqa: E402
from lib.benchmark_sides import alone, measure, run_child  # noqa: E402

SECTIONS = ("translation", "lm", "generation")
DEFAULT_VARIANTS = {
    "translation": ["softmax", "elu-sum", "dpfp-sum", "elu-delta", "dpfp-delta"],
    "lm": ["softmax", "elu-sum", "dpfp-sum", "elu-delta", "dpfp-delta"],
    "generation": ["softmax", "softmax-fast", "elu-sum", "dpfp-delta"],
}
LENGTHS = {
    "translation": ["16", "48"],
    "lm": ["256", "1024", "4096"],
    "generation": ["32", "128", "512", "2048", "512:32"],
}
QUICK_LENGTHS = {"translation": ["16"], "lm": ["256"], "generation": ["32"]}


def make_cases(args: argparse.Namespace) -> Iterator[Any]:
    """Yield the cases of the chosen sections.

    Raises:
        BenchmarkError: a length that does not fit.
    """
    from lib import benchmark_models as models

    for section in args.only:
        for text in args.lengths or (QUICK_LENGTHS if args.quick else LENGTHS)[section]:
            try:
                length, source = int(text.partition(":")[0]), int(text.rpartition(":")[2])
            except ValueError:
                raise models.BenchmarkError(f"length {text!r} is not N or TARGET:SOURCE") from None
            if section == "lm":
                yield models.Stack(length, max(args.tokens, length), 2 if args.quick else None)
            elif section == "generation":
                yield from (models.Generation(length, source, arch, sentences, args.beam)
                            for arch in args.generation_archs
                            for sentences in args.sentences)  # fmt: skip
            else:
                yield from (models.Translation(arch, length, args.tokens, args.batches)
                            for arch in args.archs)  # fmt: skip


def peak_memory(case: Any, variant: str, threads: int, seed: int) -> dict[str, float]:
    """Measure the peak memory of one side in a process of its own."""
    runs = 1 if case.kind == "generation" else 2  # the optimiser's state is there from the second
    found = alone(__file__, case, variant, runs=runs, threads=threads, seed=seed)
    return {name: found[name] for name in ("peak_mb", "added_mb")}


def sides_of(case: Any, args: argparse.Namespace) -> list[str]:
    """Return the names of what is compared in a case."""
    from lib.benchmark_models import STAND_INS

    variants = args.variants or DEFAULT_VARIANTS[case.kind]
    return [*variants, *STAND_INS] if case.kind == "lm" else list(variants)


def run_case(case: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Measure all sides of a case: times, then memory."""
    from tqdm import tqdm

    from lib.benchmark_models import STAND_INS

    names = sides_of(case, args)
    works = {name: case.build(name, args.seed) for name in names}
    times = measure(works, args.rounds, args.budget, case.name)
    sides = {
        name: {**times[name], "tokens": work.tokens, "sentences": work.sentences}
        for name, work in works.items()
    }
    works.clear()
    gc.collect()
    if args.memory:
        names = [name for name in names if name not in STAND_INS]
        for name in tqdm(names, desc=f"{case.name}, memory", unit="process", dynamic_ncols=True):
            sides[name] |= peak_memory(case, name, args.threads, args.seed)
    return {"kind": case.kind, "shape": asdict(case), "sides": sides}


def run_all(args: argparse.Namespace) -> None:
    """Measure the chosen sections; each one's file is written after every case.

    Raises:
        BenchmarkError: what is added to was measured with other threads.
    """
    from lib.benchmark_conditions import BenchmarkError
    from lib.data_files import read_json, write_json

    cases = list(make_cases(args))
    described = environment(Path(__file__).name, args)
    args.out.mkdir(parents=True, exist_ok=True)
    records = {}
    for kind in args.only:
        path = args.out / f"{kind}.json"
        before = read_json(path) if args.add else {}
        records[kind] = before or {"environment": described, "cases": []}
        threads = records[kind]["environment"]["threads"]
        if threads != args.threads:
            raise BenchmarkError(f"{path} was measured with --threads {threads}: add with that")
    for case in cases:
        record, found = records[case.kind], run_case(case, args)
        if record["environment"] != described:
            found["environment"] = described
        others = [other for other in record["cases"] if other["shape"] != found["shape"]]
        record["cases"] = [*others, found]
        write_json(args.out / f"{case.kind}.json", record)


def warnings_of(args: argparse.Namespace) -> Iterator[str]:
    """Yield what makes the numbers to come worth less."""
    return benchmark_conditions.warnings_beside(args.threads)


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION",
        help=f"any of: {', '.join(SECTIONS)} (default: all)")  # fmt: skip
    add("--variants", nargs="+", metavar="NAME",
        help="what to compare (default: softmax, elu-sum, dpfp-sum, elu-delta, dpfp-delta; "
        "generation: softmax, softmax-fast, elu-sum, dpfp-delta); also sum-everywhere, "
        "elu-sum-everywhere: encoder and cross-attention too; generation: NAME-bf16, NAME-int8 "
        "for smaller numbers")  # fmt: skip
    add("--archs", nargs="+", choices=("tiny", "iwslt"), metavar="ARCH",
        help="translation: tiny, iwslt (default: both); generation: default tiny")  # fmt: skip
    add("--lengths", nargs="+", metavar="N[:S]",
        help="lengths instead of the section's own; needs --only with one section")  # fmt: skip
    add("--tokens", type=int, help="tokens of a batch or step (default 4096; quick: 512)")
    add("--batches", type=int, default=2, help="updates a run (default %(default)s)")
    add("--sentences", type=int, nargs="+", default=[4], metavar="N",
        help="generated at a time (default 4)")  # fmt: skip
    add("--beam", type=int, default=5, help="default %(default)s")
    add("--rounds", type=int, help="runs of each side (default 5; quick: 2)")
    add("--budget", type=float, default=600, metavar="SECONDS",
        help="begin no further round of a case after this time (default %(default)s)")  # fmt: skip
    add("--threads", type=int, default=1, help="default %(default)s")
    add("--seed", type=int, default=1, help="default %(default)s")
    add("--no-memory", dest="memory", action="store_false", help="leave the memory out")
    add("--quick", action="store_true",
        help="minutes instead of hours, to see that it works: small steps, few lengths, tiny "
        "only, two layers; its numbers mean little")  # fmt: skip
    add("--out", type=Path, default=Path("runs/benchmark_training"), metavar="DIR",
        help="where the measurements are kept (default %(default)s)")  # fmt: skip
    add("--add", action="store_true",
        help="keep the cases that OUT has already, but for those of the same shape")  # fmt: skip
    add("--page", type=Path, metavar="FILE", help="markdown page to put the tables into")
    add("--from-json", type=Path, metavar="DIR",
        help="measure nothing: make tables and picture of DIR again")  # fmt: skip
    add("--profile", metavar="VARIANT",
        help="measure nothing: show where the time of the first case goes")  # fmt: skip
    add("--child", help=argparse.SUPPRESS)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line and fill in the defaults that depend on each other."""
    parser = make_parser()
    args = parser.parse_args(argv)
    args.argv = list(argv)
    if args.lengths and len(args.only) != 1:
        parser.error("--lengths needs --only with one section")
    if args.profile and len(args.only) != 1:
        args.only = args.only[:1]
    args.rounds = args.rounds or (2 if args.quick else 5)
    args.tokens = args.tokens or (512 if args.quick else 4096)
    args.generation_archs = args.archs or ["tiny"]
    args.archs = args.archs or (["tiny"] if args.quick else ["tiny", "iwslt"])
    if args.child is None and args.from_json is None:
        from lib.benchmark_models import STAND_INS, VARIANTS

        known = {*VARIANTS, *(STAND_INS if args.profile else ())}
        unknown = {*(args.variants or ()), *filter(None, [args.profile])} - known
        if unknown:
            parser.error(f"unknown variant {', '.join(unknown)}: one of {', '.join(known)}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    quieten()
    args = parse(sys.argv[1:] if argv is None else argv)
    if args.child is not None:
        from lib.benchmark_models import CASES

        return run_child(args.child, CASES)
    from lib.benchmark_training_report import profile, report
    from lib.result_tables import ResultsError

    if args.from_json:
        try:
            report(args.from_json, args.page)
        except ResultsError as error:
            print(f"benchmark_training: error: {error}", file=sys.stderr)
            return 1
        return 0
    import torch

    from lib.benchmark_models import BenchmarkError

    torch.set_num_threads(args.threads)
    for text in warnings_of(args):
        print(f"benchmark_training: warning: {text}", file=sys.stderr)
    try:
        if args.profile:
            profile(next(make_cases(args)), args.profile, args.seed)
        else:
            run_all(args)
            report(args.out, args.page)
    except (BenchmarkError, ResultsError) as error:
        print(f"benchmark_training: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
