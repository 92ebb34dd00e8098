"""Figures of compression: the bits of a number, columns that stand out, levels, grids, masks.

And a lesson: a teacher, a student and the loss between them. Notebooks 13–16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from course_utils.plots import GREY, PALETTE, label, new_figure, show

if TYPE_CHECKING:
    from torch import Tensor


def bit_fields(numbers: Mapping[str, tuple[str, str, str]], *, title: str) -> None:
    """Draw the bits of a number, a row a format: sign, exponent and fraction in three colours.

    `numbers[name]` are the texts that `number_formats.bit_fields` gives.
    """
    longest = max(sum(map(len, fields)) for fields in numbers.values())
    figure, axes = new_figure(width=9, height=0.5 * len(numbers) + 1.1)
    for row, fields in enumerate(numbers.values()):
        colours = [PALETTE[i] for i, bits in enumerate(fields) for _ in bits]
        for at, (bit, colour) in enumerate(zip("".join(fields), colours, strict=True)):
            axes.barh(row, 0.92, left=at, height=0.7, color=colour, alpha=0.3)
            axes.text(at + 0.46, row, bit, ha="center", va="center", family="monospace")
    for i, name in enumerate(("sign", "exponent", "fraction")):
        axes.plot([], [], "s", ms=9, color=PALETTE[i], alpha=0.5, label=name)
    figure.legend(fontsize=10, loc="outside lower center", ncols=3)
    axes.set_yticks(range(len(numbers)), list(numbers))
    axes.set(xlim=(-0.2, longest), ylim=(len(numbers) - 0.5, -0.5), xticks=[])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.grid(visible=False)
    label(axes, title, "", "")
    show(figure)


def shares_by_grain(
    rows: Mapping[str, Sequence[float]], columns: Sequence[str], *, title: str, x: str
) -> None:
    """Draw a table of shares as coloured fields with the numbers in them; white is 0.

    `rows[name]` has a share for each of `columns`.
    """
    figure, axes = new_figure(width=7.5, height=0.6 * len(rows) + 1.2)
    axes.imshow(list(rows.values()), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, shares in enumerate(rows.values()):
        for j, share in enumerate(shares):
            colour = "white" if share > 0.6 else "black"
            axes.text(j, i, f"{share:.3f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.grid(visible=False)
    label(axes, title, x, "")
    show(figure)


def sorted_columns(sizes: Mapping[str, Tensor], *, title: str, y: str) -> None:
    """Draw each layer's columns from the largest to the smallest, both axes in powers of ten.

    `sizes[layer]` (D,) is put in parts of its middle one, the grey line at 1.
    """
    figure, axes = new_figure(width=7.5, height=3.6)
    axes.axhline(1, color=GREY, ls="--", lw=1.5, label="the middle column")
    for i, (name, size) in enumerate(sizes.items()):
        parts = (size / size.median()).sort(descending=True).values.tolist()
        places = range(1, len(parts) + 1)
        axes.plot(places, parts, ".-", ms=5, lw=1, color=PALETTE[i], label=name)
    axes.set(xscale="log", yscale="log")
    axes.legend(fontsize=10)
    label(axes, title, "rank of the column", y)
    show(figure)


def level_use(
    panels: Mapping[str, Sequence[float]], levels: Sequence[float], *, title: str
) -> None:
    """Draw how many numbers take each level, a panel a kind of numbers; grey are equal shares."""
    figure, axes = new_figure(len(panels), width=4.2, height=3.0, sharey=True, squeeze=False)
    for axis, (name, shares) in zip(axes[0], panels.items(), strict=True):
        axis.axhline(1 / len(levels), color=GREY, ls="--", lw=1.5, label="equal shares")
        axis.vlines(list(levels), 0, list(shares), color=PALETTE[0], lw=5)
        axis.set(xlabel="level", xticks=[-1, -0.5, 0, 0.5, 1], ylim=(0, None))
        axis.set_title(name, fontsize=11)
    axes[0, 0].set_ylabel("share of the numbers")
    axes[0, 0].legend(fontsize=9, loc="upper right")
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    show(figure)


def bits_and_quality(
    formats: Mapping[str, tuple[float, float]], *, title: str, y: str, apart: Sequence[str] = ()
) -> None:
    """Draw formats as named points, `formats[name] = (bits a weight, quality)`.

    Those of `apart` have the second colour.
    """
    figure, axes = new_figure(width=7.5, height=4.0)
    for name, (bits, quality) in formats.items():
        axes.plot(bits, quality, "o", ms=8, color=PALETTE[1 if name in apart else 0])
        axes.annotate(name, (bits, quality), xytext=(7, 5), textcoords="offset points", fontsize=10)
    axes.margins(x=0.15, y=0.15)
    label(axes, title, "bits a weight, scales included", y)
    show(figure)


def masks(panels: Mapping[str, Tensor], *, title: str, group: int = 0) -> None:
    """Draw corners of weights, a square a weight: coloured where it stays, white where it goes.

    One panel for each name; `group` draws a line after so many columns.
    """
    from matplotlib.patches import Rectangle

    figure, axes = new_figure(len(panels), width=2.9, height=2.9, squeeze=False)
    for axis, (name, mask) in zip(axes[0], panels.items(), strict=True):
        kept = mask.int().tolist()
        for i, row in enumerate(kept):
            for j, here in enumerate(row):
                colour = PALETTE[0] if here else "white"
                square = dict(width=0.86, height=0.86, facecolor=colour, edgecolor=GREY, lw=0.3)
                axis.add_patch(Rectangle((j + 0.07, i + 0.07), **square))
        for j in range(group, len(kept[0]), group) if group else ():
            axis.axvline(j, color="black", lw=0.8)
        axis.set(xlim=(0, len(kept[0])), ylim=(len(kept), 0), xticks=[], yticks=[], aspect="equal")
        axis.grid(visible=False)
        axis.set_title(name, fontsize=11)
        axis.set_xlabel("inputs")
    axes[0, 0].set_ylabel("outputs")
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    show(figure)


def grids(
    weights: Sequence[float], levels: Mapping[str, Sequence[float]], *, title: str, x: str
) -> None:
    """Draw where weights lie, in grey, and below them the levels of each grid as strokes."""
    figure, (above, below) = new_figure(
        1, 2, width=7.5, height=1.6, sharex=True, gridspec_kw={"height_ratios": (2, 1)}
    )
    above.hist(list(weights), bins=80, color=GREY)
    above.set_yticks([])
    for row, (name, values) in enumerate(levels.items()):
        below.vlines(list(values), row - 0.35, row + 0.35, color=PALETTE[row % len(PALETTE)], lw=2)
        below.plot([], [], label=name)
    below.set_yticks(range(len(levels)), list(levels))
    below.set_ylim(len(levels) - 0.4, -0.6)
    below.grid(visible=False)
    above.grid(visible=False)
    label(above, title, "", "how many weights")
    below.set_xlabel(x)
    show(figure)


def lesson(*, title: str) -> None:
    """Draw one step of distillation: a text goes to both, their answers to a loss, and back."""
    figure, axes = new_figure(width=9.0, height=2.9)
    boxes = {
        "text": (0, 0, "a text\nwithout a label", GREY),
        "teacher": (1.5, 0.75, "teacher\nfixed", PALETTE[0]),
        "student": (1.5, -0.75, "student\nlearns", PALETTE[3]),
        "p": (3.0, 0.75, "softmax(z / T)", PALETTE[0]),
        "q": (3.0, -0.75, "softmax(z / T)", PALETTE[3]),
        "loss": (4.5, 0, "T² · KL", "#404040"),
    }
    patches = {}
    for name, (x, y, words, colour) in boxes.items():
        style = dict(boxstyle="round,pad=0.45", facecolor="white", edgecolor=colour, linewidth=1.8)
        text = axes.text(x, y, words, ha="center", va="center", fontsize=10, bbox=style)
        patches[name] = text.get_bbox_patch()

    def arrow(start: str, end: str, **style: object) -> None:
        ends = dict(patchA=patches[start], patchB=patches[end], shrinkA=3, shrinkB=3)
        options = dict(arrowstyle="-|>", lw=1.8, **ends, **style)
        axes.annotate("", boxes[end][:2], boxes[start][:2], arrowprops=options)

    for way in ("text teacher", "text student", "teacher p", "student q", "p loss", "q loss"):
        arrow(*way.split(), color=GREY)
    arrow("loss", "student", color=PALETTE[3], ls="--", connectionstyle="arc3,rad=-0.45")
    axes.text(3.05, -1.9, "gradient: to the student alone", ha="center", fontsize=9)
    axes.set(xlim=(-0.7, 5.2), ylim=(-2.1, 1.25))
    axes.axis("off")
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    show(figure)
