"""Figures with one look, and sources shown where they are taught.

Every figure function takes plain numbers, titles itself with what the caller found, shows the
figure and returns None, so that a cell's stored output is the picture alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito 2008: eight colours that colour-blind readers tell apart.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
GREY = "#B0B0B0"

_STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.dpi": 100,
    "font.size": 11,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 2,
}


def show_source(*functions: Callable) -> None:
    """Show the package's source of functions or classes, highlighted, where they are taught."""
    from IPython.display import display
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    source = "\n\n".join(inspect.getsource(function).rstrip() for function in functions) + "\n"
    page = highlight(source, PythonLexer(), HtmlFormatter(noclasses=True, style="friendly"))
    display({"text/html": page, "text/plain": source}, raw=True)


def new_figure(columns: int = 1, rows: int = 1, **settings: Any) -> tuple[Figure, Any]:
    """A figure in the course's style and its axes; `width`, `height` in inches per axes."""
    import matplotlib.pyplot as plt

    width, height = settings.pop("width", 6.4), settings.pop("height", 3.6)
    settings = {"layout": "constrained", **settings}
    with plt.rc_context({**_STYLE, "axes.prop_cycle": plt.cycler(color=PALETTE)}):
        return plt.subplots(rows, columns, figsize=(width * columns, height * rows), **settings)


def show(figure: Figure) -> None:
    """Show a figure as a picture and free it."""
    import io

    import matplotlib.pyplot as plt
    from IPython.display import Image, display

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    plt.close(figure)
    display(Image(buffer.getvalue()))


def label(axes: Axes, title: str, x: str, y: str) -> None:
    """Title an axes with its finding and name both axes with their units."""
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
) -> None:
    """Draw named curves: `series["ours"] = (xs, ys)`."""
    figure, axes = new_figure()
    for i, (name, (xs, ys)) in enumerate(series.items()):
        axes.plot(xs, ys, marker="osD^vP*X"[i % 8], label=name)
    if log_x:
        axes.set_xscale("log")
        measured_at = sorted({value for xs, _ in series.values() for value in xs})
        axes.set_xticks(measured_at, [f"{value:,g}" for value in measured_at])
        axes.minorticks_off()
    if log_y:
        axes.set_yscale("log")
    if len(series) > 1:
        axes.legend()
    label(axes, title, x, y)
    show(figure)


def bars(values: Mapping[str, float], *, title: str, y: str, shown: str = ".3g") -> None:
    """Draw one horizontal bar per name with its value beside it; `y` names the quantity."""
    figure, axes = new_figure(height=0.45 * len(values) + 1.2)
    drawn = axes.barh(list(values), list(values.values()), color=PALETTE[0])
    axes.bar_label(drawn, fmt=lambda value: format(value, shown), padding=3)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    label(axes, title, y, "")
    show(figure)


def intervals(
    series: Mapping[str, Mapping[str, Any]],
    *,
    title: str,
    x: str,
    y: str,
    levels: Mapping[str, float] | None = None,
    dots: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> None:
    """Draw shares with their intervals: `series[name][place]` is a `metrics.Proportion`.

    The places stand along the x axis, the same ones in every series. `levels` are named lines
    across, such as a baseline; `dots[name][place]` single values beside the interval of all.
    """
    figure, axes = new_figure()
    places = list(next(iter(series.values())))
    for height, (name, value) in enumerate((levels or {}).items()):
        axes.axhline(value, color=GREY, ls=("--", ":", "-.")[height % 3], lw=1.5, label=name)
    for i, (name, shares) in enumerate(series.items()):
        at = [k + (i - (len(series) - 1) / 2) * 0.22 for k in range(len(places))]
        values = [shares[place].value for place in places]
        below = [shares[place].value - shares[place].low for place in places]
        above = [shares[place].high - shares[place].value for place in places]
        style = {"color": PALETTE[i], "marker": "osD^vP*X"[i % 8], "capsize": 3, "ls": "none"}
        axes.errorbar(at, values, [below, above], label=name, **style)
        for k, place in enumerate(places if dots and name in dots else ()):
            single = dots[name][place]
            axes.plot([at[k] + 0.07] * len(single), single, ".", color=PALETTE[i], alpha=0.5)
    axes.set_xticks(range(len(places)), places)
    axes.grid(visible=False, axis="x")
    if len(axes.get_legend_handles_labels()[0]) > 2:  # more would cover the marks
        figure.legend(fontsize=9, loc="outside lower center", ncols=4)
    else:
        axes.legend(fontsize=9)
    label(axes, title, x, y)
    show(figure)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Show rows of text and measured values as a table."""
    from IPython.display import Markdown, display

    if wrong := [row for row in rows if len(row) != len(columns)]:
        raise ValueError(f"a row has {len(wrong[0])} cells for {len(columns)} columns: {wrong[0]}")
    lines_ = [columns, ["---"] * len(columns), *rows]
    cells = ([str(cell).replace("|", "\\|").replace("\n", "⏎") for cell in row] for row in lines_)
    display(Markdown("\n".join("| " + " | ".join(row) + " |" for row in cells)))


def trace(found: Any, *, title: str) -> None:
    """Show a solution step by step: what was thought, done and seen, and how it ended.

    `found` is a `reasoning.Trace`. What a model wrote may differ elsewhere, so everything but the
    title stands between the brackets that the guard does not compare.
    """
    import html

    from IPython.display import display

    colours = {"thought": 0, "action": 1, "observation": 2, "program": 0, "result": 2, "vote": 5}
    rows = [(step.kind, step.text.rstrip()) for step in found.steps]
    ending = found.ended if found.answer is None else f"{found.ended}: {found.answer}"
    cells = "".join(
        f'<tr><td style="text-align:left;vertical-align:top;border-left:4px solid '
        f'{PALETTE[colours.get(kind, 7)]};padding-left:.6em"><i>{kind}</i></td>'
        f'<td style="text-align:left;white-space:pre-wrap">{html.escape(text)}</td></tr>'
        for kind, text in [*rows, ("end", ending)]
    )
    plain = "\n".join(f"{kind}: {text}" for kind, text in [*rows, ("end", ending)])
    cells, plain = (text.replace("⟨", "<").replace("⟩", ">") for text in (cells, plain))
    page = f"<b>{html.escape(title)}</b>⟨<table>{cells}</table>⟩"
    display({"text/html": page, "text/plain": f"{title}\n⟨{plain}⟩"}, raw=True)


def reshaped(
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


def heatmaps(
    panels: Mapping[str, Sequence[Sequence[float]]],
    *,
    title: str,
    x: str,
    y: str,
    value: str = "",
    x_names: Sequence[Sequence[str]] = (),
    y_names: Sequence[Sequence[str]] = (),
    limits: tuple[float, float] = (0.0, 1.0),
    size: float = 4.2,
) -> None:
    """Draw matrices side by side on one scale of colours: white is the lower limit, grey is NaN.

    `x_names[i]` and `y_names[i]` name the columns and rows of panel i; without them they are
    counted from 0. `value` names the quantity; without it there is no scale beside the panels.
    """
    import matplotlib as mpl
    import matplotlib.ticker

    colours = mpl.colormaps["Blues"].with_extremes(bad="#E0E0E0")
    figure, axes = new_figure(len(panels), width=size, height=0.85 * size + 0.5, squeeze=False)
    for i, (axis, (name, matrix)) in enumerate(zip(axes[0], panels.items(), strict=True)):
        image = axis.imshow(matrix, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto")
        for direction in (axis.xaxis, axis.yaxis):
            direction.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        if x_names:
            axis.set_xticks(range(len(x_names[i])), x_names[i], rotation=60, ha="right", fontsize=9)
        if y_names:
            axis.set_yticks(range(len(y_names[i])), y_names[i], fontsize=9)
        axis.grid(visible=False)
        axis.set_title(name, fontsize=11)
        axis.set_xlabel(x)
    axes[0, 0].set_ylabel(y)
    if value:
        figure.colorbar(image, ax=list(axes[0]), label=value)
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    show(figure)


def turns(
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
    start = x0 + (0.72 if x0 else 0)
    axes.plot([start, x1 - 0.03], [y0, y1], color=colour, lw=2.5 if best else 1, zorder=1)
    text = f"{text_of(tokens[-1])!r} {candidate.logprob:.1f}"
    axes.text(
        x1, y1, text, color=colour, va="center", fontsize=9, weight="bold" if best else "normal"
    )


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


def live(draw: Callable[..., None], **controls: tuple) -> None:
    """Show `draw` for its default values, and under it controls that redraw it where they can run.

    Each control is (default,) for a text, or (default, low, high, step) for a slider. Where no
    widgets run (a rendered page, a plain terminal) the figure for the defaults is what is there.
    """
    draw(**{name: control[0] for name, control in controls.items()})
    try:
        import ipywidgets as widgets
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        return
    if not hasattr(get_ipython(), "kernel"):
        return
    made = {name: _control(widgets, name, *control) for name, control in controls.items()}
    canvas = widgets.Output()

    def redraw(change: object) -> None:
        canvas.clear_output(wait=True)
        with canvas:
            draw(**{name: widget.value for name, widget in made.items()})

    for widget in made.values():
        widget.observe(redraw, names="value")
    display(widgets.VBox([*made.values(), canvas]))


def _control(widgets: Any, name: str, default: Any, *limits: float) -> Any:
    wide = {"continuous_update": False, "layout": {"width": "32em"}, "description": name}
    if isinstance(default, str):
        return widgets.Text(value=default, **wide)
    low, high, step = limits
    kind = widgets.IntSlider if isinstance(step, int) else widgets.FloatSlider
    return kind(value=default, min=low, max=high, step=step, **wide)
