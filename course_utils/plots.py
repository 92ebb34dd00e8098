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
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
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
    axes.set_title(title)
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
        axes.set_xscale("log", base=2)
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
