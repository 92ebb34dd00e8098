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
    assert boxes(figure) == list(stages)
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
    stages = {"tuning: obeys": ([0.1, 0.2], [0.9]), "merges: bits": ([2.9], [2.4, 2.5, 2.3])}
    drawings.with_and_without(stages, title="Each moves its own")
    (figure,) = shown
    drawn = [[list(map(float, line.get_xdata())) for line in axes.lines] for axes in figure.axes]
    assert drawn == [[[0.1, 0.2], [0.9]], [[2.9], [2.4, 2.5, 2.3]]]
    colours = {line.get_color() for line in figure.axes[0].lines}
    assert colours == {GREY, PALETTE[0]}
    words = plots.alt_text(figure)
    for part in ("Each moves its own", "left out", "with it", *stages):
        assert part in words


def test_losses_names_every_level(shown):
    drawings.losses(([20, 30, 40], [5.0, 4.5, 4.2]), {"pairs": 4.8, "triples": 4.4}, title="T")
    words = plots.alt_text(shown[0])
    assert all(part in words for part in ("pairs", "triples", "nats a token", "step"))
    assert [line.get_color() for line in shown[0].axes[0].lines] == [PALETTE[0], GREY, GREY]
