"""The ops as ``torch.ops.fwm.*``: schemas, fake kernels, autograd, and where kernels plug in.

C++ registers implementations only (``TORCH_LIBRARY_IMPL(fwm, CPU | CUDA, m)`` in the compiled
module ``fairseq_fwm._C``). Without it the PyTorch forms answer, so the ops always exist, trace with
fake tensors and differentiate.

Arity is fixed: what is not asked for is an empty tensor. A sequence op returns y, S_T, z_T and what
its backward pass needs: the residuals r_t = v_t - S_{t-1}^T k_t (delta), the denominators z_t.q_t
and kappa_t (attention normalisation).
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fairseq_fwm.ops import fallback
from fairseq_fwm.ops._common import accumulation_dtype
from fairseq_fwm.ops.features import FeatureSpec

_QKV = "Tensor q, Tensor k, Tensor v"
_STATES = "Tensor? state, Tensor? normalizer, Tensor? write_mask"
_FEATURES = "str features, int nu, bool sum_norm"
_OPTIONS = f"{_FEATURES}, str attn_norm"
_SIX = "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
_FORWARD = f"{_STATES}, {_OPTIONS}, bool output_final_state, bool save_for_backward) -> {_SIX}"
_GRADS = "Tensor dy, Tensor? d_final_state, Tensor? d_final_normalizer"
_SAVED = "Tensor? y, Tensor residual, Tensor denominator, Tensor kappa"
_BACKWARD = f"{_STATES}, {_SAVED}, {_OPTIONS}, bool state_grad) -> {_SIX}"
_STEP = f"Tensor? rows, Tensor? write_mask, {_OPTIONS}) ->"
_STEP_STATES = f"Tensor state, Tensor? normalizer, {_STEP} (Tensor, Tensor, Tensor)"
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
    "favor_exp": "(Tensor u, Tensor offset, float scale, float added) -> Tensor",
    "favor_exp_bwd": "(Tensor dphi, Tensor phi, float scale, float added) -> (Tensor, Tensor)",
    "cpu_isa": "() -> str",
}


def has_kernel(op: str, device_type: str) -> bool:
    """Return whether the compiled module registered a kernel for ``fwm::op`` on the device."""
    return device_type.upper() in COMPILED[op]


def dispatch_keys(op: str) -> list[str]:
    """Return which of CPU, CUDA (compiled) and CompositeExplicitAutograd (PyTorch) serve an op."""
    keys = ("CPU", "CUDA", "CompositeExplicitAutograd")
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return [key for key in keys if has(f"fwm::{op}", key)]


def missing_reason() -> str:
    """Say in a few words why there is no compiled kernel."""
    return EXTENSION_PROBLEM or "the extension fairseq_fwm._C was built without it"


# ---- sequences. Both rules share everything; the sum rule has no beta.


def _split_beta(rule: str, args: tuple) -> tuple:
    """Return (q, k, v, beta or None, what follows)."""
    return (*args[:4], args[4:]) if rule == "delta" else (*args[:3], None, args[3:])


def _forward(rule: str) -> Callable[..., tuple[Tensor, ...]]:
    def forward(*args: Any) -> tuple[Tensor, ...]:
        q, k, v, beta, (state, normalizer, mask, *options, output_final_state, _) = _split_beta(
            rule, args
        )
        name, nu, sum_norm, attn_norm = options
        y, S, z = fallback.causal(
            *(q, k, v, beta, state, normalizer, mask),
            *(FeatureSpec(name, nu, sum_norm), attn_norm, output_final_state),
        )
        none = q.new_empty(0, dtype=accumulation_dtype(q, k, v))
        # A copy: an output of an op must not be one of its inputs.
        S = none if S is None else S.clone() if S is state else S
        return y.contiguous(), S, none if z is None else z, none, none.clone(), none.clone()

    return forward


def _fake_forward(rule: str) -> Callable[..., tuple[Tensor, ...]]:
    def fake(*args: Any) -> tuple[Tensor, ...]:
        q, k, v, beta, (_, _, _, *options, output_final_state, save) = _split_beta(rule, args)
        name, nu, sum_norm, attn_norm = options
        n, h, t, d = q.shape
        K, V = FeatureSpec(name, nu, sum_norm).out_dim(d), v.shape[-1]
        dtype, norm = accumulation_dtype(q, k, v), attn_norm != "none"
        compiled = has_kernel(f"causal_{rule}_fwd", v.device.type)

        def wide(wanted: bool, *shape: int) -> Tensor:
            return q.new_empty(shape if wanted else (0,), dtype=dtype)

        return (
            _empty_in_order_of(v, V) if compiled else v.new_empty(v.shape),
            wide(output_final_state, n, h, K, V),
            wide(output_final_state and norm, n, h, K),
            wide(compiled and save and beta is not None, n, h, t, V),
            wide(compiled and save and norm, n, h, t),
            wide(compiled and save and attn_norm == "full", n, h, t),
        )

    return fake


def _fake_backward(rule: str) -> Callable[..., tuple[Tensor, ...]]:
    def fake(dy: Tensor, d_final: Any, d_final_z: Any, *args: Any) -> tuple[Tensor, ...]:
        q, k, v, beta, (_, _, _, _, _, _, _, *options, state_grad) = _split_beta(rule, args)
        name, nu, sum_norm, attn_norm = options
        n, h, _, d = q.shape
        K, V = FeatureSpec(name, nu, sum_norm).out_dim(d), v.shape[-1]
        dtype = accumulation_dtype(q, k, v)
        return (
            *(_empty_in_order_of(x, x.shape[-1]) for x in (q, k, v)),
            q.new_empty(0, dtype=dtype) if beta is None else _empty_in_order_of(beta, None),
            q.new_empty((n, h, K, V) if state_grad else (0,), dtype=dtype),
            q.new_empty((n, h, K) if state_grad and attn_norm != "none" else (0,), dtype=dtype),
        )

    return fake


def _empty_in_order_of(x: Tensor, width: int | None) -> Tensor:
    """Dense, the first three dimensions in memory as in ``x``, the last (if any) innermost."""
    outer = sorted(range(3), key=lambda dim: -x.stride(dim))
    shape = [*x.shape[:3], *(() if width is None else (width,))]
    order = [*outer, *range(3, len(shape))]
    return x.new_empty([shape[i] for i in order]).permute(
        [order.index(i) for i in range(len(shape))]
    )


def _setup_context(rule: str) -> Callable[..., None]:
    def setup(ctx: Any, inputs: tuple, output: tuple) -> None:
        q, k, v, beta, (state, normalizer, mask, *options, output_final_state, _) = _split_beta(
            rule, inputs
        )
        y, _, _, *kept = output
        *ctx.options, attn_norm = options
        ctx.attn_norm, ctx.output_final_state = attn_norm, output_final_state
        ctx.set_materialize_grads(False)
        y = None if attn_norm == "none" else y
        ctx.save_for_backward(q, k, v, beta, state, normalizer, mask, y, *kept)

    return setup


def _backward(rule: str) -> Callable[..., tuple]:
    """Differentiate by the kernel's backward pass, or the PyTorch form by running it again."""

    def backward(ctx: Any, dy: Tensor | None, dS: Tensor | None, dz: Tensor | None, *_: Any):
        q, k, v, beta, state, normalizer, mask, y, *kept = ctx.saved_tensors
        tensors = (q, k, v) if beta is None else (q, k, v, beta)
        options = (*ctx.options, ctx.attn_norm)
        dy = torch.zeros_like(v) if dy is None else dy
        needs = ctx.needs_input_grad[: len(tensors) + 2]
        if has_kernel(f"causal_{rule}_bwd", q.device.type):
            op = getattr(torch.ops.fwm, f"causal_{rule}_bwd")
            *grads, dbeta, d_state, d_z = op(
                *(dy, dS, dz, *tensors, state, normalizer, mask, y, *kept, *options),
                any(needs[-2:]),
            )
            grads = [*grads, *(() if beta is None else (dbeta,)), d_state, d_z]
        else:
            grads = _recompute(ctx, rule, tensors, (dy, dS, dz))
        grads = [g if needed else None for g, needed in zip(grads, needs, strict=True)]
        return (*grads, *([None] * 7))

    return backward


def _recompute(ctx: Any, rule: str, tensors: tuple, d_outputs: tuple) -> list[Tensor | None]:
    _, _, _, _, state, normalizer, mask, *_ = ctx.saved_tensors
    inputs = (*tensors, state, normalizer)
    with torch.enable_grad():
        leaves = [
            x if x is None else x.detach().requires_grad_(needed)
            for x, needed in zip(inputs, ctx.needs_input_grad, strict=False)
        ]
        outputs = _forward(rule)(
            *leaves, mask, *ctx.options, ctx.attn_norm, ctx.output_final_state, False
        )
    pairs = [(out, g) for out, g in zip(outputs, d_outputs, strict=False) if g is not None]
    wanted = [x for x in leaves if x is not None and x.requires_grad]
    found = iter(
        torch.autograd.grad(
            [out for out, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True
        )
    )
    return [next(found) if x is not None and x.requires_grad else None for x in leaves]


# ---- steps


def _step(rule: str) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    def step(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, beta, (S, z, rows, mask, name, nu, sum_norm, attn_norm) = _split_beta(rule, args)
        spec = FeatureSpec(name, nu, sum_norm)
        y, S, z = fallback.step(q, k, v, beta, S, z, rows, mask, spec, attn_norm)
        return y, S, S.new_empty(0) if z is None else z

    return step


def _step_in_place(rule: str) -> Callable[..., Tensor]:
    def step_(*args: Any) -> Tensor:
        *_, (old_S, old_z, *_) = _split_beta(rule, args)
        y, S, z = _step(rule)(*args)
        old_S.copy_(S)
        if old_z is not None:
            old_z.copy_(z)
        return y

    return step_


# ---- feature maps by themselves


def _feature_map(x: Tensor, name: str, nu: int, sum_norm: bool) -> Tensor:
    return FeatureSpec(name, nu, sum_norm)(x).clone()


def _fake_feature_map(x: Tensor, name: str, nu: int, sum_norm: bool) -> Tensor:
    K = FeatureSpec(name, nu, sum_norm).out_dim(x.shape[-1])
    return x.new_empty((*x.shape[:-1], K))


def _feature_map_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, *ctx.options = inputs
    ctx.save_for_backward(x)


def _feature_map_backward(ctx: Any, dphi: Tensor) -> tuple:
    (x,) = ctx.saved_tensors
    if has_kernel("feature_map_bwd", x.device.type):
        return torch.ops.fwm.feature_map_bwd(dphi, x, *ctx.options), None, None, None
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        phi = _feature_map(leaf, *ctx.options)
    return torch.autograd.grad(phi, leaf, dphi)[0], None, None, None


def _favor_exp(u: Tensor, offset: Tensor, scale: float, added: float) -> Tensor:
    return scale * ((torch.cat((u, -u), -1) - offset).exp() + added)


def _favor_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *_, ctx.scale, ctx.added = inputs
    ctx.save_for_backward(output)


def _favor_backward(ctx: Any, dphi: Tensor) -> tuple:
    (phi,) = ctx.saved_tensors
    if has_kernel("favor_exp_bwd", phi.device.type):
        return (*torch.ops.fwm.favor_exp_bwd(dphi, phi, ctx.scale, ctx.added), None, None)
    g = dphi * (phi - ctx.scale * ctx.added)
    up, down = g.chunk(2, -1)
    return up - down, -g.sum(-1, keepdim=True), None, None


def _register() -> None:
    library = torch.library.Library("fwm", "DEF")
    for name, schema in SCHEMAS.items():
        library.define(name + schema)

    def register(name: str, forward: Any, fake: Any, context: Any = None, backward: Any = None):
        if forward is not None:
            library.impl(name, forward, "CompositeExplicitAutograd")
        torch.library.register_fake(f"fwm::{name}", fake, lib=library)
        if backward is not None:
            torch.library.register_autograd(
                f"fwm::{name}", backward, setup_context=context, lib=library
            )

    for rule in ("sum", "delta"):
        register(
            f"causal_{rule}_fwd",
            *(_forward(rule), _fake_forward(rule), _setup_context(rule), _backward(rule)),
        )
        register(f"causal_{rule}_bwd", None, _fake_backward(rule))
        register(f"causal_{rule}_step", _step(rule), _step(rule))
        register(f"causal_{rule}_step_", _step_in_place(rule), _step_in_place(rule))
    register(
        "feature_map", _feature_map, _fake_feature_map, _feature_map_context, _feature_map_backward
    )
    register("feature_map_bwd", None, lambda dphi, x, *_: torch.empty_like(x).contiguous())
    register("favor_exp", _favor_exp, _favor_exp, _favor_context, _favor_backward)
    register(
        "favor_exp_bwd",
        None,
        lambda dphi, phi, *_: (phi.chunk(2, -1)[0].contiguous(), phi[..., :1].contiguous()),
    )
    globals()["_library"] = library  # registrations live as long as this object


def _load_extension() -> str | None:
    """Load the compiled module; return what is wrong with it in one line, or ``None``."""
    if importlib.util.find_spec("fairseq_fwm._C") is None:
        return "the extension fairseq_fwm._C is not built"
    try:
        importlib.import_module("fairseq_fwm._C")
        torch.ops.fwm.cpu_isa()
    except Exception as error:  # a wrong ABI raises ImportError or OSError, a bad op anything
        return f"fairseq_fwm._C does not load: {error}"
    return None


_register()
EXTENSION_PROBLEM = _load_extension()
# Asked once: torch.compile cannot trace a question to the dispatcher.
COMPILED = {op: [key for key in dispatch_keys(op) if key in ("CPU", "CUDA")] for op in SCHEMAS}
