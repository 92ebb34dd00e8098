"""Notebook 10's exercises take what textbooks write, and name what learners write instead."""

from __future__ import annotations

import numpy as np
import pytest

from course_utils import exercises
from course_utils.checks import prompting


def problem(name, attempt):
    return exercises.first_problem(exercises.find(f"10.{name}"), attempt)


# ── attempts that are right ─────────────────────────────────────────────────────────────────────


def in_a_loop(shots, text):
    prompt = ""
    for shot, label in shots:
        prompt += f"Tweet: {shot}\nSentiment: {label}\n\n"
    return prompt + "Tweet: " + text + "\nSentiment:"


def by_log_odds(probabilities, content_free):
    """Subtract logarithms, then a softmax: the same division."""
    scores = np.log(probabilities) - np.log(content_free)
    shares = np.exp(scores)
    return shares / shares.sum(-1, keepdims=True)


def row_by_row(probabilities, content_free):
    rows = []
    for row in probabilities:
        lifted = [p / c for p, c in zip(row, content_free, strict=True)]
        rows.append([value / sum(lifted) for value in lifted])
    return rows


def newest_first(shots, question, budget):
    kept, left = [], budget - len(question.split())
    for shot in reversed(shots):
        left -= len(shot.split())
        if left < 0:
            break
        kept.insert(0, shot)
    return kept


RIGHT = [
    ("prompt", in_a_loop),
    ("calibrate", by_log_odds),
    ("calibrate", row_by_row),
    ("fit", newest_first),
]


@pytest.mark.parametrize(("name", "attempt"), RIGHT)
def test_textbook_variants_pass(name, attempt):
    assert problem(name, attempt) is None


# ── attempts that are wrong ─────────────────────────────────────────────────────────────────────

NAMED = [
    ("prompt", lambda shots, text: in_a_loop(shots, text) + " ", "ends with a blank"),
    ("prompt", lambda shots, text: in_a_loop(shots, text) + "\n", "ends with a new line"),
    ("prompt", lambda s, t: in_a_loop(s, t).replace("\n\n", "\n"), "empty line between the forms"),
    ("prompt", lambda s, t: in_a_loop(s[::-1], t), "reverse order"),
    ("prompt", lambda s, t: in_a_loop([], t), "shots are left out"),
    ("calibrate", lambda p, c: p / c, "not made to sum to 1"),
    ("calibrate", lambda p, c: np.exp(p / c) / np.exp(p / c).sum(1, keepdims=True), "softmax"),
    ("fit", lambda s, q, b: newest_first(s, "", b), "question are not counted"),
    ("fit", lambda s, q, b: newest_first(s[::-1], q, b)[::-1], "dropped from the end"),
]


@pytest.mark.parametrize(("name", "attempt", "says"), NAMED)
def test_a_mistake_is_named(name, attempt, says):
    assert says in problem(name, attempt)


def test_white_space_and_capitals_can_be_seen():
    assert "only white space differs" in problem("prompt", lambda s, t: in_a_loop(s, t) + "  ")
    assert "only capitals differ" in problem("prompt", lambda s, t: in_a_loop(s, t).lower())


def test_statements_are_of_both_kinds():
    supported = [s.supported for s in prompting.STATEMENTS["examples"].values()]
    assert True in supported
    assert False in supported
