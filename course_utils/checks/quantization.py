"""The exercises of notebook 13, with the mistakes that learners make in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from course_utils.compression.awq import scaled_rounding
from course_utils.compression.number_formats import bit_fields, from_fields
from course_utils.compression.rtn import (
    dequantize_symmetric,
    quantize_symmetric,
    round_to_nearest,
)
from course_utils.exercises import Case, Exercise, Statement

# ── a number from its bits ───────────────────────────────────────────────────────────────────────


def _bit_inputs() -> Iterator[tuple]:
    for name in ("float32", "float16", "bfloat16"):
        for x in (-0.75, 3.140625, 0.009765625, -40.0):
            yield bit_fields(x, name)


def _parts(exponent: str, fraction: str) -> tuple[int, float, int]:
    """The exponent's number, the fraction's share of 1, and the bias."""
    part = int(fraction, 2) / 2 ** len(fraction)
    return int(exponent, 2), part, 2 ** (len(exponent) - 1) - 1


def _without_sign(sign: str, exponent: str, fraction: str) -> float:
    return from_fields("0", exponent, fraction)


def _without_bias(sign: str, exponent: str, fraction: str) -> float:
    e, part, _ = _parts(exponent, fraction)
    return (-1) ** int(sign) * 2.0**e * (1 + part)


def _bias_of_eight_bits(sign: str, exponent: str, fraction: str) -> float:
    e, part, _ = _parts(exponent, fraction)
    return (-1) ** int(sign) * 2.0 ** (e - 127) * (1 + part)


def _without_leading_one(sign: str, exponent: str, fraction: str) -> float:
    e, part, bias = _parts(exponent, fraction)
    return (-1) ** int(sign) * 2.0 ** (e - bias) * part


def _fraction_backwards(sign: str, exponent: str, fraction: str) -> float:
    return from_fields(sign, exponent, fraction[::-1])


# ── round to nearest ─────────────────────────────────────────────────────────────────────────────


def rounded_rows(weight: Tensor, bits: int) -> Tensor:
    """W (D_out, D_in) on a symmetric grid a row, read back."""
    return round_to_nearest(weight, bits, granularity="channel")


def _weight_inputs() -> Iterator[tuple]:
    for bits in (2, 3, 4, 8):
        generator = torch.Generator().manual_seed(bits)
        yield torch.randn(3, 5, generator=generator), bits


def _one_scale(weight: Tensor, bits: int) -> Tensor:
    return round_to_nearest(weight, bits, granularity="tensor")


def _scales_of_columns(weight: Tensor, bits: int) -> Tensor:
    return rounded_rows(weight.T, bits).T


def _codes_alone(weight: Tensor, bits: int) -> Tensor:
    return quantize_symmetric(weight, bits)[0].float()


def _cut_off(weight: Tensor, bits: int) -> Tensor:
    scale = weight.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (weight / scale).trunc() * scale


def _one_code_too_many(weight: Tensor, bits: int) -> Tensor:
    scale = weight.abs().amax(dim=1, keepdim=True) / 2 ** (bits - 1)
    return (weight / scale).round() * scale


def _largest_without_sign(weight: Tensor, bits: int) -> Tensor:
    largest = 2 ** (bits - 1) - 1
    scale = weight.amax(dim=1, keepdim=True).clamp(min=1e-6) / largest
    return (weight / scale).round().clamp(-largest, largest) * scale


# ── one step of GPTQ ─────────────────────────────────────────────────────────────────────────────


def spread(w: Tensor, i: int, q: float, h_inverse: Tensor) -> Tensor:
    """w (D,) once its i-th weight is q: each later one moves by −e · H⁻¹[i, j] / H⁻¹[i, i].

    e = w[i] − q. Those before i are rounded already, and stay.
    """
    moved = w.clone()
    error = (w[i] - q) / h_inverse[i, i]
    moved[i + 1 :] -= error * h_inverse[i, i + 1 :]
    moved[i] = q
    return moved


def _step_inputs() -> Iterator[tuple]:
    for i in range(4):
        generator = torch.Generator().manual_seed(i)
        w, x = torch.randn(5, generator=generator), torch.randn(9, 5, generator=generator)
        yield w, i, w[i].round().item(), torch.linalg.inv(x.T @ x)


def _added(w: Tensor, i: int, q: float, h_inverse: Tensor) -> Tensor:
    moved = 2 * w - spread(w, i, q, h_inverse)
    moved[i] = q
    return moved


def _not_divided(w: Tensor, i: int, q: float, h_inverse: Tensor) -> Tensor:
    moved = w.clone()
    moved[i + 1 :] -= (w[i] - q) * h_inverse[i, i + 1 :]
    moved[i] = q
    return moved


def _all_moved(w: Tensor, i: int, q: float, h_inverse: Tensor) -> Tensor:
    return w - (w[i] - q) / h_inverse[i, i] * h_inverse[i]


def _left_as_it_was(w: Tensor, i: int, q: float, h_inverse: Tensor) -> Tensor:
    moved = spread(w, i, q, h_inverse)
    moved[i] = w[i]
    return moved


def _only_rounded(w: Tensor, i: int, q: float, h_inverse: Tensor) -> Tensor:
    moved = w.clone()
    moved[i] = q
    return moved


# ── columns scaled ───────────────────────────────────────────────────────────────────────────────


def _scale_inputs() -> Iterator[tuple]:
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        scales = torch.rand(4, generator=generator) * 2 + 0.5
        yield 3 * torch.randn(4, 4, generator=generator), scales, torch.round


def _never_undone(weight: Tensor, scales: Tensor, quantize: Callable) -> Tensor:
    return quantize(weight * scales)


def _the_other_way(weight: Tensor, scales: Tensor, quantize: Callable) -> Tensor:
    return quantize(weight / scales) * scales


def _rows_scaled(weight: Tensor, scales: Tensor, quantize: Callable) -> Tensor:
    rows = scales[: len(weight)].unsqueeze(1)
    return quantize(weight * rows) / rows


def _rounded_first(weight: Tensor, scales: Tensor, quantize: Callable) -> Tensor:
    return quantize(weight) * scales / scales


EXERCISES = {
    "from_bits": Exercise(
        reference=from_fields,
        hint="int(exponent, 2) reads a text of 0s and 1s as a whole number; so does int(fraction, "
        "2), which then counts parts of 2^(length). The bias is 2^(length − 1) − 1: it is 15 for "
        "an exponent of 5 bits.",
        cases=(
            Case(("0", "01111", "1000000000"), 1.5, why="The exponent is 15 − 15 = 0; 1 + 1/2."),
            Case(("1", "10000", "0100000000"), -2.5, why="−(2 to the 1) · (1 + 1/4)."),
            Case(("0", "01111110", "1100000"), 0.875, why="A bfloat16: 2 to the −1, 1 + 3/4."),
        ),
        inputs=_bit_inputs,
        mistakes={
            "the sign is not used": _without_sign,
            "the bias is not taken off the exponent": _without_bias,
            "the bias is 127 whatever the length of the exponent": _bias_of_eight_bits,
            "the 1 before the fraction is forgotten": _without_leading_one,
            "the fraction is read from its end": _fraction_backwards,
        },
    ),
    "round": Exercise(
        reference=rounded_rows,
        hint="scale = the largest |weight| of the row over 2^(bits − 1) − 1 (keepdim=True keeps it "
        "a column). Then (weight / scale).round() * scale.",
        cases=(
            Case(
                (torch.tensor([[0.9, -0.4], [0.1, 0.04]]), 2),
                torch.tensor([[0.9, 0.0], [0.1, 0.0]]),
                why="Codes −1, 0, 1. The scales are 0.9 and 0.1; −0.44 and 0.4 round to 0.",
            ),
            Case(
                (torch.tensor([[-1.0, 0.2, 0.45, 0.7]]), 3),
                torch.tensor([[-1.0, 1 / 3, 1 / 3, 2 / 3]]),
                why="The scale is 1/3: −3, 0.6, 1.35 and 2.1 steps.",
            ),
        ),
        inputs=_weight_inputs,
        mistakes={
            "all rows share one scale": _one_scale,
            "columns have scales, and not rows": _scales_of_columns,
            "the codes are returned, and not what they stand for": _codes_alone,
            "numbers are cut off, and not rounded": _cut_off,
            "the largest code is 2^(bits − 1)": _one_code_too_many,
            "the scale comes from the largest weight, and not from the largest size": (
                _largest_without_sign
            ),
        },
        solution=(quantize_symmetric, dequantize_symmetric),
    ),
    "spread": Exercise(
        reference=spread,
        hint="Copy w. e = (w[i] − q) / h_inverse[i, i]; take e · h_inverse[i, i + 1 :] off the "
        "later ones; put q at i.",
        cases=(
            Case(
                (torch.tensor([0.6, 0.6]), 0, 1.0, torch.tensor([[1.0, -0.5], [-0.5, 1.0]])),
                torch.tensor([1.0, 0.4]),
                why="e = −0.4, and 0.6 − (−0.4)·(−0.5) = 0.4.",
            ),
            Case(
                (torch.tensor([2.0, 0.5, 3.0]), 1, 1.0, 2 * torch.eye(3) - 0.5),
                torch.tensor([2.0, 1.0, 3.0 - 0.5 / 3]),
                why="The first was rounded before. e = −0.5; −e · (−0.5) / 1.5 is −0.1667.",
            ),
        ),
        inputs=_step_inputs,
        mistakes={
            "the error is added where it should be taken off": _added,
            "the error is not divided by h_inverse[i, i]": _not_divided,
            "weights that were rounded before move too": _all_moved,
            "the weight itself is not replaced by q": _left_as_it_was,
            "nothing is made up for: that is rounding to nearest": _only_rounded,
        },
    ),
    "scaled": Exercise(
        reference=scaled_rounding,
        hint="Multiply each column by its scale, quantize, and divide again. scales (D_in,) "
        "broadcasts over the rows.",
        cases=(
            Case(
                (torch.tensor([[1.3, 0.6, 1.2]]), torch.tensor([2.0, 1.0, 1.0]), torch.round),
                torch.tensor([[1.5, 1.0, 1.0]]),
                why="1.3 · 2 = 2.6 rounds to 3, over 2.",
            ),
        ),
        inputs=_scale_inputs,
        mistakes={
            "the scaling is never undone": _never_undone,
            "columns are divided first and multiplied afterwards": _the_other_way,
            "rows are scaled, and not columns": _rows_scaled,
            "rounding comes before scaling, which then changes nothing": _rounded_first,
        },
    ),
}

STATEMENTS = {
    "verdicts": {
        "a": Statement(
            "One in a hundred columns, kept as it was, helps as much as any other hundredth.",
            supported=False,
            why="Those with large inputs helped a lot, as many by lot next to nothing (C7b).",
        ),
        "b": Statement(
            "Of two roundings the one with less error in every layer gives the better model.",
            supported=False,
            why="At 2 bits without a minimum it was the other way round (C5c): a rounded model "
            "gives its layers other inputs than those on which the error was measured (C5c2).",
        ),
        "c": Statement(
            "Calibrated on the exam's own sentences, GPTQ looks better than it is.",
            supported=True,
            why="It was ahead on the exam, and not on sentences that neither side had read (C5b).",
        ),
        "d": Statement(
            "NF4 uses its sixteen levels equally often.",
            supported=False,
            why="Groups are divided by their own largest number, so that the ends are rare.",
        ),
        "e": Statement(
            "A layer with fewer bits is faster.",
            supported=False,
            why="Without a kernel for packed weights it has to unpack first: see your box C3b.",
        ),
        "f": Statement(
            "In 16 bits MiniLM's vectors hardly changed.",
            supported=True,
            why="Their mean cosine with the original's stayed above 0.999.",
        ),
        "g": Statement(
            "More bits a weight always keep more of the model.",
            supported=False,
            why="Q4_K in 4.5 bits kept more than Q4_1 in 5.",
        ),
        "h": Statement(
            "The columns to keep as floats are those with the largest weights.",
            supported=False,
            why="The heaviest hundredth gained hardly more than a random one; the one with large "
            "inputs did.",
        ),
    },
}
