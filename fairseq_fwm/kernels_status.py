"""Tell which implementation of the ops runs on this machine, and why."""

from pathlib import Path
from typing import Any

import torch

from fairseq_fwm.ops import library

OPS = tuple(op for op in library.SCHEMAS if not op.endswith("_bwd") and op != "cpu_isa")


def kernels_status() -> dict[str, Any]:
    """Say whether compiled kernels are there, which ops they serve, and the cure if they are not.

    Returns:
        ``extension``: whether ``fairseq_fwm._C`` is there and loads; ``cpu_isa``: the instruction
        set of its CPU kernels; ``kernels``: for each op the dispatch keys that have a kernel
        (``CPU`` and ``CUDA`` are compiled, ``CompositeExplicitAutograd`` is the PyTorch form);
        ``reason``: why compiled kernels are missing, and ``cure``: the command that builds them
        (both None if they run).
    """
    problem = library.EXTENSION_PROBLEM
    kernels = {f"fwm::{op}": library.dispatch_keys(op) for op in OPS}
    if problem is not None:  # a module that failed half-way may have left some behind, unused
        kernels = {op: keys[-1:] for op, keys in kernels.items()}
    wanted = ["CPU", "CUDA"] if torch.cuda.is_available() else ["CPU"]
    missing = [f"{op} on {key}" for op in kernels for key in wanted if key not in kernels[op]]
    reason = problem or (f"no compiled {', '.join(missing)}" if missing else None)
    return {
        "extension": problem is None,
        "cpu_isa": torch.ops.fwm.cpu_isa() if problem is None else None,
        "kernels": kernels,
        "reason": reason,
        "cure": None if reason is None else _cure(wanted[-1].lower()),
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
