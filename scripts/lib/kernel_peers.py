"""What scripts/benchmark_kernels.py compares: this project's ops, public packages, PyTorch forms.

Every contestant has its own native layout; a problem's inputs are brought into it beforehand,
outside the measured time. A package that cannot be imported is left out with the reason.
"""

import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_fwm import ops
from fairseq_fwm.ops.chunked import causal_delta_chunked, causal_sum_chunked
from fairseq_fwm.ops.features import NO_FEATURES, dpfp, sum_normalize

OURS, PEER, CONTEXT, PARTS = "ours", "peer", "context", "ours in parts"
LAYOUTS = {"NHT": (0, 1, 2), "NTH": (0, 2, 1), "TNH": (2, 0, 1)}
INVERSE = {"NHT": (0, 1, 2), "NTH": (0, 2, 1), "TNH": (1, 2, 0)}
CHUNK_SIZES = (16, 32, 64)


@dataclass(frozen=True)
class Problem:
    """A causal update over whole sequences; with ``nu`` q and k are raw rows for DPFP."""

    name: str
    rule: str
    N: int
    H: int
    T: int
    K: int
    V: int
    nu: int = 0

    @property
    def features(self) -> ops.FeatureSpec:
        """The feature map that belongs to the problem."""
        return ops.FeatureSpec("dpfp", self.nu, True) if self.nu else NO_FEATURES

    @property
    def states_bytes(self) -> int:
        """Bytes of the states of all time steps."""
        return 4 * self.N * self.H * self.T * self.K * self.V

    @property
    def matrix_bytes(self) -> int:
        """Bytes of all T x T matrices."""
        return 4 * self.N * self.H * self.T**2

    def inputs(self, seed: int) -> tuple[Tensor, ...]:
        """Make q, k, v and, for the delta rule, beta, in the layout NHT.

        q and k are like a feature map's output: positive, of sum one.
        """
        make = torch.Generator().manual_seed(seed)
        rows, K = (self.N, self.H, self.T), self.K
        d = K // (2 * self.nu) if self.nu else K
        q, k = (torch.randn(*rows, d, generator=make) for _ in range(2))
        if not self.nu:
            q, k = q.softmax(-1), k.softmax(-1)
        v = torch.randn(*rows, self.V, generator=make)
        beta = torch.rand(*rows, generator=make)
        return (q, k, v, beta) if self.rule == "delta" else (q, k, v)


@dataclass(frozen=True)
class Contestant:
    """One way to compute a problem.

    Attributes:
        name: what the tables call it.
        run: from q, k, v (and beta), in the contestant's layout, to y in the same layout.
        role: ``ours``; ``ours in parts``: with ops of this project that are not fused; ``peer``;
            or ``context``: another function, whose speed is of interest.
        layout: order of batch, head and time.
        q_factor: what q is multiplied with beforehand, where the contestant divides it.
        bytes_needed: rough estimate of what forward+backward keep, where that is much.
        slices_time: indexes its inputs step by step, so that the backward is quadratic in T.
    """

    name: str
    run: Callable[..., Tensor]
    role: str = PEER
    layout: str = "NHT"
    q_factor: float = 1.0
    bytes_needed: int = 0
    slices_time: bool = False

    def leaves(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        """Bring inputs into the contestant's layout."""
        if self.role == CONTEXT:
            inputs = (inputs[2],) * 3
        leaves = [arrange(x, LAYOUTS[self.layout]).clone() for x in inputs]
        if self.q_factor != 1:
            leaves[0] *= self.q_factor
        return [x.requires_grad_() for x in leaves]


def arrange(x: Tensor, order: tuple[int, int, int]) -> Tensor:
    """Reorder the first three dimensions into a contiguous tensor."""
    return x.permute(*order, *range(3, x.dim())).contiguous()


def contestants(
    problem: Problem, compiled: bool = False
) -> tuple[list[Contestant], dict[str, str]]:
    """Return everything that can compute a problem, ours first, and why the rest cannot."""
    finders = [ours, fused_parts] if problem.nu else [ours, *FINDERS[problem.rule], softmax]
    if compiled and not problem.nu:
        finders.append(compiled_chunks)
    found, missing = [], {}
    for finder in finders:
        try:
            found += finder(problem)
        except Exception as error:  # other people's packages may raise anything
            missing[finder.__doc__.strip(".")] = reason(error)
    return found, missing


def reason(error: Exception) -> str:
    """Return an error in one line, without the folders of this machine."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    # A time limit that struck inside a compiler comes out wrapped in that one's own errors.
    if late := re.search(r"its first run took longer than [\d.]+ s", text):
        return late[0]
    return re.sub(r"(?<![\w.])/[\w.+@/-]*/", "", text)[:300]


def ours(problem: Problem) -> Iterator[Contestant]:
    """fairseq_fwm."""
    op = ops.causal_delta if problem.rule == "delta" else ops.causal_sum
    features = problem.features if problem.nu else None
    yield Contestant("fairseq_fwm", lambda *x: op(*x, features=features)[0], OURS)


def fused_parts(problem: Problem) -> Iterator[Contestant]:
    """DPFP and update one after the other."""

    def in_pytorch(q: Tensor, k: Tensor, *rest: Tensor) -> Tensor:
        q, k = (sum_normalize(dpfp(x, problem.nu)) for x in (q, k))
        return ops.causal_delta(q, k, *rest)[0]

    yield Contestant("PyTorch DPFP + our delta kernel", in_pytorch)
    if hasattr(ops, "feature_map"):

        def by_op(q: Tensor, k: Tensor, *rest: Tensor) -> Tensor:
            q, k = (ops.feature_map(x, problem.features) for x in (q, k))
            return ops.causal_delta(q, k, *rest)[0]

        yield Contestant("our DPFP op + our delta kernel", by_op, PARTS)


def softmax(problem: Problem) -> Iterator[Contestant]:
    """Softmax attention with q, k and v of the size of v."""

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    yield Contestant("softmax SDPA", sdpa, CONTEXT)


# --- PyTorch forms -------------------------------------------------------------------------------


def sum_loop(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Sum rule step by step, time first."""
    T, N, H = q.shape[:3]
    q, k, v = (x.flatten(1, 2) for x in (q, k, v))
    S = q.new_zeros(N * H, q.shape[-1], v.shape[-1])
    add = torch.baddbmm if torch.is_grad_enabled() else Tensor.baddbmm_
    outputs = []
    for q_t, k_t, v_t in zip(
        q.unsqueeze(-2).unbind(), k.unsqueeze(-1).unbind(), v.unsqueeze(-2).unbind(), strict=True
    ):
        S = add(S, k_t, v_t)
        outputs.append(torch.bmm(q_t, S))
    return torch.stack(outputs).view(T, N, H, -1)


def delta_loop(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """Delta rule step by step, time first."""
    T, N, H = q.shape[:3]
    q, k, v = (x.flatten(1, 2).unsqueeze(-2) for x in (q, k, v))
    S = q.new_zeros(N * H, q.shape[-1], v.shape[-1])
    add = torch.baddbmm if torch.is_grad_enabled() else Tensor.baddbmm_
    outputs = []
    steps = (q, k, k.transpose(-1, -2), v, beta.flatten(1)[..., None, None])
    for q_t, k_t, k_column, v_t, beta_t in zip(*(x.unbind() for x in steps), strict=True):
        S = add(S, k_column, beta_t * torch.baddbmm(v_t, k_t, S, alpha=-1))
        outputs.append(torch.bmm(q_t, S))
    return torch.stack(outputs).view(T, N, H, -1)


def loops(problem: Problem) -> Iterator[Contestant]:
    """PyTorch loop over time."""
    run, states = (delta_loop, 3) if problem.rule == "delta" else (sum_loop, 2)
    kept = states * problem.states_bytes
    yield Contestant("PyTorch loop", run, layout="TNH", bytes_needed=kept)


def chunk_form(rule: str, size: int) -> Callable[..., Tensor]:
    """Return the chunkwise PyTorch form of a rule."""
    form = causal_delta_chunked if rule == "delta" else causal_sum_chunked
    return lambda *x: form(*x, None, False, size)[0]


def chunks(problem: Problem) -> Iterator[Contestant]:
    """PyTorch chunk form."""
    for size in CHUNK_SIZES:
        kept = 2 * problem.states_bytes // size
        run = chunk_form(problem.rule, size)
        yield Contestant(f"PyTorch chunks of {size}", run, bytes_needed=kept)


def compiled_chunks(problem: Problem) -> Iterator[Contestant]:
    """torch.compile of the PyTorch chunk form."""
    for size in CHUNK_SIZES[-1:]:
        run = torch.compile(chunk_form(problem.rule, size), dynamic=False)
        yield Contestant(f"torch.compile, chunks of {size}", run)


def quadratic(problem: Problem) -> Iterator[Contestant]:
    """PyTorch masked product."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2)).tril() @ v

    yield Contestant("PyTorch masked product", run, bytes_needed=4 * problem.matrix_bytes)


# --- public packages -----------------------------------------------------------------------------


def transformers_module() -> ModuleType:
    """Import the model file of transformers that has the delta rule in plain PyTorch."""
    # Of no use here, and fails to import where its torch is another than the one installed.
    sys.modules.setdefault("torchaudio", None)
    import transformers.models.qwen3_next.modeling_qwen3_next as module

    return module


def transformers_rules(problem: Problem) -> Iterator[Contestant]:
    """Hugging Face transformers, gated delta rule without a gate."""
    module = transformers_module()
    gate = torch.zeros(problem.N, problem.T, problem.H)
    for kind in ("chunk", "recurrent"):
        # Unwrapped: what runs without a package of GPU kernels.
        rule = inspect.unwrap(getattr(module, f"torch_{kind}_gated_delta_rule"))

        def run(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, rule: Callable = rule) -> Tensor:
            return rule(q, k, v, g=gate, beta=beta)[0]

        loop = kind == "recurrent"
        yield Contestant(
            f"transformers torch_{kind}_gated_delta_rule", run, layout="NTH",
            q_factor=math.sqrt(problem.K), slices_time=loop,
            bytes_needed=6 * problem.states_bytes if loop else 0,
        )  # fmt: skip


def naive_module() -> ModuleType:
    """Load the reference file of flash-linear-attention, whose package wants Triton."""
    package = importlib.util.find_spec("fla")
    if package is None:
        raise ModuleNotFoundError("No module named 'fla'")
    path = Path(package.submodule_search_locations[0], "ops", "delta_rule", "naive.py")
    spec = importlib.util.spec_from_file_location("fla_delta_rule_naive", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def naive_rules(problem: Problem) -> Iterator[Contestant]:
    """flash-linear-attention, naive delta rule."""
    module = naive_module()
    scaled = {"q_factor": math.sqrt(problem.K)}
    yield Contestant(
        "flash-linear-attention delta_rule_recurrence",
        lambda *x: module.delta_rule_recurrence(*x)[0],
        slices_time=True, bytes_needed=5 * problem.states_bytes, **scaled,
    )  # fmt: skip
    # It takes whole chunks only.
    size = next((size for size in (32, 16) if problem.T % size == 0), None)
    if size:
        yield Contestant(
            f"flash-linear-attention delta_rule_chunkwise({size})",
            lambda *x: module.delta_rule_chunkwise(*x, chunk_size=size)[0], **scaled,
        )  # fmt: skip


def idiap_product(problem: Problem) -> Iterator[Contestant]:
    """pytorch-fast-transformers, causal_dot_product."""
    from fast_transformers.causal_product import causal_dot_product

    yield Contestant("pytorch-fast-transformers causal_dot_product", causal_dot_product)


class Projected:
    """Stands for a projection's output that falls into q, k and v of unequal sizes."""

    def __init__(self, *parts: Tensor) -> None:
        self.parts = [x.transpose(1, 2).flatten(2) for x in parts]

    def chunk(self, *_: object, **__: object) -> list[Tensor]:
        """Return q, k and v, ``(N, T, H * D)``."""
        return self.parts


def dpfp_pytorch(problem: Problem) -> Iterator[Contestant]:
    """dpfp-pytorch, DPFPAttention."""
    from dpfp_pytorch.dpfp import DPFPAttention

    def run(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
        layer = DPFPAttention(8, problem.V, problem.H)
        # The update alone: q and k have been mapped, and nothing is projected or scaled.
        layer.to_out, layer.scale, layer.dpfp = torch.nn.Identity(), 1.0, lambda x: x
        del layer.to_qkv, layer.to_beta
        layer.to_qkv = lambda _: Projected(q, k, v)
        layer.to_beta = lambda _: beta.transpose(1, 2)
        x = q.new_empty(problem.N, problem.T, 8)
        W = q.new_zeros(problem.N, problem.H, problem.K, problem.V)
        y, _ = layer(x, W)
        return y.view(problem.N, problem.T, problem.H, -1).transpose(1, 2)

    yield Contestant("dpfp-pytorch DPFPAttention", run)


FINDERS = {
    "sum": [loops, chunks, quadratic, idiap_product],
    "delta": [loops, chunks, transformers_rules, naive_rules, dpfp_pytorch],
}
