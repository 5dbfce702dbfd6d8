"""Keep the record of one Multi30k run (called by train_multi30k.sh and score_multi30k.sh).

`run.json` says how a run was started; `result.json` adds what came out, read from fairseq's
log, the checkpoints and the translations.
"""

import argparse
import datetime
import json
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

sys.path.insert(0, str(Path(__file__).resolve().parent))
from multi30k_files import detokenise, write_whole  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
RUN_NAME = re.compile(r"(?P<variant>.+)-seed(?P<seed>\d+)(?P<full>-full)?")
UNKNOWN = "<<unk>>"  # how fairseq shows a reference's words that its dictionary lacks
EPOCH_CHECKPOINT = re.compile(r"checkpoint(\d+)\.pt")


class RunError(Exception):
    """The run cannot go on; the message says why and what to do."""


def read_lines(path: Path) -> list[str]:
    """Read a text file's lines; only a newline ends a line."""
    return path.read_text("utf-8").split("\n")[:-1]


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record, whole or not at all."""
    write_whole(path, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a record; an absent file is an empty one."""
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def begin(run: Path, variant: str, budget: str, seed: int, command: list[str]) -> None:
    """Record how a run starts, or check that it goes on as it started.

    Raises:
        RunError: the directory holds a run that was started with other flags.
    """
    record = read_json(run / "run.json")
    text = shlex.join(command)
    if record:
        repair_last_checkpoint(run)
        if record["command"] != text:
            raise RunError(
                f"{run} holds a run that was started with other flags:\n"
                f"  then: {record['command']}\n  now:  {text}\n"
                "Give this run another --name, or delete that directory"
            )
        return
    if (run / "checkpoint_last.pt").exists():
        return  # trained by hand: nothing is known about its command
    write_json(
        run / "run.json",
        {
            "variant": variant,
            "seed": seed,
            "budget": budget,
            "command": text,
            "threads": threads(),
            "git_commit": git_commit(),
            "started": now(),
            "finished": None,
        },
    )


def repair_last_checkpoint(run: Path) -> None:
    """Replace a half-copied checkpoint_last.pt by the newest whole epoch checkpoint.

    fairseq writes its checkpoints whole, but copies one of them to checkpoint_last.pt in place:
    a run killed meanwhile would not load.
    """
    last = run / "checkpoint_last.pt"
    if not last.exists() or zipfile.is_zipfile(last):
        return
    epochs = [(int(m[1]), p) for p in run.iterdir() if (m := EPOCH_CHECKPOINT.fullmatch(p.name))]
    whole = [path for _, path in sorted(epochs, reverse=True) if zipfile.is_zipfile(path)]
    if not whole:
        last.unlink()
        print(f"{last} was cut short and no other checkpoint is whole: starting afresh")
        return
    temporary = run / ".checkpoint_last.tmp"
    shutil.copyfile(whole[0], temporary)
    os.replace(temporary, last)
    print(f"{last} was cut short: going on from {whole[0].name}")


def finished(run: Path) -> bool:
    """Return whether training came to its end, by its own record or by its number of updates.

    Raises:
        RunError: an unfinished run that train_multi30k.sh did not start, and that may still be
            going on elsewhere.
    """
    if not (run / "checkpoint_last.pt").exists():
        return False
    record = read_json(run / "run.json")
    if record:
        return bool(record["finished"])
    info = checkpoint_info(run / "checkpoint_last.pt")
    if info["updates"] < info["max_update"]:
        raise RunError(
            f"{run} holds a run at {info['updates']} of {info['max_update']} updates that this "
            "script did not start: finish it with the command that did, or give another --name"
        )
    return True


def end(run: Path) -> None:
    """Record that training came to its end."""
    record = read_json(run / "run.json")
    if record:
        write_json(run / "run.json", {**record, "finished": now()})


def checkpoint_info(path: Path) -> dict[str, Any]:
    """Read from a checkpoint which model it holds and how it was trained."""
    import torch

    sys.path.insert(0, str(ROOT))
    import fairseq_fwm  # noqa: F401  (allow-lists what fairseq puts into checkpoints)

    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    model = vars(state["cfg"]["model"])
    return {
        "arch": model["arch"],
        "updates": state["optimizer_history"][-1]["num_updates"],
        "max_update": state["cfg"]["optimization"]["max_update"],
        "update_freq": state["cfg"]["optimization"]["update_freq"],
        "seed": state["cfg"]["common"]["seed"],
        # Summed over resumes; what an interruption lost is not in it.
        "train_wall_seconds": round(state["extra_state"]["previous_training_time"], 1),
        "fwm": {name: model[name] for name in sorted(model) if name.startswith("fwm_")},
        "averaged": state["extra_state"].get("averaged_checkpoints", []),
    }


def parse_train_log(log: str) -> dict[str, Any]:
    """Read fairseq's `--log-format simple` log, which may span several resumed runs.

    Updates that were repeated after an interruption count once, with their last timing.

    Returns:
        Seconds of training without validation and saving, words per second of these, number of
        parameters, and the last and best validation.
    """
    inner = {}
    for line in re.findall(r"\| train_inner \| (.*)", log):
        values = dict(re.findall(r"(\w+)=([^,\s]+)", line))
        inner[int(values["num_updates"])] = values
    seconds = sum(float(values["train_wall"]) for values in inner.values())
    words = sum(float(values["wps"]) * float(values["train_wall"]) for values in inner.values())
    valid = {}
    for line in re.findall(r"\| valid \| (.*)", log):
        values = dict(re.findall(r"(\w+) ([\d.]+)(?= \||$)", line))
        valid[int(values["num_updates"])] = {
            "loss": float(values["loss"]),
            "nll_loss": float(values["nll_loss"]),
            "updates": int(values["num_updates"]),
        }
    parameters = re.findall(r"num\. shared model params: ([\d,]+)", log)
    return {
        "train_seconds": seconds or None,
        "words_per_second": round(words / seconds, 1) if seconds else None,
        "parameters": int(parameters[-1].replace(",", "")) if parameters else None,
        "last_valid": valid[max(valid)] if valid else None,
        "best_valid": min(valid.values(), key=lambda v: v["loss"]) if valid else None,
    }


def parse_generation(out: str, log: str) -> dict[str, Any]:
    """Read fairseq-generate's output: translations and references in order, BLEU, speed.

    Raises:
        RunError: the output is incomplete.
    """
    lines = {kind: dict(re.findall(rf"^{kind}-(\d+)\t(.*)$", out, re.MULTILINE)) for kind in "TD"}
    score = re.search(r"^Generate .*?: (BLEU4 = ([\d.]+),.*)$", out, re.MULTILINE)
    # Where fairseq logs to depends on what configured logging first.
    speed = re.search(r"tokens\) in ([\d.]+)s .*?([\d.,]+) tokens/s\)", out + log)
    if not score or not speed or not lines["T"] or lines["T"].keys() != lines["D"].keys():
        raise RunError("gen.out is incomplete: delete it and run the script again")
    order = sorted(lines["T"], key=int)
    return {
        "references": [lines["T"][index] for index in order],
        # A D line is: score, tab, text.
        "hypotheses": [lines["D"][index].partition("\t")[2] for index in order],
        "bleu": float(score[2]),
        "bleu_line": score[1],
        "decode_seconds": float(speed[1]),
        "decode_tokens_per_second": float(speed[2].replace(",", "")),
    }


def sacrebleu_score(hypotheses: list[str], references: list[str]) -> dict[str, Any]:
    """Score plain text, ignoring case: the system's own text is lower-cased."""
    from sacrebleu.metrics import BLEU

    metric = BLEU(lowercase=True)
    score = metric.corpus_score(hypotheses, [references])
    return {"sacrebleu": round(score.score, 2), "signature": str(metric.get_signature())}


def score(run: Path, data: Path) -> dict[str, Any]:
    """Score a translated run and write its `result.json`.

    Raises:
        RunError: the translations are incomplete or of other data.
    """
    generated = parse_generation(
        (run / "gen.out").read_text("utf-8"), (run / "gen.log").read_text("utf-8")
    )
    shown, hypotheses = generated.pop("references"), generated.pop("hypotheses")
    references = read_lines(data / "ref" / "test.tok.de")
    if len(shown) != len(references) or any(
        a != b for a, b in zip(shown, references, strict=True) if UNKNOWN not in a
    ):
        raise RunError(f"{run / 'gen.out'} translates another test set than {data}'s")
    detokenised = detokenise(hypotheses, "de")
    plain = read_lines(data / "ref" / "test.detok.de")
    for name, lines in {
        "ref.tok.de": references,
        "hyp.tok.de": hypotheses,
        "hyp.detok.de": detokenised,
    }.items():
        write_whole(run / name, "".join(f"{line}\n" for line in lines).encode())
    log = run / "train.log"
    result = {
        **describe(run),
        **parse_train_log(log.read_text("utf-8") if log.is_file() else ""),
        **generated,
        **sacrebleu_score(detokenised, plain),
        "plain_reference": read_json(data / "data.json")["plain_reference"],
        **environment(),
    }
    write_json(run / "result.json", result)
    return result


def describe(run: Path) -> dict[str, Any]:
    """Say what a run is: from `run.json` or its directory's name, and from its checkpoints."""
    info = checkpoint_info(run / "checkpoint_last.pt")
    record = read_json(run / "run.json")
    if not record:
        name = RUN_NAME.fullmatch(run.resolve().name)
        record = {
            "variant": name["variant"] if name else run.resolve().name,
            "seed": info["seed"],
            "budget": "full" if name and name["full"] else "reduced",
            "command": None,
            "threads": None,
            "git_commit": git_commit(),
            "started": None,
            "finished": None,
        }
    averaged = checkpoint_info(run / "average.pt")["averaged"]
    return {**record, **info, "averaged": averaged}


def environment() -> dict[str, Any]:
    """Describe the machine and the versions that a result came from."""
    import torch

    return {
        "date": now(),
        "cpu": cpu_model(),
        "decode_threads": threads(),
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


def main(argv: list[str] | None = None) -> int:
    """Run one step of the Multi30k scripts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    for name, text in {
        "begin": "record how a run starts, or check that it goes on as it started",
        "finished": "exit with 0 if the training of a run came to its end, else with 3",
        "end": "record that training came to its end",
        "score": "score a translated run",
    }.items():
        step = steps.add_parser(name, help=text, description=text)
        step.add_argument("run", type=Path)
        if name == "begin":
            step.add_argument("--variant", required=True)
            step.add_argument("--budget", required=True)
            step.add_argument("--seed", type=int, required=True)
            step.add_argument("command", nargs="+")
        if name == "score":
            step.add_argument("--data", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        if args.step == "begin":
            begin(args.run, args.variant, args.budget, args.seed, args.command)
        elif args.step == "finished":
            return 0 if finished(args.run) else 3
        elif args.step == "end":
            end(args.run)
        else:
            result = score(args.run, args.data)
            print(result["bleu_line"])
            print(f"sacreBLEU = {result['sacrebleu']} ({result['signature']})")
    except RunError as error:
        print(f"multi30k: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
