"""``until_solved``: a learning rate until a task is solved, or training gets no further."""

import csv
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from fairseq.optim.lr_scheduler import register_lr_scheduler
from fairseq.optim.lr_scheduler.fixed_schedule import FixedLRSchedule, FixedLRScheduleConfig
from omegaconf import II

logger = logging.getLogger(__name__)


@dataclass
class UntilSolvedConfig(FixedLRScheduleConfig):
    """fairseq's fixed schedule and when it ends."""

    solved_loss: float = field(
        default=1e-3, metadata={"help": "validation loss at which the task counts as solved"}
    )
    unsolved_patience: int = field(
        default=10,
        metadata={"help": "give up after more than N validations in a row without a lower loss"},
    )
    eval_log: Optional[str] = field(
        default=None, metadata={"help": "file for lines of `step,eval-loss`, one per validation"}
    )
    anneal: bool = field(
        default=False,
        metadata={"help": "let the rate fall by half a cosine, to 1/100 at --max-update"},
    )
    max_update: int = II("optimization.max_update")
    stop_min_lr: float = II("optimization.stop_min_lr")


@register_lr_scheduler("until_solved", dataclass=UntilSolvedConfig)
class UntilSolved(FixedLRSchedule):
    """Sets the learning rate to zero when training shall end; fairseq then stops it.

    Raises:
        ValueError: if fairseq would not stop at zero, or annealing has no end.
    """

    def __init__(self, cfg: UntilSolvedConfig, optimizer: Any) -> None:
        super().__init__(cfg, optimizer)
        if cfg.stop_min_lr < 0:
            raise ValueError(
                "--lr-scheduler until_solved ends training by a learning rate of zero: pass "
                "--stop-min-lr 0"
            )
        if cfg.anneal and not cfg.max_update:
            raise ValueError("--anneal needs an end: pass --max-update")
        self.best, self.worse, self.ended, self.updates = math.inf, 0, False, 0

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"lr": self.lr, "best": self.best, "worse": self.worse, "ended": self.ended}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        super().load_state_dict(state_dict)
        self.best, self.worse = state_dict["best"], state_dict["worse"]
        self.ended = state_dict["ended"]

    def get_next_lr(self, epoch: int) -> float:
        """Return fairseq's fixed rate, or zero."""
        return 0.0 if self.ended else super().get_next_lr(epoch)

    def step_update(self, num_updates: int) -> float:
        """Set the rate after an update."""
        self.updates = num_updates
        return self._annealed(super().step_update(num_updates))

    def step_begin_epoch(self, epoch: int) -> float:
        """Set the rate before an epoch's first update."""
        return self._annealed(super().step_begin_epoch(epoch))

    def _annealed(self, lr: float) -> float:
        if self.cfg.anneal:
            done = min(1.0, self.updates / self.cfg.max_update)
            lr *= 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2
            self.optimizer.set_lr(lr)
        return lr

    def step(self, epoch: int, val_loss: Optional[float] = None) -> None:
        """Look at a validation's loss; one that is not a number is no improvement."""
        if val_loss is None:
            return
        if self.cfg.eval_log:
            self._log(val_loss)
        improved = val_loss < self.best
        self.best = val_loss if improved else self.best
        self.worse = 0 if improved else self.worse + 1
        if val_loss <= self.cfg.solved_loss:
            self._end(f"solved: a validation loss of {val_loss:.3g}")
        elif self.worse > self.cfg.unsolved_patience:
            self._end(f"no better than {self.best:.3g} in {self.worse} validations")

    def _end(self, reason: str) -> None:
        logger.info("%s after %d updates", reason, self.updates)
        self.ended, self.lr = True, 0.0

    def _log(self, val_loss: float) -> None:
        path = Path(self.cfg.eval_log)
        begin = not path.exists()
        with path.open("a", newline="") as file:
            lines = csv.writer(file, lineterminator="\n")
            if begin:
                lines.writerow(("step", "eval-loss"))
            lines.writerow((self.updates, val_loss))
