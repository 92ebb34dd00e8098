"""Figures of parallel training: who sent what when, and what a rank did meanwhile. Notebook 04."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from course_utils.plots import GREY, PALETTE, new_figure, show

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
        end = max(1e3 * (m.end - begin) for m in messages)
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

    Bars on a scale of milliseconds from the beginning of the backward pass, one panel a name.
    """
    figure, axes = new_figure(1, len(panels), width=8, height=1.7, sharex=True, squeeze=False)
    for axis, (name, spans) in zip(axes[:, 0], panels.items(), strict=True):
        begin = min(span.start for span in spans)
        for span in spans:
            row, colour = (0, GREY) if span.what == "backward" else (1, PALETTE[0])
            row, colour = (2, PALETTE[1]) if span.what == "wait" else (row, colour)
            left, width = 1e3 * (span.start - begin), 1e3 * (span.end - span.start)
            axis.barh(row, width, left=left, color=colour, alpha=0.75, edgecolor="white")
        axis.set_yticks(range(3), ["backward", "on the wire", "waiting"], fontsize=10)
        axis.invert_yaxis()
        axis.grid(visible=False, axis="y")
        axis.set_title(name, fontsize=11, loc="left")
    axes[-1, 0].set_xlabel("milliseconds")
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    show(figure)
