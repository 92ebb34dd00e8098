"""Numbers and labels in a model's text."""

from __future__ import annotations

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
    ],
)
def test_extract_label_by_hand(text, label):
    assert extract_label(text, LABELS) == label


def test_extract_label_takes_the_longer_and_labels_as_they_are():
    assert extract_label("It is not good", ["not", "not good", "good"]) == "not good"
    assert extract_label("a C++ program", ["c", "C++"]) == "C++"
    with pytest.raises(ValueError, match="differ in nothing but capital letters"):
        extract_label("good", ["good", "Good"])
