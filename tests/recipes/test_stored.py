"""Rows on the disk and back."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from course_utils.assets.catalogue import AssetError
from course_utils.recipes import stored


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


def test_a_missing_grid_says_how_to_make_it(tmp_path, monkeypatch):
    monkeypatch.setattr("course_utils.recipes.stored.data_folder", lambda: tmp_path)
    with pytest.raises(AssetError, match="course train lora-sweep"):
        stored.folder_of("lora-sweep")
