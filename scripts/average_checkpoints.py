#!/usr/bin/env python
"""Average the parameters of several fairseq checkpoints into one.

Examples:
    python scripts/average_checkpoints.py --inputs runs/model --num-epoch-checkpoints 10 \\
        --output runs/model/average.pt
    python scripts/average_checkpoints.py --inputs a.pt b.pt --output average.pt

Floating-point parameters are averaged in fp64 and stored in their own type. What cannot be
averaged (integers, booleans, the random projections of FAVOR+) comes from the newest checkpoint,
as does everything else but the optimizer state, which is left out.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import fairseq_fwm  # noqa: E402, F401  (allow-lists what fairseq puts into checkpoints)

EPOCH_CHECKPOINT = r"checkpoint(\d+)\.pt"
UPDATE_CHECKPOINT = r"checkpoint_\d+_(\d+)\.pt"
# A mean of random projections is no longer a valid draw: its rows are too short.
NEVER_AVERAGED = "feature_map.projection"


class AveragingError(Exception):
    """The checkpoints cannot be averaged; the message says why and what to do."""


def select_checkpoints(
    directory: Path, count: int, by_update: bool = False, upper_bound: int | None = None
) -> list[Path]:
    """Return the newest `count` checkpoints of a directory, newest first.

    Args:
        directory: a fairseq `--save-dir`.
        count: how many.
        by_update: take `checkpoint_<epoch>_<update>.pt` instead of `checkpoint<epoch>.pt`.
        upper_bound: ignore checkpoints past this epoch (or update).

    Raises:
        AveragingError: the directory holds fewer.
    """
    from fairseq.checkpoint_utils import checkpoint_paths

    if not directory.is_dir():
        raise AveragingError(f"{directory} is not a directory")
    pattern = UPDATE_CHECKPOINT if by_update else EPOCH_CHECKPOINT
    found = checkpoint_paths(str(directory), pattern, keep_match=True)
    if upper_bound is not None:
        found = [entry for entry in found if entry[1] <= upper_bound]
    if len(found) < count:
        kind = "update" if by_update else "epoch"
        bound = "" if upper_bound is None else f" up to {kind} {upper_bound}"
        flag = "--keep-interval-updates" if by_update else "--keep-last-epochs"
        raise AveragingError(
            f"{directory} holds {len(found)} {kind} checkpoints{bound}, {count} were asked for: "
            f"train longer, keep more of them ({flag}), or ask for fewer"
        )
    return [Path(path) for path, _ in found[:count]]


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint without running any code that it may hold.

    Raises:
        AveragingError: the file is missing, damaged or no fairseq checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise AveragingError(f"{path} does not exist") from error
    except Exception as error:
        raise AveragingError(f"{path} cannot be loaded: {error}") from error
    if not isinstance(state, dict) or "model" not in state:
        raise AveragingError(f"{path} is not a fairseq checkpoint: it has no entry 'model'")
    return state


def check_same_parameters(path: Path, model: dict, first_path: Path, first: dict) -> None:
    """Refuse two models whose parameters differ in name or shape."""
    if odd := sorted(model.keys() ^ first.keys()):
        raise AveragingError(
            f"{path} and {first_path} hold different models: only one of them has "
            f"{', '.join(odd[:5])}{' ...' if len(odd) > 5 else ''}"
        )
    for name, value in model.items():
        if value.shape != first[name].shape:
            raise AveragingError(
                f"{path} and {first_path} hold different models: {name} has the shape "
                f"{tuple(value.shape)} in one and {tuple(first[name].shape)} in the other"
            )


def is_averaged(name: str, value: torch.Tensor) -> bool:
    """Return whether a state-dict entry has a meaningful mean."""
    return value.is_floating_point() and not name.endswith(NEVER_AVERAGED)


def updates_of(state: dict[str, Any]) -> int:
    """Return how many updates a checkpoint was trained for."""
    history = state.get("optimizer_history") or [{}]
    return history[-1].get("num_updates", 0)


def average_checkpoints(paths: Sequence[Path]) -> dict[str, Any]:
    """Average checkpoints, in any order.

    Returns:
        The newest checkpoint (the one with most updates) with averaged parameters and without
        optimizer state; `extra_state["averaged_checkpoints"]` names the files.

    Raises:
        AveragingError: a file cannot be loaded, or the models differ.
    """
    if not paths:
        raise AveragingError("no checkpoints given")
    result: dict[str, Any] = {}
    sums: dict[str, torch.Tensor] = {}
    for path in tqdm(paths, desc="averaging", unit="checkpoint"):
        state = load_checkpoint(path)
        if result:
            check_same_parameters(path, state["model"], paths[0], result["model"])
        for name, value in state["model"].items():
            if is_averaged(name, value):
                sums[name] = sums[name] + value if name in sums else value.double()
        if not result or updates_of(state) > updates_of(result):
            result = state
    newest = result["model"]
    result["model"] = type(newest)(
        (name, (sums[name] / len(paths)).to(value.dtype) if name in sums else value)
        for name, value in newest.items()
    )
    share_tied(newest, result["model"])
    result["last_optimizer_state"] = None
    extra_state = result.setdefault("extra_state", {})
    extra_state["averaged_checkpoints"] = [path.name for path in paths]
    return result


def share_tied(original: dict[str, torch.Tensor], averaged: dict[str, torch.Tensor]) -> None:
    """Let parameters that shared memory share it again, so that the file stores them once."""
    owners: dict[tuple, str] = {}
    for name, value in original.items():
        memory = (value.data_ptr(), value.dtype, value.shape, value.stride())
        owner = owners.setdefault(memory, name)
        if torch.equal(averaged[owner], averaged[name]):
            averaged[name] = averaged[owner]


def save_whole(state: dict[str, Any], path: Path) -> None:
    """Save under the final name only when the file is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--inputs",
        nargs="+",
        type=Path,
        required=True,
        metavar="PATH",
        help="checkpoint files, or one directory with one of the --num flags",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="where to save")
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--num-epoch-checkpoints",
        type=int,
        metavar="N",
        help="average the last N of checkpoint<epoch>.pt",
    )
    group.add_argument(
        "--num-update-checkpoints",
        type=int,
        metavar="N",
        help="average the last N of checkpoint_<epoch>_<update>.pt",
    )
    parser.add_argument(
        "--checkpoint-upper-bound",
        type=int,
        metavar="N",
        help="ignore checkpoints past this epoch, or update with --num-update-checkpoints",
    )
    return parser


def resolve_inputs(args: argparse.Namespace) -> list[Path]:
    """Return the checkpoint files that a command line means."""
    by_update = args.num_update_checkpoints is not None
    count = args.num_update_checkpoints if by_update else args.num_epoch_checkpoints
    if count is None:
        if args.checkpoint_upper_bound is not None:
            raise AveragingError(
                "--checkpoint-upper-bound needs --num-epoch-checkpoints or "
                "--num-update-checkpoints"
            )
        if directories := [str(path) for path in args.inputs if path.is_dir()]:
            raise AveragingError(
                f"{directories[0]} is a directory: say how many of its checkpoints with "
                "--num-epoch-checkpoints or --num-update-checkpoints"
            )
        return args.inputs
    if count < 1:
        raise AveragingError(f"the number of checkpoints must be at least 1, not {count}")
    if len(args.inputs) != 1:
        raise AveragingError("the --num flags take exactly one directory as --inputs")
    return select_checkpoints(args.inputs[0], count, by_update, args.checkpoint_upper_bound)


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    args = get_parser().parse_args(argv)
    try:
        paths = resolve_inputs(args)
        print("averaging", *(path.name for path in paths))
        save_whole(average_checkpoints(paths), args.output)
    except AveragingError as error:
        print(f"average_checkpoints.py: error: {error}", file=sys.stderr)
        return 1
    print(f"saved {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
