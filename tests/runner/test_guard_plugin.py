"""The guard's plugin of pytest: found from any folder, patient, and red where nbval gives up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import toy_course

from course_utils.runner import guard_plugin, notebooks

PLUGIN = "course_utils.runner.guard_plugin"
MEASURED = "from course_utils.claims import measured\nprint('loss', measured(0.5))"
# The kernel says that a cell has ended, and what it displayed comes seconds later.
LATE = (
    "import sys, time\n"
    "sys.stdout.flush_timeout = sys.stderr.flush_timeout = 0.1\n"
    "get_ipython().kernel.iopub_thread.schedule(lambda: time.sleep({seconds}))\n"
    "display({{'text/plain': 'late'}}, raw=True)"
)
HANG = (
    "import time\n"
    "while True:\n"
    "    try:\n"
    "        time.sleep(600)\n"
    "    except KeyboardInterrupt:\n"
    "        pass"
)


def _stored(*cells: str, printed: tuple[str, ...]) -> dict:
    """A notebook as a recording leaves it: numbered, with these outputs of its cells."""
    notebook = toy_course.notebook(*cells)
    for number, (cell, text) in enumerate(zip(notebook["cells"], printed, strict=True), start=1):
        cell["execution_count"] = number
        cell["outputs"] = [toy_course.stream(text)] if text else []
    return notebook


def _pytest(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Plain pytest with nbval, as one types it."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval", "--color=no", "-rA", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A course with one notebook whose only output differs by what was measured."""
    stored = _stored(MEASURED, printed=("loss ⟨0.25⟩\n",))
    return toy_course.make(tmp_path / "course", n00_a=stored)


# ── found from any folder, loaded once ──────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("folder", "named"), [("notebooks", "00_a.ipynb"), ("..", "course/notebooks")]
)
def test_the_sanitizer_is_found_from_any_folder(toy: Path, folder: str, named: str) -> None:
    done = _pytest(toy / folder, "-p", PLUGIN, named)
    assert done.returncode == 0, done.stdout


def test_a_notebook_elsewhere_is_checked_with_the_courses_settings(toy: Path) -> None:
    other = toy.parent / "own.ipynb"
    other.write_text((toy / "notebooks" / "00_a.ipynb").read_text(encoding="utf-8"))
    done = toy_course.course(toy, "check", str(other))
    assert done.returncode == 0, done.stdout


def test_a_checkout_that_cannot_be_written_is_checked(toy: Path) -> None:
    """Where pytest can't keep its cache it warns, and the course's settings make that an error."""
    with open(toy / "pyproject.toml", "a") as file:
        file.write('[tool.pytest.ini_options]\nfilterwarnings = ["error"]\n')
    (toy / ".pytest_cache").write_text("no folder")
    done = toy_course.course(toy, "check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_loaded_by_name_and_by_entry_point_it_is_loaded_once(toy: Path) -> None:
    """The package that pip installed offers the plugin, `course check` names it, too."""
    second = (toy / "notebooks" / "00_a.ipynb").read_text(encoding="utf-8")
    (toy / "notebooks" / "01_b.ipynb").write_text(second, encoding="utf-8")
    offered = toy.parent / "installed" / "llms-1.dist-info"
    offered.mkdir(parents=True)
    (offered / "METADATA").write_text("Name: llms\nVersion: 1\n")
    (offered / "entry_points.txt").write_text(f"[pytest11]\n{PLUGIN} = {PLUGIN}\n")
    path = os.pathsep.join(filter(None, [str(offered.parent), os.environ.get("PYTHONPATH")]))
    plain = _pytest(toy, "notebooks", PYTHONPATH=path)
    assert plain.returncode == 0, plain.stdout
    checked = toy_course.course(toy, "check", "--jobs", "2", PYTHONPATH=path)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_package_offers_the_plugin_under_its_modules_name() -> None:
    project = notebooks.settings(toy_course.ROOT / "pyproject.toml")["project"]
    assert project["entry-points"]["pytest11"] == {PLUGIN: PLUGIN}
    assert guard_plugin.__name__ == PLUGIN


@pytest.mark.parametrize("settings", [None, "[tool.other]\n"])
def test_other_projects_are_left_alone(toy: Path, settings: str | None) -> None:
    own = toy.parent / "own"
    own.mkdir()
    notebook = _stored(MEASURED, printed=("loss ⟨0.25⟩\n",))
    notebook["cells"][0]["execution_count"] = 7
    (own / "x.ipynb").write_text(json.dumps(notebook))
    (own / "pytest.ini").write_text("[pytest]\n")
    if settings is not None:
        (own / "pyproject.toml").write_text(settings)
    done = _pytest(own, "-p", PLUGIN, "--nbval-current-env")
    assert done.returncode == 1
    assert "loss ⟨0.25⟩" in done.stdout  # compared, without a mask
    assert "run number" not in done.stdout


def test_loading_it_costs_nothing_where_nbval_is_off() -> None:
    code = f"import sys, pytest\nbefore = set(sys.modules)\nimport {PLUGIN}\n"
    code += "print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(["course_utils", "course_utils.runner", PLUGIN])


# ── time-outs and numbers ───────────────────────────────────────────────────────────────────────


def test_a_cell_whose_output_comes_late_is_waited_for(tmp_path: Path) -> None:
    late = LATE.format(seconds=5.5)  # nbval by itself waits for 5
    stored = _stored(late, "print('next')", printed=("", "next\n"))
    stored["cells"][0]["outputs"] = [toy_course.data(text_plain="late")]
    root = toy_course.make(tmp_path, n00_late=stored)
    done = toy_course.course(root, "check")
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_a_cell_that_hangs_is_red_and_so_is_each_after_it(tmp_path: Path, monkeypatch) -> None:
    cells = ("print('before')", HANG, "print('after')", "print('last')")
    stored = _stored(*cells, printed=("before\n", "", "after\n", "last\n"))
    root = toy_course.make(tmp_path, n00_hangs=stored)
    quick = f"import {PLUGIN} as plugin\nplugin.OUTPUT_TIMEOUT = 1.0\n"
    (tmp_path / "quick.py").write_text(quick)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = _pytest(
        root, "-p", "quick", "-p", PLUGIN, "--nbval-cell-timeout=2", "notebooks", PYTHONPATH=path
    )
    assert done.returncode == 1
    assert "1 passed" in done.stdout
    assert "3 failed" in done.stdout
    assert "xfailed" not in done.stdout
    assert "Timeout of 2 seconds exceeded while executing cell" in done.stdout
    # Where a variable `CI` is set, pytest repeats each message in its closing list.
    failures, _ = done.stdout.split("short test summary info")
    assert failures.count(guard_plugin.LATE) == 2


def test_after_an_interrupted_cell_the_others_count_by_themselves(tmp_path: Path) -> None:
    cells = ("import time\ntime.sleep(600)", "print('right')", "print('wrong')")
    stored = _stored(*cells, printed=("", "right\n", "other\n"))
    root = toy_course.make(tmp_path, n00_hangs=stored)
    done = _pytest(root, "-p", PLUGIN, "--nbval-cell-timeout=1", "notebooks")
    assert done.returncode == 1
    assert "2 failed, 1 passed" in done.stdout
    assert "Timeout of 1 seconds exceeded" in done.stdout


@pytest.mark.parametrize(
    ("counts", "word"),
    [
        ((1, 3, None), "stored as run number 3, which from top to bottom is number 2"),
        ((1, None, None), "stored as run number None, which from top to bottom is number 2"),
        ((1, 2, 3), "stored as run number 3, which from top to bottom is number None"),
    ],
)
def test_stored_numbers_must_be_those_of_a_whole_run(
    tmp_path: Path, counts: tuple, word: str
) -> None:
    stored = toy_course.notebook("x = 1", "x = 2", "  ")
    for cell, count in zip(stored["cells"], counts, strict=True):
        cell["execution_count"] = count
    root = toy_course.make(tmp_path, n00_a=stored)
    done = toy_course.course(root, "check")
    assert done.returncode == 1
    assert "1 failed, 2 passed" in done.stdout
    assert f"{word}; store a whole run: course record 00_a" in done.stdout


def test_time_limits_leave_room_for_each_other() -> None:
    """A cell, and the wait for what an interrupt brings, end before pytest-timeout's limit."""
    limit = notebooks.settings(toy_course.ROOT / "pyproject.toml")["tool"]["pytest"]["ini_options"]
    assert limit["timeout"] > guard_plugin.CELL_TIMEOUT + guard_plugin.OUTPUT_TIMEOUT
