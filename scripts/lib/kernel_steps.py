"""Decoding steps for scripts/benchmark_kernels.py: this project's and what they are raced against.

A stepper is a function without arguments that does one step for the same token over and over and
goes on from its own last state.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_fwm import ops
from lib.kernel_peers import CONTEXT, OURS, PEER, reason, transformers_module

CACHE_LENGTHS = (128, 512, 2048)

Step = Callable[[], tuple[Tensor, Tensor]]  # to y and the new state, of any shape


@dataclass(frozen=True)
class StepProblem:
    """One decoding step; ``beam`` > 0 also picks the rows that the beams go on from."""

    name: str
    rule: str
    N: int
    H: int
    K: int
    V: int
    beam: int = 0

    @property
    def state_bytes(self) -> int:
        """Bytes of the state."""
        return 4 * self.N * self.H * self.K * self.V

    def inputs(self, seed: int) -> dict[str, Tensor]:
        """Make q, k, v, beta, the state S and, with a beam, rows."""
        make = torch.Generator().manual_seed(seed)
        heads = (self.N, self.H)
        q, k = (torch.randn(*heads, self.K, generator=make).softmax(-1) for _ in range(2))
        v = torch.randn(*heads, self.V, generator=make)
        S = torch.randn(*heads, self.K, self.V, generator=make)
        x = {"q": q, "k": k, "v": v, "beta": torch.rand(heads, generator=make), "S": S}
        if self.beam:
            first = torch.arange(self.N) // self.beam * self.beam
            x["rows"] = first + torch.randint(self.beam, (self.N,), generator=make)
        return x

    def expected(self, seed: int) -> tuple[Tensor, Tensor]:
        """Return y and the new state from the reference, in fp64."""
        x = {name: t.double() for name, t in self.inputs(seed).items() if name != "rows"}
        rows = self.inputs(seed).get("rows")
        S = x["S"] if rows is None else x["S"][rows]
        tensors = [x[name].unsqueeze(2) for name in ("q", "k", "v")]
        if self.rule == "delta":
            tensors.append(x["beta"].unsqueeze(2))
        op = ops.causal_delta if self.rule == "delta" else ops.causal_sum
        y, S = op(*tensors, state=S, output_final_state=True, impl="reference")
        return y.squeeze(2), S


@dataclass(frozen=True)
class Stepper:
    """One way to do a step; ``make`` takes inputs of its own, which it may change."""

    name: str
    make: Callable[[dict[str, Tensor]], Step]
    role: str = PEER


def steppers(problem: StepProblem) -> tuple[list[Stepper], dict[str, str]]:
    """Return everything that can do a step, ours first, and why the rest cannot."""
    found, missing = [], {}
    for finder in (ours, bmm, transformers_step, softmax_caches):
        try:
            found += finder(problem)
        except Exception as error:  # other people's packages may raise anything
            missing[finder.__doc__.strip(".")] = reason(error)
    return found, missing


def ours(problem: StepProblem) -> Iterator[Stepper]:
    """fairseq_fwm."""

    def make(x: dict[str, Tensor]) -> Step:
        op = ops.causal_delta_step_ if problem.rule == "delta" else ops.causal_sum_step_
        names = ("q", "k", "v", "beta", "S") if problem.rule == "delta" else ("q", "k", "v", "S")
        tensors, rows = [x[name] for name in names], x.get("rows")
        return lambda: (op(*tensors, rows=rows), tensors[-1])

    yield Stepper("fairseq_fwm", make, OURS)


def bmm(problem: StepProblem) -> Iterator[Stepper]:
    """torch.bmm, state in place."""

    def make(x: dict[str, Tensor]) -> Step:
        q, v = (x[name].flatten(0, 1).unsqueeze(1) for name in ("q", "v"))
        k_column = x["k"].flatten(0, 1).unsqueeze(-1)
        k_row, beta = k_column.transpose(1, 2), x["beta"].flatten()[:, None, None]
        rows = x.get("rows")
        buffers = [x["S"], torch.empty_like(x["S"])]
        flat = [S.flatten(0, 1) for S in buffers]

        def step() -> tuple[Tensor, Tensor]:
            if rows is not None:
                torch.index_select(buffers[0], 0, rows, out=buffers[1])
                buffers.reverse()
                flat.reverse()
            S, u = flat[0], v
            if problem.rule == "delta":
                u = torch.baddbmm(v, k_row, S, alpha=-1).mul_(beta)
            S.baddbmm_(k_column, u)
            return torch.bmm(q, S), S

        return step

    yield Stepper("torch.bmm, in place", make)


def transformers_step(problem: StepProblem) -> Iterator[Stepper]:
    """Hugging Face transformers, torch_recurrent_gated_delta_rule."""
    if problem.rule != "delta":
        return
    rule = transformers_module().torch_recurrent_gated_delta_rule
    rule = getattr(rule, "__wrapped__", rule)
    gate = torch.zeros(problem.N, 1, problem.H)

    def make(x: dict[str, Tensor]) -> Step:
        q, k, v, beta = (x[name].unsqueeze(1) for name in ("q", "k", "v", "beta"))
        q, S, rows = q * problem.K**0.5, x["S"], x.get("rows")

        def step() -> tuple[Tensor, Tensor]:
            nonlocal S
            if rows is not None:
                S = S.index_select(0, rows)
            y, S = rule(q, k, v, g=gate, beta=beta, initial_state=S, output_final_state=True)
            return y, S

        return step

    yield Stepper("transformers torch_recurrent_gated_delta_rule", make)


def softmax_caches(problem: StepProblem) -> Iterator[Stepper]:
    """Softmax attention over a cache."""
    if problem.beam:
        return
    for length in CACHE_LENGTHS:

        def make(x: dict[str, Tensor], length: int = length) -> Step:
            cache = torch.randn(2, problem.N, problem.H, length, problem.V)
            keys, values = cache.unbind()
            q = x["v"].unsqueeze(2)
            return lambda: (F.scaled_dot_product_attention(q, keys, values), cache)

        yield Stepper(f"softmax, {length} positions cached", make, CONTEXT)
