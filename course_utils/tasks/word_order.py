"""Are a line's words in the order in which they were written? A task without labels. Notebook 07.

The lines are those of `sentiment`'s films (Hutto and Gilbert 2014), as words alone: capitals and
marks would tell where a line begins and ends. In one half of them the words are shuffled.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from course_utils.tasks import sentiment


class Line(NamedTuple):
    """A line's words, and whether they stand as they were written."""

    text: str
    written: bool


class Lines(NamedTuple):
    """What is learned from, what settings are picked on, what is reported."""

    train: list[Line]
    dev: list[Line]
    test: list[Line]


def words(text: str) -> list[str]:
    """Lower-case words without marks.

    >>> words("Smart , provocative and blisteringly funny .")
    ['smart', 'provocative', 'and', 'blisteringly', 'funny']
    """
    return re.findall(r"[\w']+", text.lower())


def shuffled(said: Sequence[str], generator: random.Random) -> list[str]:
    """The same words in another order; ValueError where there is none.

    >>> shuffled(["a", "fine", "film"], random.Random(0)) != ["a", "fine", "film"]
    True
    """
    if len(set(said)) < 2:
        raise ValueError(f"{' '.join(said)!r} has only one order; give two different words")
    found = list(said)
    while found == list(said):
        generator.shuffle(found)
    return found


def lines(texts: Sequence[str], seed: int = 0) -> list[Line]:
    """The texts in a random order, every second one with its words shuffled.

    >>> [line.written for line in lines(["a fine film", "a bad one", "so long"])]
    [True, False, True]
    """
    generator = random.Random(seed)
    mixed = generator.sample(list(texts), len(texts))
    found = []
    for place, said in enumerate(map(words, mixed)):
        written = place % 2 == 0
        order = said if written else shuffled(said, generator)
        found.append(Line(" ".join(order), written))
    return found


def load(least: int = 7, most: int = 14) -> Lines:
    """Lines of so many words; no text is in two parts, nor both whole and shuffled."""
    rows = [row for row in sentiment.load("movies") if least <= len(words(row.text)) <= most]
    return Lines(*(lines([row.text for row in part]) for part in sentiment.split(rows)))
