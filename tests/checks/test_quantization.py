"""Exercises of notebook 13: what textbooks write passes, and what learners get wrong is named."""

from __future__ import annotations

import struct

import pytest
import torch

from course_utils import exercises
from course_utils.checks import quantization


def problem(name, attempt):
    return exercises.first_problem(quantization.EXERCISES[name], attempt)


# ── textbook variants ───────────────────────────────────────────────────────────────────────────


def bits_by_adding_halves(sign, exponent, fraction):
    value = 1 + sum(2.0 ** -(k + 1) for k, bit in enumerate(fraction) if bit == "1")
    value *= 2.0 ** (int(exponent, 2) - 2 ** (len(exponent) - 1) + 1)
    return -value if sign == "1" else value


def bits_by_struct(sign, exponent, fraction):
    """Any exponent and fraction fit into those of a double."""
    e = int(exponent, 2) - (2 ** (len(exponent) - 1) - 1) + 1023
    whole = sign + format(e, "011b") + fraction.ljust(52, "0")
    return struct.unpack(">d", int(whole, 2).to_bytes(8, "big"))[0]


def round_row_by_row(weight, bits):
    rows = []
    for row in weight:
        scale = max(abs(row.min()), abs(row.max())) / (2 ** (bits - 1) - 1)
        rows.append(torch.round(row / scale) * scale)
    return torch.stack(rows)


def round_by_steps(weight, bits):
    """x + 1/2, rounded down: differs at halves only, of which no input has one."""
    scale = weight.abs().max(dim=-1, keepdim=True).values / (2 ** (bits - 1) - 1)
    return torch.floor(weight / scale + 0.5).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale


def spread_by_a_loop(w, i, q, h_inverse):
    e = w[i] - q
    out = w.tolist()
    out[i] = q
    for j in range(i + 1, len(w)):
        out[j] -= (e / h_inverse[i, i] * h_inverse[j, i]).item()
    return out


def scaled_by_a_diagonal(weight, scales, quantize):
    return quantize(weight @ torch.diag(scales)) @ torch.diag(1 / scales)


@pytest.mark.parametrize(
    ("name", "attempt"),
    [
        ("from_bits", bits_by_adding_halves),
        ("from_bits", bits_by_struct),
        ("round", round_row_by_row),
        ("round", round_by_steps),
        ("spread", spread_by_a_loop),
        ("scaled", scaled_by_a_diagonal),
    ],
)
def test_a_textbook_variant_passes(name, attempt):
    assert problem(name, attempt) is None


# ── what goes wrong ─────────────────────────────────────────────────────────────────────────────


def spread_in_place(w, i, q, h_inverse):
    w[i + 1 :] -= (w[i] - q) / h_inverse[i, i] * h_inverse[i, i + 1 :]
    w[i] = q
    return w


def spread_after_rounding(w, i, q, h_inverse):
    """The weight is replaced first, so that its error is 0."""
    w = w.clone()
    w[i] = q
    w[i + 1 :] -= (w[i] - q) / h_inverse[i, i] * h_inverse[i, i + 1 :]
    return w


def bits_of_a_half(sign, exponent, fraction):
    e = int(exponent, 2) - 15
    return (-1) ** int(sign) * 2.0**e * (1 + int(fraction, 2) / 1024)


@pytest.mark.parametrize(
    ("name", "attempt", "words"),
    [
        ("spread", spread_in_place, "your function changed its input"),
        ("spread", spread_after_rounding, "nothing is made up for: that is rounding to nearest"),
        ("from_bits", bits_of_a_half, "A bfloat16"),
    ],
)
def test_what_is_said_of_a_wrong_one(name, attempt, words):
    assert words in problem(name, attempt)


@pytest.mark.parametrize("name", quantization.EXERCISES)
def test_each_mistake_is_named_as_itself(name):
    exercise = quantization.EXERCISES[name]
    for sentence, wrong in exercise.mistakes.items():
        assert f"comes out when {sentence}." in exercises.first_problem(exercise, wrong)


def test_one_step_after_another_is_gptq():
    """All columns by the exercise's step, the inverse shrinking, give `gptq_plain`'s weights."""
    from course_utils.compression.gptq import damped, gptq_plain
    from course_utils.compression.rtn import codes_on, quantize_symmetric

    torch.manual_seed(0)
    w, x = torch.randn(1, 6, dtype=torch.float64), torch.randn(20, 6, dtype=torch.float64)
    hessian = x.T @ x
    expected = gptq_plain(w, hessian, bits=3)[0]
    _, scale = quantize_symmetric(w, 3)
    row, inverse = w[0], torch.linalg.inv(damped(hessian))
    for i in range(6):
        q = codes_on(row[i : i + 1], 3, "symmetric", scale[0]) * scale[0]
        row = quantization.spread(row, i, q.item(), inverse)
        inverse = inverse - torch.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    torch.testing.assert_close(row, expected, atol=1e-9, rtol=0)
