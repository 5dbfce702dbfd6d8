"""What the CUDA kernels have to do, counted per token (time step of one sequence and head).

Launch shapes are asked of the launchers; the rest is read off the kernels: products, rows of
shared memory, numbers in global memory. tests/test_cuda_roofline.py executes the kernels in the
emulator and compares the bytes of global memory.
"""

import math
import re
from dataclasses import dataclass, replace

from emulation import Launch
from lib.cuda_compile import readable
from lib.cuda_launches import Launchers, Problem

TILE = 16
TF32_DEPTH = 8
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
TEMPLATE = re.compile(r"Shape<(\d+), (\d+)>")


@dataclass
class Work:
    """One launch's work for a token.

    Attributes:
        name: the kernel's, or the kernels' of a whole operation.
        blocks: of the launch; ``threads`` of a block, which has ``shared`` bytes.
        read: bytes from global memory if every block finds nothing in the second-level cache.
        once: the same if it finds what another block has read: each number once.
        written: bytes to global memory.
        lane_ops: fp32 operations of the CUDA cores, a multiply-add counting as one.
        tensor_flops: of the tensor cores, where ``half`` are of bf16 or fp16 and not of tf32.
        shuffles: numbers that lanes exchange.
        shared_bytes: of shared memory, a request of a warp counting as 128 bytes at least.
        chain: cycles of what waits for what was before, ``chain_steps`` times per block.
    """

    name: str
    blocks: int = 0
    threads: int = 0
    shared: int = 0
    read: float = 0.0
    once: float = 0.0
    written: float = 0.0
    lane_ops: float = 0.0
    tensor_flops: float = 0.0
    half: bool = False
    shuffles: float = 0.0
    shared_bytes: float = 0.0
    chain: float = 0.0
    chain_steps: int = 0

    @property
    def flops(self) -> float:
        """Multiplications and additions."""
        return 2 * self.lane_ops + self.tensor_flops


@dataclass(frozen=True)
class Cost:
    """Assumed latencies in cycles: of a multiply-add, of a shuffle with the addition after it, and
    of a tensor core's product added to the last one.

    None is in NVIDIA's documents; measurements that others have published are near them.
    """

    fma: float = 4.0
    shuffle: float = 27.0
    tensor: float = 35.0


COST = Cost()


@dataclass
class Pass:
    """What a general kernel does in a time step, on rows of the state's shape.

    Attributes:
        reads: products of a column with a row; ``updates`` of a column by a row.
        rows: that are loaded from shared memory; some are used more than once.
        serial: of the reads, those that the next step has to wait for.
        column_values: numbers per column that come and go through shared memory.
    """

    reads: int
    updates: int
    rows: int
    serial: int
    column_values: int


def general(launch: Launch, name: str, step: Pass, steps: int) -> Work:
    """Count what the registers' recurrence does, from the shape in the kernel's name."""
    slice_, split = map(int, TEMPLATE.search(name).groups())
    per_head = launch.grid[1] * launch.threads
    # A warp's lanes that share a column read neighbouring 16 bytes, all columns the same ones.
    request = 128 * launch.threads / 32
    row_bytes = request * slice_ / 4 * max(1.0, split / 8)
    levels = math.log2(split)
    return Work(
        name,
        math.prod(launch.grid),
        launch.threads,
        launch.shared,
        lane_ops=per_head * (slice_ * (step.reads + step.updates) + step.reads * (3 + levels)),
        shuffles=per_head * step.reads * levels,
        shared_bytes=launch.grid[1] * (step.rows * row_bytes + step.column_values * request),
        chain=step.serial * (COST.fma * (slice_ / 4 + 2) + COST.shuffle * levels)
        + COST.fma * (1 + step.serial),
        chain_steps=steps,
    )


def _inside(work: Work, each: float, blocks: int, own: float, written: float) -> Work:
    """Add global memory: bytes that every block of a head reads, and those of its own."""
    return replace(work, read=each * blocks + own, once=each + own, written=written)


class Counter:
    """Counts the work of one problem."""

    def __init__(self, launchers: Launchers, problem: Problem) -> None:
        self.problem = problem
        self.launchers = launchers
        self.delta = problem.rule == "delta"
        self.e = BYTES[problem.dtype]
        self.half = self.e == 2

    def forward(self) -> list[Work]:
        """Return the kernels of a forward pass that keeps what a backward needs."""
        launches = self._named("forward")
        return self._chunk_forward(launches) if self.problem.chunkwise else self._forward(launches)

    def backward(self) -> list[Work]:
        """Return the kernels of a backward pass."""
        launches = self._named("backward")
        return (
            self._chunk_backward(launches) if self.problem.chunkwise else self._backward(launches)
        )

    def _named(self, operation: str) -> list[tuple[str, Launch]]:
        found = self.launchers.launches(self.problem, operation)
        return list(zip(readable([launch.kernel for launch in found]), found, strict=True))

    # ---- general

    def _forward(self, launches: list[tuple[str, Launch]]) -> list[Work]:
        p, e, delta = self.problem, self.e, self.delta
        [(name, launch)] = launches
        step = Pass(2, 1, 2, 1, 3) if delta else Pass(1, 1, 2, 0, 2)
        work = general(launch, name, step, p.T)
        each = 2 * p.K * e + (4 if delta else 0)
        written = p.V * e + (4 * p.V if delta else 0)
        return [_inside(work, each, launch.grid[1], p.V * e, written)]

    def _backward(self, launches: list[tuple[str, Launch]]) -> list[Work]:
        p, e, delta = self.problem, self.e, self.delta
        found = []
        for name, launch in launches:
            if name.startswith("backward_values"):
                step = Pass(1, 2, 2, 1, 2) if delta else Pass(1, 1, 2, 0, 2)
                work = general(launch, name, step, p.T)
                each = 2 * p.K * e + (4 if delta else 0)
                written = 4 * p.V if delta else p.V * e
                found.append(_inside(work, each, launch.grid[1], p.V * e, written))
            elif name.startswith("backward_scalars"):
                found.append(self._scalars(name, launch))
            else:
                queries = name.startswith("backward_queries")
                if not delta:
                    step = Pass(1, 1, 2, 0, 2)
                else:
                    step = Pass(2, 1, 3, 0, 3) if queries else Pass(1, 2, 3, 0, 2)
                work = general(launch, name, step, p.T)
                found.append(self._by_value(work, launch, queries))
        return found

    def _scalars(self, name: str, launch: Launch) -> Work:
        V = self.problem.V
        work = Work(name, math.prod(launch.grid), launch.threads, lane_ops=2 * V)
        return _inside(work, 0, 1, 8 * V + 4, V * self.e + 4)

    def _by_value(self, work: Work, launch: Launch, queries: bool, parts: int = 1) -> Work:
        """Add the global memory of the kernels for the gradients of keys and of queries."""
        p, e, delta = self.problem, self.e, self.delta
        each = (p.V * e + (8 * p.V + 4 if delta else p.V * e)) / parts
        wide = 4 if delta and self.half else e  # dk between the two passes
        own, written = 2 * p.K * e, p.K * wide
        if queries:
            if not p.chunkwise and p.map == "none":
                own = p.K * e  # queries are wanted to differentiate their map alone
            own, written = own + (p.K * wide if delta else 0), p.K * e * (2 if delta else 1)
        return _inside(work, each, launch.grid[1], own, written)

    # ---- chunkwise

    def _tensor(self, work: Work, flops: float, chunk: int, state: float) -> Work:
        """Add products of 16 x 16 tiles, whose operands all come from shared memory."""
        operand = 2 if self.half else 4
        copies = 6 if self.half else 0  # a rounded copy of the state, once per chunk
        return replace(
            work,
            tensor_flops=flops,
            half=self.half,
            shared_bytes=flops * operand / TILE + state * (8 + copies) / chunk,
        )

    def _prepare(self, name: str, launch: Launch, matrices: int) -> Work:
        p, delta = self.problem, self.delta
        C = math.ceil(p.T / launch.grid[1])
        work = Work(name, math.prod(launch.grid), launch.threads, launch.shared)
        work = self._tensor(work, p.K * (C + TILE) * (2 if delta else 1), C, 0)
        work = self._invert(work, C) if delta else work
        written = matrices * C * (2 if self.half else 4)
        return _inside(work, 0, 1, 2 * p.K * self.e + (4 if delta else 0), written)

    def _invert(self, work: Work, C: int) -> Work:
        """Add a triangle's inverse: tiles on the diagonal by fp32, the others by tf32 products."""
        tiles = C // TILE
        products = sum(row * (row + 1) for row in range(1, tiles)) / C
        in_line = sum(row + 1 for row in range(1, tiles)) * TILE / TF32_DEPTH
        flops = 2 * TILE**3 * products
        lane_ops = TILE**2 / 6
        return replace(
            work,
            lane_ops=lane_ops,
            tensor_flops=work.tensor_flops + flops * (2 if self.half else 1),  # at half the rate
            shared_bytes=work.shared_bytes + 8 * lane_ops + 4 * flops / TILE,
            chain=COST.fma * TILE * (TILE - 1) / 2 + COST.tensor * in_line,
            chain_steps=1,
        )

    def _chunk_forward(self, launches: list[tuple[str, Launch]]) -> list[Work]:
        p, e, delta = self.problem, self.e, self.delta
        (name, launch), (forward_name, forward) = launches
        prepare = self._prepare(name, launch, 2 if delta else 1)
        C, square = math.ceil(p.T / launch.grid[1]), 2 if self.half else 4
        flops = 4 * p.K * p.V + p.V * (C + TILE)
        if delta:
            flops += 2 * p.K * p.V + 2 * C * p.V
        work = Work(forward_name, math.prod(forward.grid), forward.threads, forward.shared)
        work = self._tensor(work, flops, C, p.K * p.V)
        each = 2 * p.K * e + (2 if delta else 1) * C * square + (4 if delta else 0)
        written = p.V * e + (4 * p.V if delta else 0)
        return [prepare, _inside(work, each, forward.grid[1], p.V * e, written)]

    def _chunk_backward(self, launches: list[tuple[str, Launch]]) -> list[Work]:
        p, e, delta, square = self.problem, self.e, self.delta, 2 if self.half else 4
        K, V = p.K, p.V
        C = math.ceil(p.T / launches[0][1].grid[1])
        found = []
        for name, launch in launches:
            work = Work(name, math.prod(launch.grid), launch.threads, launch.shared)
            blocks = launch.grid[1]
            if name.startswith("chunk_prepare_kernel"):
                found.append(self._prepare(name, launch, 3 if delta else 1))
            elif name.startswith("chunk_values"):
                flops = 4 * K * V + 2 * C * V + (2 * K * V + 4 * C * V if delta else 0)
                each = 2 * K * e + (3 if delta else 1) * C * square + (4 if delta else 0)
                work = self._tensor(work, flops, C, K * V)
                written = 4 * V if delta else V * e
                found.append(_inside(work, each, blocks, V * e, written))
            elif name.startswith("backward_scalars"):
                found.append(self._scalars(name, launch))
            elif name.startswith("chunk_prepare_values"):
                work = self._tensor(work, V * (C + TILE) * (2 if delta else 1), C, 0)
                own = V * e + (8 * V + 4 if delta else V * e)
                written = (2 if delta else 1) * C * square
                found.append(_inside(work, 0, 1, own, written))
            else:
                # Values may come in parts, a launch each; the first has the C x C matrices.
                parts = sum(other == name for other, _ in launches)
                flops = (4 * K * V + 2 * C * K + (2 * K * V + 2 * C * K if delta else 0)) / parts
                work = self._tensor(work, flops, C, K * V / parts)
                work = self._by_value(work, launch, name.startswith("chunk_queries"), parts)
                squares = (2 if delta else 1) * C * square
                found.append(
                    replace(work, read=work.read + squares * blocks, once=work.once + squares)
                )
        return found


def total(name: str, works: list[Work]) -> Work:
    """Add up the launches of an operation."""
    keys = ("read", "once", "written", "lane_ops", "tensor_flops", "shuffles", "shared_bytes")
    sums = {key: sum(getattr(work, key) for work in works) for key in keys}
    return Work(name, half=any(work.half for work in works), **sums)
