"""Plausible wrong versions of course_utils.tasks.word_order."""

from __future__ import annotations

import random

from planting import Bug, originals, refusing

right = originals("tasks.word_order")


def words_with_marks(text):
    return text.lower().split()


def shuffled_maybe_not(said, generator):
    """Of two words every second one stays as it is."""
    return generator.sample(list(said), len(said))


def shuffled_in_place(said, generator):
    generator.shuffle(said)
    return said


def lines_in_their_order(texts, seed=0):
    """And always shuffled alike."""
    return right["lines"](texts, 0)


def lines_both_ways(texts, seed=0):
    """Each text is there whole and shuffled."""
    generator = random.Random(seed)
    return [
        right["Line"](" ".join(order), written)
        for said in map(right["words"], texts)
        for order, written in ((said, True), (right["shuffled"](said, generator), False))
    ]


BUGS = [
    Bug("words", "keeps marks", words_with_marks),
    Bug("shuffled", "may leave the order", refusing(right["shuffled"], shuffled_maybe_not)),
    Bug("shuffled", "changes what it was given", refusing(right["shuffled"], shuffled_in_place)),
    Bug("lines", "does not look at the seed", lines_in_their_order),
    Bug("lines", "has each text twice", lines_both_ways),
]
