"""Exercises of notebook 07: what textbooks write passes, and what learners get wrong is named."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from course_utils import exercises
from course_utils.checks import lora_and_qlora


def problem(name, attempt):
    return exercises.first_problem(lora_and_qlora.EXERCISES[name], attempt)


# ── textbook variants ───────────────────────────────────────────────────────────────────────────


class Kaiming(nn.Module):
    """As in the authors' loralib, with F.linear, and a weight made anew."""

    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.base = linear
        for p in self.base.parameters():
            p.requires_grad = False
        self.A = nn.Parameter(torch.zeros(rank, linear.in_features))
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.scaling = alpha / rank

    def forward(self, x):
        return self.base(x) + F.linear(F.linear(x, self.A), self.B) * self.scaling

    def merge(self):
        out_features, in_features = self.base.weight.shape
        merged = nn.Linear(in_features, out_features)
        merged.weight.data = self.base.weight.data + self.scaling * (self.B @ self.A).data
        merged.bias.data = self.base.bias.data.clone()
        return merged


class OneProduct(Kaiming):
    """W + ΔW first, and one product."""

    def forward(self, x):
        return F.linear(x, self.base.weight + self.scaling * self.B @ self.A, self.base.bias)


class Gaussian(Kaiming):
    """As in the paper."""

    def __init__(self, linear, rank, alpha):
        super().__init__(linear, rank, alpha)
        nn.init.normal_(self.A)


def random_by_norms(A, B, seed):
    torch.manual_seed(seed)
    A2, B2 = torch.randn_like(A), torch.randn_like(B)
    return A2, B2 * (torch.linalg.matrix_norm(B @ A) / torch.linalg.matrix_norm(B2 @ A2))


def cut_by_diag(change, k):
    u, s, v = torch.svd(change)
    return u[:, :k] @ torch.diag(s[:k]) @ v[:, :k].T


@pytest.mark.parametrize(
    ("name", "attempt"),
    [
        ("lora", Kaiming),
        ("lora", OneProduct),
        ("lora", Gaussian),
        ("count", lambda d_in, d_out, rank: d_in * rank + rank * d_out),
        ("random_adapter", random_by_norms),
        ("cut", cut_by_diag),
    ],
)
def test_a_textbook_variant_passes(name, attempt):
    assert problem(name, attempt) is None


# ── what goes wrong ─────────────────────────────────────────────────────────────────────────────


class Alpha(Kaiming):
    def __init__(self, linear, rank, alpha):
        super().__init__(linear, rank, alpha)
        self.scaling = alpha


class Transposed(Kaiming):
    """A (D_in, r), B (r, D_out): another convention, which the exercise names."""

    def __init__(self, linear, rank, alpha):
        super().__init__(linear, rank, alpha)
        self.A = nn.Parameter(torch.randn(linear.in_features, rank))
        self.B = nn.Parameter(torch.zeros(rank, linear.out_features))


class Forgets(Kaiming):
    def forward(self, x):
        self.base(x)


class NoMerge(Kaiming):
    def merge(self):
        self.base.weight + self.scaling * (self.B @ self.A)


class InPlace(Kaiming):
    def merge(self):
        self.base.weight.data += self.scaling * (self.B @ self.A).data
        return self.base


class Zeros(Kaiming):
    def __init__(self, linear, rank, alpha):
        super().__init__(linear, rank, alpha)
        nn.init.zeros_(self.A)


@pytest.mark.parametrize(
    ("name", "attempt", "words"),
    [
        ("lora", Alpha, "the scale is α, and not α/r"),
        ("lora", Transposed, "wrong is this: A is (r, D_in) and B is (D_out, r)"),
        ("lora", Forgets, "wrong is this: at the start it answers as the frozen layer"),
        ("lora", NoMerge, "wrong is this: merge() gives one nn.Linear that answers the same"),
        ("lora", InPlace, "wrong is this: merging leaves the layer as it was"),
        ("lora", Zeros, "wrong is this: the first step's gradient reaches B, and not yet A"),
        ("count", lambda d_in, d_out, rank: d_in * d_out, "the sizes are multiplied"),
        ("random_adapter", lambda A, B, seed: (A, B), "nothing is drawn"),
        ("random_adapter", lambda A, B, seed: (A.T, B), "its shapes are"),
        ("cut", lambda change, k: change[:k], "its shape is"),
    ],
)
def test_what_is_said_of_a_wrong_one(name, attempt, words):
    assert words in problem(name, attempt)


def test_stubs_are_not_attempted():
    class Stub(nn.Module):
        def __init__(self, linear, rank, alpha):
            super().__init__()

        def forward(self, x): ...

        def merge(self): ...

    with pytest.raises(exercises.NotAttempted):
        problem("lora", Stub)
    with pytest.raises(exercises.NotAttempted):
        problem("random_adapter", lambda A, B, seed: ...)


@pytest.mark.parametrize("sentence", lora_and_qlora.EXERCISES["lora"].mistakes)
def test_each_mistake_of_the_layer_is_seen(sentence):
    assert problem("lora", lora_and_qlora.EXERCISES["lora"].mistakes[sentence])
