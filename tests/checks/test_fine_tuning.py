"""Exercises of notebook 06: what textbooks write passes, and what learners get wrong is named."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from course_utils import exercises
from course_utils.checks import fine_tuning


def problem(name, attempt):
    return exercises.first_problem(fine_tuning.EXERCISES[name], attempt)


# ── textbook variants ───────────────────────────────────────────────────────────────────────────


def by_parameters(model, blocks, k):
    for p in model.parameters():
        p.requires_grad = False
    for i in range(len(blocks) - k, len(blocks)):
        for p in blocks[i].parameters():
            p.requires_grad = True


def by_sets(model, blocks, k):
    chosen = {id(p) for b in list(blocks)[len(blocks) - k :] for p in b.parameters()}
    for p in model.parameters():
        p.requires_grad_(id(p) in chosen)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


class OtherNames(nn.Module):
    def __init__(self, encoder, d_model):
        super().__init__()
        self.body = encoder
        self.out = nn.Linear(d_model, 1)
        self.out.weight.data.zero_()
        self.out.bias.data.zero_()

    def forward(self, ids, mask):
        h = self.body(ids, mask)
        m = mask.float().unsqueeze(-1)
        return self.out((h * m).sum(1) / m.sum(1))[:, 0]


class FunctionalHead(nn.Module):
    """Pools after the head: the mean and the product change places."""

    def __init__(self, encoder, d_model):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(d_model, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, ids, mask):
        told = self.head(self.encoder(ids, mask)).squeeze(-1) * mask
        return told.sum(dim=1) / mask.sum(dim=1)


def by_loops(prompt, answer):
    labels = []
    for _ in prompt:
        labels.append(-100)
    return prompt + answer, labels + answer


def by_tensors(prompt, answer):
    ids = torch.tensor(prompt + answer)
    labels = ids.clone()
    labels[: len(prompt)] = -100
    return ids, labels


def mask_by_loops(segments):
    n = len(segments)
    rows = [[j <= i and segments[i] == segments[j] != 0 for j in range(n)] for i in range(n)]
    return torch.tensor([[bool(x) for x in row] for row in rows])


def mask_of_numbers(segments):
    same = (segments[:, None] == segments[None, :]).float()
    return torch.tril(same) * (segments > 0).float()[:, None]


def mask_by_one_hot(segments):
    blocks = F.one_hot(segments)[:, 1:].float()
    return torch.tril(blocks @ blocks.T) > 0


@pytest.mark.parametrize(
    ("name", "attempt"),
    [
        ("train_last", by_parameters),
        ("train_last", by_sets),
        ("rater", OtherNames),
        ("rater", FunctionalHead),
        ("instruction", by_loops),
        ("instruction", by_tensors),
        ("may_look", mask_by_loops),
        ("may_look", mask_of_numbers),
        ("may_look", mask_by_one_hot),
    ],
)
def test_a_textbook_variant_passes(name, attempt):
    assert problem(name, attempt) is None


# ── what goes wrong ─────────────────────────────────────────────────────────────────────────────


class TwoHeads(OtherNames):
    def __init__(self, encoder, d_model):
        super().__init__(encoder, d_model)
        self.more = nn.Linear(1, 1)


class ForgetsTheReturn(OtherNames):
    def forward(self, ids, mask):
        super().forward(ids, mask)


@pytest.mark.parametrize(
    ("name", "attempt", "words"),
    [
        ("train_last", lambda model, blocks, k: model.requires_grad_(True), "there are 6 items"),
        ("rater", TwoHeads, "it has 2 linear layers; one is the head"),
        ("rater", ForgetsTheReturn, "is a `return` missing"),
        ("instruction", lambda prompt, answer: prompt + answer, "there are 4 items, not 2"),
        ("may_look", lambda segments: segments[:, None] == segments[None], "off by 1"),
    ],
)
def test_what_is_wrong_is_said(name, attempt, words):
    assert words in problem(name, attempt)


def test_statements_are_of_both_kinds():
    supported = [s.supported for s in fine_tuning.STATEMENTS["verdicts"].values()]
    assert True in supported
    assert False in supported
