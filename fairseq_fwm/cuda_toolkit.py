"""Find the CUDA toolkit, without torch: for setup.py, which runs this file, doctor and scripts."""

import os
import re
import shutil
import subprocess
from pathlib import Path

USUAL = "/usr/local/cuda"


class NoToolkit(Exception):
    """What is missing, and the cure."""


def cuda_home() -> Path:
    """Return the folder of a toolkit that can compile: what CUDA_HOME should be.

    Looks where ``torch.utils.cpp_extension`` does: CUDA_HOME, CUDA_PATH, the nvcc on the PATH,
    /usr/local/cuda. But torch takes the folder above an nvcc's, and an nvcc on the PATH may be a
    wrapper or a link; so nvcc itself is asked where it belongs.

    Raises:
        NoToolkit: there is no nvcc, or CUDA_HOME is a folder without one or without its headers.
    """
    for variable in "CUDA_HOME", "CUDA_PATH":
        if folder := os.environ.get(variable):
            return _checked(Path(folder), f"{variable}={folder}")
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=f"{USUAL}/bin")
    if nvcc is None:
        raise NoToolkit("no nvcc: install the CUDA toolkit and set CUDA_HOME to its folder")
    return _checked(_where_it_belongs(nvcc), nvcc)


def cuda_release(home: Path) -> str:
    """Return the toolkit's version, such as ``13.0``.

    Raises:
        NoToolkit: its nvcc does not run.
    """
    said = _run(str(home / "bin" / "nvcc"), "--version")
    if found := re.search(r"release (\d+\.\d+)", said):
        return found[1]
    raise NoToolkit(f"{home / 'bin' / 'nvcc'} --version names no release")


def headers(home: Path) -> Path | None:
    """Return the folder of ``cuda_runtime.h``; None if there is none."""
    folders = (home / "include", *sorted(home.glob("targets/*/include")))
    return next((folder for folder in folders if (folder / "cuda_runtime.h").is_file()), None)


def _checked(home: Path, asked: str) -> Path:
    nvcc = home / "bin" / "nvcc"
    if not nvcc.is_file():
        raise NoToolkit(f"{asked} has no bin/nvcc: set CUDA_HOME to a CUDA toolkit's folder")
    if headers(home) is None:
        real = _where_it_belongs(str(nvcc))
        cure = (
            f"its nvcc belongs to {real}: export CUDA_HOME={real}"
            if real != home.resolve() and headers(real)
            else "install the toolkit's headers, or set CUDA_HOME to one that has them"
        )
        raise NoToolkit(f"{asked} has no include/cuda_runtime.h: {cure}")
    return home


def _where_it_belongs(nvcc: str) -> Path:
    # No file is compiled, nor need it exist.
    said = _run(nvcc, "--dryrun", "-c", "nothing.cu")
    if found := re.search(r"^#\$ TOP=(.+)$", said, re.MULTILINE):
        return Path(found[1].strip()).resolve()
    return Path(nvcc).resolve().parent.parent


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoToolkit(f"{command[0]} does not run ({error}): reinstall the toolkit") from error
    return done.stdout + done.stderr
