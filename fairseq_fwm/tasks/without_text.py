"""What tasks share whose data are no text: no dictionaries, and nothing is too long."""

from typing import Any

from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import FairseqTask


class TaskWithoutText(FairseqTask):
    """A task that is made of its configuration alone."""

    source_dictionary = target_dictionary = None

    @classmethod
    def setup_task(cls, cfg: FairseqDataclass, **kwargs: Any) -> "TaskWithoutText":
        """Make the task; what fairseq says of a checkpoint makes no difference."""
        return cls(cfg)

    def max_positions(self) -> None:
        """Return None: nothing is too long."""
