"""Figures of prompting come out as one picture, and traces masked."""

from __future__ import annotations

import pytest
from pictures import is_picture

from course_utils.prompting import drawings
from course_utils.prompting.reasoning import Step, Trace


def test_pipeline_is_one_picture(shown):
    drawings.pipeline({"question": "Who?", "answer": "a name " * 20, "nothing": ""}, title="t")
    assert len(shown) == 1
    assert is_picture(shown[0])


def test_trace_with_half_a_character_can_be_shown(shown):
    drawings.show_trace(Trace("\ud83d", "answered", (Step("thought", "a\udc00"),)), title="t")
    for text in shown[0].values():
        text.encode()


def test_trace_masks_all_that_a_model_wrote(shown):
    steps = (Step("thought", "I look <b>⟨here⟩</b>."), Step("action", "search[x]"))
    drawings.show_trace(Trace("42", "answered", steps), title="One question & its steps")
    drawings.show_trace(Trace(None, "step limit", steps), title="No answer")
    for output, end in zip(shown, ("answered: 42", "step limit"), strict=True):
        for text in output.values():
            assert text.count("⟨") == text.count("⟩") == 1
            assert end in text[text.index("⟨") : text.index("⟩")]
    assert "&lt;b&gt;" in shown[0]["text/html"]
    assert "One question &amp; its steps" in shown[0]["text/html"]


def test_answers_are_one_picture(shown):
    marks = {"direct": [False, True, False], "program": [True, None, True]}
    drawings.answers(marks, ["gain", "per_day", "gain"], title="t", baseline="direct")
    assert len(shown) == 1
    assert is_picture(shown[0])


def test_answers_of_another_number_of_questions():
    with pytest.raises(ValueError, match="direct has 2 outcomes, not 1"):
        drawings.answers({"direct": [True, False]}, ["gain"], title="t")


def test_the_loop_is_one_picture(shown):
    drawings.loop(title="t")
    assert len(shown) == 1
    assert is_picture(shown[0])


def test_draws_are_one_picture_that_names_its_series(shown):
    series = {"prompt": {"1": [0.5, 0.7], "4": [0.6]}, "centre": {"1": [0.5], "4": [0.9, 1.0]}}
    drawings.draws(series, title="t", x="examples", y="accuracy", levels={"none": 0.9})
    assert len(shown) == 1
    assert is_picture(shown[0])


def test_draws_at_other_places():
    series = {"prompt": {"1": [0.5]}, "centre": {"2": [0.5]}}
    with pytest.raises(ValueError, match="centre has the places"):
        drawings.draws(series, title="t", x="examples", y="accuracy")
