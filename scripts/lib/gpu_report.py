"""Write one page of what scripts/gpu_check.sh found: its logs and measurements."""

import argparse
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lib.result_tables import ResultsError, put_between_markers, table

STEPS = {
    "build": r"(?:real|user)\s+\d+m[\d.]+s",
    "tests": r"=+ (.*(?:passed|failed|error).* in [\d.]+s.*?) =+",
    "memcheck": r"ERROR SUMMARY: .*",
    "racecheck": r"RACECHECK SUMMARY: .*",
    "synccheck": r"ERROR SUMMARY: .*",
    "benchmark": r"$^",
}
MACHINE = r"^(?:Python|python|torch|CUDA|kernels|  CUDA for|  because|  cure) .*"


def outcome(log: str) -> str:
    """Return how a step ended, from the last line of its log."""
    last = log.rstrip().rpartition("\n")[2]
    status = last.removeprefix("status ").split(",")[0]
    return {"0": "ok", "skipped": "skipped"}.get(status, f"**failed** ({status})")


def summary(step: str, log: str) -> str:
    """Return the lines of a log that tell the result."""
    found = [match[0].strip("= ") for match in re.finditer(STEPS[step], log)]
    return "; ".join(dict.fromkeys(" ".join(line.split()) for line in found))


def failures(log: str) -> list[str]:
    """Return the tests that failed."""
    return re.findall(r"^(?:FAILED|ERROR) (.*)$", log, re.MULTILINE)


def page(folder: Path) -> str:
    """Return the report of a folder of logs.

    Raises:
        ResultsError: there is no log of the machine.
    """
    logs = {step: folder / f"{step}.log" for step in ("machine", *STEPS)}
    if not logs["machine"].is_file():
        raise ResultsError(f"no machine.log in {folder}: run 'bash scripts/gpu_check.sh' first")
    texts = {step: path.read_text("utf-8") for step, path in logs.items() if path.is_file()}
    machine = texts["machine"].splitlines()
    about = [line for line in machine if re.match(MACHINE, line)]
    done = [step for step in STEPS if step in texts]
    rows = [[step, outcome(texts[step]), summary(step, texts[step])] for step in done]
    parts = [f"{machine[0]}.", "```\n" + "\n".join(about) + "\n```"]
    parts.append(table(["step", "outcome", "in its own words"], rows))
    broken = [f"- {step}: `{name}`" for step in texts for name in failures(texts[step])]
    if broken:
        parts += ["## What failed", "\n".join(broken[:100])]
    measured = folder / "benchmark.json"
    if measured.is_file():
        from benchmark_cuda import pages

        parts += ["## Speed", pages(json.loads(measured.read_text("utf-8")))]
    return "\n\n".join(parts)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where gpu_check.sh left its logs")
    parser.add_argument("--page", type=Path, help="where to write (default: print)")
    args = parser.parse_args(argv)
    try:
        text = page(args.folder)
        if args.page:
            put_between_markers(args.page, text, "The CUDA kernels on a GPU")
        else:
            print(text)
    except ResultsError as error:
        print(f"gpu_report.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
