"""Which implementation runs, chosen in one place and never silently slow."""

import functools
import logging

import torch

from fairseq_fwm.ops import fla, library

logger = logging.getLogger(__name__)

IMPLS = ("auto", "reference", "chunked", "cpu", "cuda", "fla")
_BUILD = "pip install --no-build-isolation -e ."


def resolve_impl(impl: str, op: str, device: torch.device) -> str:
    """Return the implementation that runs: one of :data:`IMPLS` but ``auto``, or ``operator``.

    Args:
        impl: one of :data:`IMPLS`.  ``auto`` takes the compiled kernel of the device if there is
            one and the chunked PyTorch form otherwise, and logs once which; a trace without a
            kernel gets ``operator``, the op as a whole, as the form's chunks would fix the length.
            It never takes ``fla``, flash-linear-attention's kernels.
        op: name of the op, ``causal_sum_fwd`` or ``causal_delta_fwd``.
        device: where the tensors are.

    Raises:
        ValueError: if ``impl`` is unknown, or a kernel is asked for on another device's tensors.
        RuntimeError: if a compiled kernel or a package is asked for and is not there.
    """
    if impl == "emulated" and hasattr(torch.ops.fwm_emulated, op):
        return impl  # the CUDA kernels on the CPU, which tests register
    if impl not in IMPLS:
        raise ValueError(f"unknown impl {impl!r}: choose one of {', '.join(IMPLS)}")
    if impl in ("reference", "chunked"):
        return impl
    if impl == "auto":
        compiled = library.has_kernel(op, device.type)
        if torch.compiler.is_compiling():
            return device.type if compiled else "operator"
        chosen = device.type if compiled else "chunked"
        _log_once(op, device.type, chosen)
        return chosen
    require_impl(impl, op)
    wanted = fla.DEVICE if impl == "fla" else impl
    if device.type != wanted:
        raise ValueError(
            f"impl={impl!r} needs tensors on {wanted}, found {device}: move them, or use "
            "impl='auto'"
        )
    return impl


def require_impl(impl: str, op: str) -> None:
    """Check that an implementation asked for by name exists, before anything is computed.

    Raises:
        RuntimeError: if it is a compiled kernel that is not there, or a package's and the package
            is not there.
    """
    if impl == "fla":
        fla.function_of(op)
    if impl in ("cpu", "cuda") and not library.has_kernel(op, impl):
        raise RuntimeError(
            f"impl={impl!r} was asked for, but fwm::{op} has no compiled {impl} kernel "
            f"({library.missing_reason(op, impl)}). Build it with '{_BUILD}', see "
            "'python -m fairseq_fwm.doctor', or use impl='auto'."
        )


@functools.cache
def _log_once(op: str, device: str, chosen: str) -> None:
    if chosen == "chunked":
        logger.info(
            "fwm::%s on %s: no compiled kernel, the chunked PyTorch form runs "
            "('python -m fairseq_fwm.doctor' says what to do)",
            op,
            device,
        )
    elif device == "cuda":
        logger.info(
            "fwm::%s on cuda: compiled kernel; long sequences of bf16 and fp16 tensors, and of "
            "fp32 ones with torch.backends.cuda.matmul.allow_tf32, by tensor cores "
            "(FWM_CUDA_FORM=general keeps fp32 arithmetic)",
            op,
        )
    else:
        logger.info("fwm::%s on %s: compiled kernel", op, device)
