"""Charts with one look: lines, bars, intervals, heat maps.

Every figure function takes plain numbers, titles itself with what the caller found, shows the
figure and returns None, so that a cell's stored output is the picture alone. The picture carries
its own words for those who cannot see it, `alt_text`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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


def new_figure(columns: int = 1, rows: int = 1, **settings: Any) -> tuple[Figure, Any]:
    """A figure in the course's style and its axes; `width`, `height` in inches per axes."""
    import matplotlib.pyplot as plt

    width, height = settings.pop("width", 6.4), settings.pop("height", 3.6)
    settings = {"layout": "constrained", **settings}
    with plt.rc_context({**_STYLE, "axes.prop_cycle": plt.cycler(color=PALETTE)}):
        return plt.subplots(rows, columns, figsize=(width * columns, height * rows), **settings)


def show(figure: Figure) -> None:
    """Show a figure as a picture, in words too (`alt_text`), and free it."""
    import io

    import matplotlib.pyplot as plt
    from IPython.display import Image, display

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    words = alt_text(figure)
    plt.close(figure)
    display(Image(buffer.getvalue(), metadata={"alt": words}))  # alt=… is newer than Colab's


# ── a figure in words ───────────────────────────────────────────────────────────────────────────

_MOST_NAMES = 12  # that are read out of one list


def alt_text(figure: Figure) -> str:
    """A figure in words, from what is drawn: its kind, title, panels, axes, series and names.

    `Line chart: The loss falls. Across: step. Upwards: loss. Series: ours; torch.`
    """
    whole = figure.get_suptitle()
    drawn = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    bars_of_colour = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
    titles = _unique(axes.get_title(place) for axes in drawn for place in ("left", "center"))
    title = whole or (titles.pop(0) if len(titles) == 1 else "")
    across = [figure.get_supxlabel(), *(axes.get_xlabel() for axes in drawn)]
    upwards = [figure.get_supylabel(), *(axes.get_ylabel() for axes in drawn)]
    colours = [text for axes in bars_of_colour for text in (axes.get_xlabel(), axes.get_ylabel())]
    said = {
        " and ".join(_unique(map(_kind, drawn))).capitalize() or "Picture": [title],
        f"{len(drawn)} panels": titles,
        "Across": _unique(across),
        "Upwards": _unique(upwards),
        "Colour": _unique(colours),
        "Series": _unique(name for axes in drawn for name in _series(axes)),
        "Names": _unique(name for axes in drawn for name in _written(axes)),
    }
    return " ".join(
        f"{what}: {_listed(names).rstrip('.')}." for what, names in said.items() if any(names)
    )


def _unique(texts: Iterable[str]) -> list[str]:
    """Texts that say something, each once, on one line."""
    return list(dict.fromkeys(" ".join(text.split()) for text in texts if text.strip()))


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return "; ".join(names[:_MOST_NAMES]) + (f"; and {more} more" if more > 0 else "")


def _kind(axes: Axes) -> str:
    """What is drawn on an axes, in two words; guide lines across it do not count."""
    if axes.images or not axes.axison:
        return "heat map" if axes.images else "drawing"
    if any(hasattr(container, "errorbar") for container in axes.containers):
        return "bar chart"
    curves = [line for line in axes.lines if line.get_transform() == axes.transData]
    if any(line.get_linestyle() not in ("None", "") for line in curves):
        return "line chart"
    return "dot chart" if curves or axes.collections else "drawing"


def _series(axes: Axes) -> list[str]:
    return axes.get_legend_handles_labels()[1]


def _written(axes: Axes) -> Iterator[str]:
    """Words along the axes and inside the picture; numbers are left to the eye."""
    ticks = [tick for axis in (axes.xaxis, axes.yaxis) for tick in axis.get_ticklabels()]
    for text in (*(ticks if axes.axison else ()), *axes.texts):
        if any(map(str.isalpha, text.get_text())):
            yield text.get_text()


def _filled(title: str, inches: float) -> str:
    """A title in lines of at most so many inches."""
    import textwrap

    return textwrap.fill(title, max(20, int(8.3 * inches)))  # characters of bold 12 points


def label(axes: Axes, title: str, x: str, y: str) -> None:
    """Title an axes with its finding, in lines that fit, and name both axes with their units."""
    ticks = (text.get_text() for text in axes.get_yticklabels())
    longest = max((4 if tick.startswith("$") else len(tick) for tick in ticks), default=0)  # 10⁻²
    inches = axes.figure.get_figwidth() / len(axes.figure.axes) - 0.5 - 0.08 * longest
    axes.set_title(_filled(title, inches), loc="left", fontsize=12, fontweight="bold")
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
    levels: Mapping[str, float] | None = None,
) -> None:
    """Draw named curves, `series["ours"] = (xs, ys)`, and named grey lines across, `levels`."""
    import matplotlib as mpl
    import matplotlib.ticker

    names = [*series, *(levels or {})]
    figure, axes = new_figure(height=3.6 if len(names) <= 6 else 3.9)
    for height, (name, value) in enumerate((levels or {}).items()):
        axes.axhline(value, color=GREY, ls=("--", ":", "-.")[height % 3], lw=1.5, label=name)
    for i, (name, (xs, ys)) in enumerate(series.items()):
        axes.plot(xs, ys, marker="osD^vP*X"[i % 8], label=name)
    if log_x:
        axes.set_xscale("log")
        measured_at = sorted({value for xs, _ in series.values() for value in xs})
        axes.set_xticks(measured_at, [f"{value:,g}" for value in measured_at])
        axes.minorticks_off()
    if log_y:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        if high < 100 * low:  # powers of ten would name two places at most
            axes.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
            axes.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    if len(names) > 5:  # so many would cover the lines
        columns = 3 if max(map(len, names)) <= 25 else 2  # three long names do not fit
        figure.legend(fontsize=9, loc="outside lower center", ncols=columns)
    elif len(names) > 1:
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


def dots(
    groups: Mapping[str, Sequence[float]],
    *,
    title: str,
    x: str,
    guide: tuple[float, str] | None = None,
    limits: tuple[float, float] | None = (0.0, 1.0),
) -> None:
    """Draw every value of each group as a dot, one row a group; equal ones stand above each other.

    A pile of many is drawn closer together, so that it stays in its row. `guide` is a grey line at
    a value, with its name; without `limits` the axis fits the values.
    """
    figure, axes = new_figure(height=0.5 * len(groups) + 1.3)
    for row, values in enumerate(groups.values()):
        places = [round(value, 2) for value in values]
        for i, value in enumerate(values):
            below, pile = places[:i].count(places[i]), places.count(places[i])
            height = min(0.09, 0.7 / pile) * below
            axes.plot(value, row - height, "o", color=PALETTE[0], alpha=0.75)
    axes.set_yticks(range(len(groups)), list(groups))
    axes.set_ylim(len(groups) - 0.5, -1.0)
    if limits:
        margin = 0.02 * (limits[1] - limits[0])
        axes.set_xlim(limits[0] - margin, limits[1] + margin)
    if guide:
        axes.axvline(guide[0], color=GREY, lw=1.5)
        axes.text(guide[0], -0.75, guide[1], color="#606060", fontsize=10, ha="center")
    label(axes, title, x, "")
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
    """Draw shares with their intervals: `series[name][place]` is a `metrics.Interval`.

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
    fits = figure.get_figwidth() - 0.2
    figure.suptitle(_filled(title, fits), fontweight="bold", x=0.01, ha="left")
    show(figure)
