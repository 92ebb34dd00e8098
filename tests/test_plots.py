"""Figures come out as one picture and sources as they stand in the package."""

import matplotlib
import pytest

from course_utils import plots
from course_utils.metrics import accuracy, edit_distance, perplexity

matplotlib.use("Agg")


@pytest.fixture
def shown(monkeypatch):
    outputs = []
    monkeypatch.setattr(
        "IPython.display.display", lambda data, **kwargs: outputs.append(data), raising=True
    )
    return outputs


def is_picture(output):
    return output.data.startswith(b"\x89PNG")


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


def test_pictures_are_repeatable(shown):
    for _ in range(2):
        plots.bars({"a": 1.0}, title="t", y="y")
    assert shown[0].data == shown[1].data


def test_figures_are_freed(shown):
    import matplotlib.pyplot as plt

    plots.lines({"a": ([1, 2], [3, 4])}, title="t", x="x", y="y", log_x=True, log_y=True)
    assert plt.get_fignums() == []


def test_show_source_shows_every_function(shown):
    plots.show_source(edit_distance, perplexity)
    assert "def edit_distance(" in shown[0]["text/plain"]
    assert "def perplexity(" in shown[0]["text/plain"]
    assert "<span" in shown[0]["text/html"]


def test_heatmaps_show_one_picture(shown):
    named = [["a", "b"], ["c", "d"]]
    panels = {"one": [[0.0, float("nan")], [0.5, 1.0]], "two": [[1, 0], [0, 1]]}
    plots.heatmaps(panels, title="t", x="x", y="y", value="v", x_names=named, y_names=named)
    plots.heatmaps({"one": [[0.5]]}, title="t", x="x", y="y")
    assert len(shown) == 2
    assert all(map(is_picture, shown))


def test_turns_show_one_picture(shown):
    plots.turns({"slow": [(1, 0), (0, 1)], "fast": [(0, 1), (-1, 0)]}, ["0", "1"], title="t")
    assert len(shown) == 1
    assert is_picture(shown[0])


def test_pipeline_is_one_picture(shown):
    plots.pipeline({"question": "Who?", "answer": "a name " * 20, "nothing": ""}, title="t")
    assert len(shown) == 1
    assert is_picture(shown[0])


def test_unrolled_is_one_picture(shown):
    assert plots.unrolled([1, 0, 0], [0.8, -0.6, 0.0], title="t") is None
    assert len(shown) == 1
    assert is_picture(shown[0])
    with pytest.raises(ValueError, match="zip"):
        plots.unrolled([1, 0], [0.8], title="t")


def test_masks_and_a_timeline_show_one_picture(shown):
    masks, gradients = {"a": [[True, False]]}, {"a": [[0.5, 0.0]]}
    plots.who_sees_whom(masks, gradients, {"a": (["x"], ["y", "z"])}, title="t")
    plots.timeline([(1990, "a", "x"), (1990, "b", "y"), (2017, "a", "z")], title="t")
    assert len(shown) == 2
    assert all(map(is_picture, shown))


def test_trace_masks_all_that_a_model_wrote(shown):
    from course_utils.reasoning import Step, Trace

    steps = (Step("thought", "I look <b>⟨here⟩</b>."), Step("action", "search[x]"))
    plots.trace(Trace("42", "answered", steps), title="One question & its steps")
    plots.trace(Trace(None, "step limit", steps), title="No answer")
    for output, end in zip(shown, ("answered: 42", "step limit"), strict=True):
        for text in output.values():
            assert text.count("⟨") == text.count("⟩") == 1
            assert end in text[text.index("⟨") : text.index("⟩")]
    assert "&lt;b&gt;" in shown[0]["text/html"]
    assert "One question &amp; its steps" in shown[0]["text/html"]
