"""Figures of prompting and retrieval: a solution's trace, a pipeline's steps. Notebooks 11, 12."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from course_utils import showing
from course_utils.plots import GREY, PALETTE, new_figure, show


def show_trace(found: Any, *, title: str) -> None:
    """Show a solution step by step: what was thought, done and seen, and how it ended.

    `found` is a `reasoning.Trace`. What a model wrote may differ elsewhere, so everything but the
    title stands between the brackets that the guard does not compare.
    """
    import html

    colours = {"thought": 0, "action": 1, "observation": 2, "program": 0, "result": 2, "vote": 5}
    ending = found.ended if found.answer is None else f"{found.ended}: {found.answer}"
    rows = [*((step.kind, step.text.rstrip()) for step in found.steps), ("end", ending)]
    # half a character (a lone surrogate) cannot be sent to a browser
    rows = [(kind, text.encode("utf-8", "replace").decode()) for kind, text in rows]
    cells = "".join(
        f'<tr><td style="text-align:left;vertical-align:top;border-left:4px solid '
        f'{PALETTE[colours.get(kind, 7)]};padding-left:.6em"><i>{kind}</i></td>'
        f'<td style="text-align:left;white-space:pre-wrap">{html.escape(text)}</td></tr>'
        for kind, text in rows
    )
    plain = "\n".join(f"{kind}: {text}" for kind, text in rows)
    page = f"<b>{html.escape(title)}</b>" + showing.masked(f"<table>{cells}</table>")
    showing.show(page, f"{title}\n{showing.masked(plain)}")


def pipeline(stages: Mapping[str, str], *, title: str) -> None:
    """Draw steps as boxes from left to right, each with its name above what comes out of it."""
    import textwrap

    figure, axes = new_figure(width=2.2 * len(stages), height=2.2)
    axes.set_axis_off()
    axes.set_xlim(0, len(stages))
    axes.set_ylim(0, 1)
    for i, (name, shown) in enumerate(stages.items()):
        box = {"boxstyle": "round,pad=0.5", "fc": "white", "ec": PALETTE[i % len(PALETTE)], "lw": 2}
        wrapped = "\n".join(textwrap.wrap(shown, 22))
        axes.text(i + 0.5, 0.92, name, ha="center", va="center", fontsize=12, weight="bold")
        axes.text(i + 0.5, 0.72, wrapped, ha="center", va="top", fontsize=10, bbox=box)
        if i:
            arrow = {"arrowstyle": "->", "lw": 2, "color": GREY}
            axes.annotate("", (i + 0.1, 0.92), (i - 0.1, 0.92), arrowprops=arrow)
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    show(figure)
