"""Figures of parallel training: who sent what when, and what a rank held. Notebooks 04 and 05."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from course_utils.plots import GREY, PALETTE, label, new_figure, show

if TYPE_CHECKING:
    from course_utils.parallel.collectives import Message
    from course_utils.parallel.data_parallel import Span


def space_time(panels: Mapping[str, Sequence[Message]], *, title: str) -> None:
    """Draw recorded messages: ranks above each other, time to the right, an arrow a message.

    One panel for each name, all on one scale of time; each begins at its first message. An arrow
    runs from its sender when the sending began to its receiver when it was done; its width is its
    share of the panel's largest message, its colour its label.
    """
    labels = list(dict.fromkeys(m.label for messages in panels.values() for m in messages))
    longest = max(
        max(m.end for m in messages) - min(m.start for m in messages)
        for messages in panels.values()
    )
    figure, axes = new_figure(len(panels), width=4.4, height=3.0, sharey=True, squeeze=False)
    for axis, (name, messages) in zip(axes[0], panels.items(), strict=True):
        begin, largest = min(m.start for m in messages), max(m.nbytes for m in messages)
        for m in messages:
            axis.annotate(
                "",
                (1e3 * (m.end - begin), m.receiver),
                (1e3 * (m.start - begin), m.sender),
                arrowprops=dict(
                    arrowstyle="->",
                    color=PALETTE[labels.index(m.label)],
                    lw=0.6 + 1.6 * m.nbytes / largest,
                ),
            )
        end = 1e3 * longest
        ranks = sorted({rank for m in messages for rank in (m.sender, m.receiver)})
        axis.hlines(ranks, 0, end, color=GREY, lw=1, zorder=0)
        axis.set(yticks=ranks, xlim=(-0.03 * end, 1.03 * end), xlabel="milliseconds")
        axis.grid(visible=False)
        axis.set_title(name, fontsize=11)
    axes[0, 0].invert_yaxis()
    axes[0, 0].set_ylabel("rank")
    for i, text in enumerate(labels):
        axes[0, 0].plot([], [], color=PALETTE[i], label=text)
    axes[0, 0].legend(fontsize=9, loc="upper left", bbox_to_anchor=(0, -0.22), ncols=len(labels))
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    show(figure)


def overlap(panels: Mapping[str, Sequence[Span]], *, title: str) -> None:
    """Draw what one rank did in a step: the backward pass, buckets under way, and the wait.

    A stroke marks each gradient's arrival.

    Bars on a scale of milliseconds from the beginning of the backward pass, one panel a name.
    """
    figure, axes = new_figure(1, len(panels), width=8, height=1.7, sharex=True, squeeze=False)
    for axis, (name, spans) in zip(axes[:, 0], panels.items(), strict=True):
        begin = min(span.start for span in spans)
        for span in (s for s in spans if s.what != "gradient"):
            row, colour = (0, GREY) if span.what == "backward" else (1, PALETTE[0])
            row, colour = (2, PALETTE[1]) if span.what == "wait" else (row, colour)
            left, width = 1e3 * (span.start - begin), 1e3 * (span.end - span.start)
            axis.barh(row, width, left=left, color=colour, alpha=0.75, edgecolor="white")
        moments = [1e3 * (span.start - begin) for span in spans if span.what == "gradient"]
        axis.plot(moments, [0] * len(moments), "|", color="#303030", ms=12)
        axis.set_yticks(range(3), ["backward", "on the wire", "waiting"], fontsize=10)
        axis.invert_yaxis()
        axis.grid(visible=False, axis="y")
        axis.set_title(name, fontsize=11, loc="left")
    axes[-1, 0].set_xlabel("milliseconds")
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    show(figure)


def memory_walls(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, wall: float, title: str
) -> None:
    """Draw gigabytes a rank against the number of ranks, both in powers, and a wall across.

    `curves[name]` is (numbers of ranks, gigabytes).
    """
    figure, axes = new_figure(width=8, height=4.2)
    axes.axhline(wall, color=GREY, lw=2)
    last = next(iter(curves.values()))[0][-1]
    axes.text(last, wall * 0.9, f"{wall:g} GB, one GPU", color="#606060", ha="right", va="top")
    for i, (name, (ranks, gigabytes)) in enumerate(curves.items()):
        axes.plot(ranks, gigabytes, marker="o", ms=4, color=PALETTE[i % len(PALETTE)], label=name)
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(list(next(iter(curves.values()))[0]), next(iter(curves.values()))[0])
    axes.minorticks_off()
    axes.legend(fontsize=9, loc="lower left")
    label(axes, title, "ranks", "GB a rank")
    show(figure)


def held_over_a_step(panels: Mapping[str, Sequence[tuple[str, float]]], *, title: str) -> None:
    """Draw what a rank held of parameters at the events of one step, a line for each name.

    `panels[name]` is a list of (event, bytes), the same events everywhere.
    """
    figure, axes = new_figure(width=8, height=3.6)
    for i, (name, events) in enumerate(panels.items()):
        values = [nbytes / 1e6 for _, nbytes in events]
        axes.step(range(len(values)), values, where="mid", color=PALETTE[i], label=name)
    names = [event for event, _ in next(iter(panels.values()))]
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=9)
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])
    axes.legend(fontsize=9, loc="upper left", ncols=3)
    label(axes, title, "", "MB of parameters on a rank")
    show(figure)
