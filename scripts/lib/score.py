"""Translate and score with trained models, or score what fairseq-generate wrote; see --help."""

import argparse
import logging
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lib import (
    mt_scoring,  # noqa: E402
    score_report,  # noqa: E402
)
from lib.data_files import read_json, write_json  # noqa: E402
from lib.lm_tokens import quiet_fairseq  # noqa: E402
from lib.mt_text import detokenise, moses, write_lines  # noqa: E402
from lib.run_record import RunError, checkpoint_info, environment, git_commit  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
DESCRIPTION = """\
Scores translations of a prepared data directory: sacreBLEU and chrF of plain text, with their
signatures; as extras BLEU of tokenised text, also with compounds split; with --baseline a paired
bootstrap; decoding speed and peak memory; BLEU by length as a picture.

SYSTEM is a run's directory (its checkpoint_best.pt, or see --checkpoint and --average), a
checkpoint, or a file that fairseq-generate wrote. NAME=SYSTEM gives it a name.
"""
EPILOG = """\
Each model gets a folder beside its checkpoint, score-CHECKPOINT-SUBSET, with gen.out (what
fairseq-generate wrote), hyp.detok.LANG and ref.detok.LANG (what was scored). A model is not run
again while its checkpoint and flags stay the same. --out gets score.json, score.md and
length_bleu.png. Example:
  bash scripts/score.sh runs/delta --baseline runs/softmax --data data/iwslt14_deen --average 10
"""


class ScoreError(Exception):
    """There is nothing that could be scored; the message says why and what to do."""


@dataclass
class System:
    """One system and its translations.

    Attributes:
        name: for tables and pictures.
        folder: where its texts go.
        scores: what is known of it.
        hypotheses: plain text.
        references: plain text.
    """

    name: str
    folder: Path
    scores: dict[str, Any] = field(default_factory=dict)
    hypotheses: list[str] = field(default_factory=list)
    references: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Data:
    """A data directory: its languages and how its text was made."""

    path: Path
    corpus: str
    subset: str
    source: str
    target: str
    form: str
    lowercase: bool
    plain_reference: str

    def reference(self, kind: str) -> list[str] | None:
        """Return the references, `tok` or `detok`, or None where there are none."""
        path = self.path / "ref" / f"{self.subset}.{kind}.{self.target}"
        return mt_scoring.read_lines(path) if path.is_file() else None


def say(text: str) -> None:
    """Print a line with the script's name."""
    print(f"score.sh: {text}", flush=True)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return what a command line asks for; flags after -- go to fairseq-generate."""
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        prog="score.sh",
        usage="bash scripts/score.sh SYSTEM ... --data DIR [OPTIONS] [-- FAIRSEQ-GENERATE FLAGS]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("systems", nargs="+", metavar="SYSTEM")
    add("--data", type=Path, required=True, metavar="DIR", help="what a prepare script wrote")
    add("--subset", default="test", help="valid or test (default: test)")
    add("--baseline", metavar="SYSTEM", help="compare every system with this one")
    add("--out", type=Path, metavar="DIR", help="where the results go (default: that folder)")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--checkpoint", default="checkpoint_best.pt", metavar="NAME",
                        help="of a run's directory (default: checkpoint_best.pt)")  # fmt: skip
    choice.add_argument("--average", type=int, metavar="N",
                        help="average a run's last N epoch checkpoints first")  # fmt: skip
    add("--beam", type=int, default=5, metavar="N", help="beam size (default: 5)")
    add("--lenpen", type=float, default=1.0, metavar="P", help="length penalty (default: 1)")
    add("--batch-size", type=int, default=64, metavar="N",
        help="sentences translated together (default: 64)")  # fmt: skip
    add("--lowercase", action="store_true", default=None,
        help="ignore case (default: as the data's text is lower-cased or not)")  # fmt: skip
    args = parser.parse_args(argv[:cut])
    args.flags = argv[cut + 1 :]
    return args


def data_of(args: argparse.Namespace) -> Data:
    """Return what is known of a data directory.

    Raises:
        ScoreError: it has no binarised subset of that name.
    """
    names = sorted(path.name for path in args.data.glob(f"{args.subset}.*-*.*.idx"))
    if not names:
        raise ScoreError(
            f"{args.data} holds no binarised {args.subset}: prepare it first, for example with "
            "'bash scripts/prepare_iwslt14_deen.sh', or name another --subset"
        )
    source, target = names[0].split(".")[1].split("-")
    record = read_json(args.data / "data.json")
    lowercase = record.get("lowercase", False) if args.lowercase is None else args.lowercase
    kind = record.get("plain_reference", "detokenised")
    form = record.get("form", "moses-bpe")
    corpus = record.get("corpus", args.data.resolve().name)
    return Data(args.data, corpus, args.subset, source, target, form, lowercase, kind)


def system_of(text: str, args: argparse.Namespace, data: Data) -> System:
    """Translate with what a SYSTEM names, unless that is done, and read the translations.

    Raises:
        ScoreError: it names nothing that can be scored.
    """
    name, _, rest = text.rpartition("=")
    path = Path(rest)
    if path.is_dir():
        name = name or path.resolve().name
        path = averaged(path, args.average) if args.average else path / args.checkpoint
    if not path.is_file():
        raise ScoreError(f"{path} is not there: train first, or name another --checkpoint")
    if path.suffix == ".pt":
        name = name or f"{path.resolve().parent.name}/{path.stem}"
        folder = path.parent / f"score-{path.stem}-{data.subset}"
        measured = translate(path, folder, args, data)
        out, log = folder / "gen.out", folder / "gen.log"
        facts = {"checkpoint": path.name, **checkpoint_info(path), **measured}
    else:
        folder, out, log = path.parent / f"score-{path.stem}", path, path.with_name("gen.log")
        facts = {"file": path.name}
    system = System(name or path.stem, folder, facts)
    text = log.read_text("utf-8") if log.is_file() else ""
    score(system, mt_scoring.parse_generation(out.read_text("utf-8"), text), data)
    return system


def averaged(run: Path, count: int) -> Path:
    """Return a run's average of its last epoch checkpoints; make it unless it is there.

    Raises:
        ScoreError: it cannot be made.
    """
    path, last = run / f"average-{count}.pt", run / "checkpoint_last.pt"
    if path.is_file() and last.is_file() and path.stat().st_mtime_ns > last.stat().st_mtime_ns:
        return path
    import average_checkpoints

    say(f"averaging the last {count} epoch checkpoints of {run}")
    flags = ["--inputs", str(run), "--num-epoch-checkpoints", str(count), "--output", str(path)]
    if average_checkpoints.main(flags):
        raise ScoreError(f"{run}'s checkpoints were not averaged (see above)")
    return path


def translate(
    checkpoint: Path, folder: Path, args: argparse.Namespace, data: Data
) -> dict[str, Any]:
    """Translate into a folder's gen.out unless that is done; return its peak memory.

    Raises:
        ScoreError: fairseq-generate failed.
    """
    flags = [str(data.path), "-s", data.source, "-t", data.target, "--path", str(checkpoint)]
    flags += ["--user-dir", str(ROOT / "fairseq_fwm"), "--gen-subset", data.subset]
    flags += ["--beam", str(args.beam), "--lenpen", str(args.lenpen)]
    flags += ["--post-process", "sentencepiece" if data.form == "sentencepiece" else "subword_nmt"]
    # The multiple: fairseq drops a last batch that is no multiple of it (default 8).
    flags += ["--batch-size", str(args.batch_size), "--required-batch-size-multiple", "1"]
    flags += ["--log-format", "simple", "--log-interval", "1", *args.flags]
    out, record = folder / "gen.out", folder / "generate.json"
    known = read_json(record)
    newest = max(path.stat().st_mtime_ns for path in (checkpoint, *data.path.glob("*.idx")))
    if known.get("flags") == flags and out.is_file() and out.stat().st_mtime_ns > newest:
        say(f"translating: already in {out}")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        record.unlink(missing_ok=True)
        say(f"translating {data.subset} with {checkpoint}; log: {folder / 'gen.log'}")
        generate = Path(__file__).with_name("mt_generate.py")
        command = [sys.executable, str(generate), str(record), *flags]
        with out.open("w") as text, (folder / "gen.log").open("w") as log:
            done = subprocess.run(command, stdout=text, stderr=log)
        if done.returncode:
            raise ScoreError(f"fairseq-generate failed: see the end of {folder / 'gen.log'}")
        known = read_json(record)
    names = ("peak_memory_mib", "peak_gpu_memory_mib", "device", "threads")
    return {name: known[name] for name in names} | {"generate": shlex.join(known["flags"])}


def score(system: System, generated: dict[str, Any], data: Data) -> None:
    """Score a system's translations; keep the texts in its folder.

    Raises:
        ScoreError: they are of other data.
    """
    shown, lines = generated["references"], generated["hypotheses"]
    plain, words = data.reference("detok"), data.reference("tok")
    if data.form == "sentencepiece":
        split = moses(data.target, normalise=False)
        system.hypotheses, system.references = lines, plain or shown
        words, tokens = list(map(split, system.references)), list(map(split, lines))
        same = len(shown) == len(system.references)
    else:
        words, tokens = words or shown, lines
        system.hypotheses = detokenise(lines, data.target)
        system.references = plain or detokenise(words, data.target)
        same = mt_scoring.same_text(shown, words)
    if not same:
        raise ScoreError(
            f"{system.name} translates another text than {data.subset} of {data.path}"
        )
    texts = (system.hypotheses, system.references)
    system.scores |= {
        **mt_scoring.sacrebleu_score(*texts, data.lowercase),
        **mt_scoring.chrf_scores(*texts, data.lowercase),
        **mt_scoring.word_scores(tokens, words),
        "sentences": len(lines),
        "decode_seconds": generated["decode_seconds"],
        "sentences_per_second": generated["decode_sentences_per_second"],
        "tokens_per_second": generated["decode_tokens_per_second"],
        "bleu_by_length": mt_scoring.bleu_by_length(*texts, data.lowercase),
    }
    for name, some in (("hyp", system.hypotheses), ("ref", system.references)):
        write_lines(system.folder / f"{name}.detok.{data.target}", some)


def compare(system: System, baseline: System, lowercase: bool) -> None:
    """Add the paired bootstrap of a system against another one, by BLEU of plain text.

    Raises:
        ScoreError: they translate different texts.
    """
    if system.references != baseline.references:
        raise ScoreError(f"{system.name} and {baseline.name} were scored on different texts")
    first, second, p_value = mt_scoring.paired_bootstrap(
        baseline.hypotheses, system.hypotheses, system.references,
        mt_scoring.bleu_metric(lowercase),
    )  # fmt: skip
    system.scores["against"] = {
        "baseline": baseline.name,
        "difference": round(second - first, 2),
        "p": round(p_value, 4),
        "resamples": 1000,
    }


def run(args: argparse.Namespace) -> Path:
    """Score every system; return where the results are.

    Raises:
        ScoreError: one cannot be scored.
        RunError: one's translations or checkpoint cannot be read.
    """
    data = data_of(args)
    baseline = system_of(args.baseline, args, data) if args.baseline else None
    systems = [system_of(text, args, data) for text in args.systems]
    for system in systems if baseline else []:
        say(f"paired bootstrap: {system.name} against {baseline.name}")
        compare(system, baseline, data.lowercase)
    out = args.out or systems[0].folder
    everyone = [baseline, *systems] if baseline else systems
    result = {
        "data": data.corpus,
        "subset": data.subset,
        "langs": [data.source, data.target],
        "form": data.form,
        "plain_reference": data.plain_reference,
        "systems": [{"name": system.name, **system.scores} for system in everyone],
        "git_commit": git_commit(),
        **environment(),
    }
    write_json(out / "score.json", result)
    score_report.write(result, out)
    return out


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    args = parse(argv)
    quiet_fairseq()
    logging.getLogger("sacrebleu").setLevel(logging.WARNING)
    try:
        out = run(args)
    except (ScoreError, RunError, score_report.ReportError) as error:
        print(f"score.sh: error: {error}", file=sys.stderr)
        return 1
    print((out / "score.md").read_text("utf-8"))
    say(f"done: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
