"""`course run`: execute notebooks, keep their outputs, claims.json and a report in one folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from rich.console import Console

from course_utils.profiles import PROFILES
from course_utils.runner import display, execution, notebooks, outputs, progress, report, results
from course_utils.runner.fingerprint import run_key


def run(
    names: Sequence[str] = (),
    *,
    profile: str = "cpu",
    parameters: dict[str, object] | None = None,
    jobs: int = 1,
    out: str | None = None,
    resume: bool = False,
    strict: bool = False,
    timeout: float | None = None,
    root: Path | None = None,
    console: Console | None = None,
) -> int:
    """Run notebooks and return the exit status: 0, 1 when one failed, 130 after Ctrl-C.

    See `course run --help` for what the arguments mean. Raises UsageError for an unknown notebook,
    parameter or profile before anything runs.
    """
    console = console or display.console()
    profile = str((parameters or {}).get("PROFILE", profile))
    out = out or str((root or notebooks.find_root()) / "runs" / profile)
    plan = _plan(names, profile, dict(parameters or {}), out, root, strict)
    _prepare(out, plan)
    with execution.Interrupts() as interrupts:
        done: dict[str, results.Result] = {}
        with suppress(KeyboardInterrupt):  # here: before the first notebook, or after the last
            done = _kept(plan) if resume else {}
            todo = [job for job in plan if job.name not in done]
            with progress.progress_for(console, len(todo)) as shown:
                limit = timeout or execution.TIME_LIMITS[profile]
                done |= {r.notebook: r for r in execution.run(todo, jobs, limit, shown)}
        outcomes = [done.get(job.name) or results.Result(job.name, "not run") for job in plan]
        _write(outcomes, out, profile, parameters or {})
    _tell(console, outcomes, out)
    if interrupts.signum:
        return 128 + interrupts.signum
    return int(not all(result.good for result in outcomes))


def _plan(
    names: Sequence[str],
    profile: str,
    parameters: dict,
    out: str,
    root: Path | None,
    strict: bool = False,
) -> list[execution.Job]:
    """One job per notebook, with the parameters that it declares."""
    if profile not in PROFILES:
        raise notebooks.UsageError(notebooks.unknown("profile", profile, PROFILES))
    paths = notebooks.select(names, root or notebooks.find_root())
    loaded = {path.stem: notebooks.load(path) for path in paths}
    dealt = notebooks.parameters_for(loaded, parameters)
    plan = []
    for path in paths:
        notebook, given = loaded[path.stem], dealt[path.stem]
        if "PROFILE" in notebooks.parameters_of(notebook):
            given = {"PROFILE": profile, **given}
        key = run_key(notebook, path.stem, given)
        output = outputs.join(out, path.name)
        environment = {"COURSE_STRICT": "1"} if strict else {}
        plan.append(execution.Job(path.stem, path, output, notebook, key, given, environment))
    return plan


def _prepare(out: str, plan: list[execution.Job]) -> None:
    """Clear what an interrupted run left, and make sure before hours of work that `out` works."""
    if outputs.is_remote(out):
        outputs.require_store(out)
    else:
        for partial in Path(out).glob("*.partial.ipynb"):
            with suppress(OSError):  # saving below says it, with a remedy
                partial.unlink()
    waiting = [results.Result(job.name, "not run") for job in plan]
    _save(results.as_json(waiting, {}), outputs.join(out, "claims.json"))


def _save(text: str, address: str) -> None:
    try:
        outputs.write_text(text, address)
    except Exception as error:  # every remote store has its own
        raise notebooks.UsageError(
            f"can't write {address} ({error}); give another folder with --out"
        ) from error


def _kept(plan: list[execution.Job]) -> dict[str, results.Result]:
    """Results of notebooks whose finished output is there and still valid."""
    found = (results.kept(job.name, job.output, job.key) for job in plan)
    return {result.notebook: result for result in found if result}


def _write(outcomes: list[results.Result], out: str, profile: str, parameters: dict) -> None:
    about = {
        "profile": profile,
        "parameters": parameters,
        "machine": execution.machine(profile),
        "finished": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }
    _save(results.as_json(outcomes, about), outputs.join(out, "claims.json"))
    _save(report.render(outcomes, about), outputs.join(out, "report.html"))


def _tell(console: Console, outcomes: list[results.Result], out: str) -> None:
    """Print the failures, the table, and where the report is."""
    display.print_failures(console, outcomes)
    console.print()
    console.print(display.summary(outcomes))
    address = outputs.join(out, "report.html")
    if not outputs.is_remote(address):
        address = os.path.relpath(address)
    console.print(f"\nReport: {address}", markup=False)
    sys.stdout.flush()
