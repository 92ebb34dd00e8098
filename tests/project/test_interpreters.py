"""Each other Python that the course supports: installed with the pins, started, imported whole.

`pytest -m slow tests/project/test_interpreters.py` takes some minutes and 2 GB for each.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy_course
from toy_course import ROOT

VERSIONS = ("3.11", "3.12", "3.13", "3.14")
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "runs", "build", "dist")
IMPORT_ALL = """
import importlib, pkgutil, course_utils
found = pkgutil.walk_packages(course_utils.__path__, "course_utils.")
print(len([importlib.import_module(module.name) for module in found]))
"""


def _interpreter(version: str) -> str | None:
    """A Python of this version that can make environments, on the path or among pyenv's."""
    pyenv = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/*"))
    known = [f"python{version}", *(str(folder / "bin" / f"python{version}") for folder in pyenv)]
    for program in filter(None, map(shutil.which, known)):
        # A shim of pyenv may stand for a version that is not chosen, and then only complains.
        probe = subprocess.run([program, "-c", "import ensurepip, venv"], capture_output=True)
        if probe.returncode == 0:
            return program
    return None


@pytest.fixture
def clone() -> Iterator[Path]:
    """What is in the repository, in a folder that is removed at once: an environment is large."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(shutil.copytree(ROOT, Path(folder) / "clone", ignore=LEFT_OUT))


def _run(folder: Path, *command: str | Path) -> str:
    own = ("PYTHONPATH", "MAKEFLAGS", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_course_installs_and_starts_on(version: str, clone: Path, tmp_path: Path) -> None:
    if version == "{}.{}".format(*sys.version_info):
        pytest.skip(f"Python {version} runs all the other tests")
    if (python := _interpreter(version)) is None:
        pytest.skip(f"there is no Python {version} here")
    _run(clone, "make", "install", f"PYTHON={python}")
    programs = clone / ".venv" / "bin"
    assert f"python    ok  {version}." in _run(clone, programs / "course", "doctor")
    toy_course.make(tmp_path, n00_a=toy_course.notebook(toy_course.PARAMETERS, "print(6 * 7)"))
    _run(tmp_path, programs / "course", "run")
    assert toy_course.printed(toy_course.outputs(tmp_path, "00_a")) == "42\n"
    modules = len(list((clone / "course_utils").rglob("*.py"))) - 1  # course_utils itself
    assert int(_run(clone, programs / "python", "-c", IMPORT_ALL)) == modules
    _run(clone, programs / "python", "-m", "pytest", "--collect-only", "--quiet")
