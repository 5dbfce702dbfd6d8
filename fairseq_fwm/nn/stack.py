"""An encoder or a decoder without fairseq: embedding, layers, output layer."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fairseq_fwm.mixers.base import State
from fairseq_fwm.nn.adaptive_softmax import TiedClusters
from fairseq_fwm.nn.config import StackConfig
from fairseq_fwm.nn.layers import TransformerLayer
from fairseq_fwm.nn.positions import ForwardSinusoids, LearnedPositions, ReversedSinusoids


class StackState(NamedTuple):
    """Where a decoder is in its text.

    Attributes:
        layers: state of every layer's self-attention; empty at the beginning.
        source: what every layer's cross-attention wrote of the source; empty without a source.
        seen: number of tokens so far.
    """

    layers: tuple[State, ...] = ()
    source: tuple[State, ...] = ()
    seen: int = 0


class Stack(nn.Module):
    """fairseq's transformer encoder or decoder, batch first, its parameters' names included.

    Args:
        cfg: what it is.
    """

    def __init__(self, cfg: StackConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed_tokens = nn.Embedding(cfg.words, cfg.embed_dim, cfg.pad)
        self.project_in_dim = projection(cfg.embed_dim, cfg.dim)
        self.embed_positions = build_positions(cfg)
        self.layernorm_embedding = nn.LayerNorm(cfg.dim) if cfg.embed_norm else None
        self.layers = nn.ModuleList(TransformerLayer(cfg) for _ in range(cfg.layers))
        self.layer_norm = nn.LayerNorm(cfg.dim) if cfg.final_norm else None
        if cfg.output != "none":
            self.project_out_dim = projection(cfg.dim, cfg.output_dim)
        if cfg.output == "linear":
            self.output_projection = nn.Linear(cfg.output_dim, cfg.words, bias=False)
        elif cfg.output == "tied_clusters":
            self.adaptive_softmax = TiedClusters(self.embed_tokens, list(cfg.cutoff))
        elif cfg.output == "adaptive":
            self.adaptive_softmax = nn.AdaptiveLogSoftmaxWithLoss(
                cfg.output_dim, cfg.words, cfg.cutoff, cfg.factor
            )

    def forward(
        self, tokens: Tensor, state: StackState | None = None, return_state: bool = False
    ) -> tuple[Tensor, StackState | None]:
        """Return the features of tokens.

        Args:
            tokens: ``(N, T)``.
            state: go on from it; tokens that follow on a state hold no padding.
            return_state: return the state after the last token.

        Returns:
            ``(N, T, D)`` and the state, or ``None``.

        Raises:
            ValueError: if positions change with what follows, so that nothing can go on.
        """
        state = StackState() if state is None else state
        mask = padding_mask(tokens, self.cfg.pad)
        x = self._embed(tokens, state.seen, return_state or state.seen > 0)
        if mask is not None and not self.cfg.causal:
            x = x * mask.unsqueeze(-1)
        nothing = (None,) * len(self.layers)
        after = []
        for layer, before, source in zip(
            self.layers, state.layers or nothing, state.source or nothing, strict=True
        ):
            x, new = layer(x, before, mask, source, return_state)
            after.append(new)
        x = x if self.layer_norm is None else self.layer_norm(x)
        if not return_state:
            return x, None
        return x, StackState(tuple(after), state.source, state.seen + tokens.shape[1])

    def write_source(self, source: Tensor, mask: Tensor | None = None) -> StackState:
        """Return the state before the first token of a translation.

        Args:
            source: an encoder's output ``(N, S, source_dim)``.
            mask: ``(N, S)`` bool, False at padding.
        """
        memories = (layer.encoder_attn.write(source, mask) for layer in self.layers)
        return StackState(source=tuple(memories))

    def logits(self, x: Tensor) -> Tensor:
        """Return logits of ``(N, T, D)`` features; of an adaptive softmax, log-probabilities."""
        x = x if self.project_out_dim is None else self.project_out_dim(x)
        if self.cfg.output == "linear":
            return self.output_projection(x)
        return self.adaptive_softmax.log_prob(x.flatten(0, -2)).unflatten(0, x.shape[:-1])

    def _embed(self, tokens: Tensor, seen: int, goes_on: bool) -> Tensor:
        x = self.cfg.embed_scale * self.embed_tokens(tokens)
        x = x if self.project_in_dim is None else self.project_in_dim(x)
        if isinstance(self.embed_positions, ReversedSinusoids):
            # Refuses a state.
            x = x + self.embed_positions(tokens, {} if goes_on else None).to(x.dtype)
        elif self.embed_positions is not None:
            x = x + self.embed_positions(tokens, seen).to(x.dtype)
        return x if self.layernorm_embedding is None else self.layernorm_embedding(x)


def padding_mask(tokens: Tensor, pad: int) -> Tensor | None:
    """Return ``(N, T)`` bool, False at padding; ``None`` if there is none."""
    real = tokens.ne(pad)
    # A compiler cannot look at the tokens.
    return real if torch.compiler.is_compiling() or not bool(real.all()) else None


def projection(inputs: int, outputs: int) -> nn.Linear | None:
    """Return a linear layer between two sizes, or ``None`` if they are the same."""
    return None if inputs == outputs else nn.Linear(inputs, outputs, bias=False)


def build_positions(cfg: StackConfig) -> nn.Module | None:
    """Build the positions of a stack.

    Raises:
        ValueError: for positions that do not exist.
    """
    if cfg.positions == "none":
        return None
    if cfg.positions == "learned":
        return LearnedPositions(cfg.max_positions, cfg.dim, cfg.pad)
    kinds = {"sinusoids": ForwardSinusoids, "reversed": ReversedSinusoids}
    if cfg.positions not in kinds:
        raise ValueError(f"positions {cfg.positions!r}: choose none, learned, {', '.join(kinds)}")
    return kinds[cfg.positions](cfg.dim, cfg.pad)


def greedy(logits: Tensor, forbidden: list[int]) -> Tensor:
    """Return the likeliest words ``(N,)`` of logits ``(N, words)`` that are not forbidden."""
    logits = logits.clone()
    logits[:, forbidden] = -torch.inf
    return logits.argmax(-1)
