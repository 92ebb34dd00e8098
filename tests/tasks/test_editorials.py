"""The editorials' sentences: how they are drawn, and what finding one means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.tasks import editorials
from course_utils.tasks.editorials import Sentence
from course_utils.tasks.sentiment import Rated

ROWS = [Sentence(i, " ".join(["word"] * (j + 1)) + f" {i}") for i in range(8) for j in range(5)]


def test_sentence_of_reads_the_editorials_number():
    assert editorials.sentence_of(Rated("301_14", 0.5, "So it is.")) == (301, "So it is.")


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), articles=st.integers(1, 8), each=st.integers(2, 4))
def test_draw_keeps_editorials_apart(seed, articles, each):
    drawn = editorials.draw(ROWS, articles=articles, each=each, seed=seed, words=(2, 5))
    asked, rest = ({s.article for s in part} for part in drawn)
    assert len(asked) == articles
    assert not asked & rest
    assert len(drawn.exam) == articles * each == len(set(drawn.exam))
    assert len(drawn.others) == 4 * (8 - articles)  # all that fit, of all others
    assert all(2 <= len(s.text.split()) <= 5 for part in drawn for s in part)
    lengths = [len(s.text) for s in drawn.exam]
    assert lengths == sorted(lengths)


def test_draw_depends_on_its_seed_alone():
    first, again, other = (
        editorials.draw(ROWS, articles=4, each=2, seed=seed, words=(1, 9)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert first.others != sorted(first.others)  # in a random order


def test_finds_leaves_the_sentence_itself_out():
    likeness = np.array([[9.0, 5, 1, 1], [5, 9, 1, 1], [0, 8, 9, 1], [0, 0, 7, 9]])
    assert editorials.finds(likeness, [1, 1, 2, 2]) == [True, True, False, True]
    assert likeness[0, 0] == 9  # the input is left as it was


def test_by_chance_by_hand():
    assert editorials.by_chance([1, 1, 1, 2, 2, 2]) == pytest.approx(2 / 5)
    assert editorials.by_chance([1, 2]) == 0


def test_finds_by_chance_is_by_chance():
    articles = [i // 4 for i in range(80)]
    likeness = np.random.default_rng(0).normal(size=(80, 80))
    share = np.mean(
        [editorials.finds(likeness[order][:, order], articles)
         for order in (np.random.default_rng(i).permutation(80) for i in range(40))]
    )  # fmt: skip
    assert share == pytest.approx(editorials.by_chance(articles), abs=0.02)


def test_what_is_refused_by_name():
    with pytest.raises(ValueError, match="8 editorials have 2 sentences of 1 to 9 words; 9 are"):
        editorials.draw(ROWS, articles=9, each=2, words=(1, 9))
    with pytest.raises(ValueError, match="articles is 1, each 1"):
        editorials.draw(ROWS, articles=1, each=1)
    with pytest.raises(ValueError, match=r"shape \(2, 3\); 2 sentences"):
        editorials.finds(np.zeros((2, 3)), [1, 2])
    with pytest.raises(ValueError, match="1 sentences"):
        editorials.by_chance([1])
