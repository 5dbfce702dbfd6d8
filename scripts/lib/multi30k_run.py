"""Score a Multi30k run and write its `result.json` (called by score_multi30k.sh).

It says what came out, read from fairseq's log, the checkpoints and the translations.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lib.data_files import read_json, write_json, write_whole  # noqa: E402
from lib.mt_scoring import parse_generation, read_lines, sacrebleu_score, same_text  # noqa: E402
from lib.mt_text import detokenise  # noqa: E402
from lib.run_record import (  # noqa: E402
    RunError,
    best_of,
    checkpoint_info,
    environment,
    git_commit,
    threads,
    training_speed,
    validations,
)

RUN_NAME = re.compile(r"(?P<variant>.+)-seed(?P<seed>\d+)(?P<full>-full)?")


def parse_train_log(log: str) -> dict[str, Any]:
    """Return a log's training speed, number of parameters, last and best validation."""
    valid = validations(log)
    last = valid[-1] if valid else None
    return {**training_speed(log), "last_valid": last, "best_valid": best_of(valid)}


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
    if not same_text(shown, references):
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
        "decode_threads": threads(),
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


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="directory of the run")
    parser.add_argument("--data", type=Path, required=True, help="what prepare_multi30k.sh wrote")
    args = parser.parse_args(argv)
    try:
        result = score(args.run, args.data)
    except RunError as error:
        print(f"multi30k: error: {error}", file=sys.stderr)
        return 1
    print(result["bleu_line"])
    print(f"sacreBLEU = {result['sacrebleu']} ({result['signature']})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
