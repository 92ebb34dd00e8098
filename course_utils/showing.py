"""What cells show beside figures: pages, sources, tables, live controls, measured values."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Sequence
from typing import Any


def show(page: str, plain: str, **metadata: Any) -> None:
    """Show HTML where a page can be seen, and `plain` in a terminal and to the guard."""
    from IPython.display import display

    display({"text/html": page, "text/plain": plain}, raw=True, metadata=metadata)


def source_of(*functions: Callable) -> str:
    """The package's source of functions or classes, one after the other."""
    return "\n\n".join(inspect.getsource(function).rstrip() for function in functions) + "\n"


def highlighted(source: str) -> str:
    """Python source as HTML in colours."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    return highlight(source, PythonLexer(), HtmlFormatter(noclasses=True, style="friendly"))


def show_source(*functions: Callable) -> None:
    """Show the package's source of functions or classes, highlighted, where they are taught."""
    source = source_of(*functions)
    show(highlighted(source), source)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown; what would end a cell or a row in the cells' texts is replaced.

    Raises ValueError when a row has more or fewer cells than there are columns.
    """
    if wrong := [row for row in rows if len(row) != len(columns)]:
        raise ValueError(f"a row has {len(wrong[0])} cells for {len(columns)} columns: {wrong[0]}")
    return "\n".join(map(markdown_row, [columns, ["---"] * len(columns), *rows]))


def markdown_row(cells: Sequence[object]) -> str:
    """One row of a Markdown table.

    >>> print(markdown_row(["a | b", 2]))
    | a \\| b | 2 |
    """
    texts = (str(cell).replace("|", "\\|").replace("\n", "⏎") for cell in cells)
    return "| " + " | ".join(texts) + " |"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Show rows of text and measured values as a table."""
    from IPython.display import Markdown, display

    display(Markdown(markdown_table(columns, rows)))


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


class Measured(str):
    """Text between ⟨ and ⟩: the guard does not compare it. `value` is what it was made from."""

    value: Any

    def __repr__(self) -> str:
        return str(self)


def measured(value: Any, spec: str = "") -> Measured:
    """Wrap a value that depends on floats, time or the machine, so that the guard masks it.

    `spec` is a format specification (default .3g for reals). Sequences and one-dimensional
    tensors become one bracket.

    >>> measured(0.73412), measured([0.1, 0.25], ".2f")
    (⟨0.734⟩, ⟨0.10, 0.25⟩)
    """
    plain = plain_value(value)
    items = plain if isinstance(plain, list) else [plain]
    text = Measured(masked(", ".join(_format(item, spec) for item in items)))
    text.value = plain
    return text


def masked(text: str) -> str:
    """Put a text between the brackets whose contents the guard does not compare.

    >>> masked("a⟩b")
    '⟨a>b⟩'
    """
    return "⟨" + text.replace("⟨", "<").replace("⟩", ">") + "⟩"


def _format(item: Any, spec: str) -> str:
    if not spec and isinstance(item, float):
        spec = ".3g" if abs(item) < 1000 else ",.0f"
    return format(item, spec)


def plain_value(value: Any) -> Any:
    """Numbers, strings and lists of them, from numpy and torch values too."""
    if isinstance(value, Measured):
        return value.value
    if hasattr(value, "tolist"):  # numpy arrays and scalars, torch tensors
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain_value(item) for item in value]
    if isinstance(value, (bool, str)) or value is None:
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else str(value)
