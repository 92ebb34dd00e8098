"""What an installed wheel holds: the package and the course's own data, no notebooks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from toy_course import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
INCLUDED = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
ASK = """
from course_utils import models
from course_utils.assets import catalogue
print(catalogue.data_folder())
print(catalogue.names())
print(models.checkpoint_folder("g2p-transformer"))
"""


def _ask(installed: Path) -> list[str]:
    """Where the course's own data is to a package that stands in this folder."""
    names = ("COURSE_ASSETS", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=installed,
        env=environment | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def _expect_own_data(installed: Path) -> None:
    own = installed / "course_utils" / "_data"
    folder, names, checkpoint = _ask(installed)
    assert folder == str(own)
    assert "smollm2" in names
    assert checkpoint == str(own / "checkpoints" / "g2p-transformer")


def test_all_of_the_courses_own_data_is_packaged() -> None:
    paths = [path for path in (ROOT / "data").iterdir() if path.name[0] not in "._"]
    entries = {path.relative_to(ROOT).as_posix() for path in paths}
    assert set(INCLUDED) == entries - {"data/README.md"}
    assert all(to == path.replace("data/", "course_utils/_data/") for path, to in INCLUDED.items())


def test_an_installed_package_finds_its_own_data(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "course_utils", tmp_path / "course_utils")
    for path, to in INCLUDED.items():
        (tmp_path / to).parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (ROOT / path).is_dir() else shutil.copy
        copy(ROOT / path, tmp_path / to)
    _expect_own_data(tmp_path)


@pytest.mark.network
def test_a_built_wheel_holds_code_and_data_and_nothing_else(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", str(ROOT)]
    subprocess.run([*build, "--wheel-dir", str(tmp_path)], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
        archive.extractall(tmp_path / "installed")
    assert {name.split("/")[0] for name in files} == {"course_utils"}
    assert not [name for name in files if name.endswith((".ipynb", "generate.py"))]
    package = {p.relative_to(ROOT).as_posix() for p in (ROOT / "course_utils").rglob("*.py")}
    assert package <= files
    assert sum(archive.getinfo(name).file_size for name in files) < 30e6  # measured 6 MB
    _expect_own_data(tmp_path / "installed")
