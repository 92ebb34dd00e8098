"""Short texts with human ratings, as a task. Notebook 10. Source: Hutto and Gilbert (2014)."""

from __future__ import annotations

import html
import re
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
