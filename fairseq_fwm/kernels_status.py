"""Tell which implementation of the ops runs on this machine, and why."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch

OPS = ("fwm::causal_sum_fwd", "fwm::causal_delta_fwd")
_KEYS = ("CPU", "CUDA", "CompositeExplicitAutograd")  # the last is the chunked PyTorch form


def kernels_status() -> dict[str, Any]:
    """Say whether compiled kernels are there, which ops they serve, and the cure if they are not.

    Returns:
        ``extension``: whether ``fairseq_fwm._C`` is there and loads; ``kernels``: for each op the
        dispatch keys that have a kernel (``CPU`` and ``CUDA`` are compiled,
        ``CompositeExplicitAutograd`` is the chunked PyTorch form); ``reason``: why compiled
        kernels are missing, and ``cure``: the command that builds them (both None if they run).
    """
    problem = _load_problem()
    kernels = {op: [key for key in _KEYS if _has_kernel(op, key)] for op in OPS}
    wanted = ["CPU", "CUDA"] if torch.cuda.is_available() else ["CPU"]
    missing = [f"{op} on {key}" for op in OPS for key in wanted if key not in kernels[op]]
    reason = problem or (f"no compiled {', '.join(missing)}" if missing else None)
    return {
        "extension": problem is None,
        "kernels": kernels,
        "reason": reason,
        "cure": None if reason is None else _cure(wanted[-1].lower()),
    }


def _load_problem() -> str | None:
    """Load the schemas and the extension; return what went wrong in one line."""
    for module, missing in (
        ("fairseq_fwm.ops.library", "the op schemas are missing"),
        ("fairseq_fwm._C", "the extension fairseq_fwm._C is not built"),
    ):
        if importlib.util.find_spec(module) is None:
            return missing
        try:
            importlib.import_module(module)
        except Exception as error:  # a wrong ABI raises ImportError or OSError, a bad op anything
            return f"{module} does not load: {error}"
    return None


def _has_kernel(op: str, key: str) -> bool:
    try:
        return torch._C._dispatch_has_kernel_for_dispatch_key(op, key)
    except RuntimeError:  # no such op
        return False


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
