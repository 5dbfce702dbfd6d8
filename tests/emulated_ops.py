"""The CUDA kernels as CPU ops: ``impl="emulated"`` of :mod:`fairseq_fwm.ops`, for tests alone."""

import ctypes
import functools
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths

from emulation import Emulator, build, mutated
from fairseq_fwm.ops import library

KERNELS = sorted(
    path.relative_to(Path(__file__).parent.parent).as_posix()
    for path in (Path(__file__).parent.parent / "kernels/csrc/cuda").glob("*.cu")
)
KERNEL_OPS = [
    op for op in library.SCHEMAS if op.startswith(("causal", "recurrent", "self_referential"))
]
BINDING = ("kernels/csrc/cuda/bindings.cpp", "tests/emulated_ops.cpp")


@functools.cache
def emulated(mutation: tuple[str, str, str] | None = None) -> Emulator:
    """Build the kernels for the emulator, define their ops and return the emulator's controls.

    Args:
        mutation: file, old and new text of :func:`emulation.mutated`, to plant a bug.

    Raises:
        emulation.Unavailable: this machine has no compiler for it.
    """
    torch_lib = Path(torch.__file__).parent / "lib"
    make = (
        functools.partial(mutated, KERNELS, *mutation)
        if mutation
        else functools.partial(build, KERNELS)
    )
    path = make(
        host_sources=BINDING,
        host_flags=["-std=c++20", "-w", "-DFWM_EMULATED"]
        + [f"-isystem{folder}" for folder in include_paths()],
        link=[f"-L{torch_lib}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch_lib}"],
    )
    emulated.library = library.register(library.EMULATED, lambda op, device: op in KERNEL_OPS)
    controls = Emulator(path)
    controls.library.fwm_register_emulated_ops.restype = ctypes.c_char_p
    error = controls.library.fwm_register_emulated_ops()
    if error:
        raise RuntimeError(error.decode())
    return controls
