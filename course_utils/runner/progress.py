"""Showing a run while it goes on: a bar per running notebook in a terminal, lines elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from course_utils.runner.display import outcome
from course_utils.runner.execution import Job
from course_utils.runner.results import Result
from course_utils.runner.units import duration

PLAIN_EVERY = 15.0  # seconds between two lines about a running notebook outside a terminal


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
