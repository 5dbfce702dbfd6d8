"""The layers of fairseq's transformer, batch first, with its names of parameters.

Dropout is left out: these layers run trained models.
"""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_fwm.mixers import FastWeightConfig, build_mixer
from fairseq_fwm.mixers.base import State
from fairseq_fwm.nn.attention import FastWeightAttention
from fairseq_fwm.nn.config import StackConfig


def identity(x: Tensor) -> Tensor:
    """Return a tensor as it is; fairseq's activation ``linear``."""
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_accurate": partial(F.gelu, approximate="tanh"),
    "gelu_fast": partial(F.gelu, approximate="tanh"),
    "tanh": torch.tanh,
    "linear": identity,
}


class KeysValues(NamedTuple):
    """What softmax attention remembers of the positions it has seen.

    Attributes:
        keys: ``(N, H, S, d)``.
        values: ``(N, H, S, d)``.
        mask: ``(N, S)`` bool, False at padding.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor


class SoftmaxAttention(nn.Module):
    """Softmax attention behind the surface of :class:`FastWeightAttention` and of cross-attention.

    Its state grows with the text.

    Args:
        dim: size of the vectors that come in and go out.
        heads: H.
        source_dim: size of the vectors that keys and values come from; ``dim`` by default.
        causal: position t sees positions up to t.
        bias: give the projections biases.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        source_dim: int | None = None,
        causal: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.q_proj = nn.Linear(dim, dim, bias)
        self.k_proj = nn.Linear(source_dim or dim, dim, bias)
        self.v_proj = nn.Linear(source_dim or dim, dim, bias)
        self.out_proj = nn.Linear(dim, dim, bias)

    def forward(
        self,
        x: Tensor,
        state: KeysValues | None = None,
        mask: Tensor | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, KeysValues]:
        """Attend to itself; see :meth:`FastWeightAttention.forward`."""
        new = self.write(x, mask)
        if state is not None:
            axes = KeysValues(2, 2, 1)
            new = KeysValues(*map(torch.cat, zip(state, new, strict=True), axes))
        y = self.read(x, new)
        return (y, new) if return_state else y

    def write(self, source: Tensor, mask: Tensor | None = None) -> KeysValues:
        """Return keys and values of ``(N, S, source_dim)``; ``mask`` is False at padding."""
        mask = source.new_ones(source.shape[:2], dtype=torch.bool) if mask is None else mask
        return KeysValues(self._heads(self.k_proj(source)), self._heads(self.v_proj(source)), mask)

    def read(self, x: Tensor, memory: KeysValues) -> Tensor:
        """Return what queries ``(N, T, dim)`` find, ``(N, T, dim)``."""
        visible = memory.mask[:, None, None]
        if self.causal:
            t, s = x.shape[1], visible.shape[-1]
            visible = visible & visible.new_ones(t, s).tril(s - t)
        q = self._heads(self.q_proj(x))
        y = F.scaled_dot_product_attention(q, memory.keys, memory.values, attn_mask=visible)
        return self.out_proj(y.transpose(1, 2).flatten(-2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FastWeightCrossAttention(nn.Module):
    """The source is written once; every target position then reads it in O(1).

    Args:
        dim: size of the queries' vectors and of those that go out.
        heads: H.
        source_dim: size of the source's vectors.
        config: the variant.
        bias: give the projections biases.

    Raises:
        ValueError: if the variant cannot stand here, with the reason.
    """

    def __init__(
        self, dim: int, heads: int, source_dim: int, config: FastWeightConfig, bias: bool = True
    ) -> None:
        super().__init__()
        self.heads = heads
        self.mixer = build_mixer(dim // heads, heads, config, "cross")
        self.q_proj = nn.Linear(dim, dim, bias)
        self.kv_proj = nn.Linear(source_dim, 2 * dim, bias)
        self.out_proj = nn.Linear(dim, dim, bias)

    def write(self, source: Tensor, mask: Tensor | None = None) -> State:
        """Return the memory of a source ``(N, S, source_dim)``; ``mask`` is False at padding."""
        return self.mixer.write(self._heads(self.kv_proj(source)), mask)

    def read(self, x: Tensor, memory: State) -> Tensor:
        """Return what queries ``(N, T, dim)`` find, ``(N, T, dim)``."""
        y = self.mixer.read(self._heads(self.q_proj(x)), memory)
        return self.out_proj(y.transpose(1, 2).flatten(-2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class TransformerLayer(nn.Module):
    """Self-attention, cross-attention where there is a source, and a feed-forward network.

    Args:
        cfg: of the stack it belongs to.
    """

    def __init__(self, cfg: StackConfig) -> None:
        super().__init__()
        self.norm_first, self.activation = cfg.norm_first, ACTIVATIONS[cfg.activation]
        self.self_attn = build_self_attention(cfg)
        self.self_attn_layer_norm = nn.LayerNorm(cfg.dim)
        self.encoder_attn = build_cross_attention(cfg)
        if self.encoder_attn is not None:
            self.encoder_attn_layer_norm = nn.LayerNorm(cfg.dim)
        self.fc1 = nn.Linear(cfg.dim, cfg.ff_dim)
        self.fc2 = nn.Linear(cfg.ff_dim, cfg.dim)
        self.final_layer_norm = nn.LayerNorm(cfg.dim)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        mask: Tensor | None = None,
        source: State | None = None,
        return_state: bool = False,
    ) -> tuple[Tensor, State | None]:
        """Process a sequence.

        Args:
            x: ``(N, T, D)``.
            state: of self-attention, to go on from.
            mask: ``(N, T)`` bool, False at padding.
            source: what cross-attention wrote.
            return_state: return the state after the last position.

        Returns:
            ``(N, T, D)`` and the state, or ``None``.
        """
        norm = self.self_attn_layer_norm
        y = self.self_attn(self._before(norm, x), state, mask, return_state)
        y, new = y if return_state else (y, None)
        x = self._behind(norm, x + y)
        if self.encoder_attn is not None:
            norm = self.encoder_attn_layer_norm
            x = self._behind(norm, x + self.encoder_attn.read(self._before(norm, x), source))
        norm = self.final_layer_norm
        y = self.fc2(self.activation(self.fc1(self._before(norm, x))))
        return self._behind(norm, x + y), new

    def _before(self, norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x) if self.norm_first else x

    def _behind(self, norm: nn.Module, x: Tensor) -> Tensor:
        return x if self.norm_first else norm(x)


def build_self_attention(cfg: StackConfig) -> nn.Module:
    """Build the self-attention of a stack's layers."""
    bias = cfg.attention_bias
    if cfg.self_attention is None:
        return SoftmaxAttention(cfg.dim, cfg.heads, causal=cfg.causal, bias=bias)
    return FastWeightAttention(
        cfg.dim,
        cfg.heads,
        causal=cfg.causal,
        bias=bias,
        out_bias=bias,
        **asdict(cfg.self_attention),
    )


def build_cross_attention(cfg: StackConfig) -> nn.Module | None:
    """Build the cross-attention of a stack's layers, or return ``None`` where there is none."""
    if cfg.source_dim is None:
        return None
    sizes = (cfg.dim, cfg.heads, cfg.source_dim)
    if cfg.cross_attention is None:
        return SoftmaxAttention(*sizes, bias=cfg.attention_bias)
    return FastWeightCrossAttention(*sizes, cfg.cross_attention, cfg.attention_bias)
