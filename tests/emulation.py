"""Compile CUDA kernels for the emulator (tests/emulator) and run them on the CPU.

A *variant* is one way to compile the same source, for one kind of mistake:

    plain    fast; wrong numbers, barriers and shuffles that do not fit together
    race     accesses of two threads without a barrier between them
    address  AddressSanitizer and UndefinedBehaviorSanitizer: bounds, misaligned vectors
    memory   bank conflicts and sectors per request, by line

What was compiled is kept under ``build/emulator`` by a hash of everything it depends on, so that
an unchanged source is compiled once, whichever test or process asks first.
"""

import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "build" / "emulator"
KEEP_DAYS = 7
# What a mutated copy consists of, and where #include "..." looks.
TREES = ("kernels/csrc", "tests/emulator")
COMMON = (
    *("-std=c++17", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas"),
    # addr2line 2.40 takes some lines of headers for lines of the source, if told by DWARF 5.
    *("-g1", "-gdwarf-4"),
    # Two libraries in one process must not share the emulator's variables.
    "-fno-gnu-unique",
    *(f"-I{tree}" for tree in TREES),
)
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


class Unavailable(RuntimeError):
    """Why this machine cannot run the emulator; tests skip with it."""


class CompileError(RuntimeError):
    """The compiler's messages."""


@dataclass(frozen=True)
class Variant:
    """How kernels and the emulator are compiled and linked.

    ``observer`` is the source that receives what the kernels' instrumentation reports.
    """

    kernel: tuple[str, ...]
    emulator: tuple[str, ...]
    observer: tuple[str, ...] = ()
    link: tuple[str, ...] = ()


# -fsanitize=thread when compiling alone: it inserts calls, which the observer answers. At -O1
# there is one access per access of the source; -O2 would join some into vectors.
TRACED = ("-O1", "-fsanitize=thread")
SANITIZERS = "-fsanitize=address,undefined"
VARIANTS = {
    "plain": Variant(("-O2",), ("-O3",)),
    "race": Variant(TRACED, ("-O3",), ("tests/emulator/race.cpp",), ("-ldl",)),
    "address": Variant(
        ("-O1", SANITIZERS, "-fno-sanitize-recover=all"),
        # No red zones in frames that are left by a switch of stacks and never return.
        ("-O1", "-fsanitize=address", "--param=asan-stack=0"),
        link=(SANITIZERS,),
    ),
    "memory": Variant(TRACED, ("-O3",), ("tests/emulator/memory.cpp",), ("-ldl",)),
}
HOST = ("-O1",)


@functools.cache
def compiler() -> str:
    """Return g++ (or ``CXX``) and its version's first line.

    Raises:
        Unavailable: there is none here, or the system is not Linux.
    """
    name = os.environ.get("CXX", "g++")
    if platform.system() != "Linux":
        raise Unavailable(f"the emulator needs Linux, this is {platform.system()}")
    if shutil.which(name) is None:
        raise Unavailable(f"no C++ compiler {name}: install g++, or set CXX")
    version = subprocess.run([name, "--version"], capture_output=True, text=True).stdout
    if "Free Software Foundation" not in version:
        raise Unavailable(f"the emulator needs GNU C++, {name} is {version.splitlines()[0]}")
    return f"{name}\n{version.splitlines()[0]}"


def build(
    sources: Sequence[str],
    variant: str = "plain",
    *,
    program: bool = False,
    host_sources: Sequence[str] = (),
    flags: Sequence[str] = (),
    host_flags: Sequence[str] = (),
    link: Sequence[str] = (),
    root: Path = ROOT,
) -> Path:
    """Compile kernels for the emulator and return the shared library or the program.

    Args:
        sources: Files with kernels, relative to ``root``: C++ or ``.cu``, without launches by
            ``<<<>>>``. They are instrumented as the variant asks.
        variant: A key of :data:`VARIANTS`.
        program: Link a program (one source has ``main``) and no shared library.
        host_sources: Files without kernels, which are not instrumented, such as a torch binding.
        flags: Further flags of ``sources``.
        host_flags: Further flags of ``host_sources``. Headers outside the project are not looked
            at: name a library's version by a define.
        link: Further arguments of the linker, libraries for instance.
        root: The project's folder, or a copy of :data:`TREES`.

    Raises:
        Unavailable: there is no g++, or it has no sanitizers.
        CompileError: the compiler refused.
    """
    how = VARIANTS[variant]
    runtime = ("tests/emulator/runtime.cpp", *how.observer)
    objects = [
        *(_object(source, how.emulator, root) for source in runtime),
        *(_object(source, (*how.kernel, *flags), root) for source in sources),
        *(_object(source, (*HOST, *host_flags), root) for source in host_sources),
    ]
    # -Bsymbolic: a library uses its own emulator, whatever else the process has loaded.
    kind = ["-pie"] if program else ["-shared", "-Wl,-Bsymbolic"]
    arguments = [*kind, *map(str, objects), *how.link, *link]
    name = Path(sources[0]).stem + ("" if program else ".so")
    return kept(
        name,
        "\n".join([compiler(), *arguments]),
        lambda out: _compile([*arguments, "-o", out], root),
    )


def mutated(
    sources: Sequence[str], file: str, old: str, new: str, variant: str = "plain", **options
) -> Path:
    """Do as :func:`build`, with one replacement in one file: plants a bug without any macro.

    Args:
        sources: As in :func:`build`; host sources and options too.
        file: The file to change, relative to the project, in one of :data:`TREES`.
        old: Text that occurs in it exactly once.
        new: What stands there instead.
        variant: A key of :data:`VARIANTS`.
        options: Keyword arguments of :func:`build`.

    Raises:
        ValueError: ``old`` does not occur exactly once.
    """
    text = (ROOT / file).read_text()
    if text.count(old) != 1:
        raise ValueError(f"{file} has {text.count(old)} times, not once: {old!r}")
    with tempfile.TemporaryDirectory(prefix="fwm-mutated-") as folder:
        copy = Path(folder)
        for tree in TREES:
            shutil.copytree(ROOT / tree, copy / tree)
        for source in (*sources, *options.get("host_sources", ())):
            (copy / source).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, copy / source)
        (copy / file).write_text(text.replace(old, new))
        return build(sources, variant, root=copy, **options)


def _object(source: str, flags: Sequence[str], root: Path) -> Path:
    """Compile one file."""
    arguments = [*COMMON, *flags, "-x", "c++", "-c", source]
    contents = [f"{path}\n{text}" for path, text in sorted(closure(source, root).items())]
    return kept(
        f"{Path(source).stem}.o",
        "\n".join([compiler(), *arguments, *contents]),
        lambda out: _compile([*arguments, "-o", out], root),
    )


def closure(source: str, root: Path = ROOT) -> dict[str, str]:
    """Return a file and the project's files that it includes, with their contents.

    Every candidate for an ``#include "..."`` counts: that can only compile once too often.
    """
    texts: dict[str, str] = {}
    todo = [source]
    while todo:
        path = todo.pop()
        if path in texts:
            continue
        texts[path] = (root / path).read_text()
        for name in INCLUDE.findall(texts[path]):
            folders = (os.path.dirname(path), *TREES)
            found = {os.path.normpath(os.path.join(folder, name)) for folder in folders}
            todo += [candidate for candidate in found if (root / candidate).is_file()]
    return texts


def kept(name: str, depends_on: str, make: Callable[[str], None]) -> Path:
    """Return the file that is kept for what it depends on; let ``make`` make it if there is none.

    Args:
        name: The file's name.
        depends_on: Everything that another file would be made from: commands, sources, versions.
        make: Writes the file to the path that it is given.
    """
    key = hashlib.sha256(f"{name}\n{depends_on}".encode()).hexdigest()[:20]
    file = KEPT / key / name
    if not file.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        with _locked(KEPT / f"{key}.lock"):
            if not file.exists():
                _forget_old()
                file.parent.mkdir(exist_ok=True)
                make(str(file.with_suffix(".new")))
                file.with_suffix(".new").rename(file)
    os.utime(file.parent)
    return file


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _forget_old() -> None:
    """Remove what nothing has used for :data:`KEEP_DAYS`."""
    oldest = time.time() - KEEP_DAYS * 24 * 3600
    for path in KEPT.iterdir():
        if path.stat().st_mtime < oldest:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _compile(arguments: Sequence[str], root: Path) -> None:
    command = [compiler().splitlines()[0], *arguments]
    # A preloaded sanitizer is for the tests, not for the compiler.
    env = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=env)
    if re.search(r"cannot find (-l|\S*lib)[au]san", done.stderr):
        raise Unavailable(f"{command[0]} has no sanitizers: install libasan and libubsan")
    if done.returncode:
        raise CompileError(f"{' '.join(command)}\n{done.stderr}")


@dataclass(frozen=True)
class Barrier:
    """A ``__syncthreads`` or ``__syncwarp`` that ran, or was skipped, ``count`` times."""

    kind: str
    file: str
    line: int
    count: int
    skipped: bool = False

    @property
    def place(self) -> str:
        """``FILE:LINE``, as the option ``skip`` takes it."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Line:
    """How one line of a kernel uses memory (variant ``memory``).

    ``cost`` is what a warp's request takes on average and ``worst`` at most: for shared memory how
    many times as long as without bank conflicts (1: none), for global memory sectors of 32 bytes.
    """

    file: str
    line: int
    space: str
    operation: str
    requests: int
    lanes: float
    bytes: float
    cost: float
    worst: int


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel, by its mangled name; ``shared`` are bytes of dynamic memory."""

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    shared: int


class Emulator:
    """The controls of a library that :func:`build` made, through ctypes.

    Attributes:
        library: The :class:`ctypes.CDLL`, for functions of one's own.
    """

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.fwm_emulator_set.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
        self.library.fwm_emulator_finding_count.restype = ctypes.c_size_t
        for name in "set", "barriers", "launches", "report":
            getattr(self.library, f"fwm_emulator_{name}").restype = ctypes.c_char_p

    def reset(self) -> None:
        """Forget options, counts and findings."""
        self.library.fwm_emulator_reset()

    def set(self, **options: object) -> None:
        """Set options: ``order``, ``seed``, ``shared_limit``, ``fill_shared``, ``execute``,
        ``skip``.

        Raises:
            ValueError: there is no such option, or not with this value.
        """
        for name, value in options.items():
            error = self.library.fwm_emulator_set(name.encode(), str(value).encode()).decode()
            if error:
                raise ValueError(error)

    def barriers(self) -> list[Barrier]:
        """Return the barriers that ran since the last reset."""
        found = []
        for text in self.library.fwm_emulator_barriers().decode().splitlines():
            *skipped, kind, place, count = text.split()
            file, line = place.rsplit(":", 1)
            found.append(Barrier(kind, file, int(line), int(count), bool(skipped)))
        return found

    def launches(self) -> list[Launch]:
        """Return the launches since the last reset, in order."""
        found = []
        for text in self.library.fwm_emulator_launches().decode().splitlines():
            *sizes, kernel = text.split(maxsplit=5)
            x, y, z, threads, shared = map(int, sizes)
            found.append(Launch(kernel, (x, y, z), threads, shared))
        return found

    def races(self) -> tuple[int, list[str]]:
        """Return how many races there were, and a text for each pair of places (``race``)."""
        report = self.library.fwm_emulator_report().decode()
        return self.library.fwm_emulator_finding_count(), report.splitlines()

    def memory(self) -> list[Line]:
        """Return how every line uses memory (variant ``memory``)."""
        return [
            parse_line(text) for text in self.library.fwm_emulator_report().decode().splitlines()
        ]


def parse_line(text: str) -> Line:
    """Parse a line of the memory report: ``FILE:LINE SPACE OPERATION REQUESTS LANES ...``."""
    place, space, operation, *numbers = text.split()
    file, line = place.rsplit(":", 1)
    requests, lanes, width, cost, worst = numbers
    return Line(
        *(file, int(line), space, operation, int(requests)),
        *(float(lanes), float(width), float(cost), int(worst)),
    )


def sanitizer_environment() -> dict[str, str]:
    """Return variables with which Python can load a library of the variant ``address``.

    A program of that variant needs none of them.
    """
    name = compiler().splitlines()[0]
    asan = subprocess.run([name, "-print-file-name=libasan.so"], capture_output=True, text=True)
    return {"LD_PRELOAD": asan.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
