"""Tell why a GPU that is here runs no compiled kernel, and what to do about it."""

from collections.abc import Sequence
from pathlib import Path

import torch

from fairseq_fwm.cuda_toolkit import NoToolkit, cuda_home, cuda_release
from fairseq_fwm.ops.gpu import gpu, number, serves

OLDEST = (8, 0)  # asynchronous copies and the formats of the tensor cores
DRIVER = Path("/proc/driver/nvidia/version")


def missing(archs: Sequence[str], build: str) -> tuple[str, str] | None:
    """Say why a GPU that is here runs no compiled kernel, and the cure; None if nothing is wrong.

    Args:
        archs: what the kernels are compiled for; empty if there are none.
        build: the command that compiles them.
    """
    here = gpu()
    if here is None:
        if torch.version.cuda is None and DRIVER.exists():
            return (
                f"torch {torch.__version__} has no CUDA, though this machine has an NVIDIA GPU",
                f"install a CUDA build of torch (docs/install.md), then {build}",
            )
        return None
    if here.capability < OLDEST:
        return (
            f"the CUDA kernels need compute capability {number(OLDEST)}, this GPU is {here}",
            "nothing to do: impl='chunked' runs on it",
        )
    if not archs:
        return "the extension was built without CUDA kernels", _cure(build)
    if not serves(archs, here.capability):
        return (
            f"the CUDA kernels are compiled for {' '.join(archs)}, this GPU is {here}",
            _cure(f"TORCH_CUDA_ARCH_LIST={number(here.capability)} {build}"),
        )
    return None


def _cure(build: str) -> str:
    """Return what makes CUDA kernels here: what is missing for it first."""
    try:
        release = cuda_release(cuda_home())
    except NoToolkit as problem:
        return f"{problem}; then {build}"
    wanted = torch.version.cuda
    if wanted and release.split(".")[0] != wanted.split(".")[0]:
        return (
            f"nvcc is of CUDA {release}, torch of {wanted}: set CUDA_HOME to a toolkit of "
            f"{wanted}; then {build}"
        )
    return build
