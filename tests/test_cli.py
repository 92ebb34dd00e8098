"""The `course` command: quick help, and the small commands in full."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import types
from importlib.metadata import version
from pathlib import Path

import layout
import nbformat
import prose
import pytest
import toy_course
from click.testing import CliRunner, Result
from toy_course import COST, PARAMETERS

from course_utils import exercises
from course_utils.assets import cache
from course_utils.cli import main
from course_utils.runner import doctor, notebooks, opening, readme

HEAVY = {"torch", "numpy", "papermill", "nbformat", "transformers", "matplotlib", "IPython"}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_help_is_quick_because_it_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom course_utils.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_explains_itself(command: str) -> None:
    assert run(command, "--help").exit_code == 0
    assert "..." not in next(line for line in run().output.splitlines() if f"  {command} " in line)


def test_the_version_is_the_packages() -> None:
    assert version("llms-measured") in run("--version").output


# ── claims ──────────────────────────────────────────────────────────────────────────────────────


def _measured(*ids: str) -> dict:
    notebook = toy_course.notebook("1")
    for id in ids:
        entry = {"id": id, "text": f"text {id}", "holds": True, "verdict": "holds"}
        entry |= {"kind": "measured", "values": {}}
        data, metadata = {"text/plain": id}, {"claim": entry}
        output = {"output_type": "display_data", "data": data, "metadata": metadata}
        notebook["cells"][0]["outputs"].append(output)
    return notebook


def test_the_ledger_is_in_the_order_of_the_ids(tmp_path: Path, monkeypatch) -> None:
    toy_course.make(tmp_path, n00_a=_measured("A10", "A2"), n01_b=_measured("A1"))
    monkeypatch.chdir(tmp_path)
    done = run("claims")
    assert done.exit_code == 0
    lines = done.output.splitlines()
    assert [line.split()[0] for line in lines] == ["claim", "A1", "A2", "A10"]
    assert lines[2].split()[:4] == ["A2", "00", "measured", "holds"]


def test_an_id_that_stands_twice_is_flagged(tmp_path: Path, monkeypatch) -> None:
    toy_course.make(tmp_path, n00_a=_measured("A1", "A2"), n01_b=_measured("A1"))
    monkeypatch.chdir(tmp_path)
    done = run("claims")
    assert done.exit_code == 1
    assert "A1 stands 2 times (00_a, 01_b); give each part a suffix" in done.output


def test_the_ledger_of_a_run_is_read_from_its_folder(tmp_path: Path, monkeypatch) -> None:
    toy_course.make(tmp_path, n00_a=_measured("A1"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "artifacts" / "00_a"
    folder.mkdir(parents=True)
    (folder / "00_a.ipynb").write_text(json.dumps(_measured("A7")))
    (folder / "01_b.partial.ipynb").write_text("{cut short")
    done = run("claims", "--from", "artifacts")
    assert done.exit_code == 0
    assert "A7" in done.output
    assert "A1 " not in done.output
    empty = run("claims", "--from", "tests")
    assert empty.exit_code == 2
    assert "no executed notebooks in tests" in empty.output


def test_a_stream_in_latin_1_shows_what_it_can(tmp_path: Path) -> None:
    notebook = _measured("A1")
    notebook["cells"][0]["outputs"][0]["metadata"]["claim"]["text"] = "T → 0 gives \ud83d greedy"
    root = toy_course.make(tmp_path, n00_a=notebook)
    done = toy_course.course(root, "claims", PYTHONIOENCODING="latin-1")
    assert done.returncode == 0
    assert "T ? 0 gives ? greedy" in done.stdout
    assert done.stderr == ""


# ── badges and the cell for Colab ───────────────────────────────────────────────────────────────


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch) -> Path:
    """A course whose notebooks have current openings."""
    root = toy_course.make(
        tmp_path,
        n00_a=toy_course.notebook("# First", COST, PARAMETERS, "1"),
        n01_b=toy_course.notebook("# Second", "# Text only"),
    )
    monkeypatch.chdir(root)
    assert run("badges").exit_code == 0
    return root


def test_badges_make_the_standard_opening(fresh: Path) -> None:
    assert run("badges", "--check").output == ""
    first, second = (notebooks.load(path) for path in notebooks.all_notebooks(fresh))
    assert [notebooks.tags_of(cell) for cell in first["cells"]] == [
        ["badge"],
        [],
        ["cost"],
        ["bootstrap"],
        ["parameters"],
        [],
    ]
    assert "github/owner/name/blob/main/notebooks/00_a.ipynb" in "".join(
        first["cells"][0]["source"]
    )
    assert "bootstrap" in notebooks.tags_of(second["cells"][-1])
    for path in notebooks.all_notebooks(fresh):
        nbformat.validate(nbformat.read(path, as_version=4))


@pytest.mark.parametrize("damage", ["repository", "badge", "bootstrap", "order", "missing"])
def test_a_stale_opening_is_found_and_refreshed_in_place(fresh: Path, damage: str) -> None:
    first, second = notebooks.all_notebooks(fresh)
    untouched = second.read_bytes()
    notebook = json.loads(first.read_text())
    cells = notebook["cells"]
    if damage == "repository":
        toml = (fresh / "pyproject.toml").read_text().replace("owner/name", "other/name")
        (fresh / "pyproject.toml").write_text(toml)
    elif damage == "order":
        cells[0], cells[1] = cells[1], cells[0]
    elif damage == "missing":
        del cells[3]
    else:
        notebooks.tagged(notebook, damage)["source"] += ["\n# by hand"]
    first.write_text(json.dumps(notebook))
    check = run("badges", "--check")
    assert check.exit_code == 1
    assert "00_a.ipynb: stale; run course badges" in check.output
    assert ("01_b" in check.output) is (damage == "repository")
    assert run("badges").exit_code == 0
    assert run("badges", "--check").exit_code == 0
    assert (second.read_bytes() == untouched) is (damage != "repository")
    ids = [cell["id"] for cell in json.loads(first.read_text())["cells"]]
    assert ids == ["badge", "cell-0", "cell-1", "bootstrap", "cell-2", "cell-3"]


def test_boxes_say_what_the_records_say(fresh: Path, monkeypatch) -> None:
    box = {
        "output_type": "display_data",
        "metadata": {"claim": {"id": "Z1", "kind": "measured"}},
        "data": {
            "text/html": "<b>⟨no recorded runs yet⟩</b>",
            "text/plain": "⟨0.5⟩ ⟨no recorded runs yet⟩",
        },
    }
    printed = {"output_type": "stream", "name": "stdout", "text": "⟨no recorded runs yet⟩"}
    first, second = notebooks.all_notebooks(fresh)
    notebook, untouched = json.loads(first.read_text()), second.read_bytes()
    notebook["cells"][-1]["outputs"] = [box, printed]
    first.write_text(json.dumps(notebook))
    assert run("badges", "--check").exit_code == 0  # there is no record of Z1
    found = {"Z1": {"held": 19, "runs": 20, "values": {"a": [1, 2, 3]}}}
    monkeypatch.setattr("course_utils.evidence.records.records", lambda: found)
    assert "00_a.ipynb: stale" in run("badges", "--check").output
    assert run("badges").exit_code == 0
    shown, other = json.loads(first.read_text())["cells"][-1]["outputs"]
    texts = ["".join(text) for text in shown["data"].values()]
    says = "⟨it held in 19 of 20 recorded runs⟩"
    assert texts == [f"<b>{says}</b>", f"⟨0.5⟩ {says}"]
    assert "".join(other["text"]) == printed["text"]  # only boxes are written
    found["Z1"] |= {"held": 10, "runs": 10, "values": {"a": [1, 1, 1]}}
    assert run("badges").exit_code == 0
    assert "⟨it held in 10 of 10 recorded runs, the same in all runs⟩" in first.read_text()
    assert run("badges", "--check").output == ""
    assert second.read_bytes() == untouched


def test_the_readme_table_is_made_from_the_notebooks(fresh: Path) -> None:
    readme_file = fresh / "README.md"
    assert readme.refreshed(fresh) is None
    readme_file.write_text(f"# Title\n\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    notebook = _measured("A10", "A2")
    notebook["cells"].insert(0, toy_course.notebook("# A | B")["cells"][0])
    notebook["metadata"]["course"] = {"seconds": 84}
    (fresh / "notebooks" / "02_c.ipynb").write_text(json.dumps(notebook))
    assert "README.md: stale" in run("badges", "--check").output
    run("badges")
    text = readme_file.read_text()
    assert text.startswith("# Title\n\n<!--")
    assert text.endswith("after\n")
    row = next(line for line in text.splitlines() if "02_c.ipynb" in line)
    assert row.startswith(
        "| [02 A \\| B](notebooks/02_c.ipynb) | 1.4 min | A2 A10 | – | 0 of 2 | [![Open in Colab]"
    )
    assert run("badges", "--check").exit_code == 0


class Pip:
    """Stands in for subprocess.run in the Colab cell: notes the command, installs nothing."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], *, check: bool) -> None:
        assert check, "a failed installation must stop the notebook"
        self.commands.append(command)


def _run_bootstrap(monkeypatch, *, colab: bool, installed: bool, torch: bool = True) -> Pip:
    import importlib.metadata
    import importlib.util

    pip = Pip()
    there = {"course_utils": installed, "torch": torch, "numpy": True}
    versions = {"torch": "2.9.0+cu126", "numpy": "2.0.2"}
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there[name] or None)
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    if colab:
        monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    exec(opening.bootstrap("owner/name"), {})
    return pip


def test_on_colab_the_cell_installs_beside_torch_and_numpy(monkeypatch) -> None:
    pip = _run_bootstrap(monkeypatch, colab=True, installed=False)
    ((python, *command),) = pip.commands
    assert python == sys.executable
    assert command[:3] == ["-m", "pip", "install"]
    assert command[4:] == [
        "llms-measured @ git+https://github.com/owner/name",
        "torch==2.9.0+cu126",
        "numpy==2.0.2",
    ]
    assert "--upgrade" not in command


@pytest.mark.parametrize(("colab", "installed"), [(True, True), (False, False), (False, True)])
def test_elsewhere_or_a_second_time_the_cell_does_nothing(
    monkeypatch, colab: bool, installed: bool
) -> None:
    assert _run_bootstrap(monkeypatch, colab=colab, installed=installed).commands == []


def test_on_colab_without_torch_pip_may_choose_one(monkeypatch) -> None:
    pip = _run_bootstrap(monkeypatch, colab=True, installed=False, torch=False)
    assert pip.commands[0][6:] == ["numpy==2.0.2"]


# ── new ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_new_notebook_has_the_standard_cells(fresh: Path) -> None:
    done = run("new", "17_new_topic")
    path = fresh / "notebooks" / "17_new_topic.ipynb"
    assert done.output.strip() == str(path)
    notebook = notebooks.load(path)
    nbformat.validate(nbformat.read(path, as_version=4))
    assert notebooks.title_of(notebook) == "New topic"
    assert notebooks.parameters_of(notebook) == ["PROFILE", "SEED"]
    for tag in ("badge", "cost", "bootstrap", "parameters"):
        assert notebooks.tagged(notebook, tag), tag
    assert run("badges", "--check").exit_code == 0
    config = ["--config", str(toy_course.ROOT / "pyproject.toml")]
    ours = ["--config", 'lint.isort.known-first-party = ["course_utils"]']
    ruff = [sys.executable, "-m", "ruff"]
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run([*ruff, *check, *config, *ours, str(path)], check=False)
        assert done.returncode == 0


def test_a_new_notebook_is_in_the_form_of_the_house(fresh: Path) -> None:
    run("new", "17_new_topic")
    notebook = notebooks.load(fresh / "notebooks" / "17_new_topic.ipynb")
    assert layout.faults(notebook) == []
    assert prose.homeless(notebook) == []
    texts = [notebooks.source_of(cell) for cell in notebook["cells"]]
    order = ["What you now know", "claims_table()", "## Exercises", "## Further reading"]
    places = [next(i for i, text in enumerate(texts) if part in text) for part in order]
    assert places == sorted(places)


def test_a_new_notebook_runs_once_its_exercises_are_declared(
    fresh: Path, monkeypatch, capsys, shown
) -> None:
    run("new", "17_new_topic")
    exercise = exercises.Exercise(lambda pairs, limit: 0.0, "Add up.", (exercises.Case((1, 2), 0),))
    declared = {"share_below": exercise, "sentences": {"a": exercises.Statement("A.", True, "b")}}
    monkeypatch.setattr(exercises, "_declared", lambda id, table: declared[id.removeprefix("17.")])
    monkeypatch.setattr(exercises, "solution", lambda id: None)  # it reads the source's file
    monkeypatch.setenv("COURSE_STRICT", "1")
    namespace: dict = {}
    for cell in notebooks.code_cells(notebooks.load(fresh / "notebooks" / "17_new_topic.ipynb")):
        exec(notebooks.source_of(cell), namespace)
    said = capsys.readouterr().out
    assert [line[0] for line in said.splitlines()] == ["○", "○", "○", " ", "○"]
    assert any("X1" in str(getattr(output, "data", output)) for output in shown)


@pytest.mark.parametrize(
    ("name", "message"),
    [("topic", "take two digits and words"), ("00_other", "number 00 is taken by 00_a")],
)
def test_a_new_notebook_needs_a_free_name(fresh: Path, name: str, message: str) -> None:
    done = run("new", name)
    assert done.exit_code == 2
    assert message in done.output


@pytest.mark.parametrize("arguments", [("new", "17_new_topic"), ("badges",), ("record",)])
def test_a_read_only_checkout_is_named(
    fresh: Path, monkeypatch, arguments: tuple[str, ...]
) -> None:
    def read_only(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    toml = (fresh / "pyproject.toml").read_text().replace("owner/name", "other/name")
    (fresh / "pyproject.toml").write_text(toml)
    for path in (fresh / "notebooks").glob("01_*"):
        path.unlink()  # it has no cost cell
    monkeypatch.setattr(Path, "write_text", read_only)
    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    done = run(*arguments)
    assert done.exit_code == 2
    place = fresh / "notebooks"
    assert done.output.startswith(f"course: can't write {place}")
    assert "(Permission denied); make it writable, or work in a copy" in done.output
    assert done.output.count("\n") == 1


# ── fetch and doctor ────────────────────────────────────────────────────────────────────────────


def test_an_unknown_asset_lists_the_choices() -> None:
    done = run("fetch", "smolm")
    assert done.exit_code == 2
    assert done.output.startswith("course: there is no asset 'smolm'")
    assert "smollm2" in done.output


def _findings() -> dict[str, doctor.Finding]:
    return {finding.subject: finding for finding in doctor.examine(toy_course.ROOT)}


def test_the_doctor_finds_a_missing_cache(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "empty"))
    finding = _findings()["assets"]
    assert "smollm2" in finding.found
    assert finding.remedy == "course fetch"


def test_the_doctor_finds_other_versions_and_a_full_disk(monkeypatch) -> None:
    pinned = doctor.pins(toy_course.ROOT)
    monkeypatch.setattr(doctor, "pins", lambda root: {**pinned, "torch": "9.9", "click": "9.9"})
    monkeypatch.setattr(doctor, "NEEDED_FREE", 1e18)
    findings = _findings()
    assert "torch is 2." in findings["packages"].found
    assert "tested with 9.9" in findings["packages"].found
    assert "constraints.txt" in findings["packages"].remedy
    assert "set COURSE_CACHE" in findings["disk"].remedy


def test_the_doctor_finds_a_kernel_that_shadows_ours(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "kernels" / "python3"
    folder.mkdir(parents=True)
    spec = {"argv": ["/opt/other/python"], "display_name": "Other", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    finding = _findings()["kernel"]
    assert "python3 means /opt/other/python" in finding.found
    assert "make lab" in finding.remedy


def test_the_doctor_survives_what_is_broken(monkeypatch) -> None:
    def broken(*arguments: object) -> None:
        raise OSError("no such disk")

    monkeypatch.setattr(cache, "problems", broken)
    findings = _findings()
    assert findings["assets"].found == "OSError: no such disk"
    assert findings["assets"].remedy == "run make course"
    assert "disk" in findings


def test_the_doctor_and_the_commands_see_that_another_checkouts_code_runs(
    tmp_path: Path, monkeypatch
) -> None:
    assert _findings()["code"].remedy == ""
    toy_course.make(tmp_path)
    (tmp_path / "course_utils").mkdir()
    finding = next(f for f in doctor.examine(tmp_path) if f.subject == "code")
    assert f"not that of this checkout in {tmp_path}" in finding.found
    assert "make install" in finding.remedy
    monkeypatch.chdir(tmp_path)
    done = run("claims")
    assert done.exit_code == 2
    assert done.output.strip() == f"course: {finding.found}; {finding.remedy}"


def test_the_doctor_knows_the_remedy_for_a_user_without_a_home(monkeypatch) -> None:
    for name in ("COURSE_CACHE", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    findings = _findings()
    for subject in ("assets", "disk"):
        assert findings[subject].remedy.startswith("set COURSE_CACHE")
        assert "no home folder" in findings[subject].found


def test_the_doctor_finds_that_there_is_no_home(monkeypatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    findings = _findings()
    assert findings["home"].found.startswith("none: HOME is not set")
    for subject in ("home", "kernel"):
        assert findings[subject].remedy == "set HOME to a folder that you may write to"


def test_the_doctor_finds_a_home_that_cannot_be_written(monkeypatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    finding = _findings()["home"]
    assert finding.found == f"{Path.home()} can't be written"
    assert "set HOME" in finding.remedy


def test_a_problem_makes_the_doctors_status_1(monkeypatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda root: [doctor.Finding("disk", "full", "free it")])
    done = run("doctor")
    assert done.exit_code == 1
    assert "remedy: free it" in done.output
