"""The guard: committed outputs against a fresh run, by nbval and its sanitizer."""

from __future__ import annotations

import difflib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from course_utils.runner.execution import kernel_environment
from course_utils.runner.notebooks import find_root, joined, select, tags_of

SANITIZER = Path("tests/runner/sanitize.cfg")
# What nbval leaves out of the comparison when it runs without nbdime.
NOT_COMPARED = (
    "metadata",
    "traceback",
    "prompt_number",
    "output_type",
    "name",
    "execution_count",
    "application/vnd.jupyter.widget-view+json",
    "image/png",
    "image/jpeg",
)
EXEMPTING_TAGS = {"nbval-ignore-output", "nbval-skip"}


def check(names: Sequence[str] = (), *, jobs: int = 1, root: Path | None = None) -> int:
    """Run nbval over notebooks, `jobs` at a time, and return pytest's exit status."""
    root = root or find_root()
    paths = select(names, root)
    if not paths:
        print("no notebooks to check")
        return 0
    jobs = min(jobs, len(paths))
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "--quiet"]
    # Named, because for a notebook elsewhere pytest would look for settings there.
    command += ["--config-file", str(root / "pyproject.toml")]
    command += ["--numprocesses", str(jobs), "--dist", "loadfile"] if jobs > 1 else []
    command += [] if sys.stdout.isatty() else ["--color=no"]
    environment = kernel_environment(jobs)
    return subprocess.run([*command, *map(str, paths)], cwd=root, env=environment).returncode


def sanitizer(root: Path) -> dict[str, str]:
    """Return the sanitizer's patterns and replacements."""
    from nbval.plugin import get_sanitize_patterns

    return dict(get_sanitize_patterns((root / SANITIZER).read_text(encoding="utf-8")))


def difference(stored: dict, fresh: dict, patterns: dict[str, str]) -> str:
    """Compare the outputs of one code cell as nbval would; "" when the guard sees none."""
    from nbval.plugin import IPyNbCell, coalesce_streams, nocolors

    if EXEMPTING_TAGS & set(tags_of(stored)):
        return ""
    cell = SimpleNamespace(
        colors=nocolors,
        comparison_traceback=[],
        parent=SimpleNamespace(sanitize_patterns=patterns, skip_compare=NOT_COMPARED),
    )
    cell.sanitize = lambda text: IPyNbCell.sanitize(cell, text)
    cell.format_output_compare = lambda kind, old, new: cell.comparison_traceback.extend(
        [f"{kind} differs", *difflib.ndiff(str(old).splitlines(), str(new).splitlines())]
    )
    pair = joined({"cells": [fresh, stored]})["cells"]
    new, old = (coalesce_streams(which["outputs"]) for which in pair)
    same = IPyNbCell.compare_outputs(cell, new, old)
    return "" if same else "\n".join(cell.comparison_traceback)
