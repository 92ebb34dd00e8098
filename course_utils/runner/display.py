"""Showing what came of a run: a line, tables, failures; and the ledger of claims."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from course_utils.runner import records
from course_utils.runner.ledger import failed, kind_of, verdict_of
from course_utils.runner.units import duration, memory

if TYPE_CHECKING:
    from course_utils.runner.results import Result

MARKS = {"ok": "[green]ok[/]", "kept": "[green]ok[/] (kept)", "not run": "not run"}


def console() -> Console:
    """A console for standard output; wide enough for the tables where there is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 120, highlight=False, soft_wrap=True)


def outcome(result: Result) -> str:
    """One line about a finished notebook."""
    line = f"{result.notebook}: {status(result)}, {duration(result.seconds)}"
    return f"{line}, {result.failure.place()}" if result.failure else line


def status(result: Result) -> str:
    """A result's status, coloured."""
    return MARKS.get(result.status, f"[red]{result.status}[/]")


def summary(results: list[Result]) -> Table:
    """The table at the end of a run."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("notebook")
    table.add_column("status")
    for heading in ("time", "peak memory", "claims held"):
        table.add_column(heading, justify="right")
    for result in results:
        ran = result.seconds > 0
        table.add_row(
            result.notebook,
            status(result),
            duration(result.seconds) if ran else "–",
            memory(result.peak_mb) if ran else "–",
            result.held(),
        )
    return table


def print_failures(out: Console, results: list[Result]) -> None:
    """Say of each failure where it was, the cell's source, and the error."""
    for result in results:
        failure = result.failure
        if failure is None:
            continue
        out.print()
        out.print(f"[bold]{result.notebook}[/] [red]{result.status}[/], {failure.place()}")
        for line in failure.source.splitlines():
            out.print(f"    {line}", markup=False)
        out.print(failure.error, markup=False, style="red")


def measured_values(claim: dict) -> list[tuple[str, str]]:
    """Names and values of what a claim measured, for people; reals to three digits."""
    return _readable(claim["values"])


def null_values(claim: dict) -> list[tuple[str, str]]:
    """What was measured beside it: each null, other side of a condition or count, and its values.

    The name of a claim's single value is left out.
    """
    found = []
    for name, values in claim.get("null", {}).items():
        shown = _readable(values)
        texts = [value if label == "measured" else f"{label} {value}" for label, value in shown]
        found.append((name, " · ".join(texts)))
    return found


def _readable(values: dict) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), _shown(value)) for name, value in values.items()]


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def claims_table(claims: list[dict]) -> Table:
    """The ledger: each claim's notebook, kind, verdict, record, and statement with its numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("claim", "in", "kind"):
        table.add_column(column, no_wrap=True)
    table.add_column("verdict", max_width=22)
    table.add_column("held / runs", no_wrap=True)
    table.add_column("statement")
    for claim in claims:
        verdict = Text(verdict_of(claim), "red" if failed(claim) else "")
        record = records.held_of_runs(claim.get("record"))
        table.add_row(
            claim["id"], claim["notebook"][:2], kind_of(claim), verdict, record, _statement(claim)
        )
    return table


def _statement(claim: dict) -> Text:
    """The sentence, and under it the notes' own, what was measured, the nulls, and the scope."""
    values = " · ".join(f"{name} {value}" for name, value in measured_values(claim))
    lines = [
        f"course notes say “{claim['notes']}”" if claim.get("notes") else "",
        values,
        *(f"{name} · {shown}" for name, shown in null_values(claim)),
    ]
    lines.append(f"scope: {claim['scope']}" if claim.get("scope") else "")
    return Text.assemble(claim["text"], *((f"\n{line}", "dim") for line in lines if line))
