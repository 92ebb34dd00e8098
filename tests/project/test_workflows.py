"""The GitHub workflows: clean under actionlint, and what they promise."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import toy_course
import yaml

FOLDER = toy_course.ROOT / ".github" / "workflows"
ACTIONLINT = Path(sys.executable).with_name("actionlint")


def _load(name: str) -> dict:
    # YAML 1.1 reads the key `on` as true.
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def _steps(job: dict) -> str:
    return "\n".join(step.get("run", "") for step in job["steps"])


def _lint(folder: Path) -> subprocess.CompletedProcess[str]:
    files = sorted(map(str, (folder / ".github" / "workflows").glob("*.yml")))
    assert files
    return subprocess.run([ACTIONLINT, *files], cwd=folder, capture_output=True, text=True)


def test_actionlint_is_content() -> None:
    done = _lint(toy_course.ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("gpu.yml", "needs.list.outputs.notebooks)", "needs.lists.outputs.notebooks)"),
        ("gpu.yml", "17 2 * * *", "17 25 * * *"),
        ("cpu.yml", "runs-on:", "run-on:"),
        ("cpu.yml", "actions/checkout@v5", "actions/checkout@v1"),
    ],
)
def test_actionlint_sees_a_mistake(tmp_path: Path, name: str, right: str, wrong: str) -> None:
    shutil.copytree(toy_course.ROOT / ".github", tmp_path / ".github")
    path = tmp_path / ".github" / "workflows" / name
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong))
    assert _lint(tmp_path).returncode == 1


def test_the_cpu_workflow_runs_what_a_developer_runs() -> None:
    workflow = _load("cpu.yml")
    assert {"push", "pull_request"} <= set(workflow[True])
    job = workflow["jobs"]["test"]
    assert "make test" in _steps(job)
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13", "3.14"]


def test_the_gpu_workflow_keeps_every_notebooks_output_every_night() -> None:
    workflow = _load("gpu.yml")
    assert {"schedule", "workflow_dispatch"} <= set(workflow[True])
    job = workflow["jobs"]["run"]
    assert "self-hosted" in job["runs-on"]
    assert job["strategy"]["fail-fast"] is False
    command = re.search(r"course run .*", _steps(job))[0]
    assert "--profile gpu" in command
    out = re.search(r'--out "runs/\$NOTEBOOK"', command)
    assert out, "the folder that is uploaded"
    upload = next(step for step in job["steps"] if "upload-artifact" in step.get("uses", ""))
    assert upload["if"] == "always()"
    assert upload["with"]["path"] == "runs/${{ matrix.notebook }}"


def _list(tmp_path: Path, wanted: str) -> subprocess.CompletedProcess[str]:
    """Run the script of the list job, as its runner would."""
    step = next(s for s in _load("gpu.yml")["jobs"]["list"]["steps"] if s.get("id") == "list")
    assert step["shell"] == "python"
    environment = {"WANTED": wanted, "GITHUB_OUTPUT": str(tmp_path / "output")}
    return subprocess.run(
        [sys.executable, "-c", step["run"]],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("wanted", "names"),
    [("", ["00_a", "09_b", "10_c"]), ("09", ["09_b"]), ("10_c 00", ["00_a", "10_c"])],
)
def test_the_matrix_is_made_from_the_notebooks(
    tmp_path: Path, wanted: str, names: list[str]
) -> None:
    one = toy_course.notebook("1")
    toy_course.make(tmp_path, n00_a=one, n09_b=one, n10_c=one)
    done = _list(tmp_path, wanted)
    assert done.returncode == 0, done.stderr
    key, value = (tmp_path / "output").read_text().strip().split("=", 1)
    assert key == "notebooks"
    assert json.loads(value) == names


def test_an_unknown_notebook_fails_the_list(tmp_path: Path) -> None:
    toy_course.make(tmp_path, n00_a=toy_course.notebook("1"))
    done = _list(tmp_path, "42")
    assert done.returncode == 1
    assert "no notebook '42'; there are 00_a" in done.stderr
