"""Which GPU is here, and whether what the CUDA kernels are compiled for runs on it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch


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


def not_served(archs: Sequence[str]) -> GPU | None:
    """Return the GPU that is here if code for ``archs`` does not run on it."""
    here = gpu()
    return here if here is not None and not serves(archs, here.capability) else None
