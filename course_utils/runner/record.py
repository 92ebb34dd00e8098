"""`course record`: committed outputs, written so that an unchanged notebook stays byte for byte."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from course_utils.assets.catalogue import describe
from course_utils.runner import (
    comparison,
    display,
    execution,
    notebooks,
    outputs,
    progress,
    results,
)
from course_utils.runner.canonical import canonical
from course_utils.runner.fingerprint import fingerprint

ASSET_LOG = "COURSE_ASSET_LOG"


def record(
    names: Sequence[str] = (), *, root: Path | None = None, console: Console | None = None
) -> int:
    """Execute notebooks on the CPU, one at a time and without parameters, and store the outputs.

    A notebook whose code and outputs are what they were, as the guard compares them, keeps its
    file. Returns 1 when a notebook failed or wrote to standard error (its file stays), 130 after
    Ctrl-C, else 0.
    """
    console = console or display.console()
    root = root or notebooks.find_root()
    paths = notebooks.select(names, root)
    loaded = {path: notebooks.load(path) for path in paths}
    for path, notebook in loaded.items():
        _require_cost_cell(path, notebook)
        outputs.require_writable(path.parent)
    with execution.Interrupts() as interrupts, tempfile.TemporaryDirectory() as folder:
        plan = [_job(path, notebook, Path(folder)) for path, notebook in loaded.items()]
        with progress.progress_for(console, len(plan)) as shown:
            outcomes = execution.run(plan, 1, execution.TIME_LIMITS["cpu"], shown)
        stored = [_store(job, outcome) for job, outcome in zip(plan, outcomes, strict=True)]
    display.print_failures(console, outcomes)
    for outcome, (good, sentence) in zip(outcomes, stored, strict=True):
        mark = "" if good else "[red]"
        console.print(f"{mark}{outcome.notebook}: {sentence}")
    if interrupts.signum:
        return 128 + interrupts.signum
    return int(not all(good for good, _ in stored))


def _require_cost_cell(path: Path, notebook: dict) -> None:
    cell = notebooks.tagged(notebook, "cost")
    if cell is None or cell["cell_type"] != "markdown":
        raise notebooks.UsageError(
            f"{path.name} has no markdown cell tagged 'cost', where its cost is written; "
            "add an empty one under the title"
        )


def _job(path: Path, notebook: dict, folder: Path) -> execution.Job:
    return execution.Job(
        path.stem,
        path,
        str(folder / path.name),
        notebook,
        environment={
            ASSET_LOG: str(folder / f"{path.stem}.assets"),
            "HF_HUB_OFFLINE": "1",
            "COURSE_STRICT": "1",
        },
    )


def _store(job: execution.Job, outcome: results.Result) -> tuple[bool, str]:
    """Write one notebook's new outputs if they differ; return success and what was done."""
    if not outcome.good:
        return False, f"{outcome.status}; its file is as it was"
    executed = outputs.read_notebook(job.output)
    if stderr := _stderr(executed):
        number, text = stderr
        return False, (
            f"In [{number}] wrote to standard error, which changes from machine to machine: "
            f"{text.strip()[:200]!r}. Prevent it at its source; the file is as it was."
        )
    about = _about(job, outcome)
    fresh = with_outputs(job.notebook, executed, about)
    changed = changes(job.notebook, fresh, comparison.sanitizer())
    new = canonical(fresh)
    if not changed:
        stored = job.path.read_text(encoding="utf-8")
        if (kept := canonical(job.notebook)) == stored:
            return True, "unchanged"
        new, changed = kept, "its format was not the recorded one"
    outputs.store(new, job.path)
    return True, f"recorded: {changed}"


def changes(stored: dict, fresh: dict, patterns: dict[str, str]) -> str:
    """Say in words why `fresh` must replace `stored`; "" when the guard sees no difference."""
    before = stored["metadata"].get("course", {}).get("fingerprint")
    if before != fresh["metadata"]["course"]["fingerprint"]:
        return (
            "first recording" if before is None else "the code of the notebook or package changed"
        )
    pairs = zip(notebooks.code_cells(stored), notebooks.code_cells(fresh), strict=True)
    differing = [
        str(number)
        for number, (old, new) in enumerate(pairs, start=1)
        if comparison.difference(old, new, patterns)
    ]
    if not differing:
        return ""
    return (
        f"the output of In [{', '.join(differing)}] differs although no code did; if it is not "
        "from another version of a library, it is flaky: show it through measured()"
    )


def _stderr(notebook: dict) -> tuple[int, str] | None:
    """The first code cell (numbered from 1) that wrote to standard error, and what."""
    for number, cell in enumerate(notebooks.code_cells(notebook), start=1):
        for output in cell["outputs"]:
            if output.get("name") == "stderr":
                return number, "".join(output["text"])
    return None


def _about(job: execution.Job, outcome: results.Result) -> dict:
    """What the recording measured: it goes into the notebook's metadata under `course`."""
    log = Path(job.environment[ASSET_LOG])
    assets = sorted(set(log.read_text(encoding="utf-8").split())) if log.is_file() else []
    return {
        "assets": assets,
        "download_mb": round(sum(describe(name).size for name in assets) / 1e6),
        "fingerprint": fingerprint(job.notebook, job.name),
        "machine": execution.machine("cpu"),
        "peak_mb": outcome.peak_mb,
        "seconds": outcome.seconds,
    }


def with_outputs(source: dict, executed: dict, about: dict) -> dict:
    """The source notebook with the executed one's outputs, and `about` in its metadata."""
    fresh = copy.deepcopy(source)
    fresh["metadata"]["course"] = about
    pairs = zip(notebooks.code_cells(fresh), notebooks.code_cells(executed), strict=True)
    for cell, run in pairs:
        cell["outputs"] = run["outputs"]
    return fresh
