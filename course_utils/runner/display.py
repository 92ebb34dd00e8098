"""Showing a run: a line per running notebook in a terminal, plain lines elsewhere, tables."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from course_utils.runner.execution import Job
from course_utils.runner.results import Result

PLAIN_EVERY = 15.0  # seconds between two lines about a running notebook outside a terminal
MARKS = {"ok": "[green]ok[/]", "kept": "[green]ok[/] (kept)", "not run": "not run"}


def console() -> Console:
    """A console for standard output; wide enough for the tables where there is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 120, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """7.2 → "7 s", 84 → "1.4 min", 5400 → "1.5 h"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def memory(mb: float) -> str:
    """340 → "340 MB", 2100 → "2.1 GB"."""
    return f"{mb:.0f} MB" if mb < 1000 else f"{mb / 1000:.1f} GB"


class LiveProgress:
    """A bar for each running notebook: which cell of how many, and for how long."""

    def __init__(self, out: Console, total: int) -> None:
        self.out, self.total, self.done = out, total, 0
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(24),
            TextColumn("cell {task.completed:.0f} of {task.total:.0f} · {task.fields[time]}"),
        )
        self.bars = Progress(*columns, console=out, transient=True)
        self.tasks: dict[str, int] = {}

    def __enter__(self) -> LiveProgress:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def started(self, job: Job) -> None:
        self.tasks[job.name] = self.bars.add_task(job.name, total=job.cells, time="0 s")

    def moved(self, job: Job, cell: int, seconds: float) -> None:
        self.bars.update(self.tasks[job.name], completed=cell, time=duration(seconds))

    def finished(self, job: Job, result: Result) -> None:
        self.bars.remove_task(self.tasks.pop(job.name))
        self.done += 1
        self.out.print(f"[{self.done}/{self.total}] {outcome(result)}")


class PlainProgress:
    """Lines of text, one now and then."""

    def __init__(self, out: Console, total: int) -> None:
        self.out, self.total, self.begun = out, total, 0
        self.said: dict[str, float] = {}

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def started(self, job: Job) -> None:
        self.begun += 1
        self.said[job.name] = 0.0
        self.out.print(f"[{self.begun}/{self.total}] {job.name}: {job.cells} code cells")

    def moved(self, job: Job, cell: int, seconds: float) -> None:
        if seconds - self.said[job.name] >= PLAIN_EVERY:
            self.said[job.name] = seconds
            self.out.print(f"  {job.name}: cell {cell} of {job.cells}, {duration(seconds)}")

    def finished(self, job: Job, result: Result) -> None:
        self.out.print(f"  {outcome(result)}")


def progress_for(out: Console, total: int) -> LiveProgress | PlainProgress:
    """Bars in a terminal, plain lines elsewhere."""
    return LiveProgress(out, total) if out.is_terminal else PlainProgress(out, total)


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
    return [(name.replace("_", " "), _shown(value)) for name, value in claim["values"].items()]


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def claims_table(claims: list[dict]) -> Table:
    """The ledger as a table: id, notebook, verdict, statement and what was measured."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("claim", no_wrap=True)
    table.add_column("notebook", no_wrap=True)
    table.add_column("verdict")
    table.add_column("statement")
    for claim in claims:
        verdict = f"{claim['verdict']} {claim.get('condition', '')}".strip()
        values = " · ".join(f"{name} {value}" for name, value in measured_values(claim))
        statement = Text.assemble(claim["text"], (f"\n{values}" if values else "", "dim"))
        style = "" if claim["holds"] else "red"
        table.add_row(claim["id"], claim["notebook"], Text(verdict, style), statement)
    return table
