"""Sources and tables as they stand in cells."""

from __future__ import annotations

from course_utils import plots
from course_utils.metrics import edit_distance, perplexity
from course_utils.showing import show_source


def test_pictures_are_repeatable(shown):
    for _ in range(2):
        plots.bars({"a": 1.0}, title="t", y="y")
    assert shown[0].data == shown[1].data


def test_show_source_shows_every_function(shown):
    show_source(edit_distance, perplexity)
    assert "def edit_distance(" in shown[0]["text/plain"]
    assert "def perplexity(" in shown[0]["text/plain"]
    assert "<span" in shown[0]["text/html"]
