"""Figures of notebooks 06 to 08: what learns, layers with adapters, rates, spectra, packed rows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from statistics import mean

from course_utils.plots import GREY, PALETTE, label, new_figure, show


def beside(d_in: int, d_out: int, rank: int, *, title: str) -> None:
    """Draw a frozen matrix and, beside it, the two narrow ones that learn.

    Sizes are true to scale: heights are outputs, widths inputs, so that B and A read as a product.
    """
    figure, axes = new_figure(width=7.2, height=3.4)
    unit = 1 / max(d_in, d_out)
    w, h, r = d_in * unit, d_out * unit, max(rank * unit, 0.02)
    shapes = {
        f"W, frozen\n{d_out} × {d_in}": ((0.0, 0.0), w, h, GREY),
        f"B\n{d_out} × {rank}": ((w + 0.45, 0.0), r, h, PALETTE[1]),
        f"A\n{rank} × {d_in}": ((w + 0.65, h - r), w, r, PALETTE[0]),
    }
    for name, (corner, width, height, colour) in shapes.items():
        axes.add_patch(_rectangle(corner, width, height, facecolor=colour, edgecolor="white"))
        middle = corner[0] + width / 2
        axes.text(middle, corner[1] - 0.04, name, ha="center", va="top")
    axes.text(w + 0.22, h / 2, "+  α/r ·", ha="center", va="center", fontsize=15)
    axes.set(xlim=(-0.15, 2 * w + 0.8), ylim=(-0.3, h + 0.08), aspect="equal")
    axes.set_axis_off()
    label(axes, title, "", "")
    show(figure)


def _rectangle(corner: tuple[float, float], width: float, height: float, **style: object) -> object:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, height, **style)


def sweep(
    curves: Mapping[str, Mapping[float, Sequence[float]]],
    *,
    title: str,
    y: str,
    levels: Mapping[str, float] | None = None,
    live: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Draw `curves[name][rate]`, a value a seed: their mean as a line, each as a small dot.

    `levels` are grey lines across; `live[name] = (rate, value)` a star, of this very run.
    """
    figure, axes = new_figure(width=8, height=4.2)
    for height, (name, value) in enumerate((levels or {}).items()):
        style = ("--", ":", "-.")[height % 3]
        axes.axhline(value, color=GREY, ls=style, lw=1.5, label=name)
    for i, (name, found) in enumerate(curves.items()):
        means = [sum(values) / len(values) for values in found.values()]
        axes.plot(list(found), means, marker="osD^vP*X"[i % 8], color=PALETTE[i], label=name)
        for rate, values in found.items():
            axes.plot([rate] * len(values), values, ".", color=PALETTE[i], alpha=0.4, ms=4)
        if live and name in live:
            axes.plot(*live[name], "*", color=PALETTE[i], ms=15, mec="black", mew=0.8)
    axes.set_xscale("log")
    axes.legend(fontsize=9)
    label(axes, title, "learning rate", y)
    show(figure)


def held(
    curves: Mapping[str, Sequence[Sequence[float]]], *, title: str, at: int | None = None
) -> None:
    """Draw the share of a change's energy in its first k directions, a thin line a matrix.

    `curves[name]` are the shares for k = 1, 2, 3 … of each matrix; `at` marks one k.
    """
    figure, axes = new_figure(width=7.2, height=3.8)
    for i, (name, matrices) in enumerate(curves.items()):
        for j, shares in enumerate(matrices):
            ks = range(1, len(shares) + 1)
            named = {"label": name} if j == 0 else {}
            colour = GREY if i == len(curves) - 1 else PALETTE[i]
            axes.plot(ks, shares, color=colour, lw=1, alpha=0.6, **named)
    if at is not None:
        axes.axvline(at, color="#606060", lw=1, ls=":")
        axes.text(at, 1.02, f"rank {at}", ha="center", fontsize=10, color="#606060")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.08)
    axes.legend(fontsize=9, loc="lower right")
    label(axes, title, "directions k, the largest first", "share of the change's energy")
    show(figure)


def exchange(
    points: Mapping[str, Sequence[tuple[float, float]]],
    *,
    start: tuple[float, float],
    title: str,
    x: str,
    y: str,
) -> None:
    """Draw trainings as dots (error, what is left of another skill), a colour a method.

    `start` is where all of them began, a grey cross.
    """
    figure, axes = new_figure(width=6.8, height=4.0)
    for i, (name, found) in enumerate(points.items()):
        across, upwards = ([point[side] for point in found] for side in (0, 1))
        axes.scatter(across, upwards, color=PALETTE[i], marker="os^D"[i % 4], alpha=0.7, label=name)
    axes.plot(*start, "x", color="#606060", ms=10, mew=3, label="before tuning")
    axes.set_ylim(0, 1)
    axes.legend(fontsize=9)
    label(axes, title, x, y)
    show(figure)


def rounding(levels: Sequence[float], steps: Sequence[tuple[float, float]], *, title: str) -> None:
    """Draw levels as strokes on a line, and moves (from, to) above it as arrows.

    From where an arrow ends a dotted line falls to the level to which it is rounded.
    """
    figure, axes = new_figure(width=8, height=0.55 * len(steps) + 1.3)
    axes.vlines(levels, -0.25, 0.25, color=PALETTE[0], lw=2)
    axes.axhline(0, color=GREY, lw=1, zorder=0)
    for row, (start, end) in enumerate(steps, start=1):
        nearest = min(levels, key=lambda level: abs(level - end))
        arrow = {"arrowstyle": "->", "color": PALETTE[3], "lw": 2}
        axes.annotate("", (end, row), (start, row), arrowprops=arrow)
        axes.plot([start], [row], "o", color=PALETTE[3], ms=5)
        axes.plot([end, nearest], [row - 0.1, 0.25], ":", color="#606060", lw=1)
    axes.set(ylim=(-0.5, len(steps) + 0.6), yticks=[])
    axes.grid(visible=False)
    label(axes, title, "a weight, over the largest of its group", "")
    show(figure)


def stacks(arms: Mapping[str, Sequence[bool]], parts: Sequence[str], *, title: str) -> None:
    """Draw a network's parts above each other, once for each way: grey is frozen, blue learns.

    `arms[name]` says of each part, from the lowest up, whether it learns.
    """
    figure, axes = new_figure(width=8, height=0.34 * len(parts) + 1.0)
    for column, learns in enumerate(arms.values()):
        for row, moves in enumerate(learns):
            colour = PALETTE[0] if moves else GREY
            axes.barh(row, 0.8, left=column - 0.4, height=0.8, color=colour, alpha=0.85)
            word = "learns" if moves else "frozen"
            axes.text(column, row, word, color="white", ha="center", va="center", fontsize=9)
    axes.set_yticks(range(len(parts)), parts)
    axes.set_xticks(range(len(arms)), list(arms))
    axes.grid(visible=False)
    label(axes, title, "", "")
    show(figure)


def curves_over_labels(
    arms: Mapping[str, Mapping[int, Sequence[float]]],
    *,
    title: str,
    y: str,
    x: str = "ratings learned from",
    grey: Sequence[str] = (),
) -> None:
    """Draw a line through the means of each arm over the number of labels, and a dot a training.

    `arms[name][labels]` lists one value a seed. The arms named in `grey` are the baselines.
    """
    figure, axes = new_figure(width=8, height=4.0)
    colours = iter(PALETTE)
    styles = iter(("--", ":", "-."))
    for i, (name, found) in enumerate(arms.items()):
        colour = GREY if name in grey else next(colours)
        style = next(styles) if name in grey else "-"
        sizes = sorted(found)
        axes.plot(sizes, [mean(found[n]) for n in sizes], style, color=colour, label=name)
        for n in sizes:
            at = n * 1.035 ** (i - len(arms) / 2)  # side by side, so that every dot is seen
            axes.plot([at] * len(found[n]), found[n], ".", color=colour, alpha=0.6)
    axes.set_xscale("log")
    sizes = sorted({n for found in arms.values() for n in found})
    axes.set_xticks(sizes, [f"{n:,}" for n in sizes])
    axes.minorticks_off()
    axes.set_ylim(min(0, axes.get_ylim()[0]), 1)
    figure.legend(fontsize=9, loc="outside right center")
    label(axes, title, x, y)
    show(figure)


def against_people(
    panels: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, title: str
) -> None:
    """Draw what people said of each text, and what a model says: `panels[name]` = (people, model).

    The grey line is where both agree; ratings run from −4 to 4.
    """
    figure, axes = new_figure(len(panels), width=3.2, height=3.2, sharey=True, squeeze=False)
    for axis, (name, (people, model)) in zip(axes[0], panels.items(), strict=True):
        axis.plot([-4, 4], [-4, 4], color=GREY, lw=1.5)
        axis.plot(people, model, ".", color=PALETTE[0], alpha=0.35, ms=5)
        axis.set(xlim=(-4.2, 4.2), ylim=(-4.2, 4.2), xlabel="people's rating")
        axis.set_title(name, fontsize=11)
    axes[0, 0].set_ylabel("told")
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    show(figure)


def rows_of_tokens(panels: Mapping[str, Sequence[Sequence[int]]], *, title: str) -> None:
    """Draw batches as rows of cells: each example in its colour, empty places white.

    `panels[name]` has for each row the number of the example at every place, 0 for none.
    """
    height = 0.22 * max(len(rows) for rows in panels.values()) + 1.1
    figure, axes = new_figure(len(panels), width=4.4, height=height, squeeze=False)
    for axis, (name, rows) in zip(axes[0], panels.items(), strict=True):
        for r, row in enumerate(rows):
            start = 0
            for example, run in itertools.groupby(row):
                length = len(list(run))
                if example:
                    style = {"color": PALETTE[(example - 1) % 6], "edgecolor": "white", "lw": 1.5}
                    axis.barh(r, length, left=start, height=0.8, alpha=0.85, **style)
                start += length
            axis.barh(r, len(row), height=0.8, color="none", edgecolor=GREY, lw=0.8)
        axis.invert_yaxis()
        axis.set_yticks([])
        axis.grid(visible=False)
        axis.set_xlabel("place in the row")
        axis.set_title(f"{name}: {len(rows)} rows", fontsize=11)
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    show(figure)


def two_parts(
    costs: Mapping[str, tuple[float, float]], *, title: str, parts: Sequence[str], x: str
) -> None:
    """Draw one horizontal bar a name, made of two parts: `costs[name]` = (first, second)."""
    figure, axes = new_figure(width=8, height=0.42 * len(costs) + 1.4)
    first, second = ([pair[i] for pair in costs.values()] for i in (0, 1))
    axes.barh(list(costs), first, color=PALETTE[0], label=parts[0])
    axes.barh(list(costs), second, left=first, color=PALETTE[1], label=parts[1])
    for row, (a, b) in enumerate(costs.values()):
        axes.text(a + b, row, f" {a + b:.2f}", va="center", fontsize=10)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    axes.legend(fontsize=9, loc="lower right")
    label(axes, title, x, "")
    show(figure)


def prompt_before_text(words: Sequence[str], n_prompt: int, *, title: str) -> None:
    """Draw a row of vectors: `n_prompt` learned ones, then those of words, below a frozen model."""
    figure, axes = new_figure(width=8, height=2.2)
    total = n_prompt + len(words)
    axes.barh(1, total, left=-0.5, height=0.5, color=GREY)
    axes.text((total - 1) / 2, 1, "the model, frozen", ha="center", va="center", fontsize=11)
    for i in range(total):
        learned = i < n_prompt
        axes.bar(i, 0.5, 0.8, color=PALETTE[0] if learned else PALETTE[5], alpha=0.85)
        text = f"v{i + 1}" if learned else words[i - n_prompt]
        axes.text(i, 0.25, text, ha="center", va="center", fontsize=8)
        axes.annotate("", (i, 0.74), (i, 0.52), arrowprops=dict(arrowstyle="->", color="#606060"))
    axes.set(xlim=(-0.7, total - 0.3), ylim=(-0.05, 1.4), xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.axis("off")
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    show(figure)
