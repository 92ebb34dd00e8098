"""The runner when something goes wrong: wrong names, bad notebooks, Ctrl-C, a killed runner."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
import pytest
import toy_course
from toy_course import PARAMETERS

from course_utils.runner import execution, results

SLEEP = "import time\nprint('asleep', flush=True)\ntime.sleep(600)"
STUBBORN = (
    "import signal, subprocess, time\n"
    "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    "child = subprocess.Popen(['sleep', '600'])\nprint(child.pid, flush=True)\n"
    "time.sleep(600)"
)
BAD = {
    "n00_raises": ("# Raises", PARAMETERS, "print('before')", "1 / 0", "print('after')"),
    "n01_hangs": (PARAMETERS, "print('before')", SLEEP, "print('after')"),
    "n02_killed": (PARAMETERS, "print('before')", "import os\nos.kill(os.getpid(), 9)"),
    "n03_exits": ("import os\nos._exit(7)",),
    "n04_false": (
        "from course_utils.claims import follows",
        "follows('A1', 'Two is odd', lambda n: n % 2 == 1, 2, because='it is counted')",
    ),
    "n05_good": (PARAMETERS, "print('fine')"),
    "n06_surrogate": ("# →", "1", "print('→')", "raise ValueError('→ bad: ' + chr(0xd83d))", "4"),
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A course in which six of seven notebooks fail, after one run of it."""
    made = {name: toy_course.notebook(*cells) for name, cells in BAD.items()}
    root = toy_course.make(tmp_path_factory.mktemp("bad"), **made)
    return root, toy_course.course(root, "run", "--jobs", "2", "--timeout", "8")


def _entry(root: Path, name: str) -> dict:
    record = json.loads((root / "runs" / "cpu" / "claims.json").read_text())
    return next(entry for entry in record["notebooks"] if entry["notebook"] == name)


def test_a_bad_notebook_stops_no_other_and_the_status_is_1(bad) -> None:
    root, run = bad
    assert run.returncode == 1
    assert _entry(root, "05_good")["status"] == "ok"
    assert toy_course.printed(toy_course.outputs(root, "05_good")) == "fine\n"
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("name", "status", "number", "source", "error"),
    [
        ("00_raises", "failed", 3, "1 / 0", "ZeroDivisionError: division by zero"),
        ("01_hangs", "timed out", 3, SLEEP, "still running after 8 s, the limit"),
        ("02_killed", "kernel died", 3, "os.kill", "killed by SIGKILL; the system may have run"),
        ("03_exits", "kernel died", 1, "os._exit(7)", "exited by itself with status 7"),
        ("04_false", "failed", 2, "follows('A1'", "ClaimFailed: A1 does not hold: Two is odd"),
        ("06_surrogate", "failed", 3, "raise ValueError", "ValueError: → bad: �"),
    ],
)
def test_the_report_says_which_cell(
    bad, name: str, status: str, number: int, source: str, error: str
) -> None:
    root, run = bad
    entry = _entry(root, name)
    assert entry["status"] == status
    assert entry["failure"]["number"] == number
    assert source in entry["failure"]["source"]
    assert error in entry["failure"]["error"]
    report = (root / "runs" / "cpu" / "report.html").read_text()
    section = report.split(f'<div class="failure" id="{name}">')[1].split("</div>")[0]
    assert f"In [{number}]" in section
    assert error in section
    assert f"{name} {status}, In [{number}]" in run.stdout


@pytest.mark.parametrize("name", ["00_raises", "01_hangs", "02_killed"])
def test_what_ran_before_is_kept_and_what_did_not_run_says_so(bad, name: str) -> None:
    root, _ = bad
    executed = toy_course.outputs(root, name)
    assert toy_course.printed(executed).startswith("before\n")
    assert "after" not in toy_course.printed(executed)
    errors = [o for c in executed["cells"] for o in c.get("outputs", []) if "ename" in o]
    assert len(errors) == 1
    marks = [cell["metadata"].get("papermill", {}) for cell in executed["cells"]]
    states = [mark["status"] for mark in marks if mark]
    assert states.count("failed") == 1
    assert set(states[: states.index("failed")]) == {"completed"}
    assert set(states[states.index("failed") + 1 :]) <= {"pending"}


def test_a_stream_that_cannot_hold_a_character_gets_another(bad, tmp_path: Path) -> None:
    root, _ = bad
    out = ("--out", str(tmp_path))
    run = toy_course.course(root, "run", "06", *out, PYTHONIOENCODING="latin-1")
    assert run.returncode == 1
    assert "06_surrogate failed, In [3]" in run.stdout
    assert "ValueError: ? bad: ?" in run.stdout
    assert "Report: " in run.stdout
    assert "Traceback" not in run.stderr


def test_without_a_home_folder_one_sentence_says_so(bad, tmp_path: Path) -> None:
    root, _ = bad
    nobody = "import pwd\ndef unknown(uid): raise KeyError(uid)\npwd.getpwuid = unknown\n"
    (tmp_path / "sitecustomize.py").write_text(nobody)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    for command in ("run", "check"):
        out = ("--out", str(tmp_path / "out")) if command == "run" else ()
        done = toy_course.course(root, command, "05", *out, PYTHONPATH=path, HOME=None)
        assert done.returncode == 2
        assert done.stderr.startswith("course: Jupyter needs a home folder and found none: HOME")
        assert done.stderr.count("\n") == 1


def test_a_claim_that_fails_is_counted(bad) -> None:
    root, _ = bad
    record = json.loads((root / "runs" / "cpu" / "claims.json").read_text())
    assert [(claim["id"], claim["holds"]) for claim in record["claims"]] == [("A1", False)]


def test_a_failed_notebook_is_not_resumed_from(bad, tmp_path: Path) -> None:
    root, _ = bad
    out = shutil.copytree(root / "runs" / "cpu", tmp_path / "out")
    run = toy_course.course(root, "run", "00", "05", "--resume", "--out", str(out))
    assert run.returncode == 1
    assert "05_good: ok" not in run.stdout
    assert "[1/1] 00_raises" in run.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "05_god"), "no notebook '05_god'. Did you mean '05_good'? Choices: 00_raises"),
        (("run", "-p", "SEDE", "1"), "no parameter 'SEDE'. Did you mean 'SEED'? Choices: PROFILE"),
        (("run", "--profile", "tpu"), "no profile 'tpu'. Did you mean 'gpu'? Choices: cpu, gpu."),
        (("check", "5_good"), "no notebook '5_good'"),
        (("record", "99"), "no notebook '99'"),
        (("record", "05"), "05_good.ipynb has no markdown cell tagged 'cost'"),
    ],
)
def test_a_wrong_name_stops_everything_before_it_runs(
    bad, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    root, _ = bad
    where = ("--out", str(tmp_path / "out")) if arguments[0] == "run" else ()
    run = toy_course.course(root, *arguments, *where)
    assert run.returncode == 2
    assert run.stderr.startswith(f"course: {message}")
    assert run.stderr.count("\n") == 1
    assert run.stdout == ""
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_is_a_file_is_named(bad, tmp_path: Path) -> None:
    root, _ = bad
    (tmp_path / "taken").write_text("")
    run = toy_course.course(root, "run", "05", "--out", str(tmp_path / "taken"))
    assert run.returncode == 2
    assert "give another folder with --out" in run.stderr


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("nowhere://bucket/x", "papermill has no store for nowhere://bucket/x; it has "),
        ("gs://bucket/x", "can't write gs://bucket/x/claims.json (The gcsfs optional dependency"),
    ],
)
def test_a_remote_folder_that_cannot_work_is_refused_at_once(bad, out: str, message: str) -> None:
    root, _ = bad
    run = toy_course.course(root, "run", "05", "--out", out)
    assert run.returncode == 2
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert "05_good" not in run.stdout  # nothing ran


# ── interruptions ───────────────────────────────────────────────────────────────────────────────


def _wait(condition: Callable[[], object], seconds: float = 60.0) -> object:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return value


def _start(root: Path, ctrl_c: signal.Handlers = signal.SIG_DFL) -> subprocess.Popen[str]:
    """Start a run in a process group of its own, with SIGINT handled or ignored."""
    return subprocess.Popen(
        toy_course.command("run"),
        cwd=root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # These tests may themselves have been started with SIGINT ignored, which is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, ctrl_c),
    )


@pytest.fixture
def interrupted(tmp_path: Path):
    """A run with its first notebook finished and its second asleep, and that one's processes."""
    root = toy_course.make(
        tmp_path,
        n00_good=toy_course.notebook("print('fine')"),
        n01_sleeps=toy_course.notebook("print('before')", STUBBORN),
        n02_waits=toy_course.notebook("1"),
    )
    partial = root / "runs" / "cpu" / "01_sleeps.partial.ipynb"

    def asleep() -> bool:
        # papermill saves when a cell begins: the stubborn one is running, or about to.
        text = partial.read_text() if partial.exists() else ""
        return '"status": "running"' in text and "before" in text

    run, tree = _start(root), []
    try:
        _wait(asleep)
        tree = _wait(lambda: _sleeping_tree(run.pid))
        yield root, run, tree
    finally:
        for process in (run, *_alive(tree)):
            process.kill()
        run.communicate()


def _sleeping_tree(pid: int) -> list[psutil.Process]:
    """The run's descendants, once the notebook has started its own child."""
    tree = psutil.Process(pid).children(recursive=True)
    return tree if any(process.name() == "sleep" for process in tree) else []


def _alive(tree: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; what is dead but not yet collected by init does not."""
    return [p for p in tree if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_what_is_finished_and_leaves_no_process(interrupted, signum: int) -> None:
    root, run, tree = interrupted
    os.killpg(run.pid, signum)  # what a terminal does
    said, _ = run.communicate(timeout=30)
    assert run.returncode == 128 + signum
    assert not _alive(tree)
    assert toy_course.printed(toy_course.outputs(root, "00_good")) == "fine\n"
    folder = root / "runs" / "cpu"
    assert not (folder / "01_sleeps.ipynb").exists()
    partial = json.loads((folder / "01_sleeps.partial.ipynb").read_text())
    assert toy_course.printed(partial).startswith("before\n")
    record = json.loads((folder / "claims.json").read_text())
    assert [e["status"] for e in record["notebooks"]] == ["ok", "interrupted", "not run"]
    assert "interrupted in code cell 2 of 2" in (folder / "report.html").read_text()
    assert "Report: runs/cpu/report.html" in said
    assert "Traceback" not in said


def test_ctrl_c_is_ignored_where_it_was_ignored_at_the_start(tmp_path: Path) -> None:
    """As for a run in the background of a shell script: another program's Ctrl-C ends no run."""
    cells = ("import time\nprint('before', flush=True)\ntime.sleep(3)", "print('after')")
    root = toy_course.make(tmp_path, n00_slow=toy_course.notebook(*cells))
    run = _start(root, signal.SIG_IGN)
    try:
        _wait((root / "runs" / "cpu" / "00_slow.partial.ipynb").exists)
        os.killpg(run.pid, signal.SIGINT)
        said, _ = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 0, said
    assert toy_course.printed(toy_course.outputs(root, "00_slow")) == "before\nafter\n"


def test_a_killed_runner_leaves_no_kernel_behind(interrupted) -> None:
    _, run, tree = interrupted
    run.kill()
    run.communicate(timeout=30)
    _wait(lambda: not _alive(tree), seconds=15)


class Silent:
    """A progress display that shows nothing."""

    def started(self, job: execution.Job) -> None: ...

    def moved(self, job: execution.Job, cell: int, seconds: float) -> None: ...

    def finished(self, job: execution.Job, result: results.Result) -> None: ...


def _run_one(root: Path, *cells: str, timeout: float = 60.0) -> results.Result:
    notebook = toy_course.notebook(*cells)
    toy_course.make(root, n00_x=notebook)
    path = root / "notebooks" / "00_x.ipynb"
    job = execution.Job("00_x", path, str(root / "00_x.ipynb"), notebook)
    (result,) = execution.run([job], 1, timeout, Silent())
    return result


def test_a_kernel_that_ignores_the_interrupt_is_killed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(execution, "GRACE", 2.0)
    others = set(psutil.Process().children(recursive=True))  # other tests' pools of workers
    result = _run_one(tmp_path, "print('before')", STUBBORN, timeout=6.0)
    assert result.status == "timed out"
    assert result.failure.number == 2
    assert result.seconds < 20
    assert toy_course.printed(json.loads((tmp_path / "00_x.ipynb").read_text())) == "before\n"
    assert not _alive(set(psutil.Process().children(recursive=True)) - others)
    assert not (tmp_path / "00_x.partial.ipynb").exists()


def test_a_worker_that_cannot_start_says_why(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))  # a Python that finds no library
    result = _run_one(tmp_path, "1")
    assert result.status == "failed"
    assert "worker process ended unexpectedly" in result.failure.error
    assert result.failure.place() == "before the first cell"


def test_a_full_disk_fails_the_notebook_with_its_reason(tmp_path: Path, monkeypatch) -> None:
    def full(text: str, address: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(execution, "write_text", full)
    result = _run_one(tmp_path, "1")
    assert result.status == "failed"
    assert "No space left on device); make room, or give another folder" in result.failure.error
    assert (tmp_path / "00_x.partial.ipynb").exists()  # what papermill had written stays


def test_an_output_cut_short_is_not_resumed_from(tmp_path: Path) -> None:
    path = tmp_path / "00_x.ipynb"
    whole = json.dumps({"cells": [], "metadata": {"course_run": {"key": "k", "status": "ok"}}})
    path.write_text(whole)
    assert results.kept("00_x", str(path), "k").status == "kept"
    assert results.kept("00_x", str(path), "other") is None
    path.write_text(whole[:-5])
    assert results.kept("00_x", str(path), "k") is None
