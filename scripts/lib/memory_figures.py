"""The pictures of scripts/inspect_memory.py: a memory's history and what its writes erase."""

import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fairseq_fwm.inspection import MemoryTrace

LABELS = 64  # more tokens than that are not all named on an axis
UNIT = 0.19  # inches for a token
BAR = 1.1  # inches for what explains the colours
ERASURE = (
    "share of the column's write\nthat the row's write erases",
    "share of it left\nafter the last token",
)


class Memory(NamedTuple):
    """One fast weight layer and what became of its memory.

    Attributes:
        name: of the layer, in words.
        file: the same, for a file name.
        rule: update rule.
        keys: number of key features, K.
        values: number of value features, V.
        tokens: what was written at each step.
        trace: the numbers.
    """

    name: str
    file: str
    rule: str
    keys: int
    values: int
    tokens: Sequence[str]
    trace: MemoryTrace


def pyplot() -> Any:
    """Return matplotlib's interface, for files alone."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # fairseq sets the root's to debug
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot as interface

    return interface


def readable(token: str) -> str:
    """Return a token as an axis can show it: spaces, and runs of them, as signs."""
    token = re.sub("(▁{3,})", lambda run: f"␣×{len(run[0])}", token).replace("▁", "␣")
    return token.replace("$", r"\$")  # which would begin a formula


def name_tokens(axis: Any, tokens: Sequence[str], **style: Any) -> None:
    """Write the tokens along an axis, every n-th of many."""
    every = math.ceil(len(tokens) / LABELS)
    places = range(0, len(tokens), every)
    axis.set_ticks(
        list(places),
        [readable(tokens[i]) for i in places],
        **{"fontsize": 7, "family": "monospace", **style},
    )
    axis.set_tick_params(length=1.5)


def heat(figure: Any, axes: Any, values: Any, title: str, **style: Any) -> Any:
    """Draw heads x tokens; return the axes of the bar that explains the colours."""
    image = axes.imshow(values.numpy(), aspect="auto", interpolation="nearest", **style)
    axes.set_yticks(range(len(values)), [f"head {i}" for i in range(len(values))], fontsize=8)
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=8)
    bar.ax.tick_params(labelsize=7)
    axes.set_title(title, fontsize=9, loc="left")
    return bar.ax


def lines(axes: Any, values: Any, title: str, limit: float | None = None) -> None:
    """Draw a line for each head, named at its end."""
    ends = sorted((float(row[-1]), head) for head, row in enumerate(values))
    for head, row in enumerate(values):
        axes.plot(row.numpy(), color=f"C{head % 10}", linewidth=1.5, label=f"head {head}")
    if limit is not None:
        axes.axhline(limit, color="0.5", linestyle=":", linewidth=1)
        axes.text(
            0, limit, f"all it has room for: {limit:g}", fontsize=7, color="0.4", va="bottom"
        )
    axes.legend(
        handles=[axes.lines[head] for _, head in reversed(ends)],
        loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8,
        handlelength=1.2, labelspacing=0.2,
    )  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_title(title, fontsize=9, loc="left")


def draw_history(memory: Memory, path: Path) -> None:
    """Draw write strengths, size and rank of the memory, and how much each write changes."""
    from matplotlib.colors import LogNorm

    trace, heads = memory.trace, len(memory.trace.norm)
    room = min(memory.keys, memory.values)
    row = 0.5 + 0.2 * heads
    heights = [*([row] * (trace.beta is not None)), 1.6, 1.6, row]
    width = max(7.5, 2.6 + UNIT * len(memory.tokens))
    figure, panels = pyplot().subplots(
        len(heights), sharex=True, height_ratios=heights, layout="constrained",
        figsize=(width, sum(heights) + 1.9),
    )  # fmt: skip
    rest = list(panels)
    if trace.beta is not None:
        title = "Write strength β: 0 leaves the memory alone, 1 replaces what lies at the key"
        top = max(1.0, float(trace.beta.max()))
        heat(figure, rest.pop(0), trace.beta, title, vmin=0, vmax=top, cmap="viridis")
    lines(rest[0], trace.norm, "How much the memory holds: Frobenius norm of the state |S|")
    title = "How many directions it uses: effective rank of the state"
    near = float(trace.rank.max()) > 0.6 * room
    lines(rest[1], trace.rank, f"{title} (room for {room})", room if near else None)
    if memory.rule == "sum":
        title = "What a write adds, against what lay at its key: |v| / |v̄|"
    else:
        title = "What a write changes, against what lay at its key: |β(v − v̄)| / |v̄|"
    ratio = (trace.change / trace.retrieved.clamp(min=1e-9)).clamp(0.1, 10)
    heat(figure, rest[2], ratio, title, norm=LogNorm(0.1, 10), cmap="RdBu_r").set_yticks(
        [0.1, 1, 10], ["0.1 touched up", "1 as large", "10 new"]
    )
    name_tokens(rest[2].xaxis, memory.tokens, rotation=90)
    rest[2].set_xlim(-0.5, len(memory.tokens) - 0.5)
    figure.suptitle(f"{memory.name}: {memory.rule} rule", fontsize=11)
    save(figure, path)


def draw_erasure(memory: Memory, path: Path) -> None:
    """Draw, for each head, which earlier tokens' writes a write erases, and what is left."""
    length, heads = len(memory.tokens), len(memory.trace.left)
    columns = min(heads, 2 if length > 24 else 4)
    rows = math.ceil(heads / columns)
    side = max(2.6, 0.115 * min(length, LABELS) + 0.8)
    height = rows * (side + 0.5) + 0.8
    figure = pyplot().figure(figsize=(columns * side + BAR, height), layout="constrained")
    maps, bars = figure.subfigures(1, 2, width_ratios=[columns * side, BAR])
    grid = maps.add_gridspec(2 * rows, columns, height_ratios=[1, 0.05] * rows)
    for head in range(heads):
        row, column = divmod(head, columns)
        places = (maps.add_subplot(grid[2 * row + i, column]) for i in (0, 1))
        images = draw_head(*places, memory, head)
    for image, axes, text in zip(images, bars.subplots(2), ERASURE, strict=True):
        axes.set_box_aspect(12)
        figure.colorbar(image, cax=axes).set_label(text, fontsize=8)
        axes.tick_params(labelsize=7)
    title = f"{memory.name}: what each write (row) erases of earlier ones (columns)"
    maps.suptitle(title if columns * side > 6 else title.replace(": ", "\n"), fontsize=10)
    save(figure, path)


def draw_head(axes: Any, strip: Any, memory: Memory, head: int) -> tuple[Any, Any]:
    """Draw the map of a head and the strip below it; return both images."""
    import torch
    from matplotlib.colors import PowerNorm

    trace, length = memory.trace, len(memory.tokens)
    later = torch.ones(length, length, dtype=torch.bool).triu()
    erased = trace.erased[head].clamp(0, 1).masked_fill(later, torch.nan)
    axes.set_facecolor("0.93")  # where nothing was written yet
    image = axes.imshow(erased.numpy(), aspect="auto", norm=PowerNorm(0.5, 0, 1), cmap="Reds")
    axes.set_title(f"head {head}", fontsize=9)
    axes.set_xticks([])
    name_tokens(axes.yaxis, memory.tokens, fontsize=6)
    left = strip.imshow(
        trace.left[head].clamp(0, 1)[None].numpy(), aspect="auto", vmin=0, vmax=1, cmap="Greys"
    )
    name_tokens(strip.xaxis, memory.tokens, fontsize=6, rotation=90)
    strip.set_yticks([0], ["left"], fontsize=6)
    return image, left


def save(figure: Any, path: Path) -> None:
    """Write a picture as a whole."""
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, dpi=110, format="png")
    partial.replace(path)
    pyplot().close(figure)
