"""Numbers and labels in a model's text."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompting_inputs import LABELS

from course_utils.prompting.answers import extract_label, extract_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 42.", 42),
        ("5 + 3 = 8, so 8 apples are left.", 8),
        ("1,234,567", 1234567),
        ("It costs $3.50", 3.5),
        ("−7 degrees", -7),
        ("It is -$1,200.75.", -1200.75),
        ("from 10-12", 12),
        ("9 - 4", 4),
        ("(3)-5", 5),
        (".5 litres", 0.5),
        ("1e6", 1000000),
        ("2.5E-1", 0.25),
        ("1, 2, 3", 3),
        ("1,2,3", 3),
        ("4.0", 4),
        ("50% of them", 50),
        ("8th", 8),
        ("variables x2 and y_3", None),
        ("no number", None),
        ("", None),
        ("--- ... $ , -", None),
        ("9" * 30, int("9" * 30)),
        ("It costs $9{,}500.", 9500),
        (r"-\$1\,200.5", -1200.5),
        ("–3.", -3),
        ("from 10–12", 12),
        ("about ‑5 degrees, or ‐5", -5),
        ("1 000.", 1000),
        ("1\u202f000.", 1000),
        ("1\u00a0000\u00a0000 people", 1000000),
        ("1'000 or 1’000", 1000),
        ("x = 1_000", 1000),
        ("1.234.567", 1234567),
        ("It was 1999. 100 years", 100),
        ("2020 100", 100),  # no group has four digits
        ("1, 000", 0),
        ("£5 or €-6.5", -6.5),
        ("答案是-42。", -42),
        ("１２", 12),
        ("0" * 5000, 0),
        ("0" * 5000 + "7.5", 7.5),
        ("9" * 308, int("9" * 308)),
        ("9" * 400, None),
        ("9" * 5000, None),
        ("9" * 400 + ".0", None),
        ("1e999", None),
        ("1e-999", 0),
    ],
)
def test_extract_number_by_hand(text, number):
    got = extract_number(text)
    assert got == number
    assert isinstance(got, type(number))


def test_extract_number_after_a_phrase():
    text = "There are 5. The answer is 8 apples. Next: 12 pears."
    assert extract_number(text) == 12
    assert extract_number(text, after="answer is") == 8
    assert extract_number(text, after="THE ANSWER") == 8
    assert extract_number(text, after="####") == 12
    assert extract_number("7, the answer is: none", after="answer is") == 7
    assert extract_number("the answer is 3. No, the answer is 4", after="answer is") == 4
    assert extract_number("İİİ the answer is 5 7", after="answer is") == 5  # "İ".lower() is two


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False), st.booleans())
def test_extract_number_reads_what_python_writes(number, grouped):
    text = f"{number:,}" if grouped and isinstance(number, int) else str(number)
    assert extract_number(f"It is {text}.") == number


@given(st.text())
def test_extract_number_never_fails(text):
    got = extract_number(text, after="is")
    assert got is None or math.isfinite(got)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (" Positive.", "positive"),
        ("negative, not positive", "negative"),
        ("positively awful", None),
        ("nonnegative", None),
        ("", None),
        ("I don't know", None),
        ("POSİTİVE", "positive"),  # `re` takes İ for i, and "İ".lower() is not one letter
        ("答案是positive。", "positive"),
    ],
)
def test_extract_label_by_hand(text, label):
    assert extract_label(text, LABELS) == label


def test_extract_label_takes_the_longer_and_labels_as_they_are():
    assert extract_label("It is not good", ["not", "not good", "good"]) == "not good"
    assert extract_label("a C++ program", ["c", "C++"]) == "C++"
    assert extract_label("这是正面的", ["正面", "负面"]) == "正面"
    with pytest.raises(ValueError, match="differ in nothing but capital letters"):
        extract_label("good", ["good", "Good"])
    with pytest.raises(ValueError, match="differ in nothing but capital letters"):
        extract_label("i", ["i", "İ"])


def test_extract_label_in_either_normal_form():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for label, text in ((composed, decomposed), (decomposed, composed)):
        assert extract_label(text, [label, "tea"]) == label
    assert extract_label(decomposed, ["cafe", "tea"]) is None


@given(st.text(), st.lists(st.text(min_size=1), min_size=2, max_size=4, unique=True))
def test_extract_label_gives_a_label_or_none(text, labels):
    with contextlib.suppress(ValueError):  # two that differ in nothing but capital letters
        assert extract_label(text, labels) in {*labels, None}
