"""``tagging``: cross-entropy of every position, accuracy of whole strings."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.logging import metrics
from fairseq.tasks import FairseqTask
from torch import Tensor, nn


@register_criterion("tagging")
class TaggingCriterion(FairseqCriterion):
    """Mean cross-entropy over positions (arXiv 2310.16076); a string counts if all of it is right.

    Logs, of an evaluation, `bin0`, `bin1` and `bin2` (percent of strings, of the bins that occur)
    and `wrong`, 100 minus the accuracy that decides: Bin0's, or published the mean of Bin0's and
    Bin1's.
    """

    def __init__(self, task: FairseqTask) -> None:
        super().__init__(task)
        self.pad = task.pads[1]
        self.deciding = (0, 1) if task.cfg.as_published else (0,)

    def forward(
        self, model: nn.Module, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Return the summed loss, the number of positions, and what is logged."""
        logits, targets = model(**sample["net_input"]), sample["target"]
        loss = F.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), ignore_index=self.pad, reduction="sum"
        )
        right = (logits.argmax(-1) == targets) | (targets == self.pad)
        number, strings = sample["bin"], sample["nsentences"]
        log = {
            "loss": loss.detach(),
            "sample_size": sample["ntokens"],
            "ntokens": sample["ntokens"],
            "nsentences": strings,
            "tokens_right": right.sum() - (targets == self.pad).sum(),
            f"strings{number}": strings,
            f"right{number}": right.all(1).sum(),
            **{f"decides{i}": 1 for i in self.deciding},
        }
        return loss, sample["ntokens"], log

    @classmethod
    def reduce_metrics(cls, logging_outputs: Sequence[dict[str, Any]]) -> None:
        """Log means."""

        def total(key: str) -> float:
            return sum(float(log.get(key, 0)) for log in logging_outputs)

        tokens = total("ntokens")
        metrics.log_scalar("loss", total("loss") / tokens, tokens)
        metrics.log_scalar("token_accuracy", 100 * total("tokens_right") / tokens, tokens, round=2)
        for i in range(3):
            if strings := total(f"strings{i}"):
                metrics.log_scalar(f"bin{i}", 100 * total(f"right{i}") / strings, strings, round=2)
        deciding = [f"bin{i}" for i in range(3) if total(f"decides{i}")]

        def wrong(meters: Mapping[str, Any]) -> float:
            found = [meters[name].avg for name in deciding if name in meters]
            return 100 - sum(map(float, found)) / len(found) if found else 100.0

        metrics.log_derived("wrong", wrong)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Return False: not every worker has batches of every bin."""
        return False
