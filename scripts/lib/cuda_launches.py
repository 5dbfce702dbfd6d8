"""Ask the CUDA launchers what they launch: blocks, threads and shared memory, without a GPU.

The launchers are compiled for the emulator of the tests, which notes every launch and executes
none. So a problem can have any size, and needs no data.
"""

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from emulation import Emulator, Launch, build  # noqa: E402

SOURCES = "kernels/csrc/cuda"
ENTRY = "tests/emulated_launches.cpp"
DTYPES = (
    "float32",
    "float64",
    "bfloat16",
    "float16",
)  # the order of the enumerations of problem.h
MAPS = ("none", "elu", "dpfp")
ATTN_NORMS = ("none", "output", "full")
RECURRENT = ("recurrent_delta", "self_referential")
NO_LIMIT = 1 << 30  # of shared memory: the emulator refuses nothing, the report compares
H100_LIMIT = 227 << 10


class LaunchError(RuntimeError):
    """What a launcher raised."""


@dataclass(frozen=True)
class Problem:
    """An update, forward and backward, and one step of decoding.

    Attributes:
        rule: ``sum`` or ``delta``; or one of :data:`RECURRENT`, with heads of K = V numbers.
        K: key features, after the feature map.
        V: value features.
        nu: of DPFP; 0 without it.
        chunkwise: by the kernels for tensor cores.
        shared_limit: bytes that a block of the GPU may have, which decides how chunks are cut.
    """

    rule: str
    K: int
    V: int
    N: int = 8
    H: int = 16
    T: int = 2048
    dtype: str = "float32"
    map: str = "none"
    nu: int = 0
    sum_norm: bool = False
    attn_norm: str = "none"
    chunkwise: bool = False
    shared_limit: int = H100_LIMIT

    @property
    def operations(self) -> tuple[str, ...]:
        """What there are kernels for."""
        passes = ("forward", "backward")
        return passes if self.rule in RECURRENT else (*passes, "step")

    @property
    def d(self) -> int:
        """Numbers of a raw query or key."""
        return self.K // (2 * self.nu) if self.map == "dpfp" else self.K


class _LaunchProblem(ctypes.Structure):
    """``LaunchProblem`` of the C++ side."""

    _fields_ = [(name, ctypes.c_int64) for name in ("N", "H", "T", "d", "K", "V", "nu")] + [
        (name, ctypes.c_int)
        for name in ("delta", "dtype", "map", "sum_norm", "attn_norm", "chunkwise")
    ]
    _fields_ += [("shared_limit", ctypes.c_int64)]


def sources() -> list[str]:
    """Return the files with kernels, relative to the project."""
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / SOURCES).glob("*.cu"))


class Launchers:
    """The launchers of all ops.

    Args:
        variant: of the emulator, see ``tests/emulation.py``.

    Raises:
        emulation.Unavailable: this machine has no compiler for the emulator.
    """

    def __init__(self, variant: str = "plain") -> None:
        self._emulator = Emulator(build(sources(), variant, host_sources=[ENTRY]))
        self._library = self._emulator.library
        for name in "fwm_launch_causal", "fwm_launch_step", "fwm_launch_recurrent":
            getattr(self._library, name).restype = ctypes.c_char_p
        self._library.fwm_launch_workspace.restype = ctypes.c_int64

    def chunkwise_fits(self, problem: Problem) -> bool:
        """Return whether the kernels for tensor cores take a problem."""
        return bool(self._library.fwm_chunkwise_fits(ctypes.byref(_as_structure(problem))))

    def workspace(self, problem: Problem, operation: str) -> int:
        """Return how many bytes ``forward`` or ``backward`` want to work in."""
        argument = ctypes.byref(_as_structure(problem))
        return 4 * self._library.fwm_launch_workspace(argument, int(operation == "backward"))

    def launches(self, problem: Problem, operation: str) -> list[Launch]:
        """Return what an operation launches: ``forward``, ``backward`` or ``step``.

        Raises:
            LaunchError: the launcher refused the problem.
        """
        self._call(problem, operation, execute=False)
        return self._emulator.launches()

    def traffic(self, problem: Problem, operation: str) -> dict[str, int]:
        """Execute an operation on zeros and count what it asks of global memory.

        Wants the variant ``memory``, and a small problem.

        Returns:
            Bytes of ``load`` and ``store``, in whole sectors of 32.

        Raises:
            LaunchError: the launcher refused the problem, or a kernel failed.
        """
        self._call(problem, operation, execute=True)
        found = {"load": 0, "store": 0}
        for line in self._emulator.memory():
            if line.space == "global":
                found[line.operation] += round(32 * line.requests * line.cost)
        return found

    def _call(self, problem: Problem, operation: str, execute: bool) -> None:
        self._emulator.reset()
        limit = problem.shared_limit if execute else NO_LIMIT
        self._emulator.set(execute=int(execute), shared_limit=limit)
        argument = ctypes.byref(_as_structure(problem))
        backward = int(operation == "backward")
        if problem.rule in RECURRENT:
            rule = RECURRENT.index(problem.rule)
            error = self._library.fwm_launch_recurrent(argument, rule, backward)
        elif operation == "step":
            error = self._library.fwm_launch_step(argument)
        else:
            error = self._library.fwm_launch_causal(argument, backward)
        if error:
            raise LaunchError(f"{operation} of {problem}: {error.decode()}")


def _as_structure(problem: Problem) -> _LaunchProblem:
    numbers = {name: getattr(problem, name) for name in ("N", "H", "T", "d", "K", "V", "nu")}
    return _LaunchProblem(
        **numbers,
        delta=int(problem.rule == "delta"),
        dtype=DTYPES.index(problem.dtype),
        map=MAPS.index(problem.map),
        sum_norm=int(problem.sum_norm),
        attn_norm=ATTN_NORMS.index(problem.attn_norm),
        chunkwise=int(problem.chunkwise),
        shared_limit=problem.shared_limit,
    )


def representative(launchers: Launchers, shared_limit: int) -> Iterator[Problem]:
    """Yield problems that between them launch every kernel, with every kind of shared memory.

    Args:
        launchers: who says what the chunkwise kernels take.
        shared_limit: bytes that a block of the GPU may have.
    """
    for problem in _general():
        yield problem
        chunkwise = replace(problem, chunkwise=True, shared_limit=shared_limit)
        if launchers.chunkwise_fits(chunkwise):
            yield chunkwise
    for rule, d in product(RECURRENT, (8, 16, 32, 64, 128, 256)):
        yield Problem(rule, d, d, shared_limit=shared_limit)


def _general() -> Iterator[Problem]:
    sizes = (16, 32, 64, 128, 256, 512, 1024)
    maps = (("none", 0, False), ("elu", 0, True), ("dpfp", 1, True), ("dpfp", 3, True))
    columns = sorted({(K, V) for K in sizes for V in (K, 64, 128)})
    for rule, (K, V), (name, nu, sum_norm) in product(("sum", "delta"), columns, maps):
        # DPFP makes 2 nu features of each number.
        features = max(K // (2 * nu), 1) * 2 * nu if name == "dpfp" else K
        shape = {"K": features, "V": V, "map": name, "nu": nu, "sum_norm": sum_norm}
        for dtype in "float32", "bfloat16", "float16":
            yield Problem(rule, **shape, dtype=dtype)
        for attn_norm in ("output", "full") if rule == "delta" else ("output",):
            yield Problem(rule, **shape, attn_norm=attn_norm)
