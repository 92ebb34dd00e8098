"""Records as the ledger, the README and the web site show them; and where there are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import toy_course

from course_utils.runner import display, ledger, ledger_page, notebooks, readme, records
from course_utils.runner.fingerprint import fingerprint

CLAIM = {
    "kind": "measured",
    "id": "A1",
    "text": "Heads are sharp",
    "notes": "heads attend",
    "verdict": "holds",
    "scope": "6 heads",
    "holds": True,
    "values": {"favourite": 0.5},
    "null": {"null: random weights": {"measured": 0.125}},
}
TIME = CLAIM | {"id": "A2", "kind": "here", "text": "It is quick", "notes": "", "null": {}}


def recorded(id: str, kind: str, held: int, verdict: str = "holds", runs: int = 10) -> dict:
    return {id: {"kind": kind, "verdict": verdict, "held": held, "runs": runs, "outcomes": []}}


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A course of two notebooks with a claim of each kind."""
    first = toy_course.notebook("# A", "1")
    for claim in (CLAIM, TIME):
        first["cells"][1]["outputs"].append(
            toy_course.data(text_plain="") | {"metadata": {"claim": claim}}
        )
    return toy_course.make(tmp_path / "toy", n00_a=first, n01_b=toy_course.notebook("# B", "2"))


def store(root: Path, claims: dict, code: str = "") -> None:
    path = root / "notebooks" / "00_a.ipynb"
    file = records.file_of(root, path.stem)
    file.parent.mkdir(parents=True, exist_ok=True)
    code = code or fingerprint(notebooks.load(path), path.stem)
    file.write_text(json.dumps({"code": code, "claims": claims}))


def cells(root: Path) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.split("|")] for line in readme.table(root).splitlines()[2:]
    ]


def test_without_records_everything_says_so(toy: Path) -> None:
    assert records.by_claim(toy) == {}
    assert [claim["record"] for claim in ledger.gather(toy)] == [None, None]
    assert [row[4] for row in cells(toy)] == ["–", "–"]
    assert "- held / runs: –" in ledger_page.page(toy)
    records.file_of(toy, "00_a").parent.mkdir(parents=True)  # an empty folder is none, too
    assert records.by_claim(toy) == {}


def test_the_readme_counts_measured_claims_alone(toy: Path) -> None:
    undecided = recorded("A4", "measured", 4, "undecided here")
    store(
        toy,
        recorded("A1", "measured", 10)
        | recorded("A5", "measured", 9)
        | recorded("A2", "here", 3)
        | recorded("A3", "follows", 10)
        | undecided,
    )
    assert [row[4] for row in cells(toy)] == ["19 / 20", "–"]


def test_where_no_claim_is_a_measurement_there_is_no_total(toy: Path) -> None:
    store(toy, recorded("A2", "here", 3))
    assert [row[4] for row in cells(toy)] == ["–", "–"]


def test_a_record_of_other_code_is_called_old(toy: Path) -> None:
    store(toy, recorded("A1", "measured", 10), code="another")
    assert [row[4] for row in cells(toy)] == ["10 / 10, old", "–"]
    first, _ = ledger.gather(toy)
    assert records.held_of_runs(first["record"]) == "10 / 10, old"
    store(toy, recorded("A1", "measured", 10))
    assert [row[4] for row in cells(toy)] == ["10 / 10", "–"]


def test_the_ledger_shows_kind_verdict_scope_null_and_record(toy: Path, capsys) -> None:
    store(toy, recorded("A1", "measured", 9) | recorded("A2", "here", 2))
    display.console().print(display.claims_table(ledger.gather(toy)))
    said = capsys.readouterr().out.splitlines()
    first = said[1].split()
    assert first[:7] == ["A1", "00", "measured", "holds", "9", "/", "10"]
    shown = [line.strip() for line in said]
    for line in ("course notes say “heads attend”", "favourite 0.5", "scope: 6 heads"):
        assert line in shown
    assert "null: random weights · 0.125" in shown
    assert any(line.startswith("A2     00  here") and "2 / 10" in line for line in said)


def test_the_page_has_a_section_a_notebook_and_a_paragraph_a_claim(toy: Path) -> None:
    store(toy, recorded("A1", "measured", 9))
    text = ledger_page.page(toy)
    assert "## [00\\_a](notebooks/00_a.ipynb)" in text
    assert "01" not in text
    for line in (
        "**A1** Heads are sharp",
        "- kind: measured",
        "- course notes say: “heads attend”",
        "- verdict: holds",
        "- held / runs: 9 / 10",
        "- null: random weights: 0.125",
        "- scope: 6 heads",
    ):
        assert line in text.splitlines()


def test_the_page_of_a_copy_reads_the_records_of_the_checkout(toy: Path, tmp_path: Path) -> None:
    store(toy, recorded("A1", "measured", 9))
    copy = toy_course.make(tmp_path / "copy")
    (copy / "notebooks" / "00_a.ipynb").write_bytes((toy / "notebooks" / "00_a.ipynb").read_bytes())
    assert "9 / 10" not in ledger_page.page(copy)
    assert "- held / runs: 9 / 10" in ledger_page.page(copy, toy)


@pytest.mark.parametrize(
    ("held", "runs", "good"),
    [(10, 10, True), (9, 10, False), (19, 20, True), (18, 20, False), (20, 20, True), (4, 4, True)],
)
def test_ten_of_ten_or_nineteen_of_twenty(held, runs, good):
    assert records.admitted({"held": held, "runs": runs}) is good
