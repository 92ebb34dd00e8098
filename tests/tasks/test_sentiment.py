"""The rated texts as they are packaged."""

from __future__ import annotations

import random
import re

import pytest

from course_utils.tasks import sentiment
from course_utils.tasks.sentiment import Rated

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


# ── parts ───────────────────────────────────────────────────────────────────────────────────────

ROWS = [Rated(str(i), (i % 90) / 10 - 4, f"text number {i}") for i in range(200)]


def test_split_does_not_depend_on_the_order():
    mixed = random.Random(0).sample(ROWS, len(ROWS))
    assert [set(part) for part in sentiment.split(mixed)] == [set(p) for p in sentiment.split(ROWS)]


def test_split_keeps_copies_together():
    copies = [row._replace(id=f"c{row.id}", text=row.text.upper() + " !") for row in ROWS]
    parts = sentiment.split([*ROWS, *copies])
    keys = [{"".join(r.text.casefold().split()).strip("!") for r in part} for part in parts]
    assert len(set.union(*keys)) == sum(map(len, keys))
    assert sum(map(len, parts)) == len(ROWS)
    assert {row.id for part in parts for row in part} == {row.id for row in ROWS}  # the first ones


def test_split_has_all_ratings_in_each_part():
    for part in sentiment.split(ROWS):
        ratings = [row.rating for row in part]
        assert min(ratings) < -3
        assert max(ratings) > 4


def test_split_of_films_shares_no_text():
    parts = sentiment.split(sentiment.load("movies"))
    texts = [{row.text.casefold() for row in part} for part in parts]
    assert len(set.union(*texts)) == sum(map(len, texts))
    assert [len(part) for part in parts] == pytest.approx([7422, 1060, 2120], abs=10)


def test_split_refuses_few_texts():
    with pytest.raises(ValueError, match="there are 1 different texts"):
        sentiment.split([Rated("0", 1.0, "same")] * 30)


def test_halves_by_hand():
    assert sentiment.halves(["a b c d e", "a b"], least=3) == [("a b", "c d e")]


@pytest.mark.parametrize(
    ("text", "fine"), [("What a day", True), ("what the HELL", False), ("Shitty", False)]
)
def test_tweets_that_are_printed_are_polite(text, fine):
    assert sentiment.polite(text) is fine
