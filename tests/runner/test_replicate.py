"""`course replicate` on a toy course: records, what is kept, what fails, two at once."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import toy_course
from toy_course import COST, PARAMETERS

from course_utils.runner import replicate
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
