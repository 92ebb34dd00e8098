"""Figures of architectures come out as one picture."""

from __future__ import annotations

import pytest
from pictures import is_picture

from course_utils.architectures import drawings


def test_rotations_show_one_picture(shown):
    drawings.rotations({"slow": [(1, 0), (0, 1)], "fast": [(0, 1), (-1, 0)]}, ["0", "1"], title="t")
    assert len(shown) == 1
    assert is_picture(shown[0])


def test_unrolled_is_one_picture(shown):
    assert drawings.unrolled([1, 0, 0], [0.8, -0.6, 0.0], title="t") is None
    assert len(shown) == 1
    assert is_picture(shown[0])
    with pytest.raises(ValueError, match="zip"):
        drawings.unrolled([1, 0], [0.8], title="t")


def test_masks_and_a_timeline_show_one_picture(shown):
    masks, gradients = {"a": [[True, False]]}, {"a": [[0.5, 0.0]]}
    drawings.who_sees_whom(masks, gradients, {"a": (["x"], ["y", "z"])}, title="t")
    drawings.timeline([(1990, "a", "x"), (1990, "b", "y"), (2017, "a", "z")], title="t")
    assert len(shown) == 2
    assert all(map(is_picture, shown))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_cell_is_one_picture(shown, kind):
    assert drawings.cell(kind, title="t") is None
    assert len(shown) == 1
    assert is_picture(shown[0])


def test_a_cell_that_is_not_drawn():
    with pytest.raises(ValueError, match="kind is 'rnn'; there are drawings of lstm and gru"):
        drawings.cell("rnn", title="t")


def test_tinted_text_is_one_picture(shown):
    drawings.tinted("ab\ncd", [0.0, -1.0, 0.5, 2.0, 1.0], title="t", limit=2.0)
    assert len(shown) == 1
    assert is_picture(shown[0])
    with pytest.raises(ValueError, match="1 values for 2 characters"):
        drawings.tinted("ab", [0.0], title="t")


def test_blocks_are_one_picture(shown):
    assert drawings.blocks({"a": ["norm: n", "look: x", "+"], "b": ["work: y"]}, title="t") is None
    assert len(shown) == 1
    assert is_picture(shown[0])
    with pytest.raises(ValueError, match="its kind is one of"):
        drawings.blocks({"a": ["box: n"]}, title="t")


def test_a_layer_of_attention_is_one_picture(shown):
    assert drawings.looking(["a", "b"], [[1.0, 0.0], [0.25, 0.75]], title="t") is None
    assert len(shown) == 1
    assert is_picture(shown[0])


def test_losses_have_a_panel_for_each_question(shown):
    panels = {"next": {"a": [3.0, 2.0], "b": [2.5, 1.0]}, "all at once": {"c": [1.0, 0.5]}}
    levels = {"next": 2.9, "all at once": 1.2}
    assert drawings.losses(panels, levels, every=20, title="t") is None
    assert len(shown) == 1
    assert is_picture(shown[0])
    with pytest.raises(KeyError, match="all at once"):
        drawings.losses(panels, {"next": 2.9}, every=20, title="t")
