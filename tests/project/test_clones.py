"""A clone in any folder, copied or moved after it was set up, runs its own code or says what to do.

With a real environment and a real pip, but a build of the course that needs nothing else; its
dependencies are lent by the environment that runs the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import toy_course
from toy_course import ROOT

PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[tool.course]
repository = "owner/name"
"""
BACKEND = '''
"""Builds what an editable installation is: the folder's name, and the `course` command."""
import os, zipfile
INFO = "llms_measured-0.dist-info"
FILES = {
    "course.pth": os.getcwd(),
    f"{INFO}/METADATA": "Metadata-Version: 2.1\\nName: llms-measured\\nVersion: 0\\n"
    "Provides-Extra: dev\\n",
    f"{INFO}/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    f"{INFO}/entry_points.txt": "[console_scripts]\\ncourse = course_utils.cli:main\\n",
}
def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "llms_measured-0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        for path, text in FILES.items():
            wheel.writestr(path, text)
        wheel.writestr(f"{INFO}/RECORD", "".join(f"{path},,\\n" for path in FILES))
    return name
'''
WHERE = "import course_utils\nprint(course_utils.__file__)"


def _run(folder: Path, *command: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MAKEFLAGS")}
    return subprocess.run(
        command,
        cwd=folder,
        env=environment | extra,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def _install(clone: Path) -> str:
    done = _run(clone, "make", "install", f"PYTHON={sys.executable}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _course(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    lent = sysconfig.get_path("purelib")
    return _run(clone, clone / ".venv/bin/course", *arguments, PYTHONPATH=lent)


def _code(clone: Path) -> str:
    """The file that the environment's Python imports, and whether its `course` command starts."""
    assert _course(clone, "claims").returncode == 0
    done = _run(clone.parent, clone / ".venv/bin/python", "-c", WHERE)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone that was set up, at a path with spaces and letters outside ASCII."""
    clone = tmp_path_factory.mktemp("clones") / "Kurs Übung №1 (копия)"
    toy_course.make(clone, n00_a=toy_course.notebook(toy_course.PARAMETERS, WHERE))
    (clone / "pyproject.toml").write_text(PROJECT)
    (clone / "backend.py").write_text(BACKEND)
    (clone / "constraints.txt").touch()
    shutil.copy(ROOT / "Makefile", clone)
    shutil.copytree(
        ROOT / "course_utils", clone / "course_utils", ignore=shutil.ignore_patterns("__pycache__")
    )
    assert "Installing into .venv" in _install(clone)
    return clone


def test_a_clone_at_an_odd_path_runs_its_own_code(original: Path) -> None:
    own = str(original / "course_utils" / "__init__.py")
    assert _code(original) == own
    assert "Installing" not in _install(original)
    done = _course(original, "run", "00_a")
    assert done.returncode == 0, done.stdout + done.stderr
    assert toy_course.printed(toy_course.outputs(original, "00_a")).strip() == own


def test_a_copied_clone_says_so_and_then_runs_its_own_code(original: Path) -> None:
    copy = original.with_name("copy")
    assert _run(original, "cp", "-a", original, copy).returncode == 0
    refused = _course(copy, "run", "00_a")
    assert refused.returncode == 2
    assert f"not that of this checkout in {copy}" in refused.stderr
    assert "run `make install`" in refused.stderr
    assert "copied or moved" in _install(copy)
    assert _code(copy) == str(copy / "course_utils" / "__init__.py")
    assert "Installing" not in _install(copy)
    assert _code(original).startswith(str(original))


def test_a_moved_clone_is_set_up_again(original: Path) -> None:
    moved = original.with_name("elsewhere")
    copy = original.with_name("before")
    assert _run(original, "cp", "-a", original, copy).returncode == 0
    copy.rename(moved)
    assert "copied or moved" in _install(moved)
    assert _code(moved) == str(moved / "course_utils" / "__init__.py")


def test_a_clone_reached_by_a_link_is_the_same_clone(original: Path) -> None:
    link = original.with_name("link")
    link.symlink_to(original)
    assert "Installing" not in _install(link)
    assert _code(link) == str(original / "course_utils" / "__init__.py")


@pytest.mark.parametrize(
    "variables",
    [
        {"PIP_USER": "1", "PIP_TARGET": "lost", "PIP_REQUIRE_VIRTUALENV": "1"},
        {"PIP_PREFIX": "lost", "PIP_DRY_RUN": "1", "PIP_REQUIRE_HASHES": "1", "PIP_NO_DEPS": "1"},
    ],
    ids=lambda variables: " ".join(variables),
)
def test_settings_of_pip_cannot_lead_past_the_environment(
    original: Path, variables: dict[str, str]
) -> None:
    (original / ".venv/bin/course").unlink()
    (original / ".venv/.installed").unlink()
    (original / "pip.conf").write_text("[install]\nuser = true\n")
    extra = {"PIP_CONFIG_FILE": str(original / "pip.conf"), **variables}
    done = _run(original, "make", "install", f"PYTHON={sys.executable}", **extra)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (original / ".venv/bin/course").is_file()
    assert not (original / "lost").exists()
