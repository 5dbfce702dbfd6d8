"""What fairseq's layers ask of the attention in them: heads, a state, and a look at the mask.

fairseq's ``(T, N, C)`` becomes ``(N, H, T, features)`` here and nowhere else.
"""

import math

import torch
from fairseq.incremental_decoding_utils import with_incremental_state
from fairseq.modules.quant_noise import quant_noise
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from fairseq_fwm.modules.shared_source import IncrementalState


@with_incremental_state
class FairseqAttention(nn.Module):
    """The surface of fairseq's ``MultiheadAttention``, without what it computes.

    The incremental state holds batch-first tensors under fairseq's key ``attn_state``.

    Args:
        embed_dim: C, size of the queries' vectors.
        num_heads: H, which must divide C.
        q_noise: quantisation noise on the projections, as in fairseq.
        qn_block_size: block size of that noise.
        bias: give the projections biases.

    Raises:
        ValueError: if H does not divide C.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        q_noise: float = 0.0,
        qn_block_size: int = 8,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.q_noise, self.qn_block_size, self.bias = q_noise, qn_block_size, bias

    def _build_out_proj(self, inputs: int) -> nn.Module:
        linear = self._linear(inputs, self.embed_dim)
        nn.init.xavier_uniform_(linear.weight)
        return linear

    def _linear(self, inputs: int, outputs: int) -> nn.Module:
        linear = nn.Linear(inputs, outputs, bias=self.bias)
        if self.bias:
            nn.init.zeros_(linear.bias)
        return quant_noise(linear, self.q_noise, self.qn_block_size)

    def _init_projection(self, linear: nn.Module, inputs: int) -> None:
        # Each of q, k, v as in fairseq: Xavier for an (inputs x embed_dim) matrix, gain 1/sqrt(2).
        bound = math.sqrt(6.0 / (inputs + self.embed_dim)) / math.sqrt(2.0)
        nn.init.uniform_(linear.weight, -bound, bound)

    def _to_heads(self, x: Tensor) -> Tensor:
        """``(T, N, H * P)`` -> ``(N, H, T, P)``, a view."""
        t, n, _ = x.shape
        return x.view(t, n, self.num_heads, -1).permute(1, 2, 0, 3)

    def _from_heads(self, y: Tensor) -> Tensor:
        """``(N, H, T, V)`` -> ``(T, N, C)`` through the output projection."""
        n, _, t, _ = y.shape
        return self.out_proj(y.permute(2, 0, 1, 3).reshape(t, n, -1))

    def _get_input_buffer(
        self, incremental_state: IncrementalState | None
    ) -> dict[str, Tensor | None]:
        return self.get_incremental_state(incremental_state, "attn_state") or {}

    def _set_input_buffer(
        self, incremental_state: IncrementalState, buffer: dict[str, Tensor | None]
    ) -> IncrementalState | None:
        return self.set_incremental_state(incremental_state, "attn_state", buffer)


# Masks found causal, by identity, with the version that was looked at.
_CAUSAL_MASKS = WeakIdKeyDictionary()


def is_causal(mask: Tensor, length: int) -> bool:
    """Return whether ``mask`` is the ``(length, length)`` causal mask, or stands for it.

    A mask of shape ``(0,)`` stands for the causal mask of any length.

    fairseq hands every layer and batch a corner of one big buffer, so a buffer is looked at once:
    comparing the corner each time would stop a GPU in every layer.
    """
    if mask.shape == (0,):
        return True
    if mask.shape != (length, length):
        return False
    if torch.compiler.is_compiling():
        return True  # its values are not there yet
    buffer = mask if mask._base is None else mask._base
    if buffer.is_inference() or buffer.dim() != 2 or buffer.shape[0] != buffer.shape[1]:
        return _compare_causal(mask)
    corner = mask.storage_offset() == 0 and mask.stride() == buffer.stride()
    if corner and _CAUSAL_MASKS.get(buffer) == buffer._version:
        return True
    if corner and _compare_causal(buffer):
        _CAUSAL_MASKS[buffer] = buffer._version
        return True
    return _compare_causal(mask)


def _compare_causal(mask: Tensor) -> bool:
    hidden = mask if mask.dtype == torch.bool else mask < 0
    future = torch.ones_like(hidden).triu(1)
    # A bias on the past is no mask at all: every visible entry must be zero.
    return torch.equal(hidden, future) and torch.equal(mask == 0, ~future)
