"""Figures of notebooks 01 to 03: an unrolled net, a cell, tinted text, losses, a timeline."""

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


def tinted(text: str, values: Sequence[float], *, title: str, limit: float = 1.0) -> None:
    """Draw a text line by line, each character on a ground of its value's colour.

    One value a character, blue below 0 and orange above, in full colour at `limit`. Raises
    ValueError when there are more or fewer values than characters.
    """
    import matplotlib as mpl

    if len(text) != len(values):
        raise ValueError(f"{len(values)} values for {len(text)} characters; give one each")
    colours = mpl.colors.LinearSegmentedColormap.from_list("", [PALETTE[5], "white", PALETTE[1]])
    rows = text.split("\n")
    width = max(map(len, rows))
    figure, axes = new_figure(width=max(5.0, 0.098 * width), height=0.24 * len(rows) + 0.5)
    at = 0
    for y, row in enumerate(rows):
        for x, character in enumerate(row + "⏎" * (y < len(rows) - 1)):
            shade = colours(0.5 + 0.5 * max(-1.0, min(1.0, values[at] / limit)))
            axes.add_patch(mpl.patches.Rectangle((x, y - 0.5), 1, 1, color=shade, lw=0))
            axes.text(
                x + 0.5, y, character, ha="center", va="center", fontsize=9, family="monospace"
            )
            at += 1
    axes.set(xlim=(0, width + 1), ylim=(len(rows) - 0.5, -0.5))
    axes.set_axis_off()
    label(axes, title, "", "")
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


# What a drawn cell consists of: (x, y, text, colour of the palette; None: an operation).
_LSTM_PARTS = (
    (1.6, 2.6, "×", None),
    (3.4, 2.6, "+", None),
    (3.4, 1.7, "×", None),
    (5.2, 1.95, "tanh", 7),
    (5.2, 1.2, "×", None),
    (1.6, 0.9, "f = σ", 0),
    (2.75, 0.9, "i = σ", 0),
    (4.0, 0.9, "g = tanh", 2),
    (5.2, 0.4, "o = σ", 0),
)
_LSTM_ARROWS = (
    ((0, 2.6), (1.42, 2.6)),
    ((1.78, 2.6), (3.22, 2.6)),
    ((3.58, 2.6), (6.6, 2.6)),
    ((1.6, 1.12), (1.6, 2.42)),
    ((2.75, 1.12), (3.28, 1.58)),
    ((4.0, 1.12), (3.52, 1.58)),
    ((3.4, 1.88), (3.4, 2.42)),
    ((5.2, 2.6), (5.2, 2.17)),
    ((5.2, 1.75), (5.2, 1.38)),
    ((5.2, 0.62), (5.2, 1.02)),
    ((5.38, 1.2), (6.6, 1.2)),
)
_LSTM_NAMES = ((-0.1, 2.6, "c", "right"), (6.7, 2.6, "c'", "left"), (6.7, 1.2, "h'", "left"))
_GRU_PARTS = (
    (1.6, 2.6, "×", None),
    (4.6, 2.6, "+", None),
    (4.6, 1.7, "×", None),
    (1.6, 0.9, "z = σ", 0),
    (3.1, 1.7, "1 − z", 7),
    (4.6, 0.9, "n = tanh", 2),
    (3.1, 0.9, "r = σ", 0),
)
_GRU_ARROWS = (
    ((0, 2.6), (1.42, 2.6)),
    ((1.78, 2.6), (4.42, 2.6)),
    ((4.78, 2.6), (6.6, 2.6)),
    ((1.6, 1.12), (1.6, 2.42)),
    ((1.98, 1.1), (2.72, 1.52)),
    ((3.5, 1.7), (4.42, 1.7)),
    ((3.5, 0.9), (4.02, 0.9)),
    ((4.6, 1.12), (4.6, 1.52)),
    ((4.6, 1.88), (4.6, 2.42)),
)
_GRU_NAMES = ((-0.1, 2.6, "h", "right"), (6.7, 2.6, "h'", "left"))


def cell(kind: str, *, title: str) -> None:
    """Draw the inside of an LSTM or a GRU: gates in boxes, operations in circles.

    Every box reads the input x and the old hidden state h; those lines are left out. Raises
    ValueError for another kind.
    """
    drawn = {
        "lstm": (_LSTM_PARTS, _LSTM_ARROWS, _LSTM_NAMES),
        "gru": (_GRU_PARTS, _GRU_ARROWS, _GRU_NAMES),
    }
    if kind not in drawn:
        raise ValueError(f"kind is {kind!r}; there are drawings of {' and '.join(drawn)}")
    parts, arrows, names = drawn[kind]
    figure, axes = new_figure(width=6.8, height=2.9)
    for start, end in arrows:
        style = {"arrowstyle": "->", "color": "#606060", "lw": 1.4, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", end, start, arrowprops=style)
    for x, y, text, colour in parts:
        shape = "circle,pad=0.25" if colour is None else "round,pad=0.35"
        face = "white" if colour is None else PALETTE[colour]
        ink = "black" if colour is None else "white"
        box = {"boxstyle": shape, "facecolor": face, "edgecolor": "#606060"}
        axes.text(x, y, text, ha="center", va="center", fontsize=11, color=ink, bbox=box)
    for x, y, text, side in names:
        axes.text(x, y, text, ha=side, va="center", fontsize=13, fontweight="bold")
    axes.text(
        2.2, 0.2, "every coloured box reads x and h", ha="center", color="#606060", fontsize=10
    )
    axes.set(xlim=(-0.6, 7.3), ylim=(-0.1, 3.1))
    axes.set_axis_off()
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    show(figure)


_KINDS = {"look": 0, "norm": 7, "after": 7, "work": 2, "cross": 3}  # colours of the palette


def blocks(columns: Mapping[str, Sequence[str]], *, title: str) -> None:
    """Draw blocks side by side, upwards: `columns[family]` lists what a vector meets in its order.

    A part is "kind: text", its kind one of norm, look, cross and work, or "after": a norm behind an
    addition, from which the next one starts. "+" adds what came out of the last of these, or came
    in at the bottom. Raises ValueError for another kind.
    """
    tallest = max(map(len, columns.values()))
    figure, axes = new_figure(width=2.5 * len(columns), height=0.5 * tallest + 0.8)
    line = {"arrowstyle": "->", "color": "#606060", "lw": 1.3, "shrinkA": 0, "shrinkB": 0}
    for i, (family, parts) in enumerate(columns.items()):
        entered = -0.75
        axes.text(i, -1.2, family, ha="center", va="center", fontweight="bold", fontsize=11)
        for y, part in enumerate(parts):
            axes.annotate("", (i, y - 0.3), (i, y - 0.72), arrowprops=line)
            if part == "+":
                beside = {"color": "#606060", "lw": 1.3}
                axes.plot([i, i + 0.42, i + 0.42], [entered, entered, y], **beside)
                axes.annotate("", (i + 0.08, y), (i + 0.42, y), arrowprops=line)
                ring = {"boxstyle": "circle,pad=0.1", "facecolor": "white", "edgecolor": "#606060"}
                axes.text(i, y, "+", ha="center", va="center", bbox=ring)
                entered = y + 0.4
                continue
            kind, _, text = part.partition(": ")
            if kind not in _KINDS:
                raise ValueError(f"the part is {part!r}; its kind is one of {', '.join(_KINDS)}")
            entered = y + 0.4 if kind == "after" else entered
            box = {"boxstyle": "round,pad=0.3", "facecolor": PALETTE[_KINDS[kind]]}
            axes.text(i, y, text, ha="center", va="center", color="white", fontsize=9.5, bbox=box)
        axes.annotate("", (i, len(parts) - 0.3), (i, len(parts) - 0.72), arrowprops=line)
    axes.set(xlim=(-0.6, len(columns) - 0.35), ylim=(-1.5, tallest))
    axes.set_axis_off()
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    show(figure)


def looking(names: Sequence[str], weights: Sequence[Sequence[float]], *, title: str) -> None:
    """Draw a layer of attention: tokens that give below, tokens that take above, a line a weight.

    `weights[i][j]` is how much token i takes from token j: the wider and darker, the more.
    """
    figure, axes = new_figure(width=2.4 * len(names), height=2.7)
    for i, row in enumerate(weights):
        for j, weight in enumerate(row):
            axes.plot([j, i], [0.15, 0.85], color=PALETTE[0], lw=9 * weight, alpha=weight)
            x, y = j + 0.75 * (i - j), 0.15 + 0.75 * 0.7
            axes.text(x, y, f"{weight:.2f}", ha="center", va="center", fontsize=9)
    for y, role in ((0, "gives"), (1, "takes")):
        axes.text(-0.55, y, role, ha="right", va="center", color="#606060")
        for x, name in enumerate(names):
            box = {"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": PALETTE[0]}
            axes.text(x, y, name, ha="center", va="center", bbox=box)
    axes.set(xlim=(-1.1, len(names) - 0.5), ylim=(-0.2, 1.2))
    axes.set_axis_off()
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    show(figure)


def losses(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    levels: Mapping[str, float],
    *,
    every: int,
    title: str,
) -> None:
    """Draw losses side by side, a panel for each question that was asked.

    `panels[question][name]` are means over `every` steps each, in nats; `levels[question]` is a
    grey line, what counting alone reaches. Every panel has its own scale, since the losses of
    different questions cannot be compared. KeyError where a panel has no level.
    """
    figure, axes = new_figure(len(panels), width=4.4, height=3.4, squeeze=False)
    drawn = 0
    for axis, (question, curves) in zip(axes[0], panels.items(), strict=True):
        axis.axhline(levels[question], color=GREY, ls="--", lw=1.5, label="by frequency alone")
        for name, values in curves.items():
            steps = [every * (i + 0.5) for i in range(len(values))]
            axis.plot(steps, values, color=PALETTE[drawn], marker="osD^vP*X"[drawn], label=name)
            drawn += 1
        axis.set_ylim(bottom=0)
        axis.set_title(question, fontsize=11)
        axis.set_xlabel("training step")
        axis.legend(fontsize=9)
    axes[0, 0].set_ylabel("loss (nats per symbol asked for)")
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    show(figure)
