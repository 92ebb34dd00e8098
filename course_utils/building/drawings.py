"""Figures of the chain: its stages, what each moved, and where generation sits. Notebook 00."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from course_utils.plots import GREY, PALETTE, label, new_figure, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text


def _box(axes: Axes, x: float, y: float, text: str, colour: str) -> Text:
    style = dict(boxstyle="round,pad=0.45", facecolor="white", edgecolor=colour, linewidth=1.8)
    return axes.text(x, y, text, ha="center", va="center", fontsize=10, bbox=style)


def _arrow(axes: Axes, start: Text, end: Text) -> None:
    """From the edge of one box to that of another; draw it after both."""
    ends = dict(patchA=start.get_bbox_patch(), patchB=end.get_bbox_patch(), shrinkA=3, shrinkB=3)
    style = dict(arrowstyle="-|>", color=GREY, lw=1.8, **ends)
    axes.annotate("", end.get_position(), start.get_position(), arrowprops=style)


def chain(stages: Mapping[str, str], *, title: str, per_row: int = 4) -> None:
    """Draw stages as boxes in rows, an arrow from each to the next, and below each its words."""
    rows = -(-len(stages) // per_row)
    figure, axes = new_figure(width=9.5, height=1.45 * rows + 0.5)
    places = [(i % per_row, -(i // per_row)) for i in range(len(stages))]
    boxes = [_box(axes, *at, name, PALETTE[0]) for at, name in zip(places, stages, strict=True)]
    for (x, y), words in zip(places, stages.values(), strict=True):
        axes.text(x, y - 0.27, words, ha="center", va="top", fontsize=9, color="#404040")
    for i, (first, second) in enumerate(pairwise(boxes), start=1):
        if i % per_row:  # not from the end of a row to the next one's beginning
            _arrow(axes, first, second)
    axes.set(xlim=(-0.5, per_row - 0.5), ylim=(0.35 - rows, 0.4))
    axes.axis("off")
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    show(figure)


def pipeline(steps: Sequence[str], here: str, *, title: str) -> None:
    """Draw steps from left to right; the one that is `here` in colour."""
    if here not in steps:
        raise ValueError(f"here is {here!r}; it must be one of {', '.join(steps)}")
    figure, axes = new_figure(width=9.5, height=1.5)
    colours = [PALETTE[3] if step == here else GREY for step in steps]
    boxes = [_box(axes, i, 0, step, colours[i]) for i, step in enumerate(steps)]
    for first, second in pairwise(boxes):
        _arrow(axes, first, second)
    axes.set(xlim=(-0.6, len(steps) - 0.4), ylim=(-0.5, 0.5))
    axes.axis("off")
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    show(figure)


def with_and_without(
    stages: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, title: str
) -> None:
    """Draw each stage's own metric on an axis of its own: left out in grey, with it in colour.

    `stages["tuning: obeys"]` is (values without, values with); a dot a value.
    """
    figure, axes = new_figure(1, len(stages), width=8, height=0.72, squeeze=False)
    for axis, (name, (without, with_it)) in zip(axes[:, 0], stages.items(), strict=True):
        axis.plot(without, [0] * len(without), "s", color=GREY, ms=8, label="left out")
        axis.plot(with_it, [0] * len(with_it), "o", color=PALETTE[0], ms=8, label="with it")
        axis.set_yticks([0], [name], fontsize=9)
        axis.set_ylim(-1, 1)
        axis.margins(x=0.15)
        axis.grid(visible=False, axis="y")
    axes[-1, 0].legend(fontsize=9, ncols=2, loc="upper left", bbox_to_anchor=(0, -0.9))
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    show(figure)


def losses(
    curve: tuple[Sequence[float], Sequence[float]], levels: Mapping[str, float], *, title: str
) -> None:
    """Draw a training loss over steps, with named grey levels across and their names beside."""
    figure, axes = new_figure(width=8, height=3.6)
    axes.plot(*curve, color=PALETTE[0])
    for name, value in levels.items():
        axes.axhline(value, color=GREY, lw=1.5, ls="--")
        axes.text(curve[0][-1], value, name, ha="right", va="bottom", fontsize=9, color="#606060")
    label(axes, title, "step", "nats a token, mean of 20 steps")
    show(figure)
