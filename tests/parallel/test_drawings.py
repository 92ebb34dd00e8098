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
