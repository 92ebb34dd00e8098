"""Words in scripts with and without spaces."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retrieval_inputs import prop

from course_utils.prompting.words import WORD, counted_spans, pieces

scripts = st.text(alphabet="ab é\u0301'’-.\n\t_9我爱，กา\u0e34हिन्दी", max_size=200)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("death--anew snake_case", ["death", "anew", "snake", "case"]),
        ("father’s o'er 'tis'", ["father’s", "o'er", "tis"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),  # vowel signs are no letters to `re`
        ("שָׁלוֹם", ["שָׁלוֹם"]),
        (unicodedata.normalize("NFD", "impôt été"), ["impo\u0302t", "e\u0301te\u0301"]),
        ("GPT模型很好。我", ["GPT", "模型很好", "我"]),
        ("… — 「」", []),
    ],
)
def test_word_by_hand(text, words):
    assert WORD.findall(text) == words


def test_pieces_by_hand():
    assert pieces("北京人") == ["北", "北京", "京", "京人", "人"]
    assert pieces("我") == ["我"]
    assert pieces("o'er") == ["o'er"]


def counted(text: str) -> list[str]:
    return [text[start:end] for start, end in counted_spans(text)]


def test_counted_spans_by_hand():
    assert counted("To be,\n or") == ["To", "be,", "or"]
    assert counted("用GPT模型。") == ["用", "GPT", "模", "型", "。"]
    assert counted("") == counted(" \n") == []


def test_counted_spans_of_a_run_that_is_no_word():
    assert counted("x" * 64) == ["x" * 64]
    assert counted("x" * 66) == ["x", "x", "x" * 64]


@prop
@given(scripts)
def test_counted_spans_lose_nothing_and_do_not_overlap(text):
    assert "".join(counted(text)) == "".join(text.split())
    places = [place for span in counted_spans(text) for place in span]
    assert places == sorted(places)
