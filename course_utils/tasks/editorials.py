"""Sentences of newspaper editorials: which of them belong together? Notebooks 14 and 16.

The editorials of Hutto and Gilbert (2014), a sentence a row, numbered by editorial. A sentence
*finds* its editorial if, of all the others, the one whose vector is nearest comes from there too.
No label is needed, and nothing was trained for it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from course_utils.tasks import sentiment
from course_utils.tasks.sentiment import Rated


class Sentence(NamedTuple):
    """A sentence and the number of the editorial that it comes from."""

    article: int
    text: str


class Drawn(NamedTuple):
    """Sentences to be examined on, and those of all other editorials, in a random order."""

    exam: list[Sentence]
    others: list[Sentence]


def load() -> list[Sentence]:
    """Return all sentences, in the order of the editorials. Source: Hutto and Gilbert (2014)."""
    return [sentence_of(row) for row in sentiment.load("editorials")]


def sentence_of(row: Rated) -> Sentence:
    """A row's identifier is the editorial's number, and the sentence's in it.

    >>> sentence_of(Rated("12_3", -0.4, "Others are gems."))
    Sentence(article=12, text='Others are gems.')
    """
    return Sentence(int(row.id.split("_")[0]), row.text)


def draw(
    sentences: Sequence[Sentence],
    *,
    articles: int,
    each: int,
    seed: int = 0,
    words: tuple[int, int] = (6, 24),
) -> Drawn:
    """Draw `each` sentences of `articles` editorials for an exam; the rest is for learning.

    Only sentences of `words` words, from the least to the most, take part. No editorial is on both
    sides. The exam is in order of length, so that neighbours can share a batch. Raises ValueError
    where too few editorials have so many sentences.

    >>> rows = [Sentence(i, f"sentence {j} of {i}") for i in range(5) for j in range(3)]
    >>> drawn = draw(rows, articles=2, each=3, words=(1, 9))
    >>> len(drawn.exam), len(drawn.others)
    (6, 9)
    """
    if articles < 1 or each < 2:
        raise ValueError(f"articles is {articles}, each {each}; give at least 1, and at least 2")
    least, most = words
    fitting: dict[int, list[Sentence]] = {}
    for sentence in sentences:
        if least <= len(sentence.text.split()) <= most:
            fitting.setdefault(sentence.article, []).append(sentence)
    enough = [article for article, own in fitting.items() if len(own) >= each]
    if len(enough) < articles:
        raise ValueError(
            f"{len(enough)} editorials have {each} sentences of {least} to {most} words; "
            f"{articles} are asked for"
        )
    generator = random.Random(seed)
    chosen = generator.sample(sorted(enough), articles)
    exam = [s for article in chosen for s in generator.sample(fitting[article], each)]
    others = [s for article in sorted(set(fitting) - set(chosen)) for s in fitting[article]]
    generator.shuffle(others)
    return Drawn(sorted(exam, key=lambda s: (len(s.text), s.text)), others)


def finds(likeness: np.ndarray, articles: Sequence[int]) -> list[bool]:
    """Whether each sentence's most alike *other* one is of its editorial; of equal ones the first.

    `likeness` (N, N) may be cosines, or any score whose row i says how alike j is to i.

    >>> likeness = np.array([[9, 2, 1], [2, 9, 3], [1, 3, 9]])
    >>> finds(likeness, [7, 7, 8])  # 0's best is 1; 1's and 2's best are each other
    [True, False, False]
    """
    likeness = np.array(likeness, dtype=float)
    if likeness.shape != (len(articles), len(articles)):
        raise ValueError(
            f"the likenesses have shape {likeness.shape}; {len(articles)} sentences need a square"
        )
    np.fill_diagonal(likeness, -np.inf)
    best = likeness.argmax(axis=1)
    return [articles[i] == articles[j] for i, j in enumerate(best)]


def by_chance(articles: Sequence[int]) -> float:
    """The share that would be found if each took any other sentence.

    >>> by_chance([1, 1, 2, 2, 2])  # 1 of 4 for two of them, 2 of 4 for three
    0.4
    """
    n = len(articles)
    if n < 2:
        raise ValueError(f"{n} sentences; there must be another one to take")
    return sum(list(articles).count(a) - 1 for a in articles) / (n * (n - 1))
