"""The ops as ``torch.ops.fwm.*``: schemas, registration, and where kernels plug in.

C++ registers implementations only, in the compiled module ``fairseq_fwm._C``. Without it the
PyTorch forms answer, so the ops always exist, trace with fake tensors and differentiate.

Arity is fixed: what is not asked for is an empty tensor. A sequence op returns y, S_T, z_T and
what its backward pass needs: the residuals r_t = v_t - S_{t-1}^T k_t (delta), the denominators
z_t.q_t and kappa_t (attention normalisation).
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch

from fairseq_fwm.ops import map_op, recurrent_op, rescaled_op, sequence_op
from fairseq_fwm.ops.gpu import GPU, not_served

_THREE = "(Tensor, Tensor, Tensor)"
_QKV = "Tensor q, Tensor k, Tensor v"
_STATES = "Tensor? state, Tensor? normalizer, Tensor? write_mask"
_FEATURES = "str features, int nu, bool sum_norm"
_OPTIONS = f"{_FEATURES}, str attn_norm"
_FAVOR = "float scale, float added, float cap"
_RESCALED = "Tensor gram, Tensor v, Tensor beta, Tensor residual, Tensor history"
_SIX = "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
_FORWARD = f"{_STATES}, {_OPTIONS}, bool output_final_state, bool save_for_backward) -> {_SIX}"
_GRADS = "Tensor dy, Tensor? d_final_state, Tensor? d_final_normalizer"
_SAVED = "Tensor? y, Tensor residual, Tensor denominator, Tensor kappa"
_BACKWARD = f"{_STATES}, {_SAVED}, {_OPTIONS}, bool state_grad) -> {_SIX}"
_STEP = f"Tensor? rows, Tensor? write_mask, {_OPTIONS}) ->"
_STEP_STATES = f"Tensor state, Tensor? normalizer, {_STEP} {_THREE}"
_STEP_STATES_ = f"Tensor(a!) state, Tensor(b!)? normalizer, {_STEP} Tensor"

SCHEMAS = {
    "causal_sum_fwd": f"({_QKV}, {_FORWARD}",
    "causal_delta_fwd": f"({_QKV}, Tensor beta, {_FORWARD}",
    "causal_sum_bwd": f"({_GRADS}, {_QKV}, {_BACKWARD}",
    "causal_delta_bwd": f"({_GRADS}, {_QKV}, Tensor beta, {_BACKWARD}",
    "causal_sum_step": f"({_QKV}, {_STEP_STATES}",
    "causal_delta_step": f"({_QKV}, Tensor beta, {_STEP_STATES}",
    "causal_sum_step_": f"({_QKV}, {_STEP_STATES_}",
    "causal_delta_step_": f"({_QKV}, Tensor beta, {_STEP_STATES_}",
    "feature_map": f"(Tensor x, {_FEATURES}) -> Tensor",
    "feature_map_bwd": f"(Tensor dphi, Tensor x, {_FEATURES}) -> Tensor",
    "favor_exp": f"(Tensor u, Tensor offset, {_FAVOR}) -> Tensor",
    "favor_exp_bwd": f"(Tensor dphi, Tensor phi, {_FAVOR}) -> (Tensor, Tensor)",
    "rescaled_fwd": f"(Tensor gram, Tensor v, Tensor beta) -> {_THREE}",
    "rescaled_bwd": f"(Tensor d_residual, Tensor d_decay, {_RESCALED}) -> {_THREE}",
    "recurrent_delta_fwd": "(Tensor projected, Tensor recurrent, Tensor state, Tensor last, "
    "Tensor? write_mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "recurrent_delta_bwd": "(Tensor dy, Tensor d_state, Tensor d_last, Tensor recurrent, "
    "Tensor? write_mask, Tensor state, Tensor kept, Tensor feedback) -> "
    "(Tensor, Tensor, Tensor, Tensor)",
    "self_referential_fwd": f"(Tensor x, Tensor weights, Tensor? write_mask) -> {_THREE}",
    "self_referential_bwd": "(Tensor dy, Tensor d_weights, Tensor x, Tensor? write_mask, "
    "Tensor weights, Tensor kept) -> (Tensor, Tensor)",
    "cpu_isa": "() -> str",
    "cuda_archs": "() -> str",
}
# Outputs lie in memory as inputs do, so a compiler must not lay inputs out anew.
_TAGS = (getattr(torch.Tag, "needs_exact_strides", torch.Tag.needs_fixed_stride_order),)

EMULATED = "fwm_emulated"
"""Namespace in which tests register the CUDA kernels, executed on the CPU."""


def has_kernel(op: str, device_type: str) -> bool:
    """Return whether the compiled module has a kernel for ``fwm::op`` that runs on the device."""
    if device_type == "cuda" and not torch.compiler.is_compiling() and unserved_gpu():
        return False
    return device_type in COMPILED[op]


def cuda_archs() -> list[str]:
    """Return the compute capabilities of the CUDA kernels; none without kernels."""
    if EXTENSION_PROBLEM is not None or not dispatch_keys("cuda_archs"):
        return []
    return torch.ops.fwm.cuda_archs().split()


@functools.cache
def unserved_gpu() -> GPU | None:
    """Return the GPU that is here if the CUDA kernels are not compiled for it.

    Asked when the first tensor on a GPU comes: a process that asks earlier cannot fork any more.
    """
    return not_served(cuda_archs())


def ops_of(impl: str) -> torch._ops._OpNamespace:
    """Return the namespace that serves an implementation."""
    return torch.ops.fwm_emulated if impl == "emulated" else torch.ops.fwm


def sequence_op_of(rule: str, impl: str) -> Callable:
    """Return ``causal_*_fwd`` of the namespace that serves an implementation."""
    ops = ops_of(impl)
    return ops.causal_sum_fwd if rule == "sum" else ops.causal_delta_fwd


def dispatch_keys(op: str) -> list[str]:
    """Return which of CPU, CUDA (compiled) and CompositeExplicitAutograd (PyTorch) serve an op."""
    keys = ("CPU", "CUDA", "CompositeExplicitAutograd")
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return [key for key in keys if has(f"fwm::{op}", key)]


def missing_reason(op: str, device_type: str) -> str:
    """Say in a few words why no compiled kernel runs on the device."""
    if device_type in COMPILED[op]:
        return f"they are compiled for {' '.join(cuda_archs())}, this GPU is {unserved_gpu()}"
    return EXTENSION_PROBLEM or "the extension fairseq_fwm._C was built without it"


def register(namespace: str, has_kernel: sequence_op.HasKernel) -> torch.library.Library:
    """Define every op in a namespace: schema, PyTorch form, fake kernel, derivative.

    Args:
        namespace: ``fwm``, or one for other kernels of the same ops.
        has_kernel: (op, device type) -> whether a compiled kernel serves it there.

    Returns:
        What the registrations live as long as.
    """
    library = torch.library.Library(namespace, "DEF")
    ops = getattr(torch.ops, namespace)
    for name, schema in SCHEMAS.items():
        library.define(name + schema, tags=_TAGS)

    def add(name: str, form: Callable, fake: Callable, *derivative: Callable) -> None:
        library.impl(name, form, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{namespace}::{name}", fake, lib=library)
        if derivative:
            context, backward = derivative
            torch.library.register_autograd(
                f"{namespace}::{name}", backward, setup_context=context, lib=library
            )

    for rule in ("sum", "delta"):
        add(
            f"causal_{rule}_fwd",
            sequence_op.forward(rule),
            sequence_op.fake_forward(rule, has_kernel),
            sequence_op.setup_context(rule),
            sequence_op.differentiate_forward(rule, ops),
        )
        add(f"causal_{rule}_bwd", sequence_op.backward(rule), sequence_op.fake_backward(rule))
        for name, form in (("", sequence_op.step(rule)), ("_", sequence_op.step_in_place(rule))):
            add(f"causal_{rule}_step{name}", form, form)
    add(
        "feature_map",
        map_op.feature_map,
        map_op.fake_feature_map,
        map_op.feature_map_context,
        map_op.differentiate_feature_map(ops),
    )
    add("feature_map_bwd", map_op.feature_map_backward, map_op.fake_feature_map_backward)
    add(
        "favor_exp",
        map_op.favor_exp,
        map_op.favor_exp,
        map_op.favor_context,
        map_op.differentiate_favor(ops),
    )
    add("favor_exp_bwd", map_op.favor_backward, map_op.fake_favor_backward)
    add(
        "rescaled_fwd",
        rescaled_op.forward,
        rescaled_op.fake_forward,
        rescaled_op.context,
        rescaled_op.differentiate_forward(ops),
    )
    add("rescaled_bwd", rescaled_op.backward, rescaled_op.fake_backward)
    add(
        "recurrent_delta_fwd",
        recurrent_op.recurrent_forward,
        recurrent_op.recurrent_fake(ops, has_kernel),
        recurrent_op.recurrent_context,
        recurrent_op.differentiate_recurrent(ops),
    )
    add(
        "recurrent_delta_bwd",
        recurrent_op.recurrent_backward,
        recurrent_op.recurrent_fake_backward,
    )
    add(
        "self_referential_fwd",
        recurrent_op.self_forward,
        recurrent_op.self_fake(ops, has_kernel),
        recurrent_op.self_context,
        recurrent_op.differentiate_self(ops),
    )
    add("self_referential_bwd", recurrent_op.self_backward, recurrent_op.self_fake_backward)
    return library


def _load_extension() -> str | None:
    """Load the compiled module; return what is wrong with it in one line, or ``None``."""
    spec = importlib.util.find_spec("fairseq_fwm._C")
    # An editable install offers its extension to every checkout: only one's own fits.
    if spec is None or Path(spec.origin).parent != Path(__file__).resolve().parent.parent:
        return "the extension fairseq_fwm._C is not built"
    try:
        importlib.import_module("fairseq_fwm._C")
    except Exception as error:  # a wrong ABI raises ImportError or OSError, a bad op anything
        return f"fairseq_fwm._C does not load: {str(error).splitlines()[0]}"
    return None


_library = register("fwm", has_kernel)  # registrations live as long as this object
EXTENSION_PROBLEM = _load_extension()
# Asked once: torch.compile cannot trace a question to the dispatcher, nor one to the GPU.
COMPILED = {op: {key.lower() for key in dispatch_keys(op)} & {"cpu", "cuda"} for op in SCHEMAS}
