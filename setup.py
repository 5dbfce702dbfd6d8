"""Build the compiled kernels where this machine can; install pure Python elsewhere.

Metadata is in ``pyproject.toml``.  This file only decides about the extension ``fairseq_fwm._C``,
from the switch ``FWM_BUILD``:

    auto   (default) CPU kernels if sources, torch and a C++ compiler are there, also CUDA kernels
           if torch is a CUDA build and nvcc is there; otherwise less, saying why
    0      pure Python
    cpu    CPU kernels, or stop with the reason
    cuda   CPU and CUDA kernels, or stop with the reason; FORCE_CUDA=1 means the same

A GPU is not needed. ``torch.utils.cpp_extension`` honours MAX_JOBS, CXX, CUDA_HOME and
TORCH_CUDA_ARCH_LIST (default here: DEFAULT_ARCHS).
"""

import os
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from setuptools import setup

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "kernels" / "csrc"
CHOICES = ("auto", "0", "cpu", "cuda")
DEFAULT_ARCHS = "8.0;8.6;9.0;10.0;12.0+PTX"
OPENMP = ["-fopenmp"] if sys.platform == "linux" else []
PTX = re.compile(r"(\d+)\.(\d)\w?\+PTX")  # of TORCH_CUDA_ARCH_LIST


class CannotBuild(Exception):
    """Why this machine cannot build what was asked for, and the cure."""


def sources(cuda: bool) -> list[str]:
    """Return the kernel sources, relative to this file as setuptools wants them."""
    folders = ("", "cpu", "cuda") if cuda else ("", "cpu")
    found = (path for folder in folders for path in (CSRC / folder).glob("*.c[pu]*"))
    return sorted(path.relative_to(ROOT).as_posix() for path in found if path.suffix != ".cuh")


def check_tools() -> None:
    """Raise :class:`CannotBuild` unless sources, torch and the compilers are there."""
    if not sources(cuda=False):
        raise CannotBuild("there are no C++ sources under kernels/csrc")
    try:
        from torch.utils import cpp_extension
    except ImportError as error:
        raise CannotBuild(
            f"torch cannot be imported here ({error}): install torch first and pass "
            "--no-build-isolation to pip"
        ) from error
    compiler = cpp_extension.get_cxx_compiler()
    if shutil.which(shlex.split(compiler)[0]) is None:
        raise CannotBuild(f"no C++ compiler '{compiler}': install g++ or clang, or set CXX")


def check_cuda() -> None:
    """Raise :class:`CannotBuild` unless torch is a CUDA build and the toolkit is there."""
    import torch
    from torch.utils import cpp_extension

    if torch.version.cuda is None:
        raise CannotBuild(f"torch {torch.__version__} has no CUDA: install a CUDA build of torch")
    # Not imported: that would import the package, and what it needs.
    toolkit = runpy.run_path(str(ROOT / "fairseq_fwm" / "cuda_toolkit.py"))
    try:
        home = str(toolkit["cuda_home"]())
    except toolkit["NoToolkit"] as problem:
        raise CannotBuild(f"{problem} (torch is built for CUDA {torch.version.cuda})") from problem
    # Where nvcc is a wrapper, torch has guessed a folder without headers.
    cpp_extension.CUDA_HOME = os.environ["CUDA_HOME"] = home


def builds_cuda() -> bool:
    """Return whether CUDA kernels can be built here; say why if a CUDA torch cannot have them."""
    try:
        check_cuda()
    except CannotBuild as reason:
        import torch

        if torch.version.cuda is not None:
            print(f"fairseq_fwm: no CUDA kernels, {reason}.", file=sys.stderr)
        return False
    return True


def cxx_flags() -> list[str]:
    """Return the flags of the C++ files."""
    # Python's own flags ask for debugging information: a third of the compiler's time.
    debug = [] if "-g" in shlex.split(os.environ.get("CFLAGS", "")) else ["-g0"]
    return ["-O3", *debug, *OPENMP]


def nvcc_flags() -> list[str]:
    """Return the flags of the ``.cu`` files, which know nothing of torch."""
    archs = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    ptx = [int(major) * 100 + int(minor) * 10 for major, minor in PTX.findall(archs)]
    told = [f"-DFWM_CUDA_PTX={','.join(map(str, ptx))}"] if ptx else []
    return ["-std=c++17", "-O3", "-lineinfo", *told]


def extension(cuda: bool) -> Any:
    """Describe ``fairseq_fwm._C``: limited Python ABI, so that one build serves every Python."""
    from torch.utils import cpp_extension

    make = cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension
    return make(
        "fairseq_fwm._C",
        sources(cuda),
        include_dirs=[str(CSRC)],
        define_macros=[("FWM_WITH_CUDA", None)] if cuda else [],
        extra_compile_args={"cxx": cxx_flags(), "nvcc": nvcc_flags()},
        extra_link_args=OPENMP,
        py_limited_api=True,
    )


def arguments() -> dict[str, Any]:
    """Return what ``setup()`` needs beyond ``pyproject.toml``."""
    choice = os.environ.get("FWM_BUILD", "auto")
    if choice not in CHOICES:
        raise SystemExit(f"FWM_BUILD={choice}: choose one of {', '.join(CHOICES)}")
    if choice == "0":
        print("fairseq_fwm: kernels not built (FWM_BUILD=0).", file=sys.stderr)
        return {}
    asked = f"FWM_BUILD={choice}"
    if choice == "auto" and os.environ.get("FORCE_CUDA") == "1":
        choice, asked = "cuda", "FORCE_CUDA=1"
    try:
        check_tools()
        if choice == "cuda":
            check_cuda()
    except CannotBuild as reason:
        if choice != "auto":
            raise SystemExit(f"{asked}, but {reason}.") from reason
        print(f"fairseq_fwm: kernels not built, {reason}.", file=sys.stderr)
        return {}
    cuda = choice != "cpu" and builds_cuda()
    from torch.utils.cpp_extension import BuildExtension

    if cuda:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHS)
    what = "CPU kernels"
    if cuda:
        archs, home = os.environ["TORCH_CUDA_ARCH_LIST"], os.environ["CUDA_HOME"]
        what = f"CPU and CUDA kernels, for {archs} with {home}"
    print(f"fairseq_fwm: building {what}.", file=sys.stderr)
    return {
        "ext_modules": [extension(cuda)],
        "cmdclass": {"build_ext": BuildExtension},
        "options": {"bdist_wheel": {"py_limited_api": "cp311"}},
    }


if __name__ == "__main__":
    setup(**arguments())
