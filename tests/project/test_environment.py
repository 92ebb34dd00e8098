"""The three places that say what the course needs, and the Makefile, agree."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from toy_course import ROOT

from course_utils.runner import doctor

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def _requirements() -> list[Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("requirement", _requirements(), ids=str)
def test_each_dependency_is_pinned_to_a_version_it_allows(requirement: Requirement) -> None:
    version = doctor.pins(ROOT).get(canonicalize_name(requirement.name))
    assert version, f"{requirement.name} is in pyproject.toml but not in constraints.txt"
    assert requirement.specifier.contains(version, prereleases=True)


def test_what_is_installed_is_what_is_pinned() -> None:
    """All that the course's dependencies need in turn, too: a missing pin would drift."""
    pinned = doctor.pins(ROOT)
    needed = _closure("llms-measured", set(EXTRAS)) - {"llms-measured", "pip", "setuptools"}
    # A CUDA build of torch brings these, in versions that it pins itself.
    needed = {name for name in needed if not name.startswith(("nvidia-", "cuda-", "triton"))}
    installed = {name: importlib.metadata.version(name).split("+")[0] for name in needed}
    other = {n: (v, pinned.get(n)) for n, v in installed.items() if v != pinned.get(n)}
    assert not other, "installed and pinned; run: pip install -c constraints.txt -e '.[dev,book]'"


def _closure(name: str, extras: set[str]) -> set[str]:
    """Names of all installed packages that a package needs, however indirectly."""
    found: set[str] = set()
    waiting = [(name, frozenset(extras))]
    while waiting:
        name, extras = waiting.pop()
        if (key := f"{canonicalize_name(name)}{sorted(extras)}") in found:
            continue
        found.add(key)
        waiting += _needed(name, extras)
    return {key.split("[")[0] for key in found if _is_installed(key.split("[")[0])}


def _needed(name: str, extras: frozenset[str]) -> list[tuple[str, frozenset[str]]]:
    lines = importlib.metadata.requires(name) or [] if _is_installed(name) else []
    environments = [{"extra": extra} for extra in (*extras, "")]
    return [
        (requirement.name, frozenset(requirement.extras))
        for requirement in map(Requirement, lines)
        if not requirement.marker or any(map(requirement.marker.evaluate, environments))
    ]


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def test_constraints_name_no_machine() -> None:
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", line), line


def test_conda_builds_the_same_environment() -> None:
    *names, last = CONDA["dependencies"]
    assert last == {"pip": ["--constraint constraints.txt", "--editable .[dev,book]"]}
    assert set(EXTRAS) == {"dev", "book"}
    python = next(name for name in names if name.startswith("python="))
    version = python.removeprefix("python=")
    assert SpecifierSet(PROJECT["requires-python"]).contains(version)
    assert f"(Python {version})" in (ROOT / "constraints.txt").read_text().splitlines()[0]


def test_the_makefile_installs_what_is_pinned() -> None:
    assert "--constraint constraints.txt" in MAKEFILE
    assert "--editable '.[dev]'" in MAKEFILE
    minimum = re.fullmatch(r">=3\.(\d+)", PROJECT["requires-python"])[1]
    assert f"sys.version_info < (3, {minimum})" in MAKEFILE


# ── the Makefile's own messages, in a copy of the folder without an environment ─────────────────


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def _make(clone: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=clone,
        env={**os.environ, "MAKEFLAGS": "", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def _fake_python(folder: Path, body: str) -> Path:
    path = folder / "fake-python"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (None, "was not found. Install Python 3.11 or newer"),
        ('case "$*" in *--version*) echo Python 3.9.1;; esac; exit 1', "needs Python 3.11"),
        ('case "$*" in *ensurepip*) exit 1;; esac; exit 0', "has no venv module. Install it"),
    ],
    ids=["absent", "old", "without venv"],
)
def test_make_says_what_is_wrong_with_python(clone: Path, body: str | None, message: str) -> None:
    python = _fake_python(clone, body) if body else clone / "nowhere"
    done = _make(clone, "test", f"PYTHON={python}")
    assert done.returncode != 0
    assert message in done.stdout
    assert "make test PYTHON=" in done.stdout
    assert not (clone / ".venv").exists()


def test_make_installs_once_and_again_when_a_pin_changes(clone: Path) -> None:
    """With a Python whose venv has a pip that only notes that it was called."""
    fake = (
        'case "$*" in\n'
        f"*'-m venv'*) mkdir -p .venv/bin && ln -s {clone}/fake-python .venv/bin/python;;\n"
        '*"pip install"*) echo "$*" >> calls;;\nesac'
    )
    python = _fake_python(clone, fake)
    first = _make(clone, "install", f"PYTHON={python}")
    assert first.returncode == 0, first.stderr
    assert "Installing into .venv" in first.stdout
    calls = clone / "calls"
    assert calls.read_text().splitlines() == [
        "-m pip install --quiet --constraint constraints.txt --editable .[dev]"
    ]
    second = _make(clone, "install", f"PYTHON={python}")
    assert second.stdout == "" or "Nothing to be done" in second.stdout
    assert len(calls.read_text().splitlines()) == 1
    os.utime(clone / "constraints.txt", (2e9, 2e9))
    _make(clone, "install", f"PYTHON={python}")
    assert len(calls.read_text().splitlines()) == 2


def test_a_failed_installation_is_not_taken_for_done(clone: Path) -> None:
    fake = (
        'case "$*" in\n'
        f"*'-m venv'*) mkdir -p .venv/bin && ln -s {clone}/fake-python .venv/bin/python;;\n"
        '*"pip install"*) echo "ERROR: no such version" >&2; exit 1;;\nesac'
    )
    python = _fake_python(clone, fake)
    for _ in range(2):
        done = _make(clone, "install", f"PYTHON={python}")
        assert done.returncode != 0
        assert "ERROR: no such version" in done.stderr


def test_make_alone_lists_the_targets() -> None:
    done = subprocess.run(["make", "-C", ROOT], capture_output=True, text=True, check=True)
    targets = re.search(r"\.PHONY: help (.*)", MAKEFILE)[1].split()
    inner = {"lint", "unit", "notebooks"}  # parts of test
    assert all(f"make {target} " in done.stdout for target in targets if target not in inner)


def test_the_environments_python_is_recent_enough() -> None:
    assert sys.version_info >= (3, 11)
