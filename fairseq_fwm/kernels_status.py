"""Tell which implementation of the ops runs on this machine, and why."""

from pathlib import Path
from typing import Any

import torch

from fairseq_fwm import cuda_status
from fairseq_fwm.ops import library
from fairseq_fwm.ops.gpu import gpu

OPS = tuple(
    op for op in library.SCHEMAS if not op.endswith("_bwd") and "()" not in library.SCHEMAS[op]
)

__all__ = ["kernels_status"]


def kernels_status() -> dict[str, Any]:
    """Say whether compiled kernels are there, which ops they serve, and the cure if they are not.

    Returns:
        ``extension``: whether ``fairseq_fwm._C`` is there and loads; ``cpu_isa``: the instruction
        set of its CPU kernels; ``cuda_archs``: the compute capabilities of its CUDA kernels, such
        as ``["8.0", "9.0+PTX"]``; ``kernels``: for each op the dispatch keys that have a kernel
        (``CPU`` and ``CUDA`` are compiled, ``CompositeExplicitAutograd`` is the PyTorch form);
        ``reason``: why compiled kernels are missing on the CPU or on the GPU that is here, and
        ``cure``: the command that builds them (both None if they run).
    """
    problem = library.EXTENSION_PROBLEM
    kernels = {f"fwm::{op}": library.dispatch_keys(op) for op in OPS}
    if problem is not None:  # a module that failed half-way may have left some behind, unused
        kernels = {op: keys[-1:] for op, keys in kernels.items()}
    archs = library.cuda_archs()
    missing = [op for op, keys in kernels.items() if "CPU" not in keys]
    if problem is None and missing:
        problem = f"no compiled {', '.join(missing)} on CPU"
    if problem is not None:
        cure = _cure("cuda" if gpu() else "cpu")
    else:
        problem, cure = cuda_status.missing(archs, _cure("cuda")) or (None, None)
    return {
        "extension": library.EXTENSION_PROBLEM is None,
        "cpu_isa": torch.ops.fwm.cpu_isa() if library.EXTENSION_PROBLEM is None else None,
        "cuda_archs": archs,
        "kernels": kernels,
        "reason": problem,
        "cure": cure,
    }


def _cure(build: str) -> str:
    root = Path(__file__).resolve().parent.parent
    if not (root / "setup.py").is_file():
        return (
            "install from a checkout with its kernel sources: "
            f"FWM_BUILD={build} pip install --no-build-isolation ."
        )
    if not any((root / "kernels" / "csrc").rglob("*.cpp")):
        return "nothing to do: this version has no kernel sources, the chunked PyTorch form runs"
    return f"FWM_BUILD={build} pip install -v --no-build-isolation -e {root}"
