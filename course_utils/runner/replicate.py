"""`course replicate`: a notebook over seeds and instruction sets, and the record of its claims."""

from __future__ import annotations

import json
import platform
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console
from rich.table import Table

from course_utils.runner import (
    display,
    execution,
    ledger,
    notebooks,
    outputs,
    progress,
    records,
    results,
)
from course_utils.runner.execution import TIME_LIMITS, machine
from course_utils.runner.fingerprint import fingerprint, key_of

# What makes the libraries under a kernel compute as they would on another machine.
INSTRUCTION_SETS: dict[str, dict[str, str]] = {
    "best": {},
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "sse": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
}
HELD, FAILED = "●", "○"


@dataclass(frozen=True)
class Run:
    """One execution of a notebook: its seed, and the instructions it may use."""

    seed: int
    isa: str


@dataclass(frozen=True)
class Source:
    """A notebook as it is when its runs begin, read once: all of them are of this code.

    `code` is its fingerprint, `shown` the one with what only shows outputs.
    """

    path: Path
    notebook: dict
    code: str
    shown: str

    @classmethod
    def of(cls, path: Path) -> Source:
        notebook = notebooks.load(path)
        code, shown = (fingerprint(notebook, path.stem, display=each) for each in (False, True))
        return cls(path, notebook, code, shown)


def parse_seeds(text: str) -> list[int]:
    """Read "0-9" or "0,3,7" or both. Raises UsageError for anything else.

    >>> parse_seeds("0-2,7")
    [0, 1, 2, 7]
    """
    seeds: list[int] = []
    for part in text.split(","):
        span = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        first, last = (int(span[1]), int(span[2] or span[1])) if span else (1, 0)
        if last < first:
            raise notebooks.UsageError(f"seeds are {text!r}; give numbers such as 0-9 or 0,3,7")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def instruction_sets(wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return those of the wanted sets that this machine has, and a sentence for each other.

    Raises UsageError for an unknown name.
    """
    for name in wanted:
        if name not in INSTRUCTION_SETS:
            raise notebooks.UsageError(
                notebooks.unknown("instruction set", name, list(INSTRUCTION_SETS))
            )
    capability = _capability()
    lacking = {
        "avx2": capability not in ("AVX2", "AVX512"),
        "sse": platform.machine().lower() not in ("x86_64", "amd64"),
    }
    missing = [f"{name} is skipped: this machine has {capability}" for name in wanted
               if lacking.get(name, False)]  # fmt: skip
    return [name for name in wanted if not lacking.get(name, False)], missing


def _capability() -> str:
    """What torch found in this processor: AVX512, AVX2, DEFAULT, or another name."""
    import torch

    return torch.backends.cpu.get_cpu_capability()


def plan(seeds: Sequence[int], isas: Sequence[str]) -> list[Run]:
    """Even seeds with the first instruction set, odd ones with the others in turn.

    >>> [run.isa for run in plan(range(5), ["best", "avx2", "sse"])]
    ['best', 'avx2', 'best', 'sse', 'best']
    """
    first, *others = isas
    turns = {seed: others[seed // 2 % len(others)] if others else first for seed in seeds}
    return [Run(seed, first if seed % 2 == 0 else turns[seed]) for seed in seeds]


def replicate(
    names: Sequence[str] = (),
    *,
    seeds: Sequence[int] | None = None,
    isas: Sequence[str] = tuple(INSTRUCTION_SETS),
    jobs: int = 1,
    runs: int | None = None,
    root: Path | None = None,
    console: Console | None = None,
) -> int:
    """Run notebooks over seeds and instruction sets, store their records, and say what came out.

    Each run has one thread. Runs that are there already, of the same code, are kept. Without
    `seeds` there are `runs` (10), and 20 where a claim failed once. Returns 0 when every measured
    claim held in all of 10 runs, or in 19 of 20, and no notebook stopped; 130 after Ctrl-C; else 1.
    """
    console = console or display.console()
    root = root or notebooks.find_root()
    paths = notebooks.select(names, root)
    isas, missing = instruction_sets(isas)
    for sentence in missing:
        console.print(sentence)
    good = True
    with execution.Interrupts() as interrupts:
        for path in paths:
            folder = root / "runs" / "replications" / path.stem
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock"):
                source = Source.of(path)
                chosen = seeds if seeds is not None else range(runs or records.RUNS)
                done = _executed(source, folder, plan(chosen, isas), jobs, console)
                record = _record(source, done)
                if seeds is None and runs is None and _failed_once(record):
                    more = plan(range(records.RUNS_AFTER_A_FAILURE), isas)
                    done = _executed(source, folder, more, jobs, console)
                    record = _record(source, done)
            if interrupts.signum:
                return 128 + interrupts.signum
            _store(record, records.file_of(root, path.stem))
            console.print(summary(path.stem, record))
            good &= _all_admitted(record)
    return int(not good)


def _executed(
    source: Source, folder: Path, runs: Sequence[Run], jobs: int, console: Console
) -> list[tuple[Run, results.Result]]:
    """Execute the runs that are not there yet; return all of them with their results."""
    plan_ = {run: _job(source, folder, run) for run in runs}
    done = {run: results.kept(job.name, job.output, job.key) for run, job in plan_.items()}
    todo = [run for run in runs if done[run] is None]
    with progress.progress_for(console, len(todo)) as shown:
        fresh = execution.run([plan_[run] for run in todo], jobs, TIME_LIMITS["cpu"], shown)
    done |= dict(zip(todo, fresh, strict=True))
    return [(run, done[run]) for run in runs]


def _job(source: Source, folder: Path, run: Run) -> execution.Job:
    declared = notebooks.parameters_of(source.notebook)
    parameters = {"PROFILE": "cpu", "SEED": run.seed}
    parameters = {name: value for name, value in parameters.items() if name in declared}
    environment = dict.fromkeys(execution.THREAD_VARIABLES, "1")
    environment |= {"COURSE_STRICT": "0", "HF_HUB_OFFLINE": "1", **INSTRUCTION_SETS[run.isa]}
    name = f"{source.path.stem} seed {run.seed} {run.isa}"
    key = key_of(source.shown, {**parameters, "isa": run.isa})
    output = str(folder / f"seed{run.seed}-{run.isa}.ipynb")
    return execution.Job(name, source.path, output, source.notebook, key, parameters, environment)


# ── the record ──────────────────────────────────────────────────────────────────────────────────


def _record(source: Source, done: Sequence[tuple[Run, results.Result]]) -> dict[str, Any]:
    """What is stored: the code's fingerprint, the runs, and each claim's outcomes in order."""
    found = [{claim["id"]: claim for claim in result.claims} for _, result in done]
    ids = list(dict.fromkeys(id for claims in found for id in claims))
    return {
        "code": source.code,
        "machines": [f"{machine('cpu')}, {_capability()}"],
        "runs": [
            {"seed": run.seed, "isa": run.isa, "seconds": result.seconds, "status": result.status}
            for run, result in done
        ],
        "claims": {id: _of_claim([claims.get(id) for claims in found]) for id in ids},
    }


def _of_claim(entries: list[dict[str, Any] | None]) -> dict[str, Any]:
    """One claim over all runs; where a run did not reach it, it did not hold."""
    outcomes = [bool(entry and entry["holds"]) for entry in entries]
    given = [entry for entry in entries if entry]
    there = [entry for entry in given if entry["verdict"] != ledger.NOT_REACHED] or given
    numbers: dict[str, list[float]] = {}
    for entry in there:
        for name, value in entry.get("values", {}).items():
            values = value if isinstance(value, list) else [value]
            for i, one in enumerate(values):
                if isinstance(one, (int, float)) and not isinstance(one, bool):
                    label = f"{name} {i + 1}" if len(values) > 1 else name
                    numbers.setdefault(label, []).append(one)
    return {
        "kind": ledger.kind_of(there[-1]),
        "verdict": there[-1]["verdict"],
        "held": sum(outcomes),
        "runs": len(outcomes),
        "outcomes": outcomes,
        "values": {
            name: [_rounded(f(values)) for f in (min, statistics.median, max)]
            for name, values in numbers.items()
        },
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _failed_once(record: dict[str, Any]) -> bool:
    """Whether more runs could still admit every claim, and some claim needs them."""
    failed = [c["runs"] - c["held"] for c in record["claims"].values() if records.must_hold(c)]
    return max(failed, default=0) == 1


def _all_admitted(record: dict[str, Any]) -> bool:
    stopped = any(run["status"] not in results.GOOD for run in record["runs"])
    promised = filter(records.must_hold, record["claims"].values())
    return not stopped and all(map(records.admitted, promised))


def _store(record: dict[str, Any], file: Path) -> None:
    outputs.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", str(file))


# ── what came out ───────────────────────────────────────────────────────────────────────────────


def strip(outcomes: Sequence[bool]) -> str:
    """The runs of a claim as a strip: ● where it held, ○ where it did not."""
    return "".join(HELD if outcome else FAILED for outcome in outcomes)


def summary(name: str, record: dict[str, Any]) -> Table:
    """A row for each claim: its kind, how often it held, and its runs side by side."""
    stopped = [run for run in record["runs"] if run["status"] not in results.GOOD]
    where = ", ".join(f"seed {run['seed']} {run['isa']}: {run['status']}" for run in stopped)
    title = f"{name}: {len(record['runs'])} runs" + (f"; stopped in {where}" if stopped else "")
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for column in ("claim", "kind", "held", "runs"):
        table.add_column(column)
    for id, claim in record["claims"].items():
        bad = records.must_hold(claim) and not records.admitted(claim)
        held = f"{claim['held']} of {claim['runs']}"
        table.add_row(
            id, claim["kind"], f"[red]{held}[/]" if bad else held, strip(claim["outcomes"])
        )
    return table
