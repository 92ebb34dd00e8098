"""Plausible wrong versions of course_utils.tasks.sentiment."""

from __future__ import annotations

import random

from planting import Bug, originals

right = originals("tasks.sentiment")


def split_by_row(rows):
    """Copies of one text go to different parts."""
    mixed = random.Random(0).sample(list(rows), len(rows))
    n = len(mixed)
    return right["Split"](
        mixed[: 7 * n // 10], mixed[7 * n // 10 : 8 * n // 10], mixed[8 * n // 10 :]
    )


def split_by_rating(rows):
    """The best are the test."""
    parts = right["split"](rows)
    ordered = sorted([row for part in parts for row in part], key=lambda row: row.rating)
    a, b = len(parts[0]), len(parts[0]) + len(parts[1])
    return right["Split"](ordered[:a], ordered[a:b], ordered[b:])


def halves_that_overlap(texts, least=16):
    found = []
    for words in map(str.split, texts):
        if len(words) >= least:
            middle = len(words) // 2
            found.append((" ".join(words[: middle + 1]), " ".join(words[middle:])))
    return found


BUGS = [
    Bug("halves", "overlap", halves_that_overlap),
    Bug("split", "divides rows, not texts", split_by_row, "copies or order"),
    Bug("split", "divides by rating", split_by_rating, "all_ratings"),
]
