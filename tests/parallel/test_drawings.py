"""Figures of parallel training come out as one picture."""

from __future__ import annotations

from pictures import is_picture

from course_utils.parallel import drawings
from course_utils.parallel.collectives import Message
from course_utils.parallel.data_parallel import Span


def test_messages_and_spans_are_one_picture(shown):
    sent = [Message(0, 1, 8, 0.0, 0.1, "sum"), Message(1, 2, 4, 0.1, 0.3, "share")]
    drawings.space_time({"ring": sent, "by way of rank 0": sent[:1]}, title="t")
    spans = [Span("backward", 1.0, 2.0), Span("bucket 0", 1.5, 2.2), Span("wait", 2.0, 2.2)]
    drawings.overlap({"buckets": spans}, title="t")
    assert len(shown) == 2
    assert all(map(is_picture, shown))


def test_memory_is_one_picture(shown):
    curves = {"stage 0": ([1, 2, 4], [16.0, 16.0, 16.0]), "stage 3": ([1, 2, 4], [16.0, 8.0, 4.0])}
    drawings.memory_walls(curves, wall=10, title="t")
    drawings.held_over_a_step({"stage 3": [("before", 1e6), ("forward 1", 2e6)]}, title="t")
    assert len(shown) == 2
    assert all(map(is_picture, shown))
