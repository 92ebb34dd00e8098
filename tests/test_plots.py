"""Charts come out as one picture."""

from __future__ import annotations

from pictures import is_picture

from course_utils import plots
from course_utils.metrics import accuracy


def test_lines_and_bars_show_one_picture_and_return_nothing(shown):
    assert plots.lines({"a": ([1, 2], [3, 4]), "b": ([1], [2])}, title="t", x="x", y="y") is None
    assert plots.bars({"a": 1.0, "b": 2.0}, title="t", y="y") is None
    assert len(shown) == 2
    assert all(map(is_picture, shown))


def test_intervals_show_one_picture(shown):
    series = {"a": {"0": accuracy([True]), "1": accuracy([True, False])}}
    plots.intervals(series, title="t", x="x", y="y")
    both = {**series, "b": {"0": accuracy([False]), "1": accuracy([True])}}
    dots = {"b": {"0": [0.0], "1": [1.0, 0.9]}}
    plots.intervals(both, title="t", x="x", y="y", levels={"guess": 0.5}, dots=dots)
    assert len(shown) == 2
    assert all(map(is_picture, shown))


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
