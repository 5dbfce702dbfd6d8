"""Tell which GPUs the CUDA kernels are compiled for, and what is missing where none serve."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from fairseq_fwm.cuda_toolkit import NoToolkit, cuda_home, cuda_release

OLDEST = (8, 0)  # asynchronous copies and the formats of the tensor cores
DRIVER = Path("/proc/driver/nvidia/version")


class GPU(NamedTuple):
    """The current GPU: its name and compute capability."""

    name: str
    capability: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.name}, {number(self.capability)}"


def number(capability: tuple[int, int]) -> str:
    """Write a compute capability as in TORCH_CUDA_ARCH_LIST."""
    return ".".join(map(str, capability))


def gpu() -> GPU | None:
    """Return the GPU that torch uses; None if there is none."""
    if not torch.cuda.is_available():
        return None
    return GPU(torch.cuda.get_device_name(), torch.cuda.get_device_capability())


def serves(archs: Sequence[str], capability: tuple[int, int]) -> bool:
    """Return whether code for ``archs`` runs on a GPU.

    Machine code serves its own major version from its minor one on; PTX is compiled when it is
    loaded, for its own and every later version.

    Args:
        archs: such as ``8.0`` or ``9.0+PTX``.
        capability: the GPU's major and minor version.
    """
    for arch in archs:
        version, _, ptx = arch.partition("+")
        major, minor = map(int, version.split("."))
        same = major == capability[0] and minor <= capability[1]
        if same or (ptx and (major, minor) <= capability):
            return True
    return False


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
