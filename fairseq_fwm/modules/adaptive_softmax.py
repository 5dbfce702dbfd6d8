"""The adaptive softmax of the published language models, behind fairseq's surface."""

import torch
from fairseq.modules import AdaptiveSoftmax
from fairseq.modules.fairseq_dropout import FairseqDropout
from torch import Tensor, nn

from fairseq_fwm.nn.adaptive_softmax import TiedClusters


class TiedAdaptiveSoftmax(TiedClusters, AdaptiveSoftmax):
    """:class:`TiedClusters` for fairseq.

    fairseq's own has tail projections and no biases. The criterion ``adaptive_loss`` and all
    scoring work as with that one.

    Args:
        embedding, cutoff: see :class:`TiedClusters`.
        dropout: on the input.
    """

    def __init__(self, embedding: nn.Embedding, cutoff: list[int], dropout: float = 0.0) -> None:
        TiedClusters.__init__(self, embedding, cutoff)
        self.dropout_module = FairseqDropout(dropout, module_name=self.__class__.__name__)
        self.lsm = nn.LogSoftmax(dim=1)
        self.register_buffer("version", torch.LongTensor([1]))

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
