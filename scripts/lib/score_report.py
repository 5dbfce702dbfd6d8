"""What scripts/lib/score.py found as a Markdown table and as a picture of BLEU by length."""

import importlib.util
import logging
from pathlib import Path
from typing import Any

from lib.data_files import whole, write_whole
from lib.result_tables import number, table

HEADER = [
    "system", "sacreBLEU", "against the baseline", "chrF2", "chrF++", "tokenised BLEU*",
    "compound-split BLEU*", "sentences/s", "tokens/s", "peak memory, MiB",
]  # fmt: skip
STYLES = ("o-", "s--", "^-.", "D:", "v-", "P--", "X-.", "*:")


class ReportError(Exception):
    """The picture cannot be drawn; the message says what is missing."""


def write(result: dict[str, Any], out: Path) -> None:
    """Write `score.md` and `length_bleu.png`.

    Raises:
        ReportError: matplotlib is missing.
    """
    write_whole(out / "score.md", (markdown(result) + "\n").encode())
    if importlib.util.find_spec("matplotlib") is None:
        raise ReportError(
            f"matplotlib is not installed, so {out} has score.json and score.md but no "
            "length_bleu.png: pip install matplotlib"
        )
    draw(result, out / "length_bleu.png")


def row(system: dict[str, Any]) -> list[str]:
    """Return a system's row of the table."""
    against, memory = system.get("against"), system.get("peak_memory_mib")
    gpu = system.get("peak_gpu_memory_mib")
    return [
        system["name"],
        f"**{number(system['sacrebleu'], 2)}**",
        f"{against['difference']:+.2f} (p = {against['p']:.3f})" if against else "",
        number(system["chrf2"], 2),
        number(system["chrf++"], 2),
        number(system["tokenised_bleu"], 2),
        number(system["compound_split_bleu"], 2),
        number(system["sentences_per_second"], 1),
        number(system["tokens_per_second"]),
        number(memory) + (f" (GPU {number(gpu)})" if gpu else ""),
    ]


def markdown(result: dict[str, Any]) -> str:
    """Return the table with what is needed to read it."""
    systems = result["systems"]
    first = systems[0]
    pair = " to ".join(result["langs"])
    lines = [
        f"# {result['data']}, {result['subset']}, {pair}: {first['sentences']:,} sentences",
        "",
        table(HEADER, map(row, systems)),
        "",
        f"\\* Extras: BLEU of tokenised text, {result['form']} form, and the same with compounds "
        "split at hyphens; they compare only with scores of the same tokenisation.",
        "",
        f"References: {result['plain_reference']} text. Signatures: `{first['signature']}`; "
        f"chrF2 `{first['chrf2_signature']}`; chrF++ `{first['chrf++_signature']}`.",
    ]
    tests = [system["against"] for system in systems if "against" in system]
    if tests:
        lines += ["", f"Against the baseline, {tests[0]['baseline']}: sacreBLEU's paired "
                  f"bootstrap, {tests[0]['resamples']:,} resamples."]  # fmt: skip
    commands = [system for system in systems if "generate" in system]
    if commands:
        lines += ["", f"Decoded on: {result['cpu']}; "
                  + "; ".join(sorted({f"{one['device']}, {one['threads']} thread(s)"
                                      for one in commands})) + "."]  # fmt: skip
    return "\n".join(lines)


def label(bucket: dict[str, Any]) -> str:
    """Return what a length is called on the axis."""
    longest = bucket["longest"]
    span = f"{bucket['shortest']}–{longest}" if longest else f"{bucket['shortest']}+"
    return f"{span}\nn = {bucket['sentences']:,}"


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw BLEU by the reference's length, one line for each system."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # fairseq sets the root's to debug
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    systems = result["systems"]
    places = {label(one): number for number, one in enumerate(systems[0]["bleu_by_length"])}
    figure, axis = pyplot.subplots(figsize=(7.2, 4.2), layout="constrained")
    for index, system in enumerate(systems):
        buckets = system["bleu_by_length"]
        axis.plot([places[label(one)] for one in buckets], [one["bleu"] for one in buckets],
                  STYLES[index % len(STYLES)], label=f"{system['name']} "
                  f"({system['sacrebleu']:.1f} overall)", linewidth=1.6, markersize=6)  # fmt: skip
    axis.set_xticks(range(len(places)), list(places))
    axis.set_xmargin(0.06)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("words of the reference; n sentences")
    axis.set_ylabel("sacreBLEU")
    axis.set_title(f"{result['data']}, {result['subset']}: BLEU by length", fontsize=11)
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    with whole(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    pyplot.close(figure)
