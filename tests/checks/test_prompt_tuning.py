"""Exercises of notebook 08: what textbooks write passes, and what learners get wrong is named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from course_utils import exercises
from course_utils.checks import prompt_tuning


def problem(name, attempt):
    return exercises.first_problem(prompt_tuning.EXERCISES[name], attempt)


# ── textbook variants ───────────────────────────────────────────────────────────────────────────


def by_repeat(vectors, embedded, mask):
    rows = len(embedded)
    ones = torch.ones(rows, len(vectors), dtype=mask.dtype)
    front = vectors[None].repeat(rows, 1, 1)
    return torch.cat((front, embedded), 1), torch.cat((ones, mask), 1)


def by_stack(vectors, embedded, mask):
    joined = torch.stack([torch.cat([vectors, row]) for row in embedded])
    return joined, torch.cat([mask.new_ones(len(mask), len(vectors)), mask], dim=1)


def by_probabilities(logits, labels, right):
    p = logits.softmax(dim=0)
    either = sum(p[i] for i in labels)
    return -either.log(), -(p[labels[right]] / either).log()


def choice_among_labels(logits, labels, right):
    whole = -logits.log_softmax(-1)[labels[right]]
    choice = -logits[labels].log_softmax(-1)[right]
    return whole - choice, choice


class OtherNames(nn.Module):
    def __init__(self, model, vectors):
        super().__init__()
        for p in model.parameters():
            p.requires_grad = False
        self.body = model
        self.prompt = nn.Embedding(*vectors.shape)
        self.prompt.weight.data.copy_(vectors)

    def forward(self, embedded, mask):
        front = self.prompt(torch.arange(self.prompt.num_embeddings))
        return self.body(*by_repeat(front, embedded, mask))


class ModelInAList(nn.Module):
    """The model is not registered, so that only the vectors are parameters."""

    def __init__(self, model, vectors):
        super().__init__()
        model.requires_grad_(False)
        self.held, self.vectors = [model], nn.Parameter(vectors.clone())

    def forward(self, embedded, mask):
        return self.held[0](*by_stack(self.vectors, embedded, mask))


@pytest.mark.parametrize(
    ("name", "attempt"),
    [
        ("put_before", by_repeat),
        ("put_before", by_stack),
        ("split_cost", by_probabilities),
        ("split_cost", choice_among_labels),
        ("soft_prompt", OtherNames),
        ("soft_prompt", ModelInAList),
    ],
)
def test_a_textbook_variant_passes(name, attempt):
    assert problem(name, attempt) is None


# ── what goes wrong ─────────────────────────────────────────────────────────────────────────────


class NoParameter(OtherNames):
    def __init__(self, model, vectors):
        super().__init__(model, vectors)
        self.prompt.weight.requires_grad_(False)


@pytest.mark.parametrize(
    ("name", "attempt", "words"),
    [
        ("put_before", lambda v, e, m: torch.cat([v[None].expand(len(e), -1, -1), e], 1), "not"),
        ("soft_prompt", NoParameter, "the vectors learn and nothing else does"),
        ("split_cost", lambda logits, labels, right: -logits.log_softmax(0)[labels[right]], "not"),
    ],
)
def test_what_is_wrong_is_said(name, attempt, words):
    assert words in problem(name, attempt)


def test_statements_are_of_both_kinds():
    supported = [s.supported for s in prompt_tuning.STATEMENTS["verdicts"].values()]
    assert True in supported
    assert False in supported
