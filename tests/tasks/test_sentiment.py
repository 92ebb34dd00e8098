"""The rated texts as they are packaged."""

from __future__ import annotations

import re

import pytest

from course_utils.tasks import sentiment

COUNTS = {"tweets": 4_200, "movies": 10_605, "products": 3_708, "editorials": 5_190}


@pytest.mark.parametrize("domain", COUNTS)
def test_sentiment(domain):
    rows = sentiment.load(domain)
    assert len(rows) == COUNTS[domain]
    assert len({row.id for row in rows}) == len(rows)
    assert all(-4 <= row.rating <= 4 and row.text.strip() for row in rows)
    assert min(row.rating for row in rows) < -2 < 2 < max(row.rating for row in rows)
    # Signs of a wrong encoding, a Windows line end, or an entity left as it is.
    assert not [row for row in rows if re.search("Ã|Â|\r|\ufffd|&amp;|&lt;", row.text)]


def test_sentiment_by_hand(monkeypatch, tmp_path):
    file = tmp_path / sentiment.DOMAINS["movies"]
    file.write_bytes("7_1\t-1.25\tAndré &amp; I &lt;3 \x85R&amp;amp;D&amp;notes &copy\r\n".encode())
    monkeypatch.setattr(sentiment, "fetch", lambda name: tmp_path)
    assert sentiment.load("movies") == [("7_1", -1.25, "André & I <3 \x85R&D&notes &copy")]


def test_sentiment_has_the_known_clear_tweets():
    clear = [row for row in sentiment.load() if abs(row.rating) > 1.5]
    assert len(clear) == 1_768
    assert sum(row.rating > 0 for row in clear) == 1_226
    assert "español" in " ".join(row.text for row in sentiment.load())


def test_sentiment_of_an_unknown_domain():
    with pytest.raises(ValueError, match=r"'books'.*tweets, movies, products, editorials"):
        sentiment.load("books")
