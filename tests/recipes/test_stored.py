"""Rows on the disk and back."""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple

import pytest

from course_utils.assets.catalogue import AssetError
from course_utils.recipes import RECIPES, stored


class Row(NamedTuple):
    kind: str
    rate: float
    seed: int
    real: bool


ROWS = [Row("lora", 1e-5, 0, True), Row("full", 0.123456789, 1, False)]


def test_rows_go_round(tmp_path):
    stored.write_rows(tmp_path / "new", ROWS, {"minutes": 3})
    again = stored.read_rows(tmp_path / "new", Row)
    assert again == [ROWS[0], Row("full", 0.12346, 1, False)]
    assert stored.read_facts(tmp_path / "new") == {"minutes": 3}
    assert len((tmp_path / "new" / stored.RUNS).read_text(encoding="utf-8").splitlines()) == 2


def test_other_columns_are_refused(tmp_path):
    class Other(NamedTuple):
        kind: str

    stored.write_rows(tmp_path, ROWS, {})
    with pytest.raises(ValueError, match="has the columns"):
        stored.read_rows(tmp_path, Other)


def test_an_empty_grid_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no row to store"):
        stored.write_rows(tmp_path, [], {})


GRIDS = [
    "distilled-students",
    "how-llms-are-built",
    "lora-sweep",
    "prompt-grid",
    "pruned-minilm",
    "qat-minilm",
    "qat-on-a-task",
    "smollm2-adapters",
    "transfer-grid",
]


@pytest.mark.parametrize("name", GRIDS)
def test_a_missing_grid_says_how_to_make_it(name, tmp_path, monkeypatch):
    monkeypatch.setattr("course_utils.recipes.stored.data_folder", lambda: tmp_path)
    with pytest.raises(AssetError, match=f"course train {name}`"):
        import_module(RECIPES[name]).runs()


class Timed(NamedTuple):
    rate: float
    seconds: float


def test_a_grid_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("course_utils.recipes.stored.data_folder", lambda: tmp_path)
    first = stored.Grid("sweep", Timed, {"seed": 3})
    first.add(Timed(0.1, 30.0), Timed(0.2, 30.0))
    again = stored.Grid("sweep", Timed, {"seed": 3})
    seen = again.rows  # who plans by the rows sees new ones
    again.add(Timed(0.3, 60.0))
    assert seen == stored.read_rows(tmp_path / "checkpoints" / "sweep", Timed)
    card = "{n} rows of {what}, seed {seed}: {minutes} minutes"
    folder = again.finish(card, what="rates")
    assert (folder / "README.md").read_text() == "3 rows of rates, seed 3: 2.0 minutes"
    again.finish(card, what="rates", seconds=6)
    assert (folder / "README.md").read_text().endswith("0.1 minutes")


def test_a_grid_made_otherwise_is_refused(tmp_path):
    stored.Grid("sweep", Timed, {"seed": 3}, tmp_path).add(Timed(0.1, 1.0))
    with pytest.raises(ValueError, match="was made with another seed; remove it to begin anew"):
        stored.Grid("sweep", Timed, {"seed": 4}, tmp_path)
