"""Tables, targets and picture of scripts/benchmark_kernels.py, from its JSON file."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lib.result_tables import ResultsError, put_between_markers, short_commit, table

TOLERANCE = 1e-3  # far above fp32 rounding of any form, far below another function
BOTH = "forward+backward"
MODES = ("forward", BOTH)
RATIOS = {  # best peer / ours, forward and forward+backward
    ("small32", "sum"): (10, 6), ("small32", "delta"): (15, 12),
    ("small96", "sum"): (8, 6), ("small96", "delta"): (12, 10),
    ("mt", "sum"): (2, 1.8), ("mt", "delta"): (9, 8),
    ("mt384", "sum"): (5, 4), ("mt384", "delta"): (15, 9),
    ("medium", "sum"): (8, 5), ("medium", "delta"): (13, 9),
    ("long4k64", "sum"): (4, 3), ("long4k64", "delta"): (10, 9),
}  # fmt: skip
FUSED_RATIO, THREADS_RATIO, MEMORY_RATIO = 4.0, 1.7, 1.25
STEP_MICROSECONDS = {("B1 128x64", "delta"): 12.0}
STEP_RATIOS = {("B40 128x64", "delta"): 3.5}

Case = dict[str, Any]
Entry = dict[str, Any]


def is_correct(entry: Entry) -> bool:
    """Return whether a contestant computed what was asked for."""
    error = entry.get("error")
    return error is not None and error <= TOLERANCE


def seconds(entry: Entry) -> float:
    """Return the smallest time."""
    return min(entry["seconds"])


def ours(case: Case) -> Entry | None:
    """Return this project's entry, if it was timed."""
    mine = (entry for entry in case["contestants"] if entry["role"] == "ours")
    return next((entry for entry in mine if entry["seconds"]), None)


def best_peer(case: Case) -> Entry | None:
    """Return the fastest peer that computed what was asked for."""
    rivals = [
        entry for entry in case["contestants"]
        if entry["role"] == "peer" and entry["seconds"] and is_correct(entry)
    ]  # fmt: skip
    return min(rivals, key=seconds, default=None)


def named(case: Case, name: str) -> Entry | None:
    """Return the timed entry of a name."""
    found = (entry for entry in case["contestants"] if entry["name"] == name)
    return next((entry for entry in found if entry["seconds"]), None)


def ratio(case: Case) -> float | None:
    """Return how many times as fast as the best peer this project is."""
    mine, peer = ours(case), best_peer(case)
    return seconds(peer) / seconds(mine) if mine and peer else None


def memory_ratio(case: Case) -> float | None:
    """Return inputs and all that is allocated, over the tensors that there have to be."""
    peak = (ours(case) or {}).get("peak_bytes")
    return None if peak is None else (case["input_bytes"] + peak) / case["tensor_bytes"]


def key(case: Case) -> tuple[str, str]:
    """Return the names of a case's shape and rule."""
    return case["problem"]["name"], case["problem"]["rule"]


def wanted_ratio(case: Case) -> float | None:
    """Return the target of a case's ratio."""
    if case["kind"] == "fused":
        return FUSED_RATIO if case["mode"] == BOTH and case["problem"]["nu"] == 3 else None
    if case["kind"] == "decode":
        return STEP_RATIOS.get(key(case))
    pair = RATIOS.get(key(case))
    return pair[MODES.index(case["mode"])] if pair else None


def times(value: float | None, digits: int = 1) -> str:
    """Return a ratio."""
    return "?" if value is None else f"{value:.{digits}f}x"


def verdict(value: float | None, wanted: float | None, most: bool = False) -> str:
    """Say whether a target is met: at least, or ``most``, what was wanted."""
    if wanted is None:
        return ""
    if value is None:
        return f"{wanted:g}: not measured"
    met = value <= wanted if most else value >= wanted
    return f"{wanted:g}: {'met' if met else '**missed**'}"


def milliseconds(entry: Entry | None, factor: float = 1e3) -> str:
    """Return a time of three digits, or a dash where there is none."""
    if entry is None or not entry["seconds"]:
        return "-"
    value = seconds(entry) * factor
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def megabytes(entry: Entry | None, what: str = "peak_bytes") -> str:
    """Return a number of bytes in MB, or a dash."""
    value = (entry or {}).get(what)
    return "-" if value is None else f"{value / 1e6:.1f}"


# --- tables --------------------------------------------------------------------------------------


def of_kind(record: dict[str, Any], kind: str) -> list[Case]:
    """Return the cases of a kind."""
    return [case for case in record["cases"] if case["kind"] == kind]


def sequence_rows(record: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the rows of the main table."""
    peak = record["peak_gflops"].get("fma_loop") or record["peak_gflops"].get("torch_mm")
    for case in of_kind(record, "sequence"):
        mine, peer = ours(case), best_peer(case)
        rate = case["flops"] / seconds(mine) / 1e9 if mine else None
        sdpa = named(case, "softmax SDPA")
        yield [
            *key(case), case["mode"], milliseconds(mine), milliseconds(peer),
            peer["name"] if peer else "-", f"**{times(ratio(case))}**",
            verdict(ratio(case), wanted_ratio(case)),
            f"{rate:.0f} ({rate / peak:.0%})" if rate else "-", milliseconds(sdpa),
            f"{megabytes(mine)} / {megabytes(peer)}", times(memory_ratio(case), 2),
        ]  # fmt: skip


SEQUENCE_HEADER = [
    "shape", "rule", "mode", "ours, ms", "best peer, ms", "best peer", "ratio", "target",
    "nominal GF/s (of peak)", "softmax SDPA, ms", "peak MB, ours / peer", "memory ratio",
]  # fmt: skip


def decode_rows(record: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the rows of the decoding table."""
    for case in of_kind(record, "decode"):
        mine, peer = ours(case), best_peer(case)
        limit = STEP_MICROSECONDS.get(key(case))
        most = verdict(seconds(mine) * 1e6, limit, most=True) if mine else ""
        caches = [
            milliseconds(entry, 1e6) for entry in case["contestants"]
            if entry["role"] == "context" and entry["seconds"]
        ]  # fmt: skip
        yield [
            *key(case), milliseconds(mine, 1e6), f"at most {most}" if most else "",
            milliseconds(peer, 1e6), peer["name"] if peer else "-", f"**{times(ratio(case))}**",
            verdict(ratio(case), wanted_ratio(case)),
            f"{2 * case['state_bytes'] / seconds(mine) / 1e9:.0f}" if mine else "-",
            " / ".join(caches) or "-",
        ]  # fmt: skip


DECODE_HEADER = [
    "step", "rule", "ours, us", "target", "best peer, us", "best peer", "ratio", "target",
    "state, GB/s", "softmax with 128 / 512 / 2048 cached, us",
]  # fmt: skip


def fused_rows(record: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the rows of the table of fused DPFP."""
    for case in of_kind(record, "fused"):
        mine, peer = ours(case), best_peer(case)
        parts = named(case, "our DPFP op + our delta kernel")
        saved = [megabytes(entry, "saved_bytes") for entry in (mine, peer)]
        yield [
            case["problem"]["name"], str(case["problem"]["nu"]), case["mode"], milliseconds(mine),
            milliseconds(parts), milliseconds(peer), f"**{times(ratio(case))}**",
            verdict(ratio(case), wanted_ratio(case)), " / ".join(saved),
            f"{case['input_bytes'] / 1e6:.1f}", f"{megabytes(mine)} / {megabytes(peer)}",
        ]  # fmt: skip


FUSED_HEADER = [
    "shape", "nu", "mode", "fused, ms", "our DPFP op + delta, ms", "PyTorch DPFP + our delta, ms",
    "ratio", "target", "saved MB, fused / PyTorch", "raw q, k, v, beta, MB",
    "peak MB, fused / PyTorch",
]  # fmt: skip


def thread_rows(record: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the rows of the table of threads."""
    for case in of_kind(record, "threads"):
        one, two = (min(case["seconds"][n]) for n in ("1", "2"))
        yield [
            *key(case), case["mode"], f"{one * 1e3:.2f}", f"{two * 1e3:.2f}",
            f"**{times(one / two, 2)}**", verdict(one / two, THREADS_RATIO),
        ]  # fmt: skip


THREAD_HEADER = ["shape", "rule", "mode", "one thread, ms", "two, ms", "ratio", "target"]


def everybody_rows(record: dict[str, Any]) -> Iterator[list[str]]:
    """Yield a row for every contestant of every case."""
    for case in record["cases"]:
        for entry in case.get("contestants", ()):
            if entry["role"] == "context":
                said = "another function, for context"
            elif entry.get("not_run"):
                said = f"not run: {entry['not_run']}"
            else:
                said = "correct" if is_correct(entry) else "**different function**"
            error = entry.get("error")
            mode = f"fused, {case['mode']}" if case["kind"] == "fused" else case["mode"]
            yield [
                *key(case), mode, entry["name"], milliseconds(entry),
                "-" if error is None else f"{error:.0e}", said.replace("|", "/"),
            ]  # fmt: skip


EVERYBODY_HEADER = ["shape", "rule", "mode", "contestant", "ms", "error", "verdict"]


# --- the page ------------------------------------------------------------------------------------


def checks(record: dict[str, Any]) -> Iterator[tuple[bool | None, str]]:
    """Yield every target that was measured: whether it is met, and the line that says so."""
    for case in record["cases"]:
        name = " ".join((*key(case), case["mode"]))
        if case["kind"] == "fused":
            name = f"fused DPFP, {name}"
        if case["kind"] == "threads":
            one, two = (min(case["seconds"][n]) for n in ("1", "2"))
            yield line(f"two threads, {name}", one / two, THREADS_RATIO)
            continue
        if wanted_ratio(case):
            yield line(name, ratio(case), wanted_ratio(case))
        mine, sdpa = ours(case), named(case, "softmax SDPA")
        if key(case) in STEP_MICROSECONDS and mine:
            text = f"{name}, microseconds"
            yield line(text, seconds(mine) * 1e6, STEP_MICROSECONDS[key(case)], most=True)
        if case["kind"] == "sequence" and case["mode"] == BOTH and key(case)[1] == "delta":
            if case["problem"]["name"] == "mt" and mine and sdpa:
                yield line(f"{name}, against softmax SDPA", seconds(sdpa) / seconds(mine), 1)
            if memory_ratio(case):
                yield line(f"memory of {name}", memory_ratio(case), MEMORY_RATIO, most=True)


def line(text: str, value: float | None, wanted: float, most: bool = False) -> tuple[bool, str]:
    """Return whether a target is met, and the line that says so."""
    met = value is not None and (value <= wanted if most else value >= wanted)
    found = "not measured" if value is None else f"{value:.2f}"
    sign = "at most" if most else "at least"
    return met, f"{text}: {found} (wanted: {sign} {wanted:g})"


def describe(record: dict[str, Any]) -> str:
    """Say where and how everything was measured."""
    e, peak = record["environment"], record["peak_gflops"]
    kept = any(value is not None for value in e["malloc"].values())
    loop = "not measured: no C++ compiler; shares are of torch.mm"
    if "fma_loop" in peak:
        loop = f"{peak['fma_loop']:.0f} GF/s (multiply and add in registers)"
    missing = {k: v for c in record["cases"] for k, v in c.get("missing", {}).items()}
    lines = [
        "**A quick run, to see that it works; not a measurement.**" if e["quick"] else "",
        f"- {e['date'][:10]}, {e['cpu']} ({e['family']}), {e['cores']} cores, load {e['load']} "
        f"at the start, kernels: {e['isa'] or 'none (PyTorch forms)'}",
        f"- peak of one thread: {loop}; torch.mm of 1024: {peak.get('torch_mm', 0):.0f} GF/s",
        f"- torch {e['torch']}, Python {e['python']}, commit {short_commit(e['commit'])}, seed "
        f"{e['seed']}, best of up to {e['rounds']} rounds, one thread, CPU time of the process, "
        f"freed memory {'kept' if kept else 'returned to the kernel'}",
        f"- peers: {', '.join(f'{k} {v}' for k, v in e['peers'].items()) or 'none installed'}",
        *(f"- left out: {name} ({reason})" for name, reason in missing.items()),
        f"\n      {e['command']}",
    ]
    return "\n".join(text for text in lines if text)


def markdown(record: dict[str, Any], picture: str) -> str:
    """Return everything that goes onto the page."""
    found = list(checks(record))
    missed = [f"- {text}" for met, text in found if not met]
    summary = f"{len(found) - len(missed)} of {len(found)} targets met."
    parts = ["## Machine", describe(record), "## Targets", summary]
    if missed:
        parts += ["Missed:\n\n" + "\n".join(missed)]
    for title, header, rows in (
        ("Whole sequences", SEQUENCE_HEADER, sequence_rows),
        ("Decoding, one step", DECODE_HEADER, decode_rows),
        ("DPFP fused into the delta rule", FUSED_HEADER, fused_rows),
        ("Two threads", THREAD_HEADER, thread_rows),
        ("Everybody", EVERYBODY_HEADER, everybody_rows),
    ):
        if body := list(rows(record)):
            parts += [f"## {title}", table(header, body)]
            if rows is sequence_rows:
                parts.append(f"![times as fast as the best peer]({picture})")
    return "\n\n".join(parts)


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the ratio to the best peer, one panel for each rule."""
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(12, 4), layout="constrained", sharey=True)
    for axes, rule in zip(panels, ("sum", "delta"), strict=True):
        cases = [c for c in of_kind(record, "sequence") if key(c)[1] == rule and ratio(c)]
        names = list(dict.fromkeys(key(case)[0] for case in cases))
        for i, mode in enumerate(MODES):
            chosen = [case for case in cases if case["mode"] == mode]
            x = [names.index(key(case)[0]) + 0.4 * i - 0.2 for case in chosen]
            bars = axes.bar(x, list(map(ratio, chosen)), 0.38, color=f"C{i}", label=mode)
            axes.bar_label(bars, [f"{ratio(case):.1f}" for case in chosen], fontsize=8)
            wanted = [(a, wanted_ratio(case)) for a, case in zip(x, chosen, strict=True)]
            wanted = [pair for pair in wanted if pair[1]]
            label = "target" if i else None
            axes.hlines([b for _, b in wanted], [a - 0.19 for a, _ in wanted],
                        [a + 0.19 for a, _ in wanted], color="black", label=label)  # fmt: skip
        axes.axhline(1, color="grey", linewidth=1)
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.6, max(len(names), 1) - 0.4)
        axes.margins(y=0.2)
        axes.set(title=f"{rule} rule", ylabel="times as fast as the best peer")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="upper center", ncols=3)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def report(path: Path, page: Path | None) -> int:
    """Print the tables, draw the picture beside the JSON file, and fill the page.

    Returns:
        1 if an op of this project computed something else than its reference, else 0.

    Raises:
        ResultsError: nothing measured, or a page without a place for it.
    """
    if not path.is_file():
        raise ResultsError(f"no measurements in {path}: run scripts/benchmark_kernels.py first")
    record = json.loads(path.read_text("utf-8"))
    picture = (page.with_suffix("") if page else path.parent) / "ratios.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw(record, picture)
    text = markdown(record, f"{picture.parent.name}/{picture.name}")
    print(text)
    if page:
        put_between_markers(page, text)
    wrong = [
        " ".join((*key(case), case["mode"])) for case in record["cases"]
        for entry in case.get("contestants", ())
        if entry["role"].startswith("ours") and not is_correct(entry)
    ]  # fmt: skip
    for name in wrong:
        print(f"benchmark_kernels: error: ours is wrong or did not run: {name}", file=sys.stderr)
    return 1 if wrong else 0
