"""The adaptive softmax of the published language models."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TiedClusters(nn.Module):
    """One table for all clusters of words, tied with the input embedding, and an output bias.

    Args:
        embedding: table of all words ``(words, D)``, most frequent first.
        cutoff: first word of every tail cluster, ascending; the rest is the last cluster.

    Source: arXiv 1609.04309 with ``div_val`` 1, as in arXiv 1901.02860 and 2102.11174.

    Raises:
        ValueError: if the cutoffs do not ascend within the vocabulary.
    """

    def __init__(self, embedding: nn.Embedding, cutoff: list[int]) -> None:
        nn.Module.__init__(self)  # not the next class of fairseq's twin in modules/
        words, dim = embedding.weight.shape
        edges = [0, *cutoff, words]
        low = [(embedding.padding_idx or 0) + 1, *cutoff]
        if any(a >= b for a, b in zip(low, edges[1:], strict=True)):
            raise ValueError(
                f"adaptive softmax: cutoffs {cutoff} must ascend and lie below the {words} words "
                "of the dictionary (--adaptive-softmax-cutoff)"
            )
        self.vocab_size, self.cutoff = words, edges[1:]
        self.embedding = embedding
        self.bias = nn.Parameter(torch.zeros(words))
        self.cluster_weight = nn.Parameter(torch.empty(len(cutoff), dim))
        self.cluster_bias = nn.Parameter(torch.zeros(len(cutoff)))
        nn.init.xavier_uniform_(self.cluster_weight)

    def head(self, x: Tensor) -> Tensor:
        """Return scores ``(N, words of the head + clusters)`` of ``(N, D)``."""
        end = self.cutoff[0]
        weight = torch.cat((self.embedding.weight[:end], self.cluster_weight))
        return F.linear(x, weight, torch.cat((self.bias[:end], self.cluster_bias)))

    @property
    def tail(self) -> list[Callable[[Tensor], Tensor]]:
        """Functions from ``(N, D)`` to the scores of each tail cluster."""
        return [partial(self._band, i) for i in range(len(self.cutoff) - 1)]

    def _band(self, cluster: int, x: Tensor, before: int = 0) -> Tensor:
        """Return scores of a tail cluster, after as many impossible ones as ``before``."""
        words = slice(self.cutoff[cluster] - before, self.cutoff[cluster + 1])
        scores = F.linear(x, self.embedding.weight[words], self.bias[words])
        scores[:, :before] = -torch.inf
        return scores

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log-probabilities of all words, ``(N, D)`` -> ``(N, words)``."""
        head, clusters = self.head(x).log_softmax(-1).split((self.cutoff[0], len(self.tail)), -1)
        bands = [
            band(x).log_softmax(-1) + clusters[:, i, None] for i, band in enumerate(self.tail)
        ]
        return torch.cat((head, *bands), -1)
