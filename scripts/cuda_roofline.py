#!/usr/bin/env python3
"""A roofline on paper of the CUDA kernels: what bounds them on an A100 and an H100, never run.

For every kernel of a few problems: the launch, bytes of global memory and operations per token
(time step of a sequence and head), and the time that the largest of these takes at the peak rate:

  memory   each number that blocks of a head share is fetched once, at the bandwidth
  fp32     multiply-adds of the CUDA cores, the additions across lanes among them
  tensor   multiply-adds of the tensor cores, at the dense rate of the operands' type
  shuffle  numbers exchanged between lanes, 32 a cycle and multiprocessor
  shared   shared memory, 128 bytes a cycle and multiprocessor
  chain    what a block does one step after the other, at assumed latencies (see COST)

Launch shapes come from the launchers themselves, compiled for the emulator. The same counts for
what others compute were read off their public sources. No number here was measured: a kernel takes
at least this long, if the counts are right. `--page FILE` puts the tables between the lines
`<!-- results:start -->` and `<!-- results:end -->` of FILE.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from emulation import Unavailable
from lib.cuda_launches import Launchers, Problem
from lib.cuda_occupancy import GPU, GPUS, blocks_per_multiprocessor
from lib.cuda_work import BYTES, Counter, Work, total
from lib.result_tables import ResultsError, put_between_markers, table

SHUFFLES, SHARED_BYTES = 32, 128  # per cycle and multiprocessor
REGISTERS = 64  # assumed for how many blocks are resident; cuda_report.py knows better


@dataclass(frozen=True)
class Peak:
    """What a GPU does at most in a second, from NVIDIA's data sheets."""

    gpu: GPU
    fp32: float
    tf32: float
    half: float
    bandwidth: float
    clock: float


def _gpu(name: str) -> GPU:
    return next(gpu for gpu in GPUS if gpu.name == name)


PEAKS = {
    "A100": Peak(_gpu("A100"), 19.5e12, 156e12, 312e12, 2.0e12, 1.41e9),
    "H100": Peak(_gpu("H100"), 67e12, 495e12, 989e12, 3.35e12, 1.83e9),
}
SIZES = ((64, 64), (128, 128), (256, 64))
BATCH = {"N": 8, "H": 16, "T": 2048}


def bounds(work: Work, tokens: int, peak: Peak) -> dict[str, float]:
    """Return the seconds that each resource needs for a launch."""
    cycles = peak.gpu.multiprocessors * peak.clock
    found = {
        "memory": (work.once + work.written) * tokens / peak.bandwidth,
        "fp32": 2 * work.lane_ops * tokens / peak.fp32,
        "tensor": work.tensor_flops * tokens / (peak.half if work.half else peak.tf32),
        "shuffle": work.shuffles * tokens / (SHUFFLES * cycles),
        "shared": work.shared_bytes * tokens / (SHARED_BYTES * cycles),
        "chain": 0.0,
    }
    if work.chain:
        resident = blocks_per_multiprocessor(peak.gpu, work.threads, REGISTERS, work.shared)
        waves = math.ceil(work.blocks / max(1, resident * peak.gpu.multiprocessors))
        found["chain"] = waves * work.chain * work.chain_steps / peak.clock
    return found


def seconds(works: Sequence[Work], tokens: int, peak: Peak) -> float:
    """Return what launches one after the other take at least."""
    return sum(max(bounds(work, tokens, peak).values()) for work in works)


# ---- what others do, read off their sources


def flash_linear_attention(problem: Problem, backward: bool) -> list[Work]:
    """Count flash-linear-attention 0.6.0: chunks of 64, each state of a chunk in global memory.

    Global memory is counted once per kernel and tensor; of the products those of the definition.
    """
    K, V, e, C = problem.K, problem.V, BYTES[problem.dtype], 64
    k, v, A, h = K * e, V * e, C * e, K * V * e / C
    if problem.rule == "sum":
        if backward:
            raise ValueError("only counted for the delta rule")
        return [
            _kernel("states", k + v, h, 2 * K * V),
            _kernel("outputs", 2 * k + v + h, v, 2 * K * V + 2 * C * (K + V)),
        ]
    states = _kernel("states", 2 * k + v, h + v, 4 * K * V)
    rows = _kernel("w, u", k + v + A, k + v, 2 * C * (K + V))
    if not backward:
        return [
            _kernel("K K^T", k, 4 * C, 2 * C * K),
            _kernel("inverse", 4 * C, 2 * A, 2 * C * C / 3),
            rows,
            states,
            _kernel("outputs", 2 * k + v + h, v, 2 * K * V + 2 * C * (K + V)),
        ]
    return [
        rows,
        states,
        _kernel("local dv", 2 * k + v, v, 2 * C * (K + V)),
        _kernel("state gradients", 3 * k + 2 * v, h + v, 6 * K * V),
        _kernel("dq, dk, dw", 3 * k + 3 * v + 2 * h, 3 * k, 6 * K * V + 2 * C * (2 * V + 2 * K)),
        _kernel("through w, u", 2 * k + 2 * v + A, k + v, 2 * C * (4 * K + 2 * V)),
        _kernel("sum of dk", 2 * k, k, 0),
    ]


def _kernel(name: str, read: float, written: float, flops: float) -> Work:
    return Work(name, read=read, once=read, written=written, tensor_flops=flops, half=True)


def original(problem: Problem) -> Work | None:
    """Count the forward kernel that came with the paper: state and inputs in 48 KB, fp32.

    A block per head goes through as many steps as fit the shared memory, then the state goes to
    global memory and another launch goes on. For each number of the state and step it is read
    three times and written once, and two products are added atomically.

    Returns:
        None if not one step fits.
    """
    K, V = problem.K, problem.V
    numbers = 12 * 1024
    steps = (numbers - (K + 3) * V) // (V + 2 * K + 1)
    if steps < 1:
        return None
    state = 8 * K * V / steps
    read = 4 * (2 * K + V + 1) + 3 * 4 * V + state / 2
    return Work(
        "original",
        blocks=problem.N * problem.H,
        threads=1024,
        shared=4 * numbers,
        read=read,
        once=read,
        written=3 * 8 * V + state / 2,
        lane_ops=3 * K * V,
        shared_bytes=24 * K * V,
    )


# ---- tables


def pages(launchers: Launchers) -> str:
    """Return all tables."""
    tokens = math.prod(BATCH.values())
    parts = [
        f"Batch {BATCH['N']}, {BATCH['H']} heads, {BATCH['T']} steps: {tokens:,} tokens. "
        "Microseconds of the bound, and what bounds."
    ]
    for rule in "sum", "delta":
        for K, V in SIZES:
            rows = []
            for dtype, chunkwise in (("float32", False), ("bfloat16", True), ("float32", True)):
                problem = Problem(rule, K, V, **BATCH, dtype=dtype, chunkwise=chunkwise)
                rows += _kernel_rows(launchers, problem, tokens)
            header = ["numbers", "pass", "kernel", "blocks x threads", "bytes", "FLOP", *PEAKS]
            parts += [f"### {rule}, K = {K}, V = {V}", table(header, rows)]
    parts += ["### Beside others: the delta rule", *_beside_others(launchers, tokens)]
    return "\n\n".join(parts)


def _kernel_rows(launchers: Launchers, problem: Problem, tokens: int) -> list[list[str]]:
    # Both GPUs get the launch that the H100's shared memory allows, where chunks may be larger.
    counter = Counter(launchers, problem)
    kind = {"float32": "tf32", "bfloat16": "bf16"}[problem.dtype] if problem.chunkwise else "fp32"
    rows = []
    for name, works in (("forward", counter.forward()), ("backward", counter.backward())):
        for work in works:
            cells = [_bound(work, tokens, peak) for peak in PEAKS.values()]
            shape = f"{work.blocks} x {work.threads}"
            size = f"{work.once + work.written:,.0f}"
            label = work.name.replace("_kernel", "")
            rows.append([kind, name, f"`{label}`", shape, size, f"{work.flops:,.0f}", *cells])
        sums = [f"**{1e6 * seconds(works, tokens, peak):,.0f}**" for peak in PEAKS.values()]
        whole = total(name, works)
        size = f"{whole.once + whole.written:,.0f}"
        rows.append([kind, name, "all", "", size, f"{whole.flops:,.0f}", *sums])
    return rows


def _bound(work: Work, tokens: int, peak: Peak) -> str:
    found = bounds(work, tokens, peak)
    what = max(found, key=lambda name: found[name])
    return f"{1e6 * found[what]:,.0f} {what}"


def _beside_others(launchers: Launchers, tokens: int) -> list[str]:
    rows = []
    for K, V in SIZES:
        size = {"K": K, "V": V, **BATCH}
        for dtype, chunkwise in (("float32", False), ("bfloat16", True)):
            problem = Problem("delta", **size, dtype=dtype, chunkwise=chunkwise)
            counter = Counter(launchers, problem)
            form = "chunkwise, bf16" if chunkwise else "general, fp32"
            rows.append(_row(K, V, form, counter.forward(), counter.backward(), tokens))
        half = Problem("delta", **size, dtype="bfloat16")
        theirs = [flash_linear_attention(half, backward) for backward in (False, True)]
        rows.append(_row(K, V, "flash-linear-attention, bf16", *theirs, tokens))
        old = original(half)
        rows.append(_row(K, V, "the paper's kernel, fp32", [old] if old else [], [], tokens))
    header = ["K", "V", "kernels", "bytes forward", "bytes backward"]
    for name in PEAKS:
        header += [f"{name} forward", f"{name} backward"]
    return [table(header, rows)]


def _row(
    K: int, V: int, name: str, forward: list[Work], backward: list[Work], tokens: int
) -> list[str]:
    sums = [total(name, works) for works in (forward, backward)]
    cells = [f"{work.once + work.written:,.0f}" if work.once else "-" for work in sums]
    for peak in PEAKS.values():
        times = [seconds(works, tokens, peak) for works in (forward, backward)]
        cells += [f"{1e6 * time:,.0f}" if time else "-" for time in times]
    return [str(K), str(V), name, *cells]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="where to (default: print)")
    args = parser.parse_args(argv)
    try:
        text = pages(Launchers())
        if args.page:
            put_between_markers(args.page, text, "The CUDA kernels")
        else:
            print(text)
    except (Unavailable, ResultsError) as error:
        print(f"cuda_roofline.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
