"""Figures of the chain: its stages, what each moved, and where generation sits. Notebook 00."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
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
    """Draw stages as numbered boxes in rows, and below each its words.

    An arrow leads from each to the next of its row.
    """
    rows = -(-len(stages) // per_row)
    figure, axes = new_figure(width=9.5, height=1.45 * rows + 0.5)
    places = [(i % per_row, -(i // per_row)) for i in range(len(stages))]
    names = [f"{i} · {name}" for i, name in enumerate(stages, start=1)]
    boxes = [_box(axes, *at, name, PALETTE[0]) for at, name in zip(places, names, strict=True)]
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

    `stages["tuning: obeys"]` is (values without, values with), one of each a seed; the two of a
    seed stand on a line of their own.
    """
    figure, axes = new_figure(1, len(stages), width=8, height=0.85, squeeze=False)
    for axis, (name, (without, with_it)) in zip(axes[:, 0], stages.items(), strict=True):
        heights = [0.5 - i / max(len(without) - 1, 1) for i in range(len(without))]
        axis.hlines(heights, without, with_it, color=GREY, lw=1)
        axis.plot(without, heights, "s", color=GREY, ms=6, label="left out")
        axis.plot(with_it, heights, "o", color=PALETTE[0], ms=6, label="with it")
        axis.set_yticks([0], [name], fontsize=9)
        axis.set_ylim(-1, 1)
        axis.margins(x=0.15)
        axis.grid(visible=False, axis="y")
    axes[-1, 0].legend(fontsize=9, ncols=2, loc="upper left", bbox_to_anchor=(0, -0.9))
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    show(figure)


def losses(
    curve: tuple[Sequence[float], Sequence[float]],
    levels: Mapping[str, float],
    *,
    reached: float,
    title: str,
) -> None:
    """Draw a training loss over steps, and as a mark what is `reached` at its end on unseen text.

    `levels` are grey lines across, with their names beside the axes.
    """
    figure, axes = new_figure(width=8, height=3.6)
    axes.plot(*curve, color=PALETTE[0], label="batches that it learns from, mean of 20 steps")
    axes.plot(curve[0][-1:], [reached], "D", color=PALETTE[3], label="at its end, exam plays")
    beside = axes.get_yaxis_transform()
    for name, value in levels.items():
        axes.axhline(value, color=GREY, lw=1.5, ls="--")
        axes.text(1.01, value, name, transform=beside, va="center", fontsize=9, color="#606060")
    axes.legend(fontsize=9, loc="center right")
    label(axes, title, "step", "nats a token")
    show(figure)


def by_rounds(gains: Mapping[str, Mapping[int, Sequence[float]]], *, title: str) -> None:
    """Draw what graders have gained over rounds: a line of means, and beside it a mark a seed.

    `gains["the judge"][6]` are the gains after six rounds, one a seed.
    """
    figure, axes = new_figure(height=3.6)
    for i, (who, of) in enumerate(gains.items()):
        style = dict(color=PALETTE[i], marker="os^D"[i % 4])
        axes.plot(list(of), [fmean(values) for values in of.values()], color=PALETTE[i])
        at = [rounds + 0.1 * i for rounds, values in of.items() for _ in values]
        axes.plot(at, [x for values in of.values() for x in values], ls="", label=who, **style)
    axes.legend()
    label(axes, title, "rounds of preferences", "gain; a mark a seed, a line the mean")
    show(figure)
