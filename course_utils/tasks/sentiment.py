"""Short texts with human ratings (Hutto and Gilbert 2014): notebooks 00, 06–08, 10 and 15."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Sequence
from typing import NamedTuple

from course_utils.assets.catalogue import describe
from course_utils.assets.fetching import fetch

# ── data ────────────────────────────────────────────────────────────────────────────────────────


class Rated(NamedTuple):
    """A short text and the mean of its human ratings, from −4 (negative) to 4 (positive)."""

    id: str
    rating: float
    text: str


DOMAINS = {
    "tweets": "tweets_GroundTruth.txt",
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "products": "amazonReviewSnippets_GroundTruth.txt",
    "editorials": "nytEditorialSnippets_GroundTruth.txt",
}


def _resolved(text: str) -> str:
    """Return the text without HTML entities, of which some in the files are escaped twice."""
    for _ in range(2):
        # Entities with their semicolon only: html.unescape alone turns "R&notes" into "R¬es".
        text = re.sub(r"&#?\w+;", lambda match: html.unescape(match[0]), text)
    return text


def load(domain: str = "tweets") -> list[Rated]:
    """Return the rated texts of one domain: tweets, movies, products or editorials.

    HTML entities are resolved. Raises ValueError for another domain.
    Source: Hutto and Gilbert (2014).
    """
    if domain not in DOMAINS:
        raise ValueError(f"domain is {domain!r}; it must be one of {', '.join(DOMAINS)}")
    text = (fetch(describe("sentiment")) / DOMAINS[domain]).read_text(encoding="utf-8")
    # Not splitlines(): a text may hold the odd control character that it takes for a line's end.
    rows = (line.split("\t") for line in text.split("\n") if line)
    return [Rated(id, float(rating), _resolved(words)) for id, rating, words in rows]


SWEARING = ("fuck", "shit", "bitch", "hell")


def polite(text: str) -> bool:
    """Whether a tweet can be printed in a lesson: none of `SWEARING` stands in it.

    >>> polite("What a day"), polite("What the HELL")
    (True, False)
    """
    return not any(word in text.lower() for word in SWEARING)


# ── parts ───────────────────────────────────────────────────────────────────────────────────────


class Split(NamedTuple):
    """Rated texts: what is learned from, what settings are picked on, what is reported."""

    train: list[Rated]
    dev: list[Rated]
    test: list[Rated]


def _key(row: Rated) -> str:
    """A text without its case, marks and blanks: what two copies share."""
    return "".join(filter(str.isalnum, row.text.casefold()))


def split(rows: Sequence[Rated]) -> Split:
    """Divide rated texts 7 : 1 : 2, always alike: no text in two parts, all ratings in each part.

    Copies (but for case, marks and blanks) count once. The texts are ordered by rating; of every
    ten neighbours the hashes of their texts decide which are learned from, so that new rows would
    move few others. Raises ValueError for fewer than ten different texts.

    >>> rows = [Rated(str(i), i / 10, f"text {i}") for i in range(20)]
    >>> [len(part) for part in split([*rows, Rated("20", 0.0, "Text, 0!")])]
    [14, 2, 4]
    """
    once = {_key(row): row for row in reversed(rows)}  # the first of the copies stays
    if len(once) < 10:
        raise ValueError(f"there are {len(once)} different texts; give at least ten to divide")
    ordered = sorted(once.items(), key=lambda item: (item[1].rating, item[0]))
    parts = Split([], [], [])
    for start in range(0, len(ordered), 10):
        ten = sorted(ordered[start : start + 10], key=lambda item: _digest(item[0]))
        for place, (_, row) in enumerate(ten):
            parts[0 if place < 7 else 1 if place < 8 else 2].append(row)
    return parts


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def halves(texts: Sequence[str], least: int = 16) -> list[tuple[str, str]]:
    """Both halves of each text of at least so many words: does a model see that they are one?

    >>> halves(["one two three four", "too short"], least=4)
    [('one two', 'three four')]
    """
    found = []
    for words in map(str.split, texts):
        if len(words) >= least:
            middle = len(words) // 2
            found.append((" ".join(words[:middle]), " ".join(words[middle:])))
    return found
