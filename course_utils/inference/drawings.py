"""Figures of decoding: a distribution's forms, a text's tokens, a beam's tree. Notebook 09."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from course_utils.plots import GREY, PALETTE, label, new_figure, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def compare_distributions(
    panels: Mapping[str, Sequence[float]], tokens: Sequence[str], *, title: str, per_row: int = 3
) -> None:
    """Draw one distribution in several forms: the first panel is the original, grey in the rest.

    `panels[name]` are the probabilities of `tokens`, the same tokens in every panel.
    """
    names = list(panels)
    rows = -(-len(names) // per_row)
    figure, axes = new_figure(
        per_row, rows, width=3.3, height=2.9, sharex=True, sharey=True, squeeze=False
    )
    places, original = range(len(tokens)), panels[names[0]]
    for axis, name in zip(axes.flat, names, strict=False):
        axis.barh(places, original, color=GREY, height=0.8)
        kept = [p if p > 0 else float("nan") for p in panels[name]]
        axis.barh(places, kept, color=PALETTE[0], height=0.45)
        axis.set_yticks(places, tokens, fontsize=9)
        axis.set_title(name, fontsize=11)
    axes[0, 0].invert_yaxis()
    for axis in axes.flat[len(names) :]:
        axis.remove()
    figure.supxlabel("probability of the next token (grey: the model's own)", fontsize=11)
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    show(figure)


def surprise_and_repetition(
    points: Mapping[str, tuple[float, float]], *, reference: str, title: str
) -> None:
    """Draw strategies by the surprise of their texts (nats per token) and by what they repeat.

    `points[name]` is (surprise, share repeated); the one named `reference` is a grey star with
    guide lines.
    """
    figure, axes = new_figure(width=8, height=4.6)
    x0, y0 = points[reference]
    axes.axvline(x0, color=GREY, lw=1.5, zorder=0)
    axes.axhline(y0, color=GREY, lw=1.5, zorder=0)
    axes.plot(x0, y0, "*", ms=16, color="#707070")
    axes.text(x0, 0.92, f" {reference}", color="#505050", fontsize=10, weight="bold")
    for name, (x, y) in points.items():
        if name != reference:
            axes.plot(x, y, "o", ms=7, color=PALETTE[0])
            low = y < 0.3  # many stand at the bottom, side by side: their names lean
            axes.annotate(
                name, (x, y), (0, 8) if low else (8, -3), textcoords="offset points",
                rotation=58 if low else 0, fontsize=9, color=PALETTE[0],
            )  # fmt: skip
    axes.set_ylim(-0.03, 1.0)
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_xticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
    axes.minorticks_off()
    label(axes, title, "surprise (nats per token)", "share of 4-token sequences repeated")
    show(figure)


def token_trace(tokens: Sequence[str], values: Sequence[float], *, title: str, y: str) -> None:
    """Draw one dot per token of a text, on a logarithmic axis, with the tokens written below."""
    figure, axes = new_figure(width=max(6.4, 0.36 * len(tokens)), height=3.4)
    axes.set_yscale("log")
    axes.plot(range(len(tokens)), values, "o", color=PALETTE[0])
    axes.vlines(range(len(tokens)), axes.get_ylim()[0], values, color=PALETTE[0], lw=1)
    axes.set_xticks(range(len(tokens)), tokens, rotation=60, ha="right", fontsize=9)
    axes.grid(visible=False, axis="x")
    label(axes, title, "", y)
    show(figure)


def beam_tree(
    candidates: Sequence[Any], winner: Sequence[int], text_of: Callable[[int], str], *, title: str
) -> None:
    """Draw what a beam search looked at: one column per length, likeliest on top.

    `candidates` have `.tokens`, `.logprob` and `.finish_reason` ("pruned" ones are grey);
    `winner` is the path to colour; `text_of(token)` is a token's text.
    """
    by_length: dict[int, list] = {}
    for candidate in candidates:
        by_length.setdefault(len(candidate.tokens), []).append(candidate)
    place = {(): (0, 0.0)}
    for length, column in by_length.items():
        for rank, candidate in enumerate(sorted(column, key=lambda c: -c.logprob)):
            place[tuple(candidate.tokens)] = (length, rank - (len(column) - 1) / 2)
    most = max(len(column) for column in by_length.values())
    figure, axes = new_figure(width=2.3 * len(by_length) + 1, height=0.42 * most + 1)
    for candidate in candidates:
        _branch(axes, place, candidate, tuple(winner), text_of)
    axes.plot(0, 0, "o", color="black")
    axes.invert_yaxis()
    axes.set_yticks([])
    axes.set_xticks(range(1, len(by_length) + 1))
    axes.set_xlim(-0.2, len(by_length) + 0.9)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    label(axes, title, "length of the continuation (tokens)", "")
    show(figure)


def _branch(
    axes: Axes, place: Mapping, candidate: Any, winner: tuple, text_of: Callable[[int], str]
) -> None:
    """One candidate of a beam tree: its edge, its dot, its token and its log-probability."""
    tokens = tuple(candidate.tokens)
    (x0, y0), (x1, y1) = place[tokens[:-1]], place[tokens]
    pruned = candidate.finish_reason == "pruned"
    best = tokens == winner[: len(tokens)]
    colour = PALETTE[3] if best else GREY if pruned else PALETTE[0]
    parent = f"{text_of(tokens[-2])!r} {-9.9:.1f}" if x0 else ""
    start = x0 + (0.034 * len(parent) + 0.03 if x0 else 0)  # where the parent's label ends
    axes.plot([start, x1 - 0.03], [y0, y1], color=colour, lw=2.5 if best else 1, zorder=1)
    text = f"{text_of(tokens[-1])!r} {candidate.logprob:.1f}"
    axes.text(
        x1, y1, text, color=colour, va="center", fontsize=9, weight="bold" if best else "normal"
    )
