"""`course replicate` on a toy course: records, what is kept, what fails, two at once."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import toy_course
from rich.console import Console
from toy_course import COST, PARAMETERS

from course_utils.runner import execution, replicate, results
from course_utils.runner.notebooks import UsageError
from course_utils.runner.replicate import Run

CLAIM = """
from course_utils.claims import claim, here
null = {"as many heads as tails": 0}
claim("A1", "The seed is not 3", lambda seed: seed != 3 and seed is not None, SEED + 1 - 1,
      null={"none": None}, scope="one seed")
here("A2", "It is quick", False, seconds=1.0)
"""
SHOW = """
import os
print(os.environ.get("ATEN_CPU_CAPABILITY"), os.environ["OMP_NUM_THREADS"])
"""
STOPS = "if SEED == 1:\n    raise RuntimeError('no')"


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    cells = ("# A", COST, PARAMETERS, SHOW, CLAIM)
    return toy_course.make(tmp_path / "toy", n00_a=toy_course.notebook(*cells))


def record_of(root: Path) -> dict:
    return json.loads((root / "data" / "replications" / "00.json").read_text(encoding="utf-8"))


def executed(root: Path) -> dict[str, Path]:
    folder = root / "runs" / "replications" / "00_a"
    return {path.stem: path for path in folder.glob("seed*.ipynb")}


# ── the plan ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "seeds"), [("0-9", list(range(10))), ("3", [3]), ("0,7, 2-3,2", [0, 7, 2, 3])]
)
def test_seeds_are_ranges_and_lists(text, seeds):
    assert replicate.parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "1-", "-1", "1,,2"])
def test_seeds_that_are_none(text):
    with pytest.raises(UsageError, match="give numbers such as 0-9"):
        replicate.parse_seeds(text)


def test_half_of_the_plan_is_another_machine():
    runs = replicate.plan(range(10), ["best", "avx2", "sse"])
    assert [run.isa for run in runs[::2]] == ["best"] * 5
    assert {run.isa for run in runs[1::2]} == {"avx2", "sse"}
    assert replicate.plan(range(2), ["sse"]) == [Run(0, "sse"), Run(1, "sse")]


def test_an_instruction_set_that_the_machine_lacks_is_skipped_by_name(monkeypatch):
    monkeypatch.setattr(replicate, "_capability", lambda: "DEFAULT")
    monkeypatch.setattr(replicate.platform, "machine", lambda: "aarch64")
    there, sentences = replicate.instruction_sets(["best", "avx2", "sse"])
    assert there == ["best"]
    assert [s.split(" ")[0] for s in sentences] == ["avx2", "sse"]
    with pytest.raises(UsageError, match="'neon'"):
        replicate.instruction_sets(["neon"])


# ── without executing anything ──────────────────────────────────────────────────────────────────


class Executed:
    """Stands in for the execution of notebooks: `claims(seed)` came out, or it stopped."""

    def __init__(self, claims: Callable[[int], list[dict]], stops: Sequence[int] = ()) -> None:
        self.claims, self.stops = claims, stops
        self.jobs: list[execution.Job] = []

    def run(self, jobs: list[execution.Job], *rest: object) -> list[results.Result]:
        self.jobs += jobs
        return [self._result(job, job.parameters["SEED"]) for job in jobs]

    def _result(self, job: execution.Job, seed: int) -> results.Result:
        status = "failed" if seed in self.stops else "ok"
        claims = [] if seed in self.stops else self.claims(seed)
        return results.Result(job.name, status, 1.0, 2.0, claims)


def claim(id: str, holds: bool, kind: str = "measured", verdict: str = "holds", **values) -> dict:
    return {"id": id, "holds": holds, "kind": kind, "verdict": verdict, "values": values}


@pytest.fixture
def executing(toy: Path, monkeypatch) -> Callable[..., tuple[int, dict, list[execution.Job]]]:
    """Replicates the toy course over made-up runs: status, record and jobs."""

    def go(claims, stops=(), **options) -> tuple[int, dict, list[execution.Job]]:
        fake = Executed(claims, stops)
        monkeypatch.setattr(execution, "run", fake.run)
        out = Console(file=io.StringIO())
        status = replicate.replicate(["00"], root=toy, console=out, **options)
        return status, record_of(toy), fake.jobs

    return go


def test_the_code_is_read_once_and_not_for_each_run(executing, monkeypatch):
    read = []
    right = replicate.fingerprint
    monkeypatch.setattr(replicate, "fingerprint", lambda *a, **k: read.append(k) or right(*a, **k))
    status, _, jobs = executing(lambda seed: [claim("A1", seed != 4)])
    assert status == 0  # 19 of 20
    assert len(jobs) == 10 + 20  # nothing was stored, so nothing is kept
    assert len(read) == 2
    assert len({job.key for job in jobs}) == 20


@pytest.mark.parametrize(
    ("failing", "runs", "status"),
    [((), 10, 0), ((4,), 20, 0), ((4, 12), 20, 1), ((4, 5), 10, 1)],
)
def test_after_one_failure_the_plan_goes_on_to_twenty(executing, failing, runs, status):
    got, record, _ = executing(lambda seed: [claim("A1", seed not in failing), claim("A2", True)])
    assert got == status
    assert len(record["runs"]) == runs
    assert record["claims"]["A1"]["held"] == runs - len([x for x in failing if x < runs])
    assert record["claims"]["A2"]["held"] == runs


def test_time_and_the_undecided_are_recorded_and_promise_nothing(executing):
    status, record, _ = executing(
        lambda seed: [
            claim("A1", seed != 4, "here"),
            claim("A2", seed != 4, verdict="undecided here"),
            claim("A3", True, "follows"),
        ]
    )
    assert status == 0
    assert len(record["runs"]) == 10
    assert [record["claims"][id]["held"] for id in ("A1", "A2", "A3")] == [9, 9, 10]


def test_a_stopped_run_is_no_success_even_where_all_is_time(executing):
    status, record, _ = executing(lambda seed: [claim("A1", True, "here")], stops=[3])
    assert status == 1
    assert record["claims"]["A1"]["outcomes"] == [True] * 3 + [False] + [True] * 6


def test_a_claim_that_a_run_did_not_reach_keeps_its_verdict(executing):
    missed = claim("A1", False, verdict="not reached")
    reached = claim("A1", True, verdict="undecided here")
    _, record, _ = executing(lambda seed: [missed if seed else reached], seeds=[0, 1])
    assert record["claims"]["A1"]["verdict"] == "undecided here"
    assert record["claims"]["A1"]["outcomes"] == [True, False]
    _, record, _ = executing(lambda seed: [missed], seeds=[0, 1])
    assert record["claims"]["A1"]["outcomes"] == [False, False]


def test_values_are_kept_as_lowest_median_and_highest(executing):
    def claims(seed: int) -> list[dict]:
        values = {"loss": [0.5, 1.0, 9.0][seed], "both": [seed, 10.0], "name": "x", "there": True}
        return [claim("A1", True) | {"values": values}]

    _, record, _ = executing(claims, seeds=[0, 1, 2])
    assert record["claims"]["A1"]["values"] == {
        "loss": [0.5, 1.0, 9.0],
        "both 1": [0, 1, 2],
        "both 2": [10, 10, 10],
    }


def test_each_run_has_its_seed_its_instructions_and_one_thread(executing):
    _, _, jobs = executing(lambda seed: [], seeds=[0, 1], isas=["best", "sse"])
    assert [job.parameters for job in jobs] == [{"PROFILE": "cpu", "SEED": s} for s in (0, 1)]
    assert [job.environment.get("ATEN_CPU_CAPABILITY") for job in jobs] == [None, "default"]
    for job in jobs:
        assert {job.environment[name] for name in execution.THREAD_VARIABLES} == {"1"}
        assert job.environment["COURSE_STRICT"] == "0"
    assert len({job.output for job in jobs}) == len({job.key for job in jobs}) == 2


def test_the_same_seed_with_other_instructions_is_another_run(executing):
    keys = [executing(lambda seed: [], seeds=[0], isas=[isa])[2][0].key for isa in ("best", "sse")]
    assert keys[0] != keys[1]


def test_a_strip_shows_every_run():
    assert replicate.strip([True, False, True]) == "●○●"


# ── records ─────────────────────────────────────────────────────────────────────────────────────


def test_a_record_holds_every_run_and_a_second_call_keeps_them(toy: Path):
    done = toy_course.course(toy, "replicate", "00", "--seeds", "2-3", "--isa", "best,sse")
    assert done.returncode == 1, done.stdout + done.stderr
    record = record_of(toy)
    assert [(run["seed"], run["isa"], run["status"]) for run in record["runs"]] == [
        (2, "best", "ok"),
        (3, "sse", "ok"),
    ]
    assert record["claims"]["A1"] == {
        "kind": "measured",
        "verdict": "holds",
        "held": 1,
        "runs": 2,
        "outcomes": [True, False],
        "values": {"measured": [2.0, 2.5, 3.0]},
    }
    assert record["claims"]["A2"]["kind"] == "here"
    assert "1 of 2" in done.stdout
    assert "●○" in done.stdout
    files = executed(toy)
    assert toy_course.printed(json.loads(files["seed3-sse"].read_text())) == "default 1\n"
    stamps = {name: path.stat().st_mtime_ns for name, path in files.items()}
    again = toy_course.course(toy, "replicate", "00", "--seeds", "2", "--isa", "best")
    assert again.returncode == 0, again.stdout + again.stderr
    assert {n: p.stat().st_mtime_ns for n, p in executed(toy).items()} == stamps
    assert record_of(toy)["claims"]["A1"]["held"] == 1


def test_a_notebook_that_stops_is_a_row_and_not_the_end(tmp_path: Path):
    cells = ("# A", COST, PARAMETERS, STOPS, CLAIM)
    root = toy_course.make(tmp_path / "toy", n00_a=toy_course.notebook(*cells))
    done = toy_course.course(root, "replicate", "--runs", "2", "--jobs", "2", "--isa", "best")
    assert done.returncode == 1
    assert "seed 1 best: failed" in " ".join(done.stdout.split())
    record = record_of(root)
    assert [run["status"] for run in record["runs"]] == ["ok", "failed"]
    assert record["claims"]["A1"]["outcomes"] == [True, False]  # what was not reached did not hold


def test_two_at_once_do_not_clash(toy: Path):
    command = toy_course.command("replicate", "--seeds", "0,2", "--isa", "best")
    both = [subprocess.Popen(command, cwd=toy, stdout=subprocess.PIPE) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert record_of(toy)["claims"]["A1"]["outcomes"] == [True, True]
    for process in both:
        process.stdout.close()


def test_it_goes_on_where_it_was_killed(toy: Path):
    command = toy_course.command("replicate", "--seeds", "0,2,4", "--isa", "best")
    process = subprocess.Popen(command, cwd=toy, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while "seed0-best" not in executed(toy):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = executed(toy)["seed0-best"].stat().st_mtime_ns
    done = toy_course.course(toy, "replicate", "--seeds", "0,2,4", "--isa", "best")
    assert done.returncode == 0, done.stdout + done.stderr
    assert executed(toy)["seed0-best"].stat().st_mtime_ns == first
    assert record_of(toy)["claims"]["A1"]["outcomes"] == [True] * 3
