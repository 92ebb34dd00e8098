"""Figures of notebooks 01, 02 and 03: an unrolled net, rotations, who sees whom, a timeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from course_utils.plots import GREY, PALETTE, label, new_figure, show


def rotations(
    panels: Mapping[str, Sequence[tuple[float, float]]], names: Sequence[str], *, title: str
) -> None:
    """Draw points on the unit circle as arrows: `panels[name][i]` belongs to `names[i]`."""
    import math

    figure, axes = new_figure(len(panels), width=3.3, height=3.5, squeeze=False)
    for axis, (name, points) in zip(axes[0], panels.items(), strict=True):
        circle = [2 * math.pi * i / 100 for i in range(101)]
        axis.plot([math.cos(a) for a in circle], [math.sin(a) for a in circle], color=GREY, lw=1)
        for (x, y), text in zip(points, names, strict=True):
            axis.annotate("", (x, y), (0, 0), arrowprops={"color": PALETTE[0], "arrowstyle": "->"})
            axis.text(1.18 * x, 1.18 * y, text, ha="center", va="center", fontsize=10)
        axis.set(xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), aspect="equal")
        axis.set_axis_off()
        axis.set_title(name, fontsize=11)
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    show(figure)


def unrolled(inputs: Sequence[float], states: Sequence[float], *, title: str) -> None:
    """Draw a recurrent net of one unit step by step: each state comes from an input and the last.

    The darker a state, the further it is from 0.
    """
    import matplotlib as mpl

    figure, axes = new_figure(width=1.1 * len(inputs) + 0.8, height=2.3)
    arrow = {"arrowstyle": "->", "color": GREY, "lw": 1.5}
    for t, (x, h) in enumerate(zip(inputs, states, strict=True)):
        shade = mpl.colormaps["Blues"](min(1.0, 0.1 + 0.6 * abs(h)))
        for y, text, colour in ((0, f"{x:g}", "white"), (1, f"{h:.2f}", shade)):
            box = {"boxstyle": "round,pad=0.45", "facecolor": colour, "edgecolor": PALETTE[0]}
            axes.text(t, y, text, ha="center", va="center", bbox=box)
        axes.annotate("", (t, 0.74), (t, 0.26), arrowprops=arrow)
        if t:
            axes.annotate("", (t - 0.3, 1), (t - 0.7, 1), arrowprops=arrow)
    axes.set(xlim=(-0.5, len(inputs) - 0.5), ylim=(-0.4, 1.4))
    axes.set_xticks(range(len(inputs)), range(1, len(inputs) + 1))
    axes.set_yticks([0, 1], ["input", "state"])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    label(axes, title, "step", "")
    show(figure)


def who_sees_whom(
    masks: Mapping[str, Sequence[Sequence[bool]]],
    gradients: Mapping[str, Sequence[Sequence[float]]],
    names: Mapping[str, tuple[Sequence[str], Sequence[str]]],
    *,
    title: str,
) -> None:
    """Draw masks as blue squares, and on them a dot wherever the measured gradient is not 0.

    Rows look at columns; `names[panel]` are those of its rows and of its columns. A dot's area
    grows with the gradient, from a least size that can be seen.
    """
    figure, axes = new_figure(len(masks), width=2.5, height=2.8, squeeze=False)
    for axis, (name, mask) in zip(axes[0], masks.items(), strict=True):
        rows, columns = names[name]
        axis.imshow(mask, cmap="Blues", vmin=0, vmax=2.2)
        largest = max(max(row) for row in gradients[name])
        for i, row in enumerate(gradients[name]):
            seen = [(j, value / largest) for j, value in enumerate(row) if value != 0]
            sizes = [12 + 70 * share for _, share in seen]
            axis.scatter([j for j, _ in seen], [i] * len(seen), s=sizes, color=PALETTE[3])
        axis.set_xticks(range(len(columns)), columns, fontsize=10)
        axis.set_yticks(range(len(rows)), rows, fontsize=10)
        axis.grid(visible=False)
        axis.set_title(name, fontsize=11)
    figure.supxlabel("… may look at (blue: the mask; dot: a gradient that is not 0)", fontsize=11)
    axes[0, 0].set_ylabel("what stands here …")
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    show(figure)


def timeline(events: Sequence[tuple[int, str, str]], *, title: str) -> None:
    """Draw (year, lane, text) downwards in their order, one row each, a column for every lane."""
    lanes = list(dict.fromkeys(lane for _, lane, _ in events))
    figure, axes = new_figure(width=2.35 * len(lanes), height=0.36 * len(events) + 1)
    for i, lane in enumerate(lanes):
        places = [row for row, event in enumerate(events) if event[1] == lane]
        axes.plot([i] * len(places), places, "o-", color=PALETTE[i], lw=1.5)
        axes.text(i, -1, lane, color=PALETTE[i], fontweight="bold", va="center")
        for row in places:
            axes.text(i + 0.05, row, events[row][2], va="center", fontsize=9.5)
    years = [year for year, _, _ in events]
    firsts = [row for row, year in enumerate(years) if row == 0 or year != years[row - 1]]
    axes.set_yticks(firsts, [str(years[row]) for row in firsts])
    axes.set(xticks=[], xlim=(-0.1, len(lanes) - 0.05), ylim=(len(events) - 0.4, -1.5))
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    label(axes, title, "", "")
    show(figure)
