"""How translations are scored: every score of this project's translations comes from here."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.run_record import RunError

UNKNOWN = "<<unk>>"  # how fairseq shows a reference's words that its dictionary lacks
BUCKETS = (10, 20, 30, 40, 50)  # longest sentence of each, in words
# A hyphen in a word; what Moses's aggressive splitting has made of it already stays.
HYPHEN = re.compile(r"(?<!\S)@-@(?!\S)|(\S)-(\S)")


def read_lines(path: Path) -> list[str]:
    """Read a text file's lines; only a newline ends a line."""
    return path.read_text("utf-8").split("\n")[:-1]


def parse_generation(out: str, log: str) -> dict[str, Any]:
    """Read fairseq-generate's output: translations and references in order, BLEU, speed.

    Raises:
        RunError: the output is incomplete.
    """
    lines = {kind: dict(re.findall(rf"^{kind}-(\d+)\t(.*)$", out, re.MULTILINE)) for kind in "TD"}
    score = re.search(r"^Generate .*?: (BLEU4 = ([\d.]+),.*)$", out, re.MULTILINE)
    # Where fairseq logs to depends on what configured logging first.
    speed = re.search(
        r"tokens\) in ([\d.]+)s \(([\d.,]+) sentences/s, ([\d.,]+) tokens/s\)", out + log
    )
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
        "decode_sentences_per_second": float(speed[2].replace(",", "")),
        "decode_tokens_per_second": float(speed[3].replace(",", "")),
    }


def same_text(shown: Sequence[str], references: Sequence[str]) -> bool:
    """Return whether references shown by fairseq are those of a file, but for unknown words."""
    return len(shown) == len(references) and all(
        a == b or UNKNOWN in a for a, b in zip(shown, references, strict=True)
    )


def bleu_metric(lowercase: bool = False) -> Any:
    """Return sacreBLEU's BLEU for plain text."""
    from sacrebleu.metrics import BLEU

    return BLEU(lowercase=lowercase)


def sacrebleu_score(
    hypotheses: Sequence[str], references: Sequence[str], lowercase: bool = True
) -> dict[str, Any]:
    """Score plain text, by default ignoring case: for systems whose own text is lower-cased."""
    metric = bleu_metric(lowercase)
    score = metric.corpus_score(hypotheses, [references])
    return {"sacrebleu": round(score.score, 2), "signature": str(metric.get_signature())}


def chrf_scores(
    hypotheses: Sequence[str], references: Sequence[str], lowercase: bool
) -> dict[str, Any]:
    """Score plain text by characters (chrF2), and by characters and words (chrF++)."""
    from sacrebleu.metrics import CHRF

    scores: dict[str, Any] = {}
    for name, words in (("chrf2", 0), ("chrf++", 2)):
        metric = CHRF(word_order=words, lowercase=lowercase)
        scores[name] = round(metric.corpus_score(hypotheses, [references]).score, 2)
        scores[f"{name}_signature"] = str(metric.get_signature())
    return scores


def split_compounds(line: str) -> str:
    """Return a tokenised line with the words of hyphenated compounds apart, as ` @-@ `.

    As in the published scores of WMT14 English to German (Vaswani et al. 2017, arXiv 1706.03762):
    a compound that is half right counts for what is right, and BLEU comes out higher.
    """
    return HYPHEN.sub(lambda found: f"{found[1]} @-@ {found[2]}" if found[1] else found[0], line)


def word_scores(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Score tokenised text as it is, and with its compounds split.

    Such scores depend on the tokenisation and compare only with others that share it.
    """
    from sacrebleu.metrics import BLEU

    scores = {}
    for name, change in (("tokenised_bleu", str), ("compound_split_bleu", split_compounds)):
        texts = [list(map(change, lines)) for lines in (hypotheses, references)]
        metric = BLEU(tokenize="none", force=True)
        scores[name] = round(metric.corpus_score(texts[0], [texts[1]]).score, 2)
    return scores


def paired_bootstrap(
    baseline: Sequence[str],
    system: Sequence[str],
    references: Sequence[str],
    metric: Any = None,
) -> tuple[float, float, float]:
    """Compare two translations of the same text by sacreBLEU's paired bootstrap resampling.

    Args:
        baseline: one translation.
        system: the other.
        references: one for each sentence.
        metric: of sacreBLEU; BLEU of tokenised text if None.

    Returns:
        Score of the baseline, score of the system, and the p-value of their difference.
    """
    from sacrebleu.metrics import BLEU
    from sacrebleu.significance import PairedTest

    metric = metric or BLEU(tokenize="none", force=True)
    test = PairedTest(
        [("baseline", baseline), ("system", system)], {"score": metric}, [references],
        test_type="bs",
    )  # fmt: skip
    scores = test()[1]
    scores.pop("System")
    ((first, second),) = scores.values()
    # sacreBLEU counts only differences above the observed one: of equals it would find none.
    p_value = 1.0 if first.score == second.score else second.p_value
    return first.score, second.score, p_value


def bleu_by_length(
    hypotheses: Sequence[str], references: Sequence[str], lowercase: bool
) -> list[dict[str, Any]]:
    """Score plain text by the length of the reference, in words.

    Returns:
        For each length that occurs: `shortest`, `longest` (None: any), `sentences`, `bleu`.
    """
    edges = [*zip((1, *(edge + 1 for edge in BUCKETS)), (*BUCKETS, None), strict=True)]
    sizes = [max(1, len(line.split())) for line in references]
    found = []
    for low, high in edges:
        chosen = [n for n, size in enumerate(sizes) if low <= size and (not high or size <= high)]
        if chosen:
            texts = [[lines[number] for number in chosen] for lines in (hypotheses, references)]
            score = bleu_metric(lowercase).corpus_score(texts[0], [texts[1]]).score
            found.append({"shortest": low, "longest": high, "sentences": len(chosen),
                          "bleu": round(score, 2)})  # fmt: skip
    return found
