"""The one greedy loop on our own models."""

from __future__ import annotations

from course_utils.inference.decoding import greedy
from course_utils.inference.next_logits import CachedNextLogits
from course_utils.tasks.pronunciation import without_stop


def greedy_ids(read_and_reorder, prompt, n, *, stop=(), use_cache=True):
    """What the one greedy loop writes with a model's two callables, without the stop."""
    read, _ = read_and_reorder
    cached = CachedNextLogits(*read_and_reorder)
    next_logits = cached if use_cache else lambda ids: read(ids, None)[0]
    return without_stop(greedy(next_logits, prompt, n, stop=stop))
