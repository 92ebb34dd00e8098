"""Figures of decoding come out as one picture each."""

from __future__ import annotations

import pytest
from pictures import is_picture

from course_utils.inference import drawings
from course_utils.inference.decoding import Continuation


def _compare():
    panels = {"own": [0.5, 0.3, 0.2], "cut": [0.6, 0.4, 0.0], "hot": [0.4, 0.3, 0.3]}
    drawings.compare_distributions(panels, ["a", "b", "all others"], title="t", per_row=2)


def _trace():
    drawings.token_trace(["a", "b"], [1, 3000], title="t", y="tokens")


def _scatter():
    points = {"human": (4.0, 0.0), "greedy": (0.8, 0.6), "pure sampling": (3.4, 0.02)}
    drawings.surprise_and_repetition(points, reference="human", title="t")


def _tree():
    paths = [((0,), -0.5, "running"), ((1,), -1.0, "pruned"), ((0, 2), -0.9, "length")]
    tree = [Continuation(tokens, total, fate, total) for tokens, total, fate in paths]
    drawings.beam_tree(tree, (0, 2), "abc".__getitem__, title="t")


@pytest.mark.parametrize("draw", [_compare, _trace, _scatter, _tree])
def test_is_one_picture(draw, shown):
    draw()
    assert len(shown) == 1
    assert is_picture(shown[0])
