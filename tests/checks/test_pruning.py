"""Exercises of notebook 16: what textbooks write passes, and what learners get wrong is named."""

from __future__ import annotations

import pytest
import torch

from course_utils import exercises
from course_utils.checks import pruning


def problem(name, attempt):
    return exercises.first_problem(pruning.EXERCISES[name], attempt)


# ── textbook variants ───────────────────────────────────────────────────────────────────────────


def wanda_as_its_authors_write_it(weight, x, sparsity):
    metric = weight.abs() * torch.sqrt(x.square().mean(dim=0)).reshape(1, -1)
    mask = torch.zeros_like(metric) == 1
    order = torch.sort(metric, dim=-1, stable=True)[1]
    mask.scatter_(1, order[:, : int(metric.shape[1] * sparsity)], True)
    return ~mask


def wanda_row_by_row(weight, x, sparsity):
    norms, rows = x.pow(2).sum(0).sqrt(), []
    for row in weight:
        scores = row.abs() * norms
        n = round(sparsity * len(row))
        rows.append(scores > scores.sort().values[n - 1] if n else scores >= 0)
    return torch.stack(rows)


def two_by_topk(scores):
    groups = scores.reshape(-1, 4)
    mask = torch.zeros_like(groups, dtype=torch.bool)
    return mask.scatter_(1, groups.topk(2, dim=1).indices, True).reshape(scores.shape)


def two_as_floats(scores):
    return two_by_topk(scores).float()


def smaller_by_index(up, up_bias, down, kept):
    at = torch.tensor(kept)
    return [up.index_select(0, at), up_bias.index_select(0, at), down.index_select(1, at)]


class KeeperByHook:
    def __init__(self, model, optimizer):
        self.model, self.masks = model, {}
        optimizer.register_step_post_hook(lambda *_: self.apply())

    def keep(self, masks):
        self.masks = masks
        self.apply()

    def apply(self):
        with torch.no_grad():
            for name, mask in self.masks.items():
                self.model.get_submodule(name).weight.mul_(mask)


class KeeperThatWrapsStep:
    def __init__(self, model, optimizer):
        self.model, self.masks, step = model, {}, optimizer.step

        def stepped(*args):
            step(*args)
            self.keep(self.masks)

        optimizer.step = stepped

    def keep(self, masks):
        self.masks = dict(masks)
        for name, mask in masks.items():
            self.model.get_submodule(name).weight.data[~mask] = 0


@pytest.mark.parametrize(
    ("name", "attempt"),
    [
        ("wanda_mask", wanda_as_its_authors_write_it),
        ("wanda_mask", wanda_row_by_row),
        ("two_of_four", two_by_topk),
        ("two_of_four", two_as_floats),
        ("smaller", smaller_by_index),
        ("sparse_bytes", lambda r, k, v=4, i=8: k * v + k * i + r * i + i),
        ("mask_keeper", KeeperByHook),
        ("mask_keeper", KeeperThatWrapsStep),
    ],
)
def test_a_textbook_variant_passes(name, attempt):
    assert problem(name, attempt) is None


# ── what goes wrong ─────────────────────────────────────────────────────────────────────────────


class OnlyTheFirstStep(KeeperByHook):
    def apply(self):
        if not getattr(self, "done", False):
            super().apply()
        self.done = True


def forgets_to_return(weight, x, sparsity):
    wanda_row_by_row(weight, x, sparsity)


def prunes_the_weight(weight, x, sparsity):
    mask = wanda_row_by_row(weight, x, sparsity)
    weight[~mask] = 0
    return mask


@pytest.mark.parametrize(
    ("name", "attempt", "words"),
    [
        ("wanda_mask", lambda w, x, s: w * wanda_row_by_row(w, x, s), "off by"),
        ("wanda_mask", forgets_to_return, "is a `return` missing"),
        ("wanda_mask", prunes_the_weight, "changed its input"),
        ("two_of_four", lambda scores: scores > scores.median(), "most at"),
        ("smaller", lambda up, bias, down, kept: (up[kept], bias[kept]), "2 items, not 3"),
        ("mask_keeper", OnlyTheFirstStep, "wrong is this: zeros after each step"),
    ],
)
def test_what_is_said_of_a_wrong_one(name, attempt, words):
    assert words in problem(name, attempt)


@pytest.mark.parametrize("name", list(pruning.EXERCISES))
def test_mistakes_are_told_apart(name):
    exercise = pruning.EXERCISES[name]
    for sentence, wrong in exercise.mistakes.items():
        assert sentence in problem(name, wrong)
