"""What training and decoding with a model cost, computed on the meta device: no weights, no GPU.

The model's own forward and backward pass run on tensors without data. A dispatch mode follows the
life of every tensor, so that what is kept for the backward pass and the peak are those of the real
code; torch's counter counts the operations of matrix products.
"""

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from fairseq import models, options
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fairseq_fwm.modules.attention import FastWeightCrossAttention, MixerAttention
from fairseq_fwm.ops import library
from fairseq_fwm.ops.features import FeatureSpec

META = torch.device("meta")
ON_GPU = ("causal_", "recurrent_", "self_referential_")  # ops that the CUDA kernels serve
CHUNK = 64  # of the chunkwise CUDA kernels
SMOOTHING = 0.1


# ---------------------------------------------------------------- the model


class Task:
    """As much of fairseq's translation task as a model needs to be built."""

    def __init__(self, words: int) -> None:
        self.source_dictionary = self.target_dictionary = Dictionary()
        for i in range(words - len(self.source_dictionary)):
            self.source_dictionary.add_symbol(f"w{i}")


def settings(flags: list[str]) -> Any:
    """Return fairseq's configuration for flags of ``fairseq-train``, without the data.

    Raises:
        SystemExit: a flag is unknown; argparse has said so.
    """
    args = options.parse_args_and_arch(options.get_training_parser(), ["no-data", *flags])
    return convert_namespace_to_omegaconf(args)


def build(model: Any, words: int) -> nn.Module:
    """Build a model on the meta device, as it trains.

    Args:
        model: the configuration's part ``model``.
        words: size of the joint dictionary.

    Raises:
        TypeError: it is no encoder with a decoder.
    """
    with META:
        built = models.build_model(model, Task(words)).train()
    if not isinstance(built, models.FairseqEncoderDecoderModel):
        raise TypeError(f"{type(built).__name__} is no translation model: plan_run.py needs one")
    return built


def parameters_of(model: nn.Module) -> int:
    """Return the number of parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters())


# ---------------------------------------------------------------- a training step


class Meter(TorchDispatchMode):
    """Counts the bytes of living tensors that were made under it.

    Attributes:
        live: bytes now.
        peak: the most so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run an operation and follow what it makes."""
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            if args[0].dtype != torch.bool:
                raise RuntimeError("the model asks for a number that only data has")
            return False  # "is there padding?"
        before = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if is_tensor(x)}
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if is_tensor(x):
                self._follow(x.untyped_storage(), before)
        return result

    def _follow(self, storage: torch.UntypedStorage, before: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in before or key in self._seen:
            return
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def is_tensor(x: Any) -> bool:
    """Return whether something is a tensor with a storage."""
    return isinstance(x, Tensor) and x.layout == torch.strided


def efficient_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **_: Any,
) -> Tensor:
    """Do what a GPU does for ``scaled_dot_product_attention`` with a mask: keep no scores."""
    mask = None if attn_mask is None else attn_mask.expand(*q.shape[:3], k.shape[2])
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    return attend(q, k, v, mask, torch.is_grad_enabled(), dropout_p, is_causal)[0]


@contextlib.contextmanager
def as_on_gpu(kernels: bool = True) -> Iterator[None]:
    """Let the meta device take the ways that a GPU takes.

    Args:
        kernels: with our compiled CUDA kernels; else the chunked PyTorch form runs.
    """
    served = {META.type} if kernels else set()
    ours = {
        op: (devices - {META.type}) | (served if op.startswith(ON_GPU) else set())
        for op, devices in library.COMPILED.items()
    }
    with (
        mock.patch.dict(library.COMPILED, ours),
        mock.patch.object(F, "scaled_dot_product_attention", efficient_attention),
    ):
        yield


def update_flops(rule: str, backward: bool) -> Any:
    """Return a formula for torch's counter: products with the state, a multiply-add being two.

    Forward a token writes and reads, by the delta rule it also retrieves; backward it goes through
    as many products as the gradients and the recomputed state have (docs/delta_rule.md).
    """
    products = {("sum", False): 2, ("sum", True): 5, ("delta", False): 3, ("delta", True): 7}

    def formula(*args: Any, **_: Any) -> int:
        # Shapes come for tensors. q, k, v are first, behind three gradients going backward.
        q, _, v = args[3:6] if backward else args[:3]
        at = next(i for i, x in enumerate(args) if isinstance(x, str))
        name, nu, sum_norm = args[at : at + 3]
        n, h, t, d = q
        return (
            2
            * products[rule, backward]
            * n
            * h
            * t
            * FeatureSpec(name, nu, sum_norm).out_dim(d)
            * v[-1]
        )

    return formula


FLOPS = {
    getattr(torch.ops.fwm, f"causal_{rule}_{way}"): update_flops(rule, way == "bwd")
    for rule in ("sum", "delta")
    for way in ("fwd", "bwd")
}


@dataclass(frozen=True)
class Step:
    """One micro-batch, forward and backward.

    Attributes:
        kept: bytes that wait for the backward pass when the loss is known.
        peak: the most bytes at any time besides parameters and their gradients.
        flops: operations of all matrix products and fast weight updates.
    """

    kept: int
    peak: int
    flops: int


def training_step(
    model: nn.Module, sentences: int, length: int, device: torch.device = META
) -> Step:
    """Measure one micro-batch of sentences of equal length, source and target.

    Args:
        model: on ``device``; its parameters get gradients.
        sentences: N.
        length: T.
        device: another one runs with data, to check this function.
    """
    for p in model.parameters():
        p.grad = torch.zeros_like(p)  # they are there when the second micro-batch runs
    tokens = torch.full((sentences, length), 4, device=device)
    lengths = torch.full((sentences,), length, device=device)
    meter = Meter()
    with FlopCounterMode(display=False, custom_mapping=FLOPS) as counter, meter:
        output = model(tokens, lengths, tokens)
        lprobs = model.get_normalized_probs(output, log_probs=True).flatten(0, 1)
        # As fairseq's criterion: what it keeps at hand is kept here.
        loss, _ = label_smoothed_nll_loss(lprobs, tokens.flatten(), SMOOTHING, ignore_index=1)
        kept = meter.live
        loss.backward()
        del output, lprobs, loss
    return Step(kept, meter.peak, counter.get_total_flops())


# ---------------------------------------------------------------- decoding


@dataclass(frozen=True)
class Decoding:
    """Bytes that decoding keeps at a length, fast weights against softmax at the same sites.

    Attributes:
        hypothesis: per hypothesis, of decoder self-attention.
        sentence: per sentence, of cross-attention: all hypotheses of a sentence share them.
        hypothesis_softmax, sentence_softmax: keys and values that softmax would keep.
    """

    hypothesis: int
    sentence: int
    hypothesis_softmax: int
    sentence_softmax: int


def decoding(model: nn.Module, length: int, element: int = 2) -> Decoding:
    """Return what decoding keeps after ``length`` source and target positions.

    Args:
        model: any translation model of ours.
        length: T.
        element: bytes of a number of the model.
    """
    kept = {"self": [0, 0], "cross": [0, 0]}
    for layer in model.decoder.layers:
        for site, attention in (("self", layer.self_attn), ("cross", layer.encoder_attn)):
            softmax = 2 * length * attention.embed_dim * element
            fast = isinstance(attention, MixerAttention)
            kept[site][0] += state_bytes(attention) if fast else softmax
            kept[site][1] += softmax
    return Decoding(kept["self"][0], kept["cross"][0], kept["self"][1], kept["cross"][1])


def state_bytes(attention: MixerAttention) -> int:
    """Return the bytes of a layer's fast weights for one sequence: fp32, whatever the model is."""
    state = attention.mixer.init_state(1, attention.num_heads, device=META, dtype=torch.float32)
    return sum(x.numel() * x.element_size() for x in state if x is not None)


def workspace(model: nn.Module, tokens: int) -> int:
    """Return the bytes that one layer's CUDA kernels work in besides: matrices of the chunks.

    The operation does this inside itself, where no meter sees it: five matrices of a chunk's size
    squared going backward with the delta rule and two with the sum rule, in the precision of the
    model, and the delta rule's gradient of the keys in fp32 (docs/cuda.md).
    """
    most = 0
    for attention in model.modules():
        config = getattr(getattr(attention, "mixer", None), "config", None)
        if config is None or isinstance(attention, FastWeightCrossAttention):
            continue
        delta = config.rule == "delta"
        keys = 4 * attention.mixer.feature_map.out_dim if delta else 0
        each = (5 if delta else 2) * CHUNK * 2 + keys
        most = max(most, tokens * attention.num_heads * each)
    return most
