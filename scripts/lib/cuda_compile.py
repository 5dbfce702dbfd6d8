"""Compile the CUDA kernels with nvcc alone and read what the compiler says about them.

No torch, no GPU. What was compiled is kept by a hash of everything it depends on, because a file
takes up to half a minute for one architecture.
"""

import json
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from emulation import closure, kept  # noqa: E402

# By itself: the package would import torch, and fairseq if it is there.
_toolkit = runpy.run_path(str(ROOT / "fairseq_fwm" / "cuda_toolkit.py"))
NoToolkit, cuda_home, headers = (_toolkit[name] for name in ("NoToolkit", "cuda_home", "headers"))

# What setup.py gives nvcc.
FLAGS = ("-std=c++17", "-O3", "-lineinfo")
FORMAT = 4  # of what is kept
ENTRY = re.compile(r"Compiling entry function '(\S+)' for")
USED = re.compile(r"Used (\d+) registers")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
STATIC = re.compile(r"(\d+) bytes smem")
PTX_ENTRY = re.compile(r"\.entry\s+([\w$]+)")
PTX_PRODUCT = re.compile(r"\b(?:(?:wmma\.)?mma|wgmma\.mma_async)\.sync\.[\w.:]+")
SASS_FUNCTION = re.compile(r"^\s*Function : (\S+)")
SASS_OPCODE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
SASS_PRODUCTS = ("HMMA", "HGMMA", "UTCHMMA", "UTCQMMA")
# nvcc and the emulator shall call a kernel by one name.
SHORTER = {
    "(anonymous namespace)::": "",
    "fwm::gpu::": "",
    "fwm::emulator::": "",
    "fwm::": "",
    "__nv_bfloat16": "Bf16",
    "__half": "Half",
}
# Of the other instructions, those that a reader of the report asks for.
TOLD = ("LDL", "STL", "LDS", "STS", "LDG", "STG", "LDGSTS", "SHFL", "BAR", "FFMA", "FMUL", "MUFU")


class CompileError(RuntimeError):
    """The compiler's messages."""


@dataclass
class Kernel:
    """What is known of one kernel on one architecture.

    Attributes:
        symbol: mangled name.
        name: readable one, with template arguments.
        spills: bytes stored and loaded because registers did not do, here and in what is called.
        stack: bytes of a thread's own memory, of both.
        shared: bytes of static shared memory.
        products: instructions for tensor cores, by kind.
        products_from: ``SASS``, or ``PTX`` where no cuobjdump is there.
        opcodes: how many of the SASS instructions TOLD; empty without cuobjdump.
    """

    symbol: str
    name: str
    source: str
    arch: str
    registers: int = 0
    spills: int = 0
    stack: int = 0
    shared: int = 0
    products: dict[str, int] = field(default_factory=dict)
    products_from: str = "PTX"
    opcodes: dict[str, int] = field(default_factory=dict)


@cache
def nvcc() -> str:
    """Return the path of nvcc.

    Raises:
        NoToolkit: there is none.
    """
    return str(cuda_home() / "bin" / "nvcc")


@cache
def nvcc_version() -> str:
    """Return nvcc's version in its own words, without its build's date."""
    said = _run([nvcc(), "--version"])
    return " ".join(re.findall(r"release.*|^Build .*", said, re.MULTILINE))


@cache
def cuobjdump() -> str | None:
    """Return the path of cuobjdump, or None: in the toolkit, on the PATH or from a pip package."""
    packages = (Path(path) / "nvidia" for path in sys.path if path)
    folders = [cuda_home() / "bin", *(bin for path in packages for bin in path.glob("cu*/bin"))]
    for folder in map(str, folders):
        if found := shutil.which("cuobjdump", path=folder):
            return found
    return shutil.which("cuobjdump")


def compiled(source: str, arch: str) -> list[Kernel]:
    """Compile a file for one architecture, unless that is kept, and return its kernels.

    Args:
        source: a ``.cu`` file, relative to the project.
        arch: such as ``8.0``.

    Raises:
        NoToolkit: there is no nvcc.
        CompileError: the compiler refused.
    """
    texts = [f"{path}\n{text}" for path, text in sorted(closure(source).items())]
    tools = [nvcc_version(), f"SASS: {bool(cuobjdump())}", *FLAGS, arch, source, str(FORMAT)]

    def make(path: str) -> None:
        found = [asdict(kernel) for kernel in _compile(source, arch)]
        Path(path).write_text(json.dumps(found))

    name = f"{Path(source).stem}.sm_{arch.replace('.', '')}.json"
    rows = json.loads(kept(name, "\n".join(tools + texts), make).read_text())
    return [Kernel(**row) for row in rows]


def _compile(source: str, arch: str) -> Iterator[Kernel]:
    number = arch.replace(".", "")
    with tempfile.TemporaryDirectory(prefix="fwm-cuda-") as folder:
        ptx, cubin = Path(folder) / "kernels.ptx", Path(folder) / "kernels.cubin"
        _run([nvcc(), *FLAGS, f"-arch=compute_{number}", "-ptx", source, "-o", str(ptx)])
        options = ["-O3", "-lineinfo", f"-arch=sm_{number}", "-Xptxas", "-v"]
        log = _run([nvcc(), *options, "-cubin", str(ptx), "-o", str(cubin)])
        products = _ptx_products(ptx.read_text())
        opcodes = _sass_opcodes(str(cubin))
    kernels = list(_parse_log(log))
    for kernel, name in zip(kernels, readable([kernel.symbol for kernel in kernels]), strict=True):
        kernel.name, kernel.source, kernel.arch = name, Path(source).name, arch
        kernel.products = dict(products.get(kernel.symbol, {}))
        if opcodes:
            kernel.products_from = "SASS"
            kernel.products, kernel.opcodes = _told(opcodes[kernel.symbol])
        yield kernel


def _told(opcodes: Counter) -> tuple[dict[str, int], dict[str, int]]:
    """Return the instructions for tensor cores in full, and the others of TOLD without suffix."""
    products = {name: n for name, n in opcodes.items() if name.startswith(SASS_PRODUCTS)}
    others: Counter = Counter()
    for name, n in opcodes.items():
        others[name.split(".")[0]] += n
    return products, {name: others[name] for name in TOLD if others[name]}


def _parse_log(log: str) -> Iterator[Kernel]:
    """Yield a kernel for every entry function that ptxas speaks of."""
    for part in re.split(r"(?=Compiling entry function)", log):
        if not (entry := ENTRY.search(part)):
            continue
        kernel = Kernel(entry[1], "", "", "")
        # The kernel's own line and those of the functions that it calls.
        stacks = [tuple(map(int, found)) for found in STACK.findall(part)]
        if not (used := USED.search(part)) or not stacks:
            raise CompileError(f"ptxas -v says something else than expected:\n{part}")
        kernel.registers = int(used[1])
        kernel.stack = sum(stack for stack, _, _ in stacks)
        kernel.spills = sum(stores + loads for _, stores, loads in stacks)
        kernel.shared = int(static[1]) if (static := STATIC.search(part)) else 0
        yield kernel


def _ptx_products(ptx: str) -> dict[str, Counter]:
    found: dict[str, Counter] = {}
    symbol = ""
    for line in ptx.splitlines():
        if entry := PTX_ENTRY.search(line):
            symbol = entry[1]
        elif product := PTX_PRODUCT.search(line):
            found.setdefault(symbol, Counter())[product[0]] += 1
    return found


def _sass_opcodes(cubin: str) -> dict[str, Counter]:
    if (tool := cuobjdump()) is None:
        return {}
    found: dict[str, Counter] = {}
    symbol = ""
    for line in _run([tool, "-sass", cubin]).splitlines():
        if function := SASS_FUNCTION.search(line):
            symbol = function[1]
            found[symbol] = Counter()
        elif opcode := SASS_OPCODE.search(line):
            found[symbol][opcode[1]] += 1
    return found


def readable(symbols: list[str]) -> list[str]:
    """Return names without namespaces, parameters and return types, with template arguments."""
    if not symbols or shutil.which("c++filt") is None:
        return symbols
    names = _run(["c++filt", *symbols]).splitlines()
    return [_short(name) for name in names]


def _short(name: str) -> str:
    for long, short in SHORTER.items():
        name = name.replace(long, short)
    name = name.removeprefix("void ")
    depth = 0
    for at, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:at]
    return name


def _run(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise CompileError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr
