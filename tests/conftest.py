"""Set-up that all tests share."""

import os

# Before torch is imported: parallel tests share few cores, and one thread gives one result.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

# No deadline: a loaded machine is no failure. CI draws the same examples in every run.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same random numbers."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder with real data beside the project; skip where it is missing."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data: {folder} is not there")
    return folder


@pytest.fixture(scope="module")
def cuda_kernels():
    """Make the CUDA kernels' ops: see cuda_impl."""
    from cuda_impl import kernels

    with kernels() as controls:
        yield controls


@pytest.fixture
def controls(cuda_kernels):
    """Return the emulator's controls, as they are at first; None on a GPU."""
    if cuda_kernels is not None:
        cuda_kernels.reset()
    return cuda_kernels


Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="session")
def run() -> Run:
    """Return a function that runs Python with arguments and returns the finished process.

    It fails the test unless the process leaves with ``status``; ``env`` adds to the environment.
    """

    def run_python(
        *arguments: object, status: int = 0, cwd: Path = ROOT, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess:
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=cwd,
            env=os.environ | (env or {}),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
        return done

    return run_python
