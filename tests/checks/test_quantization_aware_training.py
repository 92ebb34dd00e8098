"""Exercises of notebook 14: what textbooks write passes, and what learners get wrong is named."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from course_utils import exercises
from course_utils.checks import quantization_aware_training as module
from course_utils.compression import qat
from course_utils.compression.rtn import unpack_bits


def problem(name, attempt):
    return exercises.first_problem(module.EXERCISES[name], attempt)


# ── textbook variants ───────────────────────────────────────────────────────────────────────────


def cut_then_detach(x, step, bits):
    q = 2 ** (bits - 1) - 1
    c = (x / step).clamp(-q, q)
    return (c + (c.round() - c).detach()) * step


class OwnRound(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, step, q):
        ctx.save_for_backward((x / step).abs() <= q + 0.5)
        return (x / step).round().clamp(-q, q) * step

    @staticmethod
    def backward(ctx, gradient):
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None


def own_function(x, step, bits):
    return OwnRound.apply(x, step, 2 ** (bits - 1) - 1)


def best_by_loop(x, bits, steps):
    best, least = None, math.inf
    for step in steps:
        q = 2 ** (bits - 1) - 1
        error = ((x / step).round().clamp(-q, q) * step - x).pow(2).mean()
        if error < least:
            best, least = step, error
    return best


class StepsInARow(nn.Module):
    """A copy of the weight, steps (D_out,), and the authors' own lines."""

    def __init__(self, linear, bits):
        super().__init__()
        self.q = 2 ** (bits - 1) - 1
        self.weight = nn.Parameter(linear.weight.detach().clone())
        self.bias = nn.Parameter(linear.bias.detach().clone())
        self.s = nn.Parameter(2 * self.weight.detach().abs().mean(1) / math.sqrt(self.q))

    def forward(self, x):
        s = self.s[:, None]
        v = (self.weight / s).clamp(-self.q, self.q)
        return x @ (((v.round() - v).detach() + v) * s).T + self.bias


def packed_by_shifts(weights, steps):
    """Byte by byte, in plain integers."""
    found = []
    for row, step in zip(weights.tolist(), steps.flatten().tolist(), strict=True):
        codes = [min(1, max(-1, round(w / step))) + 1 for w in row]
        for at in range(0, len(codes), 4):
            byte = 0
            for place, code in enumerate(codes[at : at + 4]):
                byte |= code << 2 * place
            found.append(byte)
    return found


def packed_in_columns(weights, steps):
    codes = ((weights / steps).clamp(-1, 1).round() + 1).to(torch.uint8).view(-1, 4)
    return codes[:, 0] | codes[:, 1] << 2 | codes[:, 2] << 4 | codes[:, 3] << 6


@pytest.mark.parametrize(
    ("name", "attempt"),
    [
        ("straight_through", cut_then_detach),
        ("straight_through", own_function),
        ("best_step", best_by_loop),
        ("step_linear", StepsInARow),
        ("pack", packed_by_shifts),
        ("pack", packed_in_columns),
    ],
)
def test_a_textbook_variant_passes(name, attempt):
    assert problem(name, attempt) is None


# ── what goes wrong ─────────────────────────────────────────────────────────────────────────────


class WithoutItsStep(nn.Module):
    def __init__(self, linear, bits):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return self.linear(x)


@pytest.mark.parametrize(
    ("name", "attempt", "words"),
    [
        ("straight_through", lambda x, step, bits: x, "off by"),
        ("best_step", lambda x, bits, steps: steps.index(best_by_loop(x, bits, steps)), "off by"),
        ("pack", lambda weights, steps: (weights / steps).round(), "its shape is (1, 4), not (1,)"),
        ("step_linear", WithoutItsStep, "wrong is this: weight, bias and a step a row"),
    ],
)
def test_what_is_said_of_a_wrong_one(name, attempt, words):
    assert words in problem(name, attempt)


@pytest.mark.parametrize("name", list(module.EXERCISES))
def test_mistakes_are_told_apart(name):
    exercise = module.EXERCISES[name]
    for sentence, wrong in exercise.mistakes.items():
        assert sentence in problem(name, wrong)


def test_inputs_leave_the_disputed_half_step_out():
    for x, step, bits in module._through_inputs():
        end = (2 ** (bits - 1) - 1) * step
        assert not ((x.abs() > end) & (x.abs() < end + step / 2)).any()


def test_inputs_of_the_byte_are_unpacked_to_what_acts():
    for weights, steps in module._pack_inputs():
        codes = unpack_bits(module.packed(weights, steps), 2, weights.numel()).float() - 1
        acts = qat.fake_quantize(weights, steps, 2)
        assert torch.equal(codes.view_as(weights) * steps, acts)
        assert (acts != weights.sign() * steps).any()  # some are 0
