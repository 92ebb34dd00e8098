"""The HTML report of a run: one self-contained file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from course_utils.runner.display import measured_values
from course_utils.runner.ledger import failed, held, kind_of, verdict_of
from course_utils.runner.results import Result
from course_utils.runner.units import duration, memory

TEMPLATE = Path(__file__).with_name("report.html.j2")


def render(results: list[Result], about: dict[str, Any]) -> str:
    """Return the report's HTML.

    `about` has profile, parameters, machine and finished, as in claims.json.
    """
    import jinja2
    from pygments.formatters import HtmlFormatter

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "duration": duration,
        "memory": memory,
        "python": highlighted,
        "terminal": terminal,
        "measured": shown_values,
        "verdict": verdict_of,
        "held": held,
        "kind": kind_of,
    }
    environment.tests["failed"] = failed
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    claims = [claim for result in results for claim in result.claims]
    return template.render(
        results=results,
        claims=claims,
        about=about,
        style=HtmlFormatter(style="default").get_style_defs(".source"),
    )


def highlighted(source: str) -> Any:
    """Python source as coloured HTML."""
    from markupsafe import Markup
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    return Markup(highlight(source, PythonLexer(), HtmlFormatter(cssclass="source")))


def terminal(text: str) -> Any:
    """A traceback with terminal colours as HTML."""
    from markupsafe import Markup
    from nbconvert.filters import ansi2html

    return Markup(ansi2html(text))


def shown_values(claim: dict) -> Any:
    """A claim's measured values on one line."""
    from markupsafe import Markup, escape

    pairs = (f"{escape(name)} <b>{escape(value)}</b>" for name, value in measured_values(claim))
    return Markup(" · ".join(pairs))
