"""What a language model carries from one segment of its streams to the next."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

LayerState = dict[str, Tensor]


@dataclass
class Stream:
    """States of all layers for one batch of text streams, batch-first; empty before the text.

    A model that is called with ``stream=`` goes on from these states and leaves its own there.
    Not a dict: wrappers for parallel training copy those.

    Attributes:
        states: one dict of tensors for every layer; empty for the initial state.
    """

    states: list[LayerState]

    @classmethod
    def empty(cls) -> "Stream":
        """Return the stream before its first token."""
        return cls([])

    def map(self, function: Callable[[Tensor], Tensor]) -> "Stream":
        """Return a stream with a function applied to every tensor."""
        return Stream([{k: function(x) for k, x in state.items()} for state in self.states])

    def detach(self) -> "Stream":
        """Return a stream without gradients: backpropagation ends at the segment's beginning."""
        return self.map(Tensor.detach)

    @property
    def numbers_per_layer(self) -> list[int]:
        """Return the size of every layer's state for one stream."""
        return [sum(x[0].numel() for x in state.values()) for state in self.states]
