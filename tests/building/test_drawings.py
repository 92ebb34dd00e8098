"""Figures of the chain: they draw, and say in words what they show."""

from __future__ import annotations

import pytest

from course_utils import plots
from course_utils.building import drawings
from course_utils.plots import GREY, PALETTE


@pytest.fixture
def shown(monkeypatch):
    """The figures, as they are handed over to be shown."""
    figures = []
    monkeypatch.setattr(drawings, "show", figures.append)
    return figures


def boxes(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts if text.get_bbox_patch()]


def test_chain_has_a_box_a_stage_and_an_arrow_along_each_row(shown):
    stages = {f"stage {i}": f"metric {i}" for i in range(5)}
    drawings.chain(stages, title="Five stages", per_row=3)
    (figure,) = shown
    assert boxes(figure) == [f"{i + 1} · stage {i}" for i in range(5)]
    arrows = [text for text in figure.axes[0].texts if getattr(text, "arrow_patch", None)]
    assert len(arrows) == 3  # 0 → 1 → 2, and 3 → 4 in the second row
    words = plots.alt_text(figure)
    assert "Five stages" in words
    assert all(part in words for pair in stages.items() for part in pair)


def test_pipeline_marks_where_we_are(shown):
    drawings.pipeline(["retrieve", "generate"], here="generate", title="One step")
    colours = {
        text.get_text(): text.get_bbox_patch().get_edgecolor()
        for text in shown[0].axes[0].texts
        if text.get_bbox_patch()
    }
    assert colours["retrieve"] != colours["generate"]
    with pytest.raises(ValueError, match="here is 'answer'; it must be one of retrieve, generate"):
        drawings.pipeline(["retrieve", "generate"], here="answer", title="One step")


def test_with_and_without_has_every_dot_on_an_axis_of_its_own(shown):
    stages = {"tuning: obeys": ([0.1, 0.2], [0.9, 0.8]), "merges: bits": ([2.9], [2.4])}
    drawings.with_and_without(stages, title="Each moves its own")
    (figure,) = shown
    drawn = [[list(map(float, line.get_xdata())) for line in axes.lines] for axes in figure.axes]
    assert drawn == [[[0.1, 0.2], [0.9, 0.8]], [[2.9], [2.4]]]
    heights = [[list(line.get_ydata()) for line in axes.lines] for axes in figure.axes]
    assert heights == [[[0.5, -0.5]] * 2, [[0.5]] * 2]  # the two of a seed beside each other
    joined = figure.axes[0].collections[0].get_segments()
    assert [[list(end) for end in line] for line in joined] == [
        [[0.1, 0.5], [0.9, 0.5]],
        [[0.2, -0.5], [0.8, -0.5]],
    ]
    colours = {line.get_color() for line in figure.axes[0].lines}
    assert colours == {GREY, PALETTE[0]}
    words = plots.alt_text(figure)
    for part in ("Each moves its own", "left out", "with it", *stages):
        assert part in words


def test_losses_names_every_level_and_marks_what_is_reached(shown):
    levels = {"pairs": 4.8, "triples": 4.4}
    drawings.losses(([20, 30, 40], [5.0, 4.5, 4.2]), levels, reached=4.6, title="T")
    words = plots.alt_text(shown[0])
    assert all(part in words for part in ("pairs", "triples", "nats a token", "step", "exam"))
    lines = shown[0].axes[0].lines
    assert [line.get_color() for line in lines] == [PALETTE[0], PALETTE[3], GREY, GREY]
    assert list(zip(*lines[1].get_data(), strict=True)) == [(40, 4.6)]


def test_by_rounds_has_a_mark_a_seed_and_a_line_of_means(shown):
    gains = {"reward": {0: [0.0, 0.0], 6: [1.0, 2.0]}, "judge": {0: [0.0, 0.0], 6: [0.5, 0.7]}}
    drawings.by_rounds(gains, title="More rounds move both")
    lines = [tuple(map(list, line.get_data())) for line in shown[0].axes[0].lines]
    assert lines[:2] == [([0, 6], [0.0, 1.5]), ([0, 0, 6, 6], [0.0, 0.0, 1.0, 2.0])]
    assert lines[3] == ([0.1, 0.1, 6.1, 6.1], [0.0, 0.0, 0.5, 0.7])  # not upon the first
    words = plots.alt_text(shown[0])
    assert all(part in words for part in ("More rounds move both", "reward", "judge", "rounds"))
