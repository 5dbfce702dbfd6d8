"""Tables, picture, targets and profiles for scripts/benchmark_training.py."""

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.result_tables import ResultsError, put_between_markers, short_commit, table

SECTIONS = ("translation", "lm", "generation")
SOFTMAX, BEST = "softmax", "dpfp-delta"
LONG = 512  # from here on fast weights are to generate twice as fast
NO_ATTENTION, PROJECTIONS = "no attention", "projections only"

Case = dict[str, Any]


def load(
    directory: Path, sections: Sequence[str] = SECTIONS, script: str = "benchmark_training.py"
) -> dict[str, dict[str, Any]]:
    """Read the measurements of a directory.

    Args:
        directory: where they are.
        sections: what there may be.
        script: what makes them.

    Raises:
        ResultsError: there are none.
    """
    paths = {section: directory / f"{section}.json" for section in sections}
    found = {
        section: json.loads(path.read_text("utf-8"))
        for section, path in paths.items()
        if path.is_file()
    }
    if not found:
        raise ResultsError(f"no measurements in {directory}: run scripts/{script} first")
    return found


def environment_of(section: dict[str, Any], case: Case) -> dict[str, Any]:
    """Return where a case was measured: with its section, unless it was added later."""
    return case.get("environment", section["environment"])


def seconds(section: dict[str, Any], side: dict[str, Any]) -> float:
    """Return the smallest time: of the CPU with one thread, else on the wall."""
    return min(side["cpu" if section["environment"]["threads"] == 1 else "wall"])


def speed_up(section: dict[str, Any], case: Case, name: str) -> float | None:
    """Return how many times as fast as softmax a side is."""
    sides = case["sides"]
    if SOFTMAX not in sides or name not in sides:
        return None
    return seconds(section, sides[SOFTMAX]) / seconds(section, sides[name])


def allowed(section: dict[str, Any], case: Case) -> float | None:
    """Return the speed-up over softmax of an attention that costs its projections only."""
    return speed_up(section, case, PROJECTIONS)


def times(value: float | None) -> str:
    """Return a ratio."""
    return "?" if value is None else f"{value:.2f}x"


def rate(value: float) -> str:
    """Return a number of things a second."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def memory(side: dict[str, Any]) -> list[str]:
    """Return the cells for the peak memory and for what the steps added."""
    return [f"{side[k]:,.0f}" if k in side else "" for k in ("peak_mb", "added_mb")]


MEMORY = ["peak MB", "of these added"]


def translation_table(section: dict[str, Any]) -> str:
    """Return the table of training steps."""
    rows = []
    for case in section["cases"]:
        for name, side in case["sides"].items():
            best = seconds(section, side)
            rows.append([
                case["shape"]["arch"], str(case["shape"]["length"]), name,
                rate(side["tokens"] / best), times(speed_up(section, case, name)),
                f"{best / case['shape']['batches']:.3f}", *memory(side),
            ])  # fmt: skip
    header = [
        "model", "T", "decoder self-attention", "target tokens/s", "against softmax",
        "s an update", *MEMORY,
    ]  # fmt: skip
    return table(header, rows)


def lm_table(section: dict[str, Any]) -> str:
    """Return the table of the decoder stack."""
    rows = []
    for case in section["cases"]:
        bound = allowed(section, case)
        base = case["sides"].get(PROJECTIONS)
        for name, side in case["sides"].items():
            best, ratio = seconds(section, side), speed_up(section, case, name)
            ours = name not in (NO_ATTENTION, PROJECTIONS)
            core = best - seconds(section, base) if base and ours else None
            share = ratio / bound if ratio and bound and ours and name != SOFTMAX else None
            rows.append([
                str(case["shape"]["length"]), name, rate(side["tokens"] / best), f"{best:.3f}",
                "" if core is None else f"{core:.3f}", times(ratio),
                "" if share is None else f"{share:.0%} of {bound:.2f}x", *memory(side),
            ])  # fmt: skip
    header = [
        "T", "self-attention", "tokens/s", "s a step", "of these the attention itself",
        "against softmax", "of what the profile allows", *MEMORY,
    ]  # fmt: skip
    return table(header, rows)


def generation_table(section: dict[str, Any]) -> str:
    """Return the table of beam search."""
    rows = []
    for case in section["cases"]:
        shape = case["shape"]
        for name, side in case["sides"].items():
            best = seconds(section, side)
            rows.append([
                shape["arch"], str(shape["sentences"]), str(shape["source"]), str(shape["length"]),
                name, rate(side["sentences"] / best), rate(side["tokens"] / best),
                f"{1000 * best / shape['length']:.2f}",
                times(speed_up(section, case, name)), *memory(side),
            ])  # fmt: skip
    header = [
        "model", "sentences", "source", "target", "decoder self-attention", "sentences/s",
        "tokens/s", "ms a position", "against softmax", *MEMORY,
    ]  # fmt: skip
    return table(header, rows)


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "translation": ("Training, translation", translation_table),
    "lm": ("Training, decoder-only stack of the small language model", lm_table),
    "generation": ("Generation with beam search", generation_table),
}


def _cases(found: dict[str, Any], section: str, **shape: Any) -> Iterator[tuple[Any, Case]]:
    for case in found.get(section, {"cases": []})["cases"]:
        if BEST in case["sides"] and shape.items() <= case["shape"].items():
            yield found[section], case


def target(
    text: str,
    value: float | None,
    wanted: float,
    unit: Callable[[float], str],
    *,
    at_most: bool = False,
) -> str:
    """Say whether a value is at least as large as wanted, or at most."""
    if value is None:
        return f"- not measured: {text}"
    verdict = "met" if (value <= wanted if at_most else value >= wanted) else "missed"
    limit = "at most " if at_most else ""
    return f"- **{verdict}**: {text}: {unit(value)} (wanted: {limit}{unit(wanted)})"


def targets(found: dict[str, Any]) -> list[str]:
    """Say of every target whether it is met, with the number that says so."""
    lines = []
    for section, case in _cases(found, "translation", arch="tiny"):
        text = f"translation tiny, T ~ {case['shape']['length']}, {BEST} against softmax"
        lines.append(target(text, speed_up(section, case, BEST), 1.0, times))
    for section, case in _cases(found, "lm", length=4096):
        ratio, bound = speed_up(section, case, BEST), allowed(section, case)
        share = ratio / bound if ratio and bound else None
        lines.append(target(f"LM-small stack, T = 4096, {BEST} against softmax", ratio, 2, times))
        text = f"the same as a share of what the profile allows ({times(bound)})"
        lines.append(target(text, share, 0.8, "{:.0%}".format))
    for section, case in _cases(found, "generation", arch="tiny"):
        shape = case["shape"]
        if shape["length"] < LONG:
            continue
        text = (
            f"beam {shape['beam']}, {shape['sentences']} sentences, {shape['source']} -> "
            f"{shape['length']} tokens, {BEST} against softmax"
        )
        lines.append(target(text, speed_up(section, case, BEST), 2.0, times))
    return lines


def describe(section: dict[str, Any]) -> str:
    """Say where and how a section was measured, and cases that were added to it."""
    groups: list[tuple[dict[str, Any], list[Case]]] = []
    for case in section["cases"]:
        environment = environment_of(section, case)
        if groups and groups[-1][0] == environment:
            groups[-1][1].append(case)
        else:
            groups.append((environment, [case]))
    return "\n\n".join(_described(*group) for group in groups)


def _described(e: dict[str, Any], cases: Sequence[Case]) -> str:
    heap = "freed memory kept" if e["kept_heap"] else "freed memory returned to the kernel"
    clock = "CPU time" if e["threads"] == 1 else "wall time"
    quick = "**A quick run, to see that it works; not a measurement.** " if e["quick"] else ""
    rounds = sorted({len(side["cpu"]) for c in cases for side in c["sides"].values()})
    return (
        f"{quick}{e['date'][:10]}, {e['cpu']}, {e['cores']} cores, load {e['load']} at the start, "
        f"{e['threads']} thread(s), {clock}, best of {' to '.join(map(str, rounds))}, "
        f"kernels: {e['isa'] or 'none (PyTorch forms)'}, torch {e['torch']}, commit "
        f"{short_commit(e['commit'])}, seed {e['seed']}, {heap}.\n\n    {e['command']}"
    )


def markdown(
    found: dict[str, Any],
    verdicts: Sequence[str],
    tables: Mapping[str, tuple[str, Callable[[dict[str, Any]], str]]],
) -> str:
    """Return everything that goes onto the page.

    Args:
        found: the sections.
        verdicts: on the targets, one a line.
        tables: title and table of every section.
    """
    parts = ["## Targets", "\n".join(verdicts) or "None of their cases was measured."]
    if any(
        environment_of(section, case)["quick"]
        for section in found.values()
        for case in section["cases"]
    ):
        parts.insert(1, "**From a quick run: these verdicts mean nothing.**")
    for name, section in found.items():
        title, make_table = tables[name]
        parts += [f"## {title}", make_table(section), describe(section)]
    return "\n\n".join(parts)


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the speed of every side against softmax, one panel a section."""
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    widths = [max(5, len(section["cases"])) for section in found.values()]
    figure, panels = pyplot.subplots(
        1, len(found), figsize=(sum(widths), 4), width_ratios=widths, layout="constrained",
        squeeze=False,
    )  # fmt: skip
    labels = {
        "translation": lambda s: f"{s['arch']}\nT {s['length']}",
        "lm": lambda s: f"T {s['length']}",
        "generation": lambda s: f"{s['sentences']} x {s['source']}\nto {s['length']}",
    }
    sides = sorted(
        {side for part in found.values() for case in part["cases"] for side in case["sides"]}
    )
    for axes, (name, section) in zip(panels[0], found.items(), strict=True):
        series: dict[str, dict[int, float]] = defaultdict(dict)
        for x, case in enumerate(section["cases"]):
            for side in case["sides"]:
                ratio = speed_up(section, case, side)
                if ratio is not None and side not in (SOFTMAX, NO_ATTENTION):
                    series[side][x] = ratio
        for side, points in series.items():
            bound = side == PROJECTIONS
            color = "black" if bound else f"C{sides.index(side)}"
            axes.plot(
                list(points), list(points.values()), "_" if bound else "o",
                color=color, markersize=22 if bound else 7,
                label="what the profile allows" if bound else side,
            )  # fmt: skip
        axes.axhline(1, color="grey", linewidth=1)
        axes.set_yscale("log", base=2)
        low, high = axes.get_ylim()
        # So that there are ticks beside the one, and room for the legend.
        axes.set_ylim(min(low, 0.5), max(high, 2) * 1.3)
        axes.yaxis.set_major_formatter("{x:g}")
        shapes = [labels[name](case["shape"]) for case in section["cases"]]
        axes.set_xticks(range(len(shapes)), shapes)
        axes.set(title=name, ylabel="times the speed of softmax")
        axes.margins(x=0.15)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="upper center", ncols=3)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def report(directory: Path, page: Path | None) -> None:
    """Print the tables, draw the picture, and fill the page.

    Raises:
        ResultsError: nothing measured, or a page without a place for it.
    """
    found = load(directory)
    picture = directory / "end_to_end.png"
    draw(found, picture)
    publish(markdown(found, targets(found), TABLES), picture, "times the speed of softmax", page)


def publish(text: str, picture: Path, shows: str, page: Path | None) -> None:
    """Print a text, and put it onto the page with a picture above it.

    Raises:
        ResultsError: a page without a place for it.
    """
    print(text)
    if page:
        link = Path(os.path.relpath(picture, page.parent)).as_posix()
        put_between_markers(page, f"![{shows}]({link})\n\n{text}")


GROUPS = {
    # torch names the autograd function that a forward op runs in, not the op.
    "fast weight ops": ("fwm::", "GeneratedBackwardFor_fwm"),
    "softmax attention": ("aten::_scaled_dot_product", "aten::_softmax"),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "copies": (
        "aten::copy_", "aten::cat", "aten::index_select", "aten::clone", "aten::_to_copy",
    ),
    "log-softmax": ("aten::_log_softmax",),
    "dropout masks": ("aten::bernoulli_", "aten::native_dropout"),
    "optimiser": ("Optimizer.", "aten::_fused_adam", "aten::_foreach"),
    "other ops": ("aten::",),
}  # fmt: skip


def group_of(key: str) -> str:
    """Return the group that an event of the profiler belongs to."""
    for group, prefixes in GROUPS.items():
        if key.startswith(prefixes):
            return group
    return "between ops (Python, autograd)"


def profile(case: Any, variant: str, seed: int) -> None:
    """Print the 25 ops that take most time in one run of a case, and the share of each kind."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    work = case.build(variant, seed)
    work.run()  # warms up
    start = time.process_time()
    work.run()
    plain = time.process_time() - start
    with torch_profile(activities=[ProfilerActivity.CPU]) as profiled:
        start = time.perf_counter()
        work.run()
        slowed = time.perf_counter() - start  # the profiler knows no other clock
    events = profiled.key_averages()
    print(events.table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60))
    groups: dict[str, float] = defaultdict(float)
    for event in events:
        groups[group_of(event.key)] += event.self_cpu_time_total / 1e6
    groups["between ops (Python, autograd)"] += max(0.0, slowed - sum(groups.values()))
    rows = [
        [name, f"{value:.3f}", f"{value / slowed:.1%}"]
        for name, value in sorted(groups.items(), key=lambda item: -item[1])
    ]
    print(f"{case.name}, {variant}: {plain:.3f} s of CPU; under the profiler {slowed:.3f} s:\n")
    print(table(["part", "s", "share"], rows))
