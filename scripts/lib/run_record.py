#!/usr/bin/env python3
"""Keep the record of a training run (called by train_multi30k.sh and train_lm.sh).

`run.json` in the run's directory says how the run was started and when it came to its end;
fairseq's log and checkpoints say the rest.
"""

import argparse
import datetime
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lib.data_files import read_json, write_json  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
NUMBERED = re.compile(r"checkpoint_?\d+(_\d+)?\.pt")  # of an epoch, or of an update in it
# How fairseq-train ends when gradients are no numbers: in fp32, in fp16, with several workers,
# of whom it then lists the norms.
DIVERGED = re.compile(
    r"FloatingPointError: (?:gradients are Nan/Inf|Minimum loss scale reached)"
    r"|Fatal error: gradients are inconsistent between workers.*?\b(?:nan|inf)\b",
    re.DOTALL,
)
WORLD_SIZE = ("--distributed-world-size", "distributed_training.distributed_world_size")
SHARES = ("--update-freq", "dataset.batch_size")  # what one of several GPUs does of an update


class RunError(Exception):
    """The run cannot go on; the message says why and what to do."""


def begin(run: Path, command: list[str], **about: Any) -> None:
    """Record how a run starts, or check that it goes on as it started.

    Args:
        run: directory of the run.
        command: fairseq-train and its flags.
        **about: what else the record shall say, such as the variant and the seed.

    Raises:
        RunError: the directory holds a run that was started with other flags.
    """
    record = read_json(run / "run.json")
    text = shlex.join(command)
    if record:
        repair_last_checkpoint(run)
        if without_gpus(record["command"]) != without_gpus(text):
            raise RunError(
                f"{run} holds a run that was started with other flags:\n"
                f"  then: {record['command']}\n  now:  {text}\n"
                "Give this run another --name, or delete that directory"
            )
        return
    if (run / "checkpoint_last.pt").exists():
        return  # trained by hand: nothing is known about its command
    about |= {"command": text, "threads": threads(), "git_commit": git_commit()}
    write_json(run / "run.json", {**about, "started": now(), "finished": None})


def without_gpus(command: str) -> tuple[list[str], list[int]]:
    """Return a command without its number of GPUs, and what an update consists of on all of them.

    A run may go on with more GPUs or fewer, as long as they share the same updates.
    """
    words = re.sub(r"(\S+)=(\S+)", r"\1 \2", command).split()
    values = {words[i]: words[i + 1] for i in range(len(words) - 1)}
    gpus = next((int(values[name]) for name in WORLD_SIZE if name in values), 1)
    whole = [int(values[name]) * gpus for name in SHARES if values.get(name, "").isdigit()]
    drop = {i + j for i, word in enumerate(words) if word in WORLD_SIZE + SHARES for j in (0, 1)}
    return [word for i, word in enumerate(words) if i not in drop], whole


def repair_last_checkpoint(run: Path) -> None:
    """Replace a half-copied checkpoint_last.pt by the newest whole checkpoint.

    fairseq writes its checkpoints whole, but copies one of them to checkpoint_last.pt in place:
    a run killed meanwhile would not load.
    """
    last = run / "checkpoint_last.pt"
    if not last.exists() or zipfile.is_zipfile(last):
        return
    others = [path for path in run.glob("checkpoint*.pt") if path != last]
    # The best one only where there is no other: it may be old.
    others.sort(key=lambda path: (bool(NUMBERED.fullmatch(path.name)), path.stat().st_mtime_ns))
    whole = [path for path in others if zipfile.is_zipfile(path)]
    if not whole:
        last.unlink()
        print(f"{last} was cut short and no other checkpoint is whole: starting afresh")
        return
    temporary = run / ".checkpoint_last.tmp"
    shutil.copyfile(whole[-1], temporary)
    os.replace(temporary, last)
    print(f"{last} was cut short: going on from {whole[-1].name}")


def finished(run: Path) -> bool:
    """Return whether training came to its end, by its own record or by its number of updates.

    Raises:
        RunError: an unfinished run without a record, which may still be going on elsewhere.
    """
    record = read_json(run / "run.json")
    if record.get("diverged") is not None:
        return True
    if not (run / "checkpoint_last.pt").exists():
        return False
    if record:
        return bool(record["finished"])
    info = checkpoint_info(run / "checkpoint_last.pt")
    if not info["max_update"] or info["updates"] < info["max_update"]:
        last = f" of {info['max_update']}" if info["max_update"] else ""
        raise RunError(
            f"{run} holds a run at {info['updates']}{last} updates that this script did not "
            "start: finish it with the command that did, or give another --name"
        )
    return True


def end(run: Path, **about: Any) -> None:
    """Record that training came to its end."""
    record = read_json(run / "run.json")
    if record:
        write_json(run / "run.json", {**record, "finished": now(), **about})


def end_diverged(run: Path) -> None:
    """Record that training came to its end because its gradients were no numbers any more.

    Raises:
        RunError: that is not what happened.
    """
    log = (run / "train.log").read_text("utf-8").rpartition("\n=== ")[2]  # since the last start
    if not DIVERGED.search(log):
        raise RunError(f"training stopped with an error: see the end of {run / 'train.log'}")
    update = max((int(number) for number in re.findall(r"num_updates[= ](\d+)", log)), default=0)
    end(run, diverged=update)
    print(f"training diverged after update {update}: recorded as its result")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, its tensors only as they are used."""
    import torch

    sys.path.insert(0, str(ROOT))
    import fairseq_fwm  # noqa: F401  (allow-lists what fairseq puts into checkpoints)

    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def checkpoint_info(path: Path) -> dict[str, Any]:
    """Read from a checkpoint which model it holds and how it was trained."""
    state = read_checkpoint(path)
    model = state["cfg"]["model"]
    model = model if isinstance(model, dict) else vars(model)  # with a dataclass, or without
    return {
        "arch": model.get("arch") or model["_name"],
        "updates": state["optimizer_history"][-1]["num_updates"],
        "max_update": state["cfg"]["optimization"]["max_update"],
        "update_freq": state["cfg"]["optimization"]["update_freq"],
        "seed": state["cfg"]["common"]["seed"],
        # Summed over resumes; what an interruption lost is not in it.
        "train_wall_seconds": round(state["extra_state"]["previous_training_time"], 1),
        "fwm": {name: model[name] for name in sorted(model) if name.startswith("fwm_")},
        "averaged": state["extra_state"].get("averaged_checkpoints", []),
    }


def training_speed(log: str) -> dict[str, Any]:
    """Read fairseq's `--log-format simple` log, which may span several resumed runs.

    Updates that were repeated after an interruption count once, with their last timing.

    Returns:
        Seconds of training without validation and saving, words per second of these, number of
        parameters.
    """
    inner = {}
    for line in re.findall(r"\| train_inner \| (.*)", log):
        values = dict(re.findall(r"(\w+)=([^,\s]+)", line))
        inner[int(values["num_updates"])] = values
    seconds = sum(float(values["train_wall"]) for values in inner.values())
    words = sum(float(values["wps"]) * float(values["train_wall"]) for values in inner.values())
    parameters = re.findall(r"num\. shared model params: ([\d,]+)", log)
    return {
        "train_seconds": seconds or None,
        "words_per_second": round(words / seconds, 1) if seconds else None,
        "parameters": int(parameters[-1].replace(",", "")) if parameters else None,
    }


def validations(log: str) -> list[dict[str, Any]]:
    """Read the validations from a log such as :func:`training_speed` reads.

    Returns:
        Number of updates, loss and, where the criterion has one, nll_loss of each, in order; a
        loss that is no finite number is None.
    """
    found = {}
    for line in re.findall(r"\| valid \| (.*)", log):
        values = dict(re.findall(r"(\w+) (\S+)(?= \||$)", line))
        updates = int(values["num_updates"])
        losses = {name: finite(values[name]) for name in ("loss", "nll_loss") if name in values}
        found[updates] = {**losses, "updates": updates}
    return [found[updates] for updates in sorted(found)]


def best_of(valid: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the validation with the smallest loss."""
    numbers = [one for one in valid if one["loss"] is not None]
    return min(numbers, key=lambda one: one["loss"], default=None)


def finite(text: str) -> float | None:
    """Return a number, or None for what is none."""
    return value if math.isfinite(value := float(text)) else None


def environment() -> dict[str, Any]:
    """Describe the machine and the versions that a result came from."""
    import torch

    return {
        "date": now(),
        "cpu": cpu_model(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def cpu_model() -> str:
    """Return the processor's name."""
    try:
        names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        names = []
    return names[0] if names else platform.processor()


def threads() -> int:
    """Return how many threads torch uses for an operation."""
    import torch

    return torch.get_num_threads()


def git_commit() -> str | None:
    """Return the commit that is checked out, marked when the tree differs from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def now() -> str:
    """Return the time, to the second, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


STEPS = {
    "begin": "record how a run starts, or check that it goes on as it started",
    "finished": "exit with 0 if the training of a run came to its end, else with 3",
    "end": "record that training came to its end",
    "diverged": "record that it came to its end by diverging; exit with 1 if it did not",
}


def main(argv: list[str] | None = None) -> int:
    """Run one step of a training script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    for name, text in STEPS.items():
        step = steps.add_parser(name, help=text, description=text)
        step.add_argument("run", type=Path)
        if name == "begin":
            step.add_argument("--variant", required=True)
            step.add_argument("--seed", type=int, required=True)
            step.add_argument("--note", action="append", default=[], metavar="NAME=TEXT")
            step.add_argument("command", nargs="+")
    args = parser.parse_args(argv)
    try:
        if args.step == "begin":
            notes = dict(note.split("=", 1) for note in args.note)
            begin(args.run, args.command, variant=args.variant, seed=args.seed, **notes)
        elif args.step == "finished":
            return 0 if finished(args.run) else 3
        elif args.step == "end":
            end(args.run)
        else:
            end_diverged(args.run)
    except RunError as error:
        print(f"run_record.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
