"""Smaller numbers for generation and scoring on a CPU, by torch's own means."""

import warnings
from typing import Any

import torch
from fairseq.modules import MultiheadAttention
from torch import nn

__all__ = ["PRECISIONS", "set_inference_precision"]

PRECISIONS = ("float32", "bfloat16", "int8")


def set_inference_precision(model: nn.Module, precision: str) -> None:
    """Change the numbers of a model that will not be trained any more, in place.

    Args:
        model: encoder and decoder, or a decoder alone, as fairseq builds them.
        precision: ``float32`` leaves it alone. ``bfloat16`` converts weights and activations; fast
            weights are accumulated in float32 all the same. ``int8`` is torch's dynamic
            quantisation of the linear layers (`torch.ao.quantization.quantize_dynamic`): weights
            of 8 bits, activations quantised as they come. Embeddings, norms, fast weights and an
            adaptive softmax stay float32.

    Raises:
        ValueError: if the precision is unknown, the model is not on a CPU, or this torch has no
            dynamic quantisation.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"inference precision {precision!r}: one of {', '.join(PRECISIONS)}")
    if precision == "float32":
        return
    if any(p.device.type != "cpu" for p in model.parameters()):
        raise ValueError(
            f"--fwm-inference-precision {precision} is for CPUs: generate with --cpu, or on the "
            "GPU with --fp16"
        )
    if precision == "bfloat16":
        model.bfloat16()
        return
    for side in ("encoder", "decoder"):
        stack: Any = getattr(model, side, None)
        if stack is not None:
            _quantise(stack)


def _quantise(stack: Any) -> None:
    for module in stack.layers.modules():
        if isinstance(module, MultiheadAttention):
            # Else it hands its projections' weights to torch instead of calling them.
            module._set_skip_embed_dim_check()
    stack.layers = _dynamic(stack.layers)
    output = getattr(stack, "output_projection", None)
    if isinstance(output, nn.Linear):
        stack.output_projection = _dynamic(nn.Sequential(output))[0]


def _dynamic(module: nn.Module) -> Any:
    if not hasattr(getattr(torch.ao, "quantization", None), "quantize_dynamic"):
        raise ValueError(
            f"torch {torch.__version__} has no torch.ao.quantization.quantize_dynamic, which "
            "--fwm-inference-precision int8 needs: take bfloat16, or another torch"
        )
    with warnings.catch_warnings():
        # Deprecated in favour of a package of its own, torchao, that is not needed otherwise.
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)
