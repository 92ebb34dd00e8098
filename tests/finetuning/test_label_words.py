"""Format and choice, by hand and against plain cross-entropy."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.finetuning import label_words

LABELS = [4, 1, 7]


def problem(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(6, 9, generator=generator)
    return logits, torch.randint(3, (6,), generator=generator)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_label_nats_add_up_to_the_cross_entropy(seed):
    """And neither part is below 0."""
    logits, right = problem(seed)
    cost = label_words.label_nats(logits, LABELS, right)
    whole = F.cross_entropy(logits, torch.tensor(LABELS)[right], reduction="none")
    torch.testing.assert_close(cost.all, whole, atol=1e-5, rtol=1e-4)
    assert (cost.format >= -1e-6).all()
    assert (cost.choice >= -1e-6).all()


def test_label_nats_choice_does_not_mind_other_words():
    logits, right = problem(0)
    louder = logits.clone()
    louder[:, 0] += 7
    one, two = (label_words.label_nats(x, LABELS, right) for x in (logits, louder))
    torch.testing.assert_close(one.choice, two.choice)
    assert (two.format > one.format).all()


def test_in_format_and_chosen_by_hand():
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 1.0, 2.0]])
    assert label_words.in_format(logits, [2, 1]).tolist() == [True, False]
    assert label_words.chosen(logits, [2, 1]).tolist() == [1, 0]  # places among the labels


def test_prior_nats_by_hand():
    right = torch.tensor([0, 0, 0, 1])
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert label_words.prior_nats(right) == pytest.approx(expected)
    assert label_words.prior_nats(torch.ones(3, dtype=torch.long)) == 0


@pytest.mark.parametrize("labels", [[3], [3, 3], []])
def test_labels_are_refused(labels):
    """label_nats, in_format and chosen: fewer than two, or one twice."""
    with pytest.raises(ValueError, match="give two or more different tokens"):
        label_words.label_nats(torch.zeros(1, 4), labels, torch.tensor([0]))
    with pytest.raises(ValueError, match="give two or more different tokens"):
        label_words.in_format(torch.zeros(1, 4), labels)
    with pytest.raises(ValueError, match="give two or more different tokens"):
        label_words.chosen(torch.zeros(1, 4), labels)
