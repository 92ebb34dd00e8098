"""Figures of prompting and retrieval: a solution's trace, a pipeline's steps. Notebooks 11, 12."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def answers(
    marks: Mapping[str, Sequence[bool]], groups: Sequence[str], *, title: str, baseline: str = ""
) -> None:
    """Draw one dot for each question, method by method: filled where the answer was right.

    `marks[method]` are the outcomes and `groups[i]` names what question i belongs to; questions of
    one group stand together. How many were right stands at the end of each row; the `baseline`'s
    dots are grey. Raises ValueError for a method with another number of outcomes.
    """
    if wrong := [name for name, row in marks.items() if len(row) != len(groups)]:
        raise ValueError(f"{wrong[0]} has {len(marks[wrong[0]])} outcomes, not {len(groups)}")
    names = list(dict.fromkeys(groups))
    order = sorted(range(len(groups)), key=lambda i: names.index(groups[i]))
    at = [k + 0.8 * names.index(groups[i]) for k, i in enumerate(order)]
    figure, axes = new_figure(width=8.6, height=0.36 * len(marks) + 1.6)
    for y, (method, row) in enumerate(marks.items()):
        colour = GREY if method == baseline else PALETTE[0]
        for x, i in zip(at, order, strict=True):
            face = colour if row[i] else "white"
            axes.plot(x, y, "o", ms=9, mfc=face, mec=colour, mew=1.3)
        axes.text(at[-1] + 1, y, f"{sum(map(bool, row))} of {len(row)}", va="center", fontsize=10)
    axes.set_yticks(range(len(marks)), list(marks))
    centres = [[x for x, i in zip(at, order, strict=True) if groups[i] == name] for name in names]
    axes.set_xticks([sum(xs) / len(xs) for xs in centres], [n.replace("_", "\n") for n in names])
    axes.tick_params(axis="x", labelsize=9, length=0)
    axes.set_xlim(-0.8, at[-1] + 3)
    axes.set_ylim(len(marks) - 0.4, -0.6)
    axes.grid(visible=False)
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    show(figure)


def loop(*, title: str) -> None:
    """Draw the loop of ReAct: the model's thought and action, the tool's observation, and again."""
    figure, axes = new_figure(width=8.6, height=2.3)
    axes.set_axis_off()
    axes.set_xlim(0, 4)
    axes.set_ylim(0, 1)
    boxes = {
        "Question": (0.4, "How many workers\nhas Crowcraft?", 7),
        "Thought": (1.4, "I need its page.", 0),
        "Action": (2.4, "search[Crowcraft]", 1),
        "Observation": (3.45, "… 10 workshops with\n26 workers each.", 2),
    }
    arrow = {"arrowstyle": "->", "lw": 2, "color": GREY}
    for name, (x, text, colour) in boxes.items():
        box = {"boxstyle": "round,pad=0.5", "fc": "white", "ec": PALETTE[colour], "lw": 2}
        axes.text(x, 0.93, name, ha="center", va="center", fontsize=11, weight="bold")
        axes.text(x, 0.62, text, ha="center", va="center", fontsize=10, bbox=box)
    for x in (0.95, 1.95, 2.9):
        axes.annotate("", (x + 0.07, 0.93), (x - 0.07, 0.93), arrowprops=arrow)
    back = arrow | {"connectionstyle": "arc3,rad=-0.25"}
    axes.annotate("", (1.4, 0.42), (3.45, 0.38), arrowprops=back)
    axes.text(2.42, 0.02, "appended to the prompt, until the action is finish[…]",
              ha="center", fontsize=10, color="#606060")  # fmt: skip
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    show(figure)
