#!/usr/bin/env python3
"""Draw the pictures of docs/concepts.md: what a memory of fast weights does, computed here.

python scripts/draw_concepts.py                  # all of them, as SVG, into docs/concepts/
python scripts/draw_concepts.py --only capacity --format png --out runs/pictures
"""

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from fairseq_fwm import ops
from fairseq_fwm.feature_maps import FeatureMap, build_feature_map

ROOT = Path(__file__).resolve().parent.parent
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "fairseq_fwm",  # the same file from the same numbers
    "figure.facecolor": "white",
}
FIRST, SECOND, GREY = "#2166ac", "#b2182b", "0.45"


def matrix(ax: Axes, values: Tensor, title: str) -> None:
    """Draw a matrix or a vector as coloured cells with their numbers."""
    values = values.reshape(len(values), -1) + 0.0  # no -0
    cells(ax, values, title, "RdBu_r", 1.6)
    for i, row in enumerate(values.tolist()):
        for j, value in enumerate(row):
            ax.text(j, i, f"{value:.2g}", ha="center", va="center", fontsize=8)


def cells(ax: Axes, values: Tensor, title: str, colours: str, limit: float) -> None:
    """Draw a matrix as coloured cells."""
    lowest = -limit if colours == "RdBu_r" else 0.0
    ax.imshow(values, cmap=colours, vmin=lowest, vmax=limit)
    ax.set(title=title, xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def sign(ax: Axes, text: str) -> None:
    """Draw an operator between two matrices."""
    ax.axis("off")
    ax.text(0.5, 0.5, text, ha="center", va="center", fontsize=16, transform=ax.transAxes)


def equation(widths: Sequence[float], height: float = 2.1) -> tuple[Figure, list[Axes]]:
    """Return a figure with a row of axes."""
    figure, axes = plt.subplots(
        1, len(widths), figsize=(sum(widths), height), width_ratios=list(widths), layout="tight"
    )
    return figure, list(axes)


def writing() -> Figure:
    """One association: the outer product of a key and a value is added to the memory."""
    k, v = torch.tensor([0.0, 1.0, 0.0, 0.0]), torch.tensor([0.9, -0.5, 0.3])
    before = torch.outer(torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([-0.4, 0.8, 0.6]))
    written = torch.outer(k, v)
    figure, axes = equation([1.6, 0.4, 0.7, 0.5, 1.6, 0.4, 1.6])
    matrix(axes[0], before, "S, memory")
    sign(axes[1], "+")
    matrix(axes[2], k, "k, key")
    sign(axes[3], "⊗")
    matrix(axes[4], v.reshape(1, -1), "v, value")
    sign(axes[5], "=")
    matrix(axes[6], before + written, "S, after")
    return figure


def reading() -> Figure:
    """A query picks rows: S^T q."""
    values = torch.tensor([[-0.4, 0.8, 0.6], [0.9, -0.5, 0.3]])
    S = torch.zeros(4, 3)
    S[:2] = values
    figure, axes = equation([1.6, 0.7, 0.4, 1.6, 0.5, 0.7, 0.4, 1.6])
    matrix(axes[0], S, "S, memory")
    matrix(axes[1], torch.tensor([0.0, 1.0, 0.0, 0.0]), "q")
    sign(axes[2], "→")
    matrix(axes[3], values[1:], "$S^T q$: the value")
    sign(axes[4], "")
    mixed = torch.tensor([0.5, 0.5, 0.0, 0.0])
    matrix(axes[5], mixed, "q")
    sign(axes[6], "→")
    matrix(axes[7], (S.T @ mixed).reshape(1, -1), "$S^T q$: a mixture")
    return figure


def unit(angle: Tensor | float) -> Tensor:
    """Return the vector of length one at an angle in radians."""
    angle = torch.as_tensor(angle)
    return torch.stack((angle.cos(), angle.sin()), -1)


def two_keys(angles: Tensor, rule: str) -> Tensor:
    """Write value 1 under a fixed key, then value 0 under a key at each angle; read the first."""
    first = unit(torch.zeros_like(angles))
    k = torch.stack((first, unit(angles)), 1)[:, None]
    v = torch.tensor([1.0, 0.0]).expand(len(angles), 1, 2).unsqueeze(-1)
    v = torch.cat((v, v.flip(2)), -1)  # values (1, 0) and (0, 1)
    beta = torch.ones(len(angles), 1, 2)
    if rule == "sum":
        _, S = ops.causal_sum(k, k, v, output_final_state=True)
    else:
        _, S = ops.causal_delta(k, k, v, beta, output_final_state=True)
    return ops.read(k, S)[:, 0]  # (angles, which key, which value)


def interference() -> Figure:
    """What is read of two associations, against the angle between their keys."""
    angles = torch.linspace(0, torch.pi / 2, 91)
    figure, axes = plt.subplots(1, 3, figsize=(8.6, 2.7), layout="tight")
    axes[0].set_aspect("equal")
    for vector, colour, name in ((unit(0.0), FIRST, "$k_1$"), (unit(1.0), SECOND, "$k_2$")):
        x, y = vector.tolist()
        axes[0].annotate(
            "", (x, y), (0, 0), arrowprops={"arrowstyle": "->", "color": colour, "lw": 2}
        )
        axes[0].text(x * 1.08, y * 1.08, name, color=colour, fontsize=11)
    arc = unit(torch.linspace(0, 1.0, 30)) * 0.3
    axes[0].plot(arc[:, 0], arc[:, 1], color=GREY)
    axes[0].text(0.33, 0.14, "angle", color=GREY)
    axes[0].set(xlim=(-0.1, 1.3), ylim=(-0.6, 1.1), title="two keys")
    axes[0].axis("off")
    for ax, rule in zip(axes[1:], ("sum", "delta"), strict=True):
        read = two_keys(angles, rule)
        for key, colour, width in ((0, FIRST, 3.5), (1, SECOND, 1.4)):
            for value, dashes in ((0, "-"), (1, "--")):
                label = f"under $k_{key + 1}$: $v_{value + 1}$"
                style = {"color": colour, "lw": width, "alpha": 0.8, "label": label}
                style["ls"] = dashes if key == 0 else {"-": "--", "--": "-"}[dashes]
                ax.plot(angles.rad2deg(), read[:, key, value], **style)
        ax.set(title=f"{rule} rule", xlabel="angle between the keys", xticks=[0, 30, 60, 90])
        ax.set_ylim(-0.1, 1.1)
    axes[1].set_ylabel("how much of a value is read")
    axes[0].legend(
        *axes[2].get_legend_handles_labels(),
        fontsize=8,
        loc="lower center",
        ncols=2,
        frameon=False,
    )
    return figure


def erasing() -> Figure:
    """A key that comes back with another value, four writes, under both rules."""
    k = unit(torch.tensor([0.0, torch.pi / 2, 0.0, 0.0]))[None, None]
    v = torch.tensor([1.0, 0.6, -0.5, 0.3])[None, None, :, None]
    reads = {
        "sum": ops.causal_sum(k, k, v)[0],
        "delta, $β = 1$": ops.causal_delta(k, k, v, torch.ones(1, 1, 4))[0],
        "delta, $β = 0.5$": ops.causal_delta(k, k, v, torch.full((1, 1, 4), 0.5))[0],
    }
    figure, ax = plt.subplots(figsize=(6.4, 2.7), layout="tight")
    steps = torch.arange(4)
    ax.scatter(steps, v.flatten(), s=90, facecolors="none", edgecolors="black", label="written")
    for i, ((name, y), colour) in enumerate(
        zip(reads.items(), (GREY, SECOND, FIRST), strict=True)
    ):
        ax.bar(steps + 0.17 * (i - 1), y.flatten(), 0.15, color=colour, alpha=0.75, label=name)
    ax.axhline(0, color="black", lw=0.6)
    names = ["$k_1$: 1.0", "$k_2$: 0.6", "$k_1$: $-0.5$", "$k_1$: 0.3"]
    ax.set_xticks(steps.tolist(), [f"write {t + 1}\n{name}" for t, name in enumerate(names)])
    ax.set_ylabel("read under the same key")
    ax.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.22), frameon=False)
    return figure


def retrieval_errors(phi: FeatureMap, rule: str, counts: Sequence[int]) -> list[float]:
    """Return the mean squared error of reading all of n random associations, for each n.

    The rule ``delta, 100 times`` writes them over and over, which comes close to the best memory
    that there is.
    """
    generator, errors, n_memories = torch.Generator().manual_seed(1), [], 16
    for n in counts:
        x, v = (torch.randn(n_memories, 1, n, phi.head_dim, generator=generator) for _ in "kv")
        k = phi(x)
        k = k / k.norm(dim=-1, keepdim=True)
        times = 100 if rule.endswith("100 times") else 1
        keys, values = k.repeat(1, 1, times, 1), v.repeat(1, 1, times, 1)
        if rule == "sum":
            _, S = ops.causal_sum(keys, keys, values, output_final_state=True)
        else:
            beta = torch.ones(keys.shape[:3])
            _, S = ops.causal_delta(keys, keys, values, beta, output_final_state=True)
        errors.append(float((ops.read(k, S) - v).square().mean()))
    return errors


def capacity() -> Figure:
    """The error of what is read against the number of random associations."""
    counts, d = [2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128], 16
    maps = {"ELU+1, K = 16": (build_feature_map("elu", d), GREY)}
    for nu, colour in ((1, FIRST), (3, SECOND)):
        phi = build_feature_map("dpfp", d, nu=nu)
        maps[f"DPFP ν = {nu}, K = {phi.out_dim}"] = (phi, colour)
    rules = ("sum", "delta", "delta, 100 times")
    figure, axes = plt.subplots(1, 3, figsize=(8.6, 2.7), sharey=True, layout="tight")
    for ax, rule in zip(axes, rules, strict=True):
        for label, (phi, colour) in maps.items():
            errors = retrieval_errors(phi, rule, counts)
            ax.plot(counts, errors, "o-", ms=3, color=colour, label=label)
        ax.axhline(1, color="black", lw=0.6, ls=":")
        ax.set(title=rule, xlabel="associations", xscale="log", yscale="log", ylim=(2e-4, 3e2))
        ax.set_xticks([2, 8, 32, 128], ["2", "8", "32", "128"])
        ax.minorticks_off()
    axes[0].set_ylabel("squared error of a read")
    axes[2].legend(fontsize=8, frameon=False)
    axes[0].text(40, 0.3, "answering zero", fontsize=7.5)
    return figure


def programmer() -> Figure:
    """The slow network writes the weights of the fast one."""
    figure, ax = plt.subplots(figsize=(8, 2.9), layout="tight")
    ax.set(xlim=(0, 12), ylim=(0, 5))
    ax.axis("off")

    def box(x: float, y: float, text: str, colour: str, width: float = 2.0) -> None:
        style = {"boxstyle": "round,pad=0.1", "facecolor": colour, "edgecolor": "black"}
        ax.add_patch(matplotlib.patches.FancyBboxPatch((x, y), width, 0.9, **style))
        ax.text(x + width / 2, y + 0.45, text, ha="center", va="center")

    def arrow(start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
        ax.annotate("", end, start, arrowprops={"arrowstyle": "->", "lw": 1.2})
        ax.text((start[0] + end[0]) / 2 + 0.08, (start[1] + end[1]) / 2, text, fontsize=8.5)

    for i, t in enumerate(("t-1", "t", "t+1")):
        x = 1.6 + 3.7 * i
        box(x, 0.6, f"slow network\n$x_{{{t}}}$ → $q, k, v, β$", "#fddbc7", 2.2)
        box(x, 2.9, f"fast weights $S_{{{t}}}$", "#d1e5f0", 2.2)
        arrow((x + 0.6, 1.65), (x + 0.6, 2.75), "writes\n$k, v, β$")
        arrow((x + 1.7, 1.65), (x + 1.7, 2.75), "asks\n$q$")
        arrow((x + 1.1, 3.95), (x + 1.1, 4.6), f"$y_{{{t}}} = S_{{{t}}}^T φ(q_{{{t}}})$")
        arrow((x - 1.25, 3.35), (x - 0.15, 3.35))
    ax.text(0.05, 3.3, "...")
    return figure


def two_forms() -> Figure:
    """Attention's order of multiplication and the memory's."""
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.rand(6, n, generator=generator) for n in (2, 2, 3))
    scores, S = (q @ k.T).tril(), k.T @ v
    panels = {0: (scores, "tril($QK^T$)"), 2: (v, "V"), 4: (scores @ v, "Y")}
    panels |= {6: (q[-1:], "$q_6$"), 8: (S, "$S_6 = K^T V$"), 10: (q[-1:] @ S, "$y_6$")}
    signs = {1: "·", 3: "=", 5: "or", 7: "·", 9: "="}
    widths = [0.26 * panels[i][0].shape[1] if i in panels else 0.75 for i in range(11)]
    figure, axes = equation(widths, 2.3)
    for at, (values, title) in panels.items():
        cells(axes[at], values, title, "Blues", float((scores @ v).max()))
    for at, text in signs.items():
        sign(axes[at], text)
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        writing,
        reading,
        interference,
        erasing,
        capacity,
        programmer,
        two_forms,
    )
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=PICTURES,
        default=PICTURES,
        metavar="NAME",
        help=f"some of {', '.join(PICTURES)}",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "concepts")
    parser.add_argument("--format", choices=("svg", "png"), default="svg")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # fairseq has it log every font
    for name in given.only:
        with plt.rc_context(STYLE), torch.no_grad():
            figure = PICTURES[name]()
            path = given.out / f"{name}.{given.format}"
            metadata = {"Date": None} if given.format == "svg" else {"Software": None}
            figure.savefig(path, dpi=110, metadata=metadata)
            plt.close(figure)
        print(path)


if __name__ == "__main__":
    main()
