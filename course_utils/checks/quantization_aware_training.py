"""The exercises of notebook 14, with the mistakes that learners make in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.compression import qat
from course_utils.compression.rtn import codes_on, pack_bits
from course_utils.exercises import Case, ClassExercise, Exercise, Probe, Statement


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ── rounding that lets gradients through ─────────────────────────────────────────────────────────


def straight_through(x: Tensor, step: float, bits: int) -> Tensor:
    """x on the grid −q … q times step; backward, 1 where it was rounded and 0 where cut off."""
    return qat.fake_quantize(x, torch.tensor([step]), bits)


def _value_and_gradient(function: Callable, x: Tensor, step: float, bits: int) -> Any:
    """What comes out, and the gradient of its sum by x."""
    x = x.clone().requires_grad_()
    y = function(x, step, bits)
    if not isinstance(y, Tensor):
        return y
    if not y.requires_grad:
        return y.detach(), torch.zeros_like(x)
    y.sum().backward()
    return y.detach(), torch.zeros_like(x) if x.grad is None else x.grad


def _through_inputs() -> Iterator[tuple]:
    for seed, step, bits in ((1, 0.3, 3), (2, 0.8, 2), (3, 0.05, 4)):
        x, end = _random(12, seed=seed), (2 ** (bits - 1) - 1) * step
        # Within half a step beyond the end, some count a number as rounded, and some as cut off.
        either = (x.abs() > end) & (x.abs() < end + step)
        yield torch.where(either, x / 4, x), step, bits


def _plain_round(x: Tensor, step: float, bits: int) -> Tensor:
    q = 2 ** (bits - 1) - 1
    return (x / step).round().clamp(-q, q) * step


def _through_the_ends(x: Tensor, step: float, bits: int) -> Tensor:
    return x + (_plain_round(x, step, bits) - x).detach()


def _without_ends(x: Tensor, step: float, bits: int) -> Tensor:
    return x + ((x / step).round() * step - x).detach()


def _in_steps(x: Tensor, step: float, bits: int) -> Tensor:
    return straight_through(x, step, bits) / step


def _one_level_more(x: Tensor, step: float, bits: int) -> Tensor:
    q = 2 ** (bits - 1)
    steps = x / step
    rounded = steps + (steps.round() - steps).detach()
    return rounded.clamp(-q, q) * step


# ── the best step ────────────────────────────────────────────────────────────────────────────────


def best_of(x: Tensor, bits: int, steps: list[float]) -> float:
    """The step of the list that loses the least squares of x on the grid −q … q times step."""
    lost = [(_plain_round(x, step, bits) - x).square().sum().item() for step in steps]
    return steps[lost.index(min(lost))]


def _step_inputs() -> Iterator[tuple]:
    for seed, bits in ((1, 2), (2, 3), (3, 2)):
        yield _random(64, seed=seed), bits, [0.3, 0.6, 0.9, 1.2, 1.5, 2.0, 2.5]


def _the_widest(x: Tensor, bits: int, steps: list[float]) -> float:
    reach = x.abs().max().item() / (2 ** (bits - 1) - 1)
    return min(steps, key=lambda step: abs(step - reach))


def _not_cut_off(x: Tensor, bits: int, steps: list[float]) -> float:
    lost = [((x / step).round() * step - x).square().sum().item() for step in steps]
    return steps[lost.index(min(lost))]


def _worst(x: Tensor, bits: int, steps: list[float]) -> float:
    lost = [(_plain_round(x, step, bits) - x).square().sum().item() for step in steps]
    return steps[lost.index(max(lost))]


# ── a layer with learned steps ───────────────────────────────────────────────────────────────────


class StepLinear(nn.Module):
    """A linear layer on rounded weights, with a learned step for each row. Esser et al. 2020."""

    def __init__(self, linear: nn.Linear, bits: int) -> None:
        super().__init__()
        self.weight, self.bias, self.bits = linear.weight, linear.bias, bits
        self.step = nn.Parameter(qat.first_scale(linear.weight.detach(), bits))  # (D_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, qat.fake_quantize(self.weight, self.step, self.bits), self.bias)


X = torch.tensor([[1.0, 2.0, -1.0, 0.5], [0.5, -1.0, 2.0, 1.0], [-1.0, 1.0, 1.0, 2.0]])


def _linear() -> nn.Linear:
    linear = nn.Linear(4, 2)
    linear.weight.data = torch.tensor([[0.5, -0.3, 0.6, 0.1], [4.0, -0.7, 0.3, -0.2]])
    linear.bias.data = torch.tensor([0.25, -1.0])
    return linear


def _parameters(cls: type) -> Any:
    return sorted(p.numel() for p in cls(_linear(), 3).parameters())


def _steps_of(layer: nn.Module) -> Tensor:
    """The parameter that is neither weight nor bias, as a column."""
    weight, bias = (2, 4), (2,)
    found = [p for n, p in layer.named_parameters() if "weight" not in n and "bias" not in n]
    found = found or [p for p in layer.parameters() if tuple(p.shape) not in (weight, bias)]
    return found[0]


def _first(cls: type) -> Any:
    return _steps_of(cls(_linear(), 3)).detach().reshape(-1)


def _answer(cls: type) -> Any:
    return cls(_linear(), 3)(X).detach()


def _weight_gradient(cls: type) -> Any:
    layer = cls(_linear(), 2)
    layer(X).square().sum().backward()
    gradient = next(p for p in layer.parameters() if p.numel() == 8).grad
    return torch.zeros(2, 4) if gradient is None else gradient


def _step_direction(cls: type) -> Any:
    layer = cls(_linear(), 2)
    layer(X).square().sum().backward()
    gradient = _steps_of(layer).grad
    return torch.zeros(2) if gradient is None else gradient.reshape(-1).sign()


class _FromTheLargest(StepLinear):
    def __init__(self, linear: nn.Linear, bits: int) -> None:
        super().__init__(linear, bits)
        largest = linear.weight.detach().abs().amax(dim=1, keepdim=True)
        self.step.data = largest / (2 ** (bits - 1) - 1)


class _WithoutRoot(StepLinear):
    def __init__(self, linear: nn.Linear, bits: int) -> None:
        super().__init__(linear, bits)
        self.step.data /= math.sqrt(2 ** (bits - 1) - 1)


class _OneStep(StepLinear):
    def __init__(self, linear: nn.Linear, bits: int) -> None:
        super().__init__(linear, bits)
        self.step = nn.Parameter(qat.first_scale(linear.weight.detach().reshape(1, -1), bits))


class _StepNotLearned(StepLinear):
    def forward(self, x: Tensor) -> Tensor:
        weight = qat.fake_quantize(self.weight, self.step.detach(), self.bits)
        return F.linear(x, weight, self.bias)


class _WithoutBias(StepLinear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, qat.fake_quantize(self.weight, self.step, self.bits))


class _NoGradient(StepLinear):
    def forward(self, x: Tensor) -> Tensor:
        q = 2 ** (self.bits - 1) - 1
        weight = (self.weight / self.step).round().clamp(-q, q) * self.step
        return F.linear(x, weight, self.bias)


# ── four weights in a byte ───────────────────────────────────────────────────────────────────────


def packed(weights: Tensor, steps: Tensor) -> Tensor:
    """Floats (G, N) and their steps (G, 1) as bytes (G·N/4,): codes −1, 0, 1 as 0, 1, 2.

    The first weight is in the lowest two bits.
    """
    codes = codes_on(weights, 2, "symmetric", steps)
    return pack_bits(codes.int() + 1, 2)


def _in_bytes(codes: Tensor) -> Tensor:
    """Four codes a byte by arithmetic; what is not 0 … 3 spills over."""
    return (codes.reshape(-1, 4).long() * torch.tensor([1, 4, 16, 64])).sum(dim=1) % 256


def _pack_inputs() -> Iterator[tuple]:
    for seed, groups, n, reach in ((1, 2, 8, 1.0), (2, 3, 4, 2.0), (3, 1, 16, 0.3)):
        steps = _random(groups, 1, seed=seed + 10).abs() + 0.2
        steps_of = _random(groups, n, seed=seed) * reach
        # Halves are left out: which way they go is a matter of taste.
        near_half = (steps_of.abs() % 1 - 0.5).abs() < 0.02
        yield torch.where(near_half, steps_of + 0.1, steps_of) * steps, steps


def _steps_rounded(weights: Tensor, steps: Tensor) -> Tensor:
    return (weights / steps).round()


def _packed_without_an_end(weights: Tensor, steps: Tensor) -> Tensor:
    return _in_bytes(_steps_rounded(weights, steps) + 1)


def _packed_with_signs(weights: Tensor, steps: Tensor) -> Tensor:
    """−1 as 3, as an integer of two bits has it."""
    return _in_bytes(_steps_rounded(weights, steps).clamp(-1, 1) % 4)


def _packed_from_the_top(weights: Tensor, steps: Tensor) -> Tensor:
    codes = _steps_rounded(weights, steps).clamp(-1, 1) + 1
    return _in_bytes(codes.reshape(-1, 4).flip(dims=[1]))


def _packed_and_cut(weights: Tensor, steps: Tensor) -> Tensor:
    return _in_bytes((weights / steps).clamp(-1, 1).trunc() + 1)


def _packed_floats(weights: Tensor, steps: Tensor) -> Tensor:
    return _in_bytes(weights.round().clamp(-1, 1) + 1)


def _a_byte_each(weights: Tensor, steps: Tensor) -> Tensor:
    return (_steps_rounded(weights, steps).clamp(-1, 1) + 1).flatten()


EXERCISES = {
    "straight_through": Exercise(
        reference=straight_through,
        hint="q = 2**(bits − 1) − 1 and steps = x / step. Two ways: cut first, "
        "c = steps.clamp(-q, q), whose gradient is 0 beyond the ends, then "
        "c + (c.round() - c).detach(), whose value is rounded and whose gradient is that of c. Or "
        "a torch.autograd.Function with a backward of its own.",
        cases=(
            Case(
                (torch.tensor([0.3, 0.9, -9.0]), 0.5, 3),
                (torch.tensor([0.5, 1.0, -1.5]), torch.tensor([1.0, 1.0, 0.0])),
                why="0.6 steps are 1, 1.8 are 2, −18 are cut off at −3. Then the gradients: "
                "rounding passes them on, cutting off does not.",
            ),
        ),
        inputs=_through_inputs,
        mistakes={
            "nothing lets the gradient through: round() has a slope of 0": _plain_round,
            "what is cut off has a gradient too": _through_the_ends,
            "nothing is cut off at the ends": _without_ends,
            "the result is in steps, not multiplied by the step": _in_steps,
            "the grid has one level too many on each side": _one_level_more,
        },
        through=_value_and_gradient,
    ),
    "best_step": Exercise(
        reference=best_of,
        hint="For each step: q = 2**(bits - 1) - 1, (x / step).round().clamp(-q, q) * step, and "
        "the sum of squared differences from x. Return the step with the least.",
        cases=(
            Case(
                (torch.tensor([1.0, -1.0, 1.0, 2.0]), 2, [1.0, 0.1, 1.25, 2.0]),
                1.25,
                why="With 1 the 2 is wrong by 1: 1. With 1.25 three are wrong by ¼ and the 2 by "
                "¾: 0.75. With 2 the ones are half a step and go to 0: 3.",
            ),
        ),
        inputs=_step_inputs,
        mistakes={
            "the last level is put at the largest number": _the_widest,
            "nothing is cut off, so that small steps cost nothing": _not_cut_off,
            "the step that loses the most is taken": _worst,
        },
    ),
    "pack": Exercise(
        reference=packed,
        hint="Codes first: (weights / steps).round().clamp(-1, 1) + 1, so that they are 0, 1 or 2. "
        "Then four neighbours, codes.reshape(-1, 4), times 1, 4, 16 and 64, added up: two bits for "
        "each.",
        cases=(
            Case(
                (torch.tensor([[3.6, -0.8, -12.0, 1.6]]), torch.tensor([[2.0]])),
                torch.tensor([134]),
                why="In steps 1.8, −0.4, −6 and 0.8; rounded and cut off 1, 0, −1 and 1; with 1 "
                "added 2, 1, 0 and 2. Then 2 + 1·4 + 0·16 + 2·64 = 134.",
            ),
        ),
        inputs=_pack_inputs,
        mistakes={
            "nothing is cut off, so that large codes spill into their neighbours": (
                _packed_without_an_end
            ),
            "−1 is stored as 3, in two's complement, not as 0": _packed_with_signs,
            "the first weight is in the highest bits": _packed_from_the_top,
            "weights are cut towards 0, not rounded": _packed_and_cut,
            "the weights are not divided by their steps": _packed_floats,
            "every code has a byte of its own": _a_byte_each,
        },
    ),
    "step_linear": ClassExercise(
        reference=StepLinear,
        hint="In __init__: keep linear.weight and linear.bias, and make self.step = nn.Parameter("
        "2 * |W|.mean(dim=1, keepdim=True) / sqrt(q)), q = 2**(bits - 1) - 1. In forward: round "
        "the weight with qat.fake_quantize(self.weight, self.step, self.bits), which gives both "
        "gradients, then F.linear(x, rounded, self.bias).",
        probes=(
            Probe("weight, bias and a step a row are parameters", _parameters),
            Probe("the first steps", _first, why="2 · mean|W| / √q of each row."),
            Probe("the answer", _answer),
            Probe("the weight's gradient", _weight_gradient),
            Probe("the steps learn", _step_direction, why="The sign of each step's gradient."),
        ),
        mistakes={
            "the first step puts the last level at the largest weight": _FromTheLargest,
            "the first step is divided by q, not by its root": _WithoutRoot,
            "one step serves all rows": _OneStep,
            "the step gets no gradient": _StepNotLearned,
            "the bias is forgotten": _WithoutBias,
            "round() lets no gradient through to the weight": _NoGradient,
        },
    ),
}

STATEMENTS = {
    "verdicts": {
        "a": Statement(
            "Rounding has a slope of zero nearly everywhere, so training needs a gradient that is "
            "not the true one.",
            supported=True,
            why="Without the straight-through gradient every weight's gradient was 0.",
        ),
        "b": Statement(
            "Training while rounded beats rounding afterwards, whatever the number of bits.",
            supported=False,
            why="At 2 bits it brought GPTQ's model forward. At 3 bits hardly anything was left to "
            "win, and begun with the whole model's weights it was behind GPTQ even at 2.",
        ),
        "c": Statement(
            "A model that was trained further while rounded, and is better than before, shows what "
            "training while rounded is worth.",
            supported=False,
            why="The control, trained as long without rounding and rounded then, had gained too: "
            "small networks as well as the encoder.",
        ),
        "d": Statement(
            "With three levels a group, how far apart they are matters more than that they learn.",
            supported=True,
            why="The step's size alone took the model from next to nothing to half of its cosine; "
            "with LSQ's first steps kept, training ended nearly as high as with learned ones.",
        ),
        "e": Statement(
            "After training the weights are still floats, so nothing is saved.",
            supported=False,
            why="Packed integers and their steps gave the same answers, bit by bit.",
        ),
        "f": Statement(
            "What a few steps of training while rounded gain shows what moving rounded weights is "
            "worth.",
            supported=False,
            why="Norms and biases alone, over weights that stayed, gained as much as quickly, and "
            "weights alone gained as much once more: the halves do not add up.",
        ),
        "g": Statement(
            "Training while rounded costs about as much as rounding.",
            supported=False,
            why="It computed gradients over many batches; rounding to nearest reads no text.",
        ),
    },
}
