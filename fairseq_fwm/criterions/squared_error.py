"""``squared_error``: half the squared distance to a one-hot target."""

from collections.abc import Sequence
from typing import Any

from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.logging import metrics
from fairseq.tasks import FairseqTask
from torch import Tensor, nn


@register_criterion("squared_error")
class SquaredErrorCriterion(FairseqCriterion):
    """0.5 sum_j (y*_j - y_j)^2 per query (arXiv 2102.11174, Sec. 6.1); answering zero costs 0.5.

    Evaluated as published, the mean is that of the means over --batch-size queries of a sequence,
    the last of which may be few.
    """

    def __init__(self, task: FairseqTask) -> None:
        super().__init__(task)
        self.chunk = task.cfg.batch_size if task.cfg.as_published else None

    def forward(
        self, model: nn.Module, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Return the summed loss, the number of queries, and what is logged."""
        answers, targets = model(**sample["net_input"]), sample["target"]
        # sum_j (1[j = target] - y_j)^2 without the one-hot vector
        right = answers.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        losses = 0.5 * (answers.square().sum(-1) - 2 * right + 1)
        correct = (answers.argmax(-1) == targets).to(losses)
        if not model.training and self.chunk:
            losses, correct = _means(losses, self.chunk), _means(correct, self.chunk)
        loss, size = losses.sum(), losses.numel()
        return (
            loss,
            size,
            {
                "loss": loss.detach(),
                "correct": correct.sum(),
                "sample_size": size,
                "ntokens": sample["ntokens"],
                "nsentences": sample["nsentences"],
            },
        )

    @classmethod
    def reduce_metrics(cls, logging_outputs: Sequence[dict[str, Any]]) -> None:
        """Log the mean loss, and the accuracy of the largest answer."""
        size = sum(log["sample_size"] for log in logging_outputs)
        for name, key, scale in (("loss", "loss", 1), ("accuracy", "correct", 100)):
            total = sum(float(log[key]) for log in logging_outputs)
            metrics.log_scalar(name, scale * total / size, size)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Return True: workers' sums are added."""
        return True


def _means(losses: Tensor, chunk: int) -> Tensor:
    return losses.new_tensor([part.mean() for row in losses for part in row.split(chunk)])
