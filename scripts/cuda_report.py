#!/usr/bin/env python3
"""Report what nvcc makes of the CUDA kernels, for every kernel and architecture; needs no GPU.

Registers, spills, stack and shared memory from ptxas; instructions for tensor cores from the SASS
(with cuobjdump: `pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm`) or else from the PTX;
blocks, threads and dynamic shared memory from the launchers themselves, which are compiled for
the emulator of the tests and called for representative problems; occupancy from all of these and
the documented limits of a multiprocessor.

nvcc is found by CUDA_HOME or the PATH; torch is not needed. What was compiled is kept under
build/emulator, so that only what changed is compiled again: a file takes up to half a minute for
one architecture. `--out FILE` puts the tables between the lines `<!-- results:start -->` and
`<!-- results:end -->` of FILE, and the JSON into the folder of the same name beside it.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from emulation import Unavailable
from lib.cuda_compile import CompileError, Kernel, NoToolkit, compiled, nvcc_version, readable
from lib.cuda_launches import RECURRENT, LaunchError, Launchers, representative, sources
from lib.cuda_occupancy import GPU, GPUS, gpus_of, occupancy
from lib.result_tables import ResultsError, put_between_markers, short_commit, table
from lib.run_record import git_commit, now

ARCHS = ("8.0", "8.6", "9.0", "10.0", "12.0")
# Key and value features up to which half of a multiprocessor's warps are asked for; heads of rules
# whose states, three times as large, are in shared memory.
SMALL, SMALL_RECURRENT = 64, 32
HALF = 0.5
HALF_FULL = ("A100", "H100")


@dataclass(frozen=True, order=True)
class Shape:
    """How a kernel is launched: threads and dynamic shared memory; whether by a small problem."""

    threads: int
    shared: int
    small: bool


@dataclass
class Row:
    """A kernel on an architecture, and how much of the GPUs that run it the launches fill.

    Attributes:
        filled: by GPU: launches, and resident warps over the most that a multiprocessor holds.
    """

    kernel: Kernel
    filled: dict[str, list[tuple[Shape, float]]]

    @property
    def chunkwise(self) -> bool:
        """Whether the kernel works on chunks, with tensor cores."""
        return "chunk" in self.kernel.source or "chunk" in self.kernel.name

    @property
    def where(self) -> str:
        """The kernel and the architecture, for messages."""
        return f"{self.kernel.name} on {self.kernel.arch}"

    @property
    def shapes(self) -> list[Shape]:
        """The launches on all GPUs."""
        return sorted({shape for pairs in self.filled.values() for shape, _ in pairs})


def launch_shapes() -> dict[int, dict[str, list[Shape]]]:
    """Return how representative problems launch each kernel, by its readable name.

    Returns:
        That, by the shared memory that a block may have: the launchers fit themselves to it.

    Raises:
        emulation.Unavailable: no compiler for the emulator.
        LaunchError: a launcher refuses one of the problems.
    """
    launchers = Launchers()
    limits = sorted({gpu.block_shared for gpu in GPUS})
    return {limit: _launch_shapes(launchers, limit) for limit in limits}


def _launch_shapes(launchers: Launchers, limit: int) -> dict[str, list[Shape]]:
    found: dict[str, set[Shape]] = {}
    for problem in representative(launchers, limit):
        recurrent = problem.rule in RECURRENT
        small = max(problem.K, problem.V) <= (SMALL_RECURRENT if recurrent else SMALL)
        for operation in problem.operations:
            for launch in launchers.launches(problem, operation):
                shape = Shape(launch.threads, launch.shared, small)
                found.setdefault(launch.kernel, set()).add(shape)
    names = readable(list(found))
    return {name: sorted(shapes) for name, shapes in zip(names, found.values(), strict=True)}


def collect(archs: Sequence[str], jobs: int = 1, progress: Callable = iter) -> list[Row]:
    """Compile every file for every architecture and join that with the launches.

    Args:
        archs: such as ``8.0``.
        jobs: compilers at a time.
        progress: wraps the iterable of compilations, for a progress bar.

    Raises:
        NoToolkit, CompileError, emulation.Unavailable, LaunchError: as in the other modules.
    """
    shapes = launch_shapes()
    tasks = [(source, arch) for arch in archs for source in sources()]
    with ThreadPoolExecutor(jobs) as pool:
        done = list(progress(pool.map(lambda task: compiled(*task), tasks)))
    return [
        row_of(kernel, gpus_of(kernel.arch, list(archs)), shapes)
        for kernels in done
        for kernel in kernels
    ]


def row_of(kernel: Kernel, gpus: Sequence[GPU], shapes: dict[int, dict[str, list[Shape]]]) -> Row:
    """Return a kernel with what its launches, by shared memory, fill of GPUs."""

    def filled(gpu: GPU, shape: Shape) -> float:
        return occupancy(gpu, shape.threads, kernel.registers, kernel.shared + shape.shared)

    return Row(
        kernel,
        {
            gpu.name: [
                (shape, filled(gpu, shape))
                for shape in shapes[gpu.block_shared].get(kernel.name, [])
            ]
            for gpu in gpus
        },
    )


# ---- what must hold


def spilling(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the kernels that spill registers."""
    for row in rows:
        if row.kernel.spills:
            registers = row.kernel.registers
            yield f"{row.where} spills {row.kernel.spills} bytes at {registers} registers"


def never_launched(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the kernels that no representative problem launches."""
    for row in rows:
        if not row.shapes:
            yield f"{row.where}: no problem of scripts/lib/cuda_launches.py launches it"


def not_launchable(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the launches that a GPU refuses: too much shared memory, or too many registers."""
    for row, gpu in _with_gpus(rows):
        refused = [shape for shape, filled in row.filled[gpu.name] if not filled]
        if not refused:
            continue
        kernel = row.kernel
        worst = max(refused, key=lambda shape: shape.shared)
        total = kernel.shared + worst.shared
        reason = (
            f"{total} bytes of shared memory, a block may have {gpu.block_shared}"
            if total > gpu.block_shared
            else f"{worst.threads} threads of {kernel.registers} registers"
        )
        yield f"{row.where}: {_of(refused, row, gpu)} impossible on {gpu.name}: {reason}"


def half_empty(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the launches of general kernels for small states that fill less than half."""
    for row, gpu in _with_gpus(rows):
        if row.chunkwise or gpu.name not in HALF_FULL:
            continue
        pairs = row.filled[gpu.name]
        low = [(filled, shape) for shape, filled in pairs if shape.small and filled < HALF]
        if low:
            filled, shape = min(low, key=lambda pair: pair[0])
            yield (
                f"{row.where}: {_of(low, row, gpu)} below {HALF:.0%} of {gpu.name}, the worst at "
                f"{filled:.0%}: {shape.threads} threads, {row.kernel.registers} registers, "
                f"{shape.shared} bytes"
            )


def without_products(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the chunkwise kernels without an instruction for tensor cores."""
    for row in rows:
        if row.chunkwise and not row.kernel.products:
            yield f"{row.where} has no tensor core instruction in its {row.kernel.products_from}"


RULES = (spilling, never_launched, not_launchable, half_empty, without_products)


def _of(some: Sequence, row: Row, gpu: GPU) -> str:
    return f"{len(some)} of {len(row.filled[gpu.name])} launches"


def _with_gpus(rows: Sequence[Row]) -> Iterator[tuple[Row, GPU]]:
    for row in rows:
        for gpu in GPUS:
            if gpu.name in row.filled:
                yield row, gpu


# ---- tables


def pages(rows: Sequence[Row], archs: Sequence[str], about: dict[str, Any]) -> str:
    """Return the tables and what they were made with, as Markdown."""
    broken = [message for rule in RULES for message in rule(rows)]
    parts = [
        f"{about['date'][:10]}, commit {about['commit']}, nvcc {about['nvcc']}:",
        f"    {about['command']}",
        "## What should not be",
        "\n".join(f"- {message}" for message in broken) or "Nothing.",
        "## Registers of a thread",
        _registers(rows, archs),
        "## Shared memory and occupancy",
        _occupancies(rows, archs),
    ]
    return "\n\n".join(parts)


def _by_kernel(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, Row]]:
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        key = (row.kernel.source, row.kernel.name)
        found.setdefault(key, {})[row.kernel.arch] = row
    return dict(sorted(found.items()))


def _registers(rows: Sequence[Row], archs: Sequence[str]) -> str:
    def cell(row: Row | None) -> str:
        if row is None:
            return ""
        kernel = row.kernel
        extra = f", {kernel.spills} B spilled" if kernel.spills else ""
        extra += f", {kernel.stack} B stack" if kernel.stack and not kernel.spills else ""
        return f"{kernel.registers}{extra}"

    header = ["file", "kernel", *(f"sm_{arch.replace('.', '')}" for arch in archs), "tensor cores"]
    lines = []
    for (source, name), by_arch in _by_kernel(rows).items():
        cells = [cell(by_arch.get(arch)) for arch in archs]
        lines.append([source, f"`{name}`", *cells, _products(list(by_arch.values()))])
    return table(header, lines)


def _products(rows: Sequence[Row]) -> str:
    """Name the instructions of all architectures, once where they agree."""
    texts = {}
    for row in rows:
        kernel = row.kernel
        listed = ", ".join(f"{count} {name}" for name, count in sorted(kernel.products.items()))
        texts.setdefault(f"{listed} ({kernel.products_from})" if listed else "", kernel.arch)
    if set(texts) <= {""}:
        return ""
    return "; ".join(f"{arch}: {text or 'none'}" for text, arch in texts.items())


def _occupancies(rows: Sequence[Row], archs: Sequence[str]) -> str:
    names = [gpu.name for arch in archs for gpu in gpus_of(arch, list(archs))]
    lines = []
    for (_, name), by_arch in _by_kernel(rows).items():
        launched = [(row.kernel, shape) for row in by_arch.values() for shape in row.shapes]
        threads = _range([shape.threads for _, shape in launched])
        kib = _range([(kernel.shared + shape.shared) / 1024 for kernel, shape in launched])
        filled = {gpu: pairs for row in by_arch.values() for gpu, pairs in row.filled.items()}
        cells = [_range([100 * share for _, share in filled[gpu]]) for gpu in names]
        lines.append([f"`{name}`", threads, kib, *cells])
    return table(["kernel", "threads", "KiB", *(f"{name}, %" for name in names)], lines)


def _range(numbers: Sequence[float]) -> str:
    if not numbers:
        return "?"
    low, high = (f"{number:.0f}" for number in (min(numbers), max(numbers)))
    return low if low == high else f"{low}-{high}"


def as_json(rows: Sequence[Row], about: dict[str, Any]) -> str:
    """Return everything as JSON, one kernel a line."""
    head = about | {
        "gpus": [asdict(gpu) for gpu in GPUS],
        "broken": {rule.__name__: list(rule(rows)) for rule in RULES},
    }
    lines = [json.dumps(_as_data(row)) for row in rows]
    text = json.dumps(head | {"kernels": []}, indent=2)
    return text.replace('"kernels": []', '"kernels": [\n' + ",\n".join(lines) + "\n]") + "\n"


def _as_data(row: Row) -> dict[str, Any]:
    def ends(numbers: Sequence[float]) -> list[float]:
        return [round(end(numbers), 4) for end in (min, max)] if numbers else []

    return asdict(row.kernel) | {
        "launches": len(row.shapes),
        "threads": ends([shape.threads for shape in row.shapes]),
        "dynamic_shared": ends([shape.shared for shape in row.shapes]),
        "occupancy": {gpu: ends([x for _, x in pairs]) for gpu, pairs in row.filled.items()},
    }


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--arch", action="append", metavar="X.Y",
        help=f"compute capability; repeatable (default: {' '.join(ARCHS)})")  # fmt: skip
    add("--jobs", type=int, default=1, help="compilers at a time (default %(default)s)")
    add("--out", type=Path, metavar="FILE", help="page to write (default: print the tables)")
    add("--check", action="store_true", help="exit with 1 if something should not be")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    from tqdm import tqdm

    argv = sys.argv[1:] if argv is None else list(argv)
    args = make_parser().parse_args(argv)
    archs = sorted(set(args.arch or ARCHS), key=lambda arch: [int(n) for n in arch.split(".")])
    total = len(archs) * len(sources())

    def bar(done: Iterator) -> Iterator:
        return tqdm(done, total=total, unit="file", desc="compiling", dynamic_ncols=True)

    try:
        rows = collect(archs, args.jobs, bar)
        command = shlex.join(["python", "scripts/cuda_report.py", *argv])
        about = {"date": now(), "commit": short_commit(git_commit()), "command": command}
        about["nvcc"] = nvcc_version()
        text = pages(rows, archs, about)
        if args.out:
            put_between_markers(args.out, text, "What nvcc makes of the CUDA kernels")
            data = args.out.with_suffix("") / "results.json"
            data.parent.mkdir(parents=True, exist_ok=True)
            data.write_text(as_json(rows, about), "utf-8")
    except (NoToolkit, CompileError, Unavailable, LaunchError, ResultsError) as error:
        print(f"cuda_report.py: error: {error}", file=sys.stderr)
        return 2
    if not args.out:
        print(text)
    broken = [message for rule in RULES for message in rule(rows)]
    if args.out and broken:
        print(*broken, sep="\n", file=sys.stderr)
    return int(bool(args.check and broken))


if __name__ == "__main__":
    sys.exit(main())
