"""Figures of prompting and retrieval: a solution's trace, a pipeline's steps. Notebooks 11, 12."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from course_utils import showing
from course_utils.plots import GREY, PALETTE, label, new_figure, show


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
    marks: Mapping[str, Sequence[bool | None]],
    groups: Sequence[str],
    *,
    title: str,
    baseline: str = "",
) -> None:
    """Draw one dot for each question, method by method: filled where the answer was right.

    `marks[method]` are the outcomes, None where a question was not asked, and `groups[i]` names
    what question i belongs to; questions of one group stand together. How many were right stands
    at the end of each row; the `baseline`'s dots are grey. Raises ValueError for a method with
    another number of outcomes.
    """
    if wrong := [name for name, row in marks.items() if len(row) != len(groups)]:
        raise ValueError(f"{wrong[0]} has {len(marks[wrong[0]])} outcomes, not {len(groups)}")
    names = list(dict.fromkeys(groups))
    order = sorted(range(len(groups)), key=lambda i: names.index(groups[i]))
    at = [k + 0.8 * names.index(groups[i]) for k, i in enumerate(order)]
    figure, axes = new_figure(width=8.6, height=0.36 * len(marks) + 1.6)
    for y, (method, row) in enumerate(marks.items()):
        colour = GREY if method == baseline else PALETTE[0]
        asked = [(x, row[i]) for x, i in zip(at, order, strict=True) if row[i] is not None]
        for x, ok in asked:
            axes.plot(x, y, "o", ms=9, mfc=colour if ok else "white", mec=colour, mew=1.3)
        count = f"{sum(bool(ok) for _, ok in asked)} of {len(asked)}"
        axes.text(at[-1] + 1, y, count, va="center", fontsize=10)
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


def draws(
    series: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    title: str,
    x: str,
    y: str,
    levels: Mapping[str, float] | None = None,
) -> None:
    """Draw every value as a dot and the means as a line: `series[name][place]` are the values.

    The places stand along the x axis, the same ones in every series; values are shares, from 0 to
    1. `levels` are named lines in grey, such as a baseline. Raises ValueError for other places.
    """
    places = list(next(iter(series.values())))
    if wrong := [name for name, by_place in series.items() if list(by_place) != places]:
        raise ValueError(f"{wrong[0]} has the places {list(series[wrong[0]])}, not {places}")
    figure, axes = new_figure(width=7.2)
    for height, (name, level) in enumerate((levels or {}).items()):
        axes.axhline(level, color=GREY, ls=("--", ":", "-.")[height % 3], lw=1.5, label=name)
    for i, (name, by_place) in enumerate(series.items()):
        at = [k + 0.14 * (i - (len(series) - 1) / 2) for k in range(len(places))]
        style = {"color": PALETTE[i], "marker": "osD^vP*X"[i % 8]}
        axes.plot(at, [sum(v) / len(v) for v in by_place.values()], label=name, lw=1.5, **style)
        for k, values in zip(at, by_place.values(), strict=True):
            axes.plot([k] * len(values), values, ".", color=PALETTE[i], alpha=0.45)
    axes.set_xticks(range(len(places)), places)
    axes.set_ylim(-0.02, 1.02)
    axes.grid(visible=False, axis="x")
    figure.legend(fontsize=9, loc="outside lower center", ncols=4)
    label(axes, title, x, y)
    show(figure)
