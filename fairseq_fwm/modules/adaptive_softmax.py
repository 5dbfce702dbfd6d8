"""The adaptive softmax of the published language models, behind fairseq's surface."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from fairseq.modules import AdaptiveSoftmax
from fairseq.modules.fairseq_dropout import FairseqDropout
from torch import Tensor, nn


class TiedAdaptiveSoftmax(AdaptiveSoftmax):
    """One table for all clusters, tied with the input embedding, and an output bias.

    fairseq's own has tail projections and no biases. The criterion ``adaptive_loss`` and all
    scoring work as with that one.

    Args:
        embedding: table of all words ``(words, D)``, most frequent first.
        cutoff: first word of every tail cluster, ascending; the rest is the last cluster.
        dropout: on the input.

    Source: arXiv 1609.04309 with ``div_val`` 1, as in arXiv 1901.02860 and 2102.11174.

    Raises:
        ValueError: if the cutoffs do not ascend within the vocabulary.
    """

    def __init__(self, embedding: nn.Embedding, cutoff: list[int], dropout: float = 0.0) -> None:
        nn.Module.__init__(self)
        words, dim = embedding.weight.shape
        edges = [0, *cutoff, words]
        low = [(embedding.padding_idx or 0) + 1, *cutoff]
        if any(a >= b for a, b in zip(low, edges[1:], strict=True)):
            raise ValueError(
                f"adaptive softmax: cutoffs {cutoff} must ascend and lie below the {words} words "
                "of the dictionary (--adaptive-softmax-cutoff)"
            )
        self.vocab_size, self.cutoff = words, edges[1:]
        self.dropout_module = FairseqDropout(dropout, module_name=self.__class__.__name__)
        self.lsm = nn.LogSoftmax(dim=1)
        self.embedding = embedding
        self.bias = nn.Parameter(torch.zeros(words))
        self.cluster_weight = nn.Parameter(torch.empty(len(cutoff), dim))
        self.cluster_bias = nn.Parameter(torch.zeros(len(cutoff)))
        nn.init.xavier_uniform_(self.cluster_weight)
        self.register_buffer("version", torch.LongTensor([1]))

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

    def forward(
        self, input: Tensor, target: Tensor
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Return scores and targets of every cluster, for fairseq's ``adaptive_loss``.

        That ignores the index of padding in the tails too, where it is a word's: the tails' words
        are moved behind it.
        """
        x = self.dropout_module(input.reshape(-1, input.shape[-1]))
        targets, rows = self.adapt_target(target)
        scores: list[Tensor | None] = [self.head(x)]
        before = (self.embedding.padding_idx or 0) + 1
        for cluster, chosen in enumerate(rows):
            if chosen is None:
                scores.append(None)
                continue
            scores.append(self._band(cluster, x.index_select(0, chosen), before))
            targets[cluster + 1] = targets[cluster + 1] + before
        return scores, targets
