"""The runner's parts: names, parameters, fingerprints, results, report, recording, running."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import toy_course
from toy_course import COST, PARAMETERS

from course_utils.runner import (
    canonical,
    display,
    execution,
    ledger,
    notebooks,
    packing,
    record,
    report,
    results,
    run,
    units,
)

# ── names and parameters ────────────────────────────────────────────────────────────────────────


@pytest.fixture
def three(tmp_path: Path) -> Path:
    return toy_course.make(
        tmp_path,
        n00_how=toy_course.notebook("# How", PARAMETERS),
        n09_decoding=toy_course.notebook(("parameters", "PROFILE = 'cpu'\nMODEL: str = 'x'")),
        n10_prompting=toy_course.notebook("1"),
    )


@pytest.mark.parametrize("name", ["09", "9", "09_decoding", "09_dec", "09_decoding.ipynb"])
def test_a_notebook_has_many_names(three: Path, name: str) -> None:
    assert [path.stem for path in notebooks.select([name], three)] == ["09_decoding"]


def test_no_names_mean_all_and_a_repeated_one_counts_once(three: Path) -> None:
    assert [p.stem for p in notebooks.select([], three)] == [
        "00_how",
        "09_decoding",
        "10_prompting",
    ]
    assert len(notebooks.select(["9", "09"], three)) == 1


def test_a_path_means_the_notebook_wherever_it_lies(three: Path, tmp_path_factory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "own.ipynb"
    elsewhere.write_text("{}")
    assert notebooks.select([str(elsewhere)], three) == [elsewhere]
    twin = elsewhere.with_name("00_how.ipynb")
    twin.write_text("{}")
    with pytest.raises(notebooks.UsageError, match="two different notebooks are called '00_how'"):
        notebooks.select([str(twin), "00"], three)


@pytest.mark.parametrize("name", ["42", "09_encoding", "nowhere/x.ipynb", ""])
def test_an_unknown_name_lists_the_choices(three: Path, name: str) -> None:
    with pytest.raises(notebooks.UsageError, match="Choices: 00_how, 09_decoding, 10_prompting"):
        notebooks.select([name], three)


def test_an_unknown_name_suggests_the_nearest(three: Path) -> None:
    with pytest.raises(notebooks.UsageError, match="Did you mean '09_decoding'"):
        notebooks.select(["09_encoding"], three)


def test_parameters_go_to_the_notebooks_that_declare_them(three: Path) -> None:
    loaded = {path.stem: notebooks.load(path) for path in notebooks.select([], three)}
    assert notebooks.parameters_of(loaded["09_decoding"]) == ["PROFILE", "MODEL"]
    dealt = notebooks.parameters_for(loaded, {"SEED": 3, "PROFILE": "gpu"})
    assert dealt == {
        "00_how": {"SEED": 3, "PROFILE": "gpu"},
        "09_decoding": {"PROFILE": "gpu"},
        "10_prompting": {},
    }
    with pytest.raises(notebooks.UsageError, match=r"no parameter 'MODELL'. Did you mean 'MODEL'"):
        notebooks.parameters_for(loaded, {"MODELL": 1})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("3", 3), ("0.5", 0.5), ("True", True), ("None", None), ("a/b", "a/b")],
        *[("[1, 2]", [1, 2]), ("(1, (2,))", (1, (2,))), ("{'a': [None]}", {"a": [None]})],
        # what JSON can't hold, and what is no literal, is the text
        *[(text, text) for text in ("...", "1j", "b'x'", "{1, 2}", "[...]", "{1: 2}", "{[]: 1}")],
        *[(text, text) for text in ("x" * 3, "[" * 1000, "", "-", "0o9")],
    ],
)
def test_parameter_values_are_literals_or_text(text: str, value: object) -> None:
    assert notebooks.parse_value(text) == value


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cells": 3}', '{"worksheets": []}'])
def test_what_is_no_notebook_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.ipynb").write_text(text)
    with pytest.raises(notebooks.UsageError, match=r"x\.ipynb .*Restore it from version control"):
        notebooks.load(tmp_path / "x.ipynb")


def test_outside_a_checkout_one_sentence_says_so(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(notebooks, "__file__", str(tmp_path / "site-packages" / "x.py"))
    with pytest.raises(notebooks.UsageError, match="Change into a checkout"):
        notebooks.find_root(tmp_path)


def test_a_parameter_of_dots_reaches_the_run(tmp_path: Path) -> None:
    root = toy_course.make(tmp_path, n00_a=toy_course.notebook(PARAMETERS))
    plan = run._plan([], "cpu", {"SEED": notebooks.parse_value("...")}, str(tmp_path), root)
    assert plan[0].parameters == {"PROFILE": "cpu", "SEED": "..."}
    json.dumps(plan[0].parameters)


def test_text_that_is_no_text_is_packed_with_all_the_rest() -> None:
    when = datetime(2025, 1, 2, tzinfo=timezone(timedelta(hours=1)))
    message = {"text": "bad: \ud83d ok 😀 →", "byte": "\udcff", "when": when}
    packed = packing.pack(message)
    assert json.loads(packed.replace(b"\xff", b"")) == {
        "text": "bad: � ok 😀 →",
        "byte": "",
        "when": when.isoformat(),
    }


def test_the_worker_needs_no_module_that_windows_lacks(monkeypatch) -> None:
    code = (
        "import sys\nsys.modules['resource'] = None\n"
        "from course_utils.runner import worker\nprint(worker._peak_mb())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0.0\n"


# ── results ─────────────────────────────────────────────────────────────────────────────────────


def test_a_failure_is_located_in_the_source_whatever_papermill_added() -> None:
    executed = toy_course.notebook(
        ("papermill-error-cell-tag", "# An exception"),
        PARAMETERS,
        ("injected-parameters", "PROFILE = 'gpu'"),
        "# Text",
        ("papermill-error-cell-tag", "# Here"),
        "1/0",
    )
    executed["cells"][-1]["outputs"] = [toy_course.error()]
    failure = results.locate_failure(executed)
    assert (failure.cell, failure.number, failure.source) == (2, 2, "1/0")
    assert failure.error == "ValueError: no"
    assert failure.place() == "In [2]"


def test_a_stopped_cell_is_found_under_papermills_banner() -> None:
    """As when a cell raised and its error did not arrive: no output has it."""
    executed = toy_course.notebook(
        (notebooks.ERROR_TAG, "# An exception"), "1", "2", (notebooks.ERROR_TAG, "# Here"), "3"
    )
    results.mark_stopped_cell(executed, 2, "WorkerFailed", "")
    failure = results.locate_failure(executed)
    assert (failure.number, failure.source) == (3, "3")
    assert failure.error == "WorkerFailed: it raised an error whose text did not arrive"


CLAIMS = (
    "from course_utils.claims import follows\n"
    "follows('A1', 'It is 1', lambda n: n == 1, 1, because='it is counted')",
    "follows('A2', 'It is 2', lambda n: n == 2, 2, because='it is counted')",
    "'A3 stood here'",
)


def test_a_failed_claim_stands_in_the_ledger() -> None:
    notebook = toy_course.notebook("1", "2")
    entry = {"id": "I1", "text": "so", "holds": True, "verdict": "holds", "values": {"k": 1}}
    notebook["cells"][0]["outputs"] = [
        {"output_type": "display_data", "data": {}, "metadata": {"claim": entry}}
    ]
    notebook["cells"][1]["outputs"] = [toy_course.error("ClaimFailed", "I2 does not hold: so")]
    good, bad = ledger.claims_of(notebook, "09")
    assert good == {"notebook": "09", **entry}
    assert (bad["id"], bad["holds"]) == ("I2", False)
    assert results.Result("09", "failed", claims=[good, bad]).held() == "1/2"


def test_claims_that_were_not_reached_count_as_not_held(tmp_path: Path) -> None:
    cells = ("# T", PARAMETERS, CLAIMS[0], "1 / (SEED - 1)", *CLAIMS[1:])
    notebook = toy_course.notebook(*cells)
    for cell, id in zip(notebook["cells"][4:], ("A2", "A3"), strict=True):
        entry = {"id": id, "text": id, "kind": "measured", "verdict": "holds", "values": {"k": 1}}
        output = toy_course.data() | {"metadata": {"claim": entry | {"holds": True, "free": True}}}
        cell["outputs"] = [output]
    root = toy_course.make(tmp_path, n00_a=notebook)

    def claims(seed: int) -> dict[str, tuple[bool, str]]:
        assert toy_course.course(root, "run", "-p", "SEED", str(seed)).returncode == (seed == 1)
        found = json.loads((root / "runs" / "cpu" / "claims.json").read_text())["claims"]
        return {claim["id"]: (claim["holds"], claim["verdict"]) for claim in found}

    assert claims(0) == dict.fromkeys(("A1", "A2"), (True, "follows"))  # A3 is not stated any more
    stopped = claims(1)
    assert stopped["A1"] == (True, "follows")
    assert stopped["A2"] == stopped["A3"] == (False, "not reached")


def test_the_report_shows_everything_and_runs_nothing() -> None:
    claim = {
        "notebook": "09",
        "id": "I1",
        "text": "<script>alert(1)</script>",
        "holds": True,
        "verdict": "holds if",
        "condition": "T > 0",
        "values": {"low_entropy": 0.12345, "names": ["<b>", 2]},
    }
    failure = results.Failure("ValueError: <x>", 3, 2, "x = '<y>'", "\x1b[31mred\x1b[0m <z>")
    outcomes = [
        results.Result("09", "ok", 84.0, 2100.0, [claim], 1),
        results.Result("10", "failed", 5.0, 80.0, failure=failure),
        results.Result("11", "not run"),
    ]
    about = {"profile": "cpu", "parameters": {"SEED": 1}, "machine": "m", "finished": "now"}
    text = report.render(outcomes, about)
    for part in ("2 of 3 notebooks did not finish", "1.4 min", "2.1 GB", "In [2]", "cell 3"):
        assert part in text
    for part in ("ValueError: &lt;x&gt;", "holds if T &gt; 0", "low entropy <b>0.123</b>"):
        assert part in text
    assert 'class="ansi-red-fg">red</span> &lt;z&gt;' in text
    assert not any(raw in text for raw in ("<script", "'<y>'", "<z>", "<x>", "http://", "https://"))


def _claim(id: str, holds: bool, kind: str) -> dict:
    about = {"notebook": "01", "text": f"text {id}", "verdict": "holds", "values": {"t": 0.5}}
    return about | {"id": id, "holds": holds, "kind": kind, "free": kind == "here"}


def test_a_claim_about_time_is_information_whatever_came_out(capsys) -> None:
    fast, slow, true = (
        _claim("A5", True, "here"),
        _claim("A7", False, "here"),
        _claim("A6", True, "measured"),
    )
    assert ledger.held([fast, slow, true]) == "1/1, timing 1/2"
    assert ledger.held([slow]) == "timing 0/1"
    assert ledger.held([]) == "–"
    assert ledger.held([_claim("A8", False, "measured")]) == "0/1"
    outcome = results.Result("01", "ok", 1.0, 2.0, [fast, slow, true])
    assert outcome.good
    about = {"profile": "cpu", "parameters": {}, "machine": "m", "finished": "now"}
    text = report.render([outcome], about)
    assert "All 1 notebooks ran, claims held: 1/1, timing 1/2" in text
    assert '<td class="">not on this machine; elsewhere: holds</td>' in text
    assert text.count("<td>here</td>") == 2
    assert text.count('<td class="good">holds</td>') == 2
    assert 'class="bad"' not in text
    display.console().print(display.claims_table([slow]))
    said = capsys.readouterr().out
    assert all(part in said for part in ("here", "not on this machine;", "elsewhere: holds"))


def test_claims_json_has_results_and_ledger() -> None:
    failure = results.Failure("e", 0, 1, "1", "\x1b[31mred\x1b[0m")
    outcome = results.Result("09", "failed", 1.0, 2.0, [{"id": "I1"}], 0, failure)
    record_ = json.loads(results.as_json([outcome], {"profile": "cpu"}))
    assert record_["profile"] == "cpu"
    assert record_["claims"] == [{"id": "I1"}]
    assert record_["notebooks"][0]["failure"]["traceback"] == "red"


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.2, "7 s"), (59.4, "59 s"), (84, "1.4 min"), (5400, "1.5 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text


def test_kernels_at_once_share_the_cores(monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    assert execution.kernel_environment(2)["OMP_NUM_THREADS"] == "2"
    assert execution.kernel_environment(9)["MKL_NUM_THREADS"] == "1"
    assert execution.kernel_environment(1)["OMP_NUM_THREADS"] == "4"
    assert "MPLBACKEND" not in execution.kernel_environment(1)


def test_threads_that_wait_sleep_unless_told_otherwise(monkeypatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert execution.kernel_environment(1)["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert execution.kernel_environment(1)["OMP_WAIT_POLICY"] == "active"


# ── recording ───────────────────────────────────────────────────────────────────────────────────


def test_the_recorded_form_drops_what_changes_by_itself() -> None:
    source = toy_course.notebook("# T", COST, "1", "", "2")
    source["metadata"] = {
        "kernelspec": {"name": "elsewhere"},
        "widgets": {"state": 1},
        "language_info": {"version": "3.99"},
        "course": {"machine": "M", "seconds": 84.0, "peak_mb": 2100, "download_mb": 98},
    }
    first, _, last = source["cells"][2:]
    first["metadata"] |= {"execution": {"iopub": 1}, "papermill": {}, "tags": []}
    first["outputs"] = [toy_course.stream("warning", "stderr"), toy_course.stream("ok")]
    last["outputs"] = [
        {**toy_course.data(text_plain="7"), "output_type": "execute_result", "execution_count": 44},
        {"output_type": "display_data", "data": {canonical.WIDGET: {}}, "metadata": {}},
    ]
    last["id"] = source["cells"][0]["id"]
    text = canonical.canonical(source)
    result = json.loads(text)
    assert canonical.canonical(result) == text
    assert text.endswith("}\n")
    assert '\n "cells"' in text
    assert "3.99" not in text
    assert "elsewhere" not in text
    assert "warning" not in text
    assert "widget" not in text
    assert [cell.get("execution_count") for cell in result["cells"]] == [None, None, 1, None, 2]
    assert result["cells"][4]["outputs"][0]["execution_count"] == 2
    assert len({cell["id"] for cell in result["cells"]}) == 5
    assert result["cells"][2]["metadata"] == {}
    cost = "".join(result["cells"][1]["source"])
    assert cost == (
        "**Cost** measured on M, profile cpu: 1.4 min · peak memory 2.1 GB · "
        "one-time download 98 MB"
    )


def test_a_recording_needs_a_cost_cell(tmp_path: Path) -> None:
    root = toy_course.make(tmp_path, n00_a=toy_course.notebook("1"))
    with pytest.raises(notebooks.UsageError, match="no markdown cell tagged 'cost'"):
        record.record([], root=root)


WOBBLY = (
    "import random, time\n"
    "from course_utils.claims import here, measured\n"
    "here('L1', 'Time passes', True, now=time.time())\n"
    "print('spread', measured(random.random()))"
)
FIGURE = (
    "import random\nimport matplotlib.pyplot as plt\n"
    "_ = plt.figure(figsize=(1, 1)).gca().plot([random.random(), 2])"
)
ASSET = "import os\nwith open(os.environ['COURSE_ASSET_LOG'], 'a') as f: _ = f.write('cmudict\\n')"


def test_recording_twice_leaves_no_difference(tmp_path: Path, capsys) -> None:
    root = toy_course.make(
        tmp_path,
        n00_wobbly=toy_course.notebook("# T", COST, PARAMETERS, WOBBLY, FIGURE, ASSET),
        n01_flaky=toy_course.notebook("# T", COST, "import time\nprint(time.time_ns())"),
        n02_noisy=toy_course.notebook("# T", COST, "import sys\nprint('oh', file=sys.stderr)"),
    )
    wobbly, flaky, noisy = notebooks.all_notebooks(root)
    noisy_before = noisy.read_bytes()
    assert record.record([], root=root) == 1
    said = capsys.readouterr().out
    assert "00_wobbly: recorded: first recording" in said
    assert "02_noisy: In [1] wrote to standard error" in said
    assert noisy.read_bytes() == noisy_before
    first, flaky_first = wobbly.read_bytes(), flaky.read_bytes()
    stored = json.loads(first)
    assert stored["metadata"]["course"]["assets"] == ["cmudict"]
    assert "".join(stored["cells"][1]["source"]).endswith("one-time download 1 MB")
    assert "injected" not in first.decode()
    assert record.record(["00", "01"], root=root) == 0
    said = capsys.readouterr().out
    assert "00_wobbly: unchanged" in said
    assert "01_flaky: recorded: the output of In [1] differs although no code did" in said
    assert wobbly.read_bytes() == first
    assert flaky.read_bytes() != flaky_first


def test_a_changed_code_cell_or_format_is_recorded_anew() -> None:
    about = {"fingerprint": "a"}
    stored, fresh = toy_course.notebook("1"), toy_course.notebook("1")
    stored["metadata"]["course"], fresh["metadata"]["course"] = about, {"fingerprint": "b"}
    assert "code of the notebook or package changed" in record.changes(stored, fresh, {})
    fresh["metadata"]["course"] = about
    assert record.changes(stored, fresh, {}) == ""


# ── running ─────────────────────────────────────────────────────────────────────────────────────

THREADS = "import os\nprint('threads', os.environ.get('OMP_NUM_THREADS'))"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A course after one good run of two notebooks at once, and what the run printed."""
    root = toy_course.make(
        tmp_path_factory.mktemp("good"),
        n00_big=toy_course.notebook(
            "# Big", PARAMETERS, "block = bytearray(300_000_000)", "print(PROFILE, SEED)", THREADS
        ),
        n01_claims=toy_course.notebook(
            "# Claims", PARAMETERS, WOBBLY, ("nbval-ignore-output", "print('live')")
        ),
    )
    # A kernel of the same name that the user has: it must not be the one that runs.
    shadow = root / "share" / "kernels" / "python3"
    shadow.mkdir(parents=True)
    spec = {"argv": ["/bin/false"], "display_name": "Python 3", "language": "python"}
    (shadow / "kernel.json").write_text(json.dumps(spec))
    done = toy_course.course(
        root,
        *("run", "--jobs", "2", "-p", "SEED", "7"),
        OMP_NUM_THREADS="2",
        JUPYTER_PATH=str(root / "share"),
        PYTHONPATH="",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return root, done.stdout


def test_a_run_leaves_notebooks_claims_and_report(finished) -> None:
    root, said = finished
    names = sorted(path.name for path in (root / "runs" / "cpu").iterdir())
    assert names == ["00_big.ipynb", "01_claims.ipynb", "claims.json", "report.html"]
    record_ = json.loads((root / "runs" / "cpu" / "claims.json").read_text())
    assert record_["parameters"] == {"SEED": 7}
    assert [claim["id"] for claim in record_["claims"]] == ["L1"]
    assert [entry["exempt"] for entry in record_["notebooks"]] == [0, 1]
    report_ = (root / "runs" / "cpu" / "report.html").read_text()
    assert "All 2 notebooks ran, claims held: timing 1/1" in report_
    assert "Report: runs/cpu/report.html" in said
    assert "00_big: ok" in said


def test_parameters_and_threads_reach_the_kernel(finished) -> None:
    root, _ = finished
    said = toy_course.printed(toy_course.outputs(root, "00_big"))
    assert said == "cpu 7\nthreads 1\n"


def test_peak_memory_is_the_kernels(finished) -> None:
    root, _ = finished
    big, small = json.loads((root / "runs" / "cpu" / "claims.json").read_text())["notebooks"]
    assert 300 < big["peak_mb"] < 500  # the block, and a kernel that imported nothing
    assert small["peak_mb"] < 300


def test_resume_keeps_what_is_still_valid(finished) -> None:
    root, _ = finished
    big, claims = (root / "runs" / "cpu" / f"{name}.ipynb" for name in ("00_big", "01_claims"))
    before = big.read_bytes()
    edited = json.loads((root / "notebooks" / "01_claims.ipynb").read_text())
    edited["cells"][-1]["source"] = ["print('edited')"]
    (root / "notebooks" / "01_claims.ipynb").write_text(json.dumps(edited))
    done = toy_course.course(root, "run", "--resume", "-p", "SEED", "7")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok (kept)" in done.stdout
    assert big.read_bytes() == before
    assert "edited" in toy_course.printed(json.loads(claims.read_text()))
    assert "[1/1] 01_claims" in done.stdout
    record_ = json.loads((root / "runs" / "cpu" / "claims.json").read_text())
    assert [entry["status"] for entry in record_["notebooks"]] == ["kept", "ok"]


STORE = """
from pathlib import Path
FOLDER = Path({folder!r})
class Handler:
    def read(self, path): return (FOLDER / path.split('://')[1]).read_text()
    def write(self, text, path):
        target = FOLDER / path.split('://')[1]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    def pretty_path(self, path): return path
handler = Handler()
"""


def test_a_remote_folder_is_papermills_business(tmp_path: Path) -> None:
    """A store that papermill learns of as it learns of any: by an entry point of a package."""
    root = toy_course.make(tmp_path / "c", n00_a=toy_course.notebook(PARAMETERS, "print('hi')"))
    package = tmp_path / "packages"
    (package / "toystore-1.dist-info").mkdir(parents=True)
    (package / "toystore.py").write_text(STORE.format(folder=str(tmp_path / "bucket")))
    (package / "toystore-1.dist-info" / "METADATA").write_text("Name: toystore\nVersion: 1\n")
    (package / "toystore-1.dist-info" / "entry_points.txt").write_text(
        "[papermill.io]\ntoy:// = toystore:handler\n"
    )
    out = "toy://bucket/runs"
    done = toy_course.course(root, "run", "--out", out, PYTHONPATH=str(package))
    assert done.returncode == 0, done.stdout + done.stderr
    made = sorted(path.name for path in (tmp_path / "bucket" / "bucket" / "runs").iterdir())
    assert made == ["00_a.ipynb", "claims.json", "report.html"]
    assert not (root / "runs").exists()
    again = toy_course.course(root, "run", "--out", out, "--resume", PYTHONPATH=str(package))
    assert "ok (kept)" in again.stdout
