"""Checkpoints that no training has written: what the import_*.py scripts make."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


class ImportingError(Exception):
    """A file cannot be imported; the message says why and what to do."""


def read_file(path: Path) -> Any:
    """Return what ``torch.save`` wrote, without running any code that the file may hold.

    Raises:
        ImportingError: the file is missing, damaged, or holds more than tensors and settings.
    """
    import torch

    import fairseq_fwm  # noqa: F401  (allows what checkpoints hold)

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ImportingError(f"there is no {path}") from error
    except Exception as error:
        raise ImportingError(f"{path} cannot be loaded: {error}") from error


def configuration(flags: list[str]) -> Any:
    """Return the configuration that ``fairseq-train`` makes of its flags."""
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    import fairseq_fwm  # noqa: F401  (registers models and tasks)

    parser = options.get_training_parser()
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, flags))


def save_checkpoint(path: Path, cfg: Any, weights: Mapping[str, Any]) -> None:
    """Write a checkpoint of a model that was trained elsewhere: no optimizer, no updates."""
    from omegaconf import OmegaConf

    history = {
        "criterion_name": "",
        "optimizer_name": "",
        "lr_scheduler_state": {},
        "num_updates": 0,
    }
    state = {
        "args": None,
        "cfg": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True),
        "model": dict(weights),
        "criterion": None,
        "optimizer_history": [history],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "last_optimizer_state": None,
    }
    save_whole(state, path)


def save_whole(state: dict[str, Any], path: Path) -> None:
    """Save under the final name only when the file is complete."""
    from average_checkpoints import save_whole as save

    save(state, path)


def run(work: Any, args: argparse.Namespace) -> int:
    """Run a script's work, which returns what to print; return the exit status."""
    try:
        print(work(args))
    except ImportingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
