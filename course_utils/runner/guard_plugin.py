"""The guard inside pytest: from whatever folder nbval is started, the course's notebooks get this.

A plugin of pytest (the entry point `pytest11` in pyproject.toml). It acts under `--nbval` alone,
and on notebooks of a course: the nearest pyproject.toml above them, or the one that pytest was
given, has [tool.course]. For those
- the sanitizer masks what was measured,
- outputs that come late are waited for, and a cell that hangs is given up before pytest-timeout
  would give up waiting with its kernel still at work,
- a cell after one that timed out, which nbval expects to fail and does not count, fails,
- a cell's stored number must be the one that a run from top to bottom gives it.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

CELL_TIMEOUT = 500.0  # seconds a cell may take; with the next one, less than pytest-timeout's 600
OUTPUT_TIMEOUT = 60.0  # seconds its outputs may come late; nbval's own 5 are few on a busy machine
NBVALS_CELL_TIMEOUT = 2000.0
LATE = "A cell before this one timed out, so this one can't be compared."
NUMBER = pytest.StashKey[int | None]()  # a cell of a course has it; None for one without code


@pytest.hookimpl(trylast=True)  # after nbval has looked at its own options
def pytest_configure(config: pytest.Config) -> None:
    """Join in when nbval is on; set what it takes from the command line, unless given there."""
    if not config.getoption("nbval", False):
        return
    config.pluginmanager.register(Guard(), "course-guard")
    if _is_course(config.inipath):
        if config.option.nbval_cell_timeout == NBVALS_CELL_TIMEOUT:
            config.option.nbval_cell_timeout = CELL_TIMEOUT
        config.option.nbval_current_env |= not config.option.nbval_kernel_name


def _is_course(settings: Path | None) -> bool:
    """Whether these are a course's settings; whatever else is there is none of our business."""
    from course_utils.runner.notebooks import is_root

    try:
        return settings is not None and settings.suffix == ".toml" and is_root(settings)
    except (OSError, ValueError):
        return False


def _number(item: Any) -> int | None:
    """The number of a cell in a run from top to bottom; None for one without code."""
    code = [cell.source.strip() for cell in item.parent.nb.cells if cell.cell_type == "code"]
    return sum(map(bool, code[: item.cell_num + 1])) if code[item.cell_num] else None


class Guard:
    """What happens to each cell under nbval."""

    def pytest_itemcollected(self, item: Any) -> None:
        """Prepare a cell that nbval found in a notebook of a course."""
        above = (folder / "pyproject.toml" for folder in item.path.parents)
        nearest = next(filter(Path.is_file, above), None)
        if hasattr(item, "output_timeout") and any(map(_is_course, (item.config.inipath, nearest))):
            from course_utils.runner.comparison import sanitizer

            item.parent.sanitize_patterns.update(sanitizer())
            item.output_timeout = OUTPUT_TIMEOUT
            item.stash[NUMBER] = _number(item)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: Any) -> Generator[None, object, object]:
        """After the comparison, refuse a cell that was not stored by a run from top to bottom."""
        result = yield
        if NUMBER in item.stash and item.cell.execution_count != item.stash[NUMBER]:
            item.raise_cell_error(
                f"stored as run number {item.cell.execution_count}, which from top to bottom is "
                f"number {item.stash[NUMBER]}; store a whole run: course record {item.path.stem}"
            )
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Let a cell that was expected to fail fail, or pass."""
        report = yield
        if NUMBER in item.stash and hasattr(report, "wasxfail"):
            del report.wasxfail
            if report.skipped:
                report.outcome = "failed"
                report.longrepr = f"{LATE}\n{report.longrepr}"
        return report
