"""What scripts/benchmark_cuda.py compares on a GPU: this project's kernels, public ones, SDPA."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_fwm import ops
from lib.kernel_peers import CONTEXT, OURS, PARTS, PEER, Contestant, Problem, reason

FORM = "FWM_CUDA_FORM"  # the switch of the CUDA binding


@dataclass(frozen=True)
class Entrant(Contestant):
    """A contestant, and which of this project's CUDA kernels it runs.

    Attributes:
        form: ``general`` or ``chunkwise``; empty for others.
    """

    form: str = ""

    @contextmanager
    def conditions(self) -> Iterator[None]:
        """Ask for the form, and let tensor cores round float32 for the chunkwise one alone."""
        old_form, matmul = os.environ.get(FORM), torch.backends.cuda.matmul
        old_tf32 = matmul.allow_tf32
        try:
            if self.form:
                os.environ[FORM] = self.form
                matmul.allow_tf32 = self.form == "chunkwise"
            yield
        finally:
            matmul.allow_tf32 = old_tf32
            if old_form is None:
                os.environ.pop(FORM, None)
            else:
                os.environ[FORM] = old_form


def entrants(problem: Problem, device: str) -> tuple[list[Entrant], dict[str, str]]:
    """Return everything that can compute a problem, ours first, and why the rest cannot."""
    found, missing = [], {}
    for finder in FINDERS:
        try:
            found += finder(problem, device)
        except Exception as error:  # other people's packages may raise anything
            missing[finder.__doc__.strip(".")] = reason(error)
    return found, missing


def _op(problem: Problem, impl: str) -> Callable[..., Tensor]:
    op = ops.causal_delta if problem.rule == "delta" else ops.causal_sum
    return lambda *x: op(*x, impl=impl)[0]


def ours(problem: Problem, device: str) -> Iterator[Entrant]:
    """fairseq_fwm."""
    if device != "cuda":  # to try the script itself
        yield Entrant("fairseq_fwm", _op(problem, "auto"), OURS)
        return
    for form in "general", "chunkwise":
        yield Entrant(f"fairseq_fwm {form}", _op(problem, "cuda"), OURS, form=form)


def flash_linear_attention(problem: Problem, device: str) -> Iterator[Entrant]:
    """flash-linear-attention."""
    if device != "cuda":
        raise RuntimeError("its kernels want a GPU")
    if problem.rule == "delta":
        from fla.ops.delta_rule import chunk_delta_rule, fused_recurrent_delta_rule

        functions = [chunk_delta_rule, fused_recurrent_delta_rule]
        options = {"scale": 1.0}
    else:
        from fla.ops.linear_attn import (
            chunk_linear_attn,
            fused_chunk_linear_attn,
            fused_recurrent_linear_attn,
        )

        functions = [chunk_linear_attn, fused_chunk_linear_attn, fused_recurrent_linear_attn]
        options = {"scale": 1.0, "normalize": False}
    for function in functions:

        def run(*x: Tensor, function: Callable = function) -> Tensor:
            return function(*x, **options)[0]

        yield Entrant(f"fla {function.__name__}", run, PEER, layout="NTH")


def pytorch_chunks(problem: Problem, device: str) -> Iterator[Entrant]:
    """fairseq_fwm's PyTorch chunk form."""
    yield Entrant("PyTorch chunks", _op(problem, "chunked"), PARTS)


def sdpa(problem: Problem, device: str) -> Iterator[Entrant]:
    """PyTorch, causal softmax attention."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    yield Entrant("softmax SDPA", run, CONTEXT)


FINDERS = (ours, flash_linear_attention, pytorch_chunks, sdpa)
