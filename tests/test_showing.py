"""Sources and tables as they stand in cells."""

from __future__ import annotations

import pytest

from course_utils import plots
from course_utils.metrics import edit_distance, perplexity
from course_utils.showing import markdown_table, masked, show_source, table


def test_pictures_are_repeatable(shown):
    for _ in range(2):
        plots.bars({"a": 1.0}, title="t", y="y")
    assert shown[0].data == shown[1].data


def test_show_source_shows_every_function(shown):
    show_source(edit_distance, perplexity)
    assert "def edit_distance(" in shown[0]["text/plain"]
    assert "def perplexity(" in shown[0]["text/plain"]
    assert "<span" in shown[0]["text/html"]


def test_table_keeps_cells_and_rows_apart(shown):
    table(["name", "of"], [["a|b", 1], ["two\nlines", masked("x⟩y")]])
    lines = shown[0].data.split("\n")
    assert lines == ["| name | of |", "| --- | --- |", "| a\\|b | 1 |", "| two⏎lines | ⟨x>y⟩ |"]


def test_ragged_table_is_refused():
    with pytest.raises(ValueError, match=r"a row has 1 cells for 2 columns: \['a'\]"):
        markdown_table(["name", "of"], [["a"]])
