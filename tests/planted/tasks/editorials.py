"""Plausible wrong versions of course_utils.tasks.editorials."""

from __future__ import annotations

import numpy as np
from planting import Bug, originals, refusing

right = originals("tasks.editorials")


def rows_that_mix(sentences, *, articles, each, seed=0, words=(6, 24)):
    """The rest holds sentences of the editorials that are asked about."""
    drawn = right["draw"](sentences, articles=articles, each=each, seed=seed, words=words)
    least, most = words
    rest = [s for s in sentences if least <= len(s.text.split()) <= most]
    return right["Drawn"](drawn.exam, [s for s in rest if s not in drawn.exam])


def always_the_first(sentences, *, articles, each, seed=0, words=(6, 24)):
    return right["draw"](sentences, articles=articles, each=each, seed=0, words=words)


def finds_itself(likeness, articles):
    best = np.asarray(likeness).argmax(axis=1)
    return [articles[i] == articles[j] for i, j in enumerate(best)]


def finds_the_least(likeness, articles):
    return right["finds"](-np.asarray(likeness), articles)


def itself_counts(articles):
    n = len(articles)
    return sum(list(articles).count(a) for a in articles) / (n * n)


BUGS = [
    Bug("draw", "lets an editorial be on both sides", rows_that_mix),
    Bug("draw", "ignores the seed", always_the_first),
    Bug("finds", "counts a sentence as its own neighbour", refusing(right["finds"], finds_itself)),
    Bug("finds", "takes the least alike", refusing(right["finds"], finds_the_least)),
    Bug("by_chance", "counts the sentence itself", refusing(right["by_chance"], itself_counts)),
]
