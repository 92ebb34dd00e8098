"""Charts come out as one picture."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
from pictures import alt_text_of, is_picture

import course_utils
from course_utils import plots
from course_utils.metrics import accuracy


def test_lines_and_bars_show_one_picture_and_return_nothing(shown):
    assert plots.lines({"a": ([1, 2], [3, 4]), "b": ([1], [2])}, title="t", x="x", y="y") is None
    assert plots.bars({"a": 1.0, "b": 2.0}, title="t", y="y") is None
    plots.lines({"a": ([1, 2], [3, 4])}, title="t " * 60, x="x", y="y", levels={"guess": 1.0})
    assert len(shown) == 3
    assert all(map(is_picture, shown))


def test_intervals_show_one_picture(shown):
    series = {"a": {"0": accuracy([True]), "1": accuracy([True, False])}}
    plots.intervals(series, title="t", x="x", y="y")
    both = {**series, "b": {"0": accuracy([False]), "1": accuracy([True])}}
    dots = {"b": {"0": [0.0], "1": [1.0, 0.9]}}
    plots.intervals(both, title="t", x="x", y="y", levels={"guess": 0.5}, dots=dots)
    assert len(shown) == 2
    assert all(map(is_picture, shown))


@pytest.mark.parametrize(
    "name", ["{i} of at most 25 letters", "{i} radius 3, rate 0.5, not clipped"]
)
def test_many_names_fit_below_the_lines(name, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "show", figures.append)
    series = {name.format(i=i): ([1, 2], [3, i]) for i in range(7)}
    plots.lines(series, title="t", x="x", y="y")
    figures[0].draw_without_rendering()
    legend = figures[0].legends[0].get_window_extent()
    assert 0 <= legend.x0 < legend.x1 <= figures[0].bbox.width


def test_figures_are_freed(shown):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    plots.lines({"a": ([1, 2], [3, 4])}, title="t", x="x", y="y", log_x=True, log_y=True)
    assert plt.get_fignums() == before


def test_heatmaps_show_one_picture(shown):
    named = [["a", "b"], ["c", "d"]]
    panels = {"one": [[0.0, float("nan")], [0.5, 1.0]], "two": [[1, 0], [0, 1]]}
    plots.heatmaps(panels, title="t", x="x", y="y", value="v", x_names=named, y_names=named)
    plots.heatmaps({"one": [[0.5]]}, title="t", x="x", y="y")
    assert len(shown) == 2
    assert all(map(is_picture, shown))


def test_dots_show_one_picture(shown):
    groups = {"few": [0.25, 0.25, 1.0], "none": []}
    plots.dots(groups, title="t", x="share", guide=(0.25, "guessing"))
    plots.dots(groups, title="t", x="share", limits=None)
    assert len(shown) == 2
    assert all(map(is_picture, shown))


# ── in words ────────────────────────────────────────────────────────────────────────────────────


def test_a_chart_says_its_kind_title_axes_and_series(shown):
    plots.lines({"ours": ([1], [3]), "torch's": ([1], [2])}, title="Ours wins.", x="n", y="ms")
    words = "Line chart: Ours wins. Across: n. Upwards: ms. Series: ours; torch's."
    assert alt_text_of(shown[0]) == words


def test_bars_and_dots_say_their_names_and_guides(shown):
    plots.bars({"ours": 1.0, "2 others": 2.0}, title="t", y="share (%)")
    plots.dots({"few": [0.25], "none": []}, title="t", x="share", guide=(0.25, "guessing"))
    assert alt_text_of(shown[0]) == "Bar chart: t. Across: share (%). Names: ours; 2 others."
    assert alt_text_of(shown[1]) == "Dot chart: t. Across: share. Names: few; none; guessing."


def test_panels_are_named_and_so_is_the_colour(shown):
    plots.heatmaps({"one": [[0.5]], "two": [[0.1]]}, title="t", x="key", y="query", value="weight")
    assert alt_text_of(shown[0]) == (
        "Heat map: t. 2 panels: one; two. Across: key. Upwards: query. Colour: weight."
    )


def test_a_single_panel_is_the_title_and_an_empty_figure_has_none(shown):
    figure, axes = plots.new_figure()
    axes.text(0.5, 0.5, "a box")
    plots.label(axes, "What\nflows", "", "")
    assert plots.alt_text(figure) == "Drawing: What flows. Names: a box."
    plots.show(figure)
    empty, _ = plots.new_figure()
    assert plots.alt_text(empty) == ""
    plots.show(empty)
    assert alt_text_of(shown[1]) == ""


def test_long_lists_are_cut(shown):
    plots.bars({f"name {i}": 1.0 for i in range(15)}, title="t", y="y")
    assert alt_text_of(shown[0]).endswith("name 11; and 3 more.")


DRAWINGS = [
    module.name
    for module in pkgutil.walk_packages(course_utils.__path__, "course_utils.")
    if module.name.endswith((".drawings", ".plots"))
]


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_figure_of_the_package_is_shown_by_show(name):
    """Nothing else sends a picture to the page, so that none is without words."""
    with open(importlib.import_module(name).__file__, encoding="utf-8") as file:
        source = file.read()
    assert source.count("savefig(") == (name == "course_utils.plots")
    assert "plt.show" not in source
