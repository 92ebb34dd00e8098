"""Lines whose words are shuffled: what is kept, and what is not told."""

from __future__ import annotations

import random

import pytest

from course_utils.tasks import word_order
from course_utils.tasks.word_order import Line

TEXTS = [f"Line {i}, and a few words." for i in range(40)]


def test_words_have_no_marks():
    assert word_order.words("It's NOT -- bad ; really .") == ["it's", "not", "bad", "really"]


def test_shuffled_keeps_the_words_and_not_their_order():
    said = ["a", "b", "c", "d", "e"]
    for seed in range(20):
        found = word_order.shuffled(said, random.Random(seed))
        assert sorted(found) == said
        assert found != said
    assert said == ["a", "b", "c", "d", "e"]
    for seed in range(5):
        assert word_order.shuffled(["a", "b"], random.Random(seed)) == ["b", "a"]
    with pytest.raises(ValueError, match="'no no' has only one order"):
        word_order.shuffled(["no", "no"], random.Random(0))


def test_lines_are_half_whole_and_each_text_comes_once():
    found = word_order.lines(TEXTS)
    assert sum(line.written for line in found) == 20
    whole = {" ".join(word_order.words(text)) for text in TEXTS}
    assert {line.text in whole for line in found if line.written} == {True}
    assert {line.text in whole for line in found if not line.written} == {False}
    assert sorted(sorted(line.text.split()) for line in found) == sorted(
        sorted(text.split()) for text in whole
    )


def test_lines_depend_on_the_seed_alone():
    assert word_order.lines(TEXTS) == word_order.lines(TEXTS)
    assert word_order.lines(TEXTS, 1) != word_order.lines(TEXTS)
    assert isinstance(word_order.lines(TEXTS)[0], Line)


def test_loaded_parts_share_no_line():
    parts = word_order.load()
    bags = [{tuple(sorted(line.text.split())) for line in part} for part in parts]
    assert [len(part) for part in parts] == pytest.approx([2200, 310, 620], rel=0.3)
    assert not bags[0] & bags[2]
    assert all(7 <= len(line.text.split()) <= 14 for part in parts for line in part)
