"""Exercises of notebook 00: what textbooks write passes, and what learners get wrong is named."""

from __future__ import annotations

import math

import pytest
import torch

from course_utils import exercises
from course_utils.checks import how_llms_are_built


def problem(name, attempt):
    return exercises.first_problem(how_llms_are_built.EXERCISES[name], attempt)


# ── textbook variants ───────────────────────────────────────────────────────────────────────────


def merge_by_hand(symbols, pair, merged):
    out = []
    for symbol in symbols:  # minbpe's way, with a look back in place of ahead
        if out and not isinstance(out[-1], tuple) and (out[-1], symbol) == pair:
            out[-1] = (merged,)  # closed: it does not begin another pair
        else:
            out.append(symbol)
    return [s[0] if isinstance(s, tuple) else s for s in out]


def merge_in_place(symbols, pair, merged):
    """Right, but it eats its input."""
    i = 0
    while i < len(symbols) - 1:
        if (symbols[i], symbols[i + 1]) == pair:
            symbols[i : i + 2] = [merged]
        i += 1
    return symbols


def bits_by_log2(nats, n_tokens, n_bytes):
    return math.log2(math.exp(nats)) * n_tokens / n_bytes


def labels_by_slices(prompt, answer, end):
    ids = torch.tensor(prompt + answer + [end])
    ids[: len(prompt)] = -100
    return ids


def dpo_by_sigmoid(chosen, rejected, reference_chosen, reference_rejected, beta=0.1):
    ratio = chosen - rejected - (reference_chosen - reference_rejected)
    return -torch.log(torch.sigmoid(beta * ratio))


@pytest.mark.parametrize(
    ("name", "attempt"),
    [
        ("merge_pair", merge_by_hand),
        ("bits_per_byte", bits_by_log2),
        ("labels", labels_by_slices),
        ("dpo_loss", dpo_by_sigmoid),
    ],
)
def test_textbook_variants_pass(name, attempt):
    assert problem(name, attempt) is None


# ── what is named ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", list(how_llms_are_built.EXERCISES))
def test_every_mistake_is_named(name):
    for sentence, wrong in how_llms_are_built.EXERCISES[name].mistakes.items():
        assert sentence in problem(name, wrong), sentence


def test_an_eaten_input_is_named():
    assert "changed its input" in problem("merge_pair", merge_in_place)


def test_a_forgotten_return_is_named():
    def no_return(nats, n_tokens, n_bytes):
        nats / n_bytes

    assert "is a `return` missing" in problem("bits_per_byte", no_return)


def test_statements_have_reasons():
    statements = how_llms_are_built.STATEMENTS["verdicts"]
    assert {s.supported for s in statements.values()} == {True, False}
    assert all(s.why.endswith(".") for s in statements.values())
