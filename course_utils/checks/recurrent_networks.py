"""The exercises of notebook 01, with the mistakes that learners make in them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from course_utils.architectures.cells import (
    GATES,
    combine_linear_steps,
    lstm_step,
    parameter_count,
    rnn_step,
)
from course_utils.architectures.gradient_flow import clip_gradients
from course_utils.exercises import Case, Exercise, Statement


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _layer(seed: int, gates: int, d_in: int = 3, d_hidden: int = 4) -> tuple[Tensor, ...]:
    """Weights w_ih, w_hh, b_ih, b_hh of a small layer, no two alike."""
    rows = gates * d_hidden
    shapes = (rows, d_in), (rows, d_hidden), (rows,), (rows,)
    return tuple(_random(10 * seed + i, *shape) for i, shape in enumerate(shapes))


# ── one step of an RNN ───────────────────────────────────────────────────────────────────────────


def _rnn_inputs() -> Iterator[tuple]:
    for seed in range(3):
        yield _random(seed, 3), _random(seed + 50, 4), *_layer(seed, gates=1)


def _no_tanh(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> Tensor:
    return F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)


def _no_state(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> Tensor:
    return torch.tanh(F.linear(x, w_ih, b_ih) + b_hh)


def _transposed(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> Tensor:
    return torch.tanh(F.linear(x, w_ih, b_ih) + F.linear(h, w_hh.T, b_hh))


def _one_bias(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> Tensor:
    return torch.tanh(F.linear(x, w_ih, b_ih) + F.linear(h, w_hh))


def _relu(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
    return _no_tanh(x, h, w_ih, w_hh, b_ih, b_hh).relu()


def _sigmoid(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> Tensor:
    return _no_tanh(x, h, w_ih, w_hh, b_ih, b_hh).sigmoid()


def _input_alone_squeezed(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> Tensor:
    return torch.tanh(F.linear(x, w_ih, b_ih)) + F.linear(h, w_hh, b_hh)


# ── one step of an LSTM ──────────────────────────────────────────────────────────────────────────

# One input, one unit, weights 0: the biases alone set the gates. σ(0) = ½.
ZERO = torch.zeros(4, 1)
HALF_OPEN = torch.tensor([0.0, 0.0, 1.0, 0.0]), torch.zeros(4)
OPEN = torch.tensor([50.0, 50.0, 0.0, 50.0]), torch.zeros(4)
KEEPING = torch.tensor([0.0, 50.0, 0.5, 50.0]), torch.zeros(4)  # f and o open, i half
TO_CONTENT = torch.tensor([[0.0], [0.0], [0.5], [0.0]])
LAST = torch.zeros(1), torch.ones(1)  # h, c


def _lstm_inputs() -> Iterator[tuple]:
    for seed in range(3):
        state = _random(seed + 50, 4), _random(seed + 60, 4)
        yield _random(seed, 3), state, *_layer(seed, gates=4)


def _gates(x: Tensor, state: tuple, w_ih: Tensor, w_hh: Tensor, b: Tensor, b_hh: Tensor) -> tuple:
    return (F.linear(x, w_ih, b) + F.linear(state[0], w_hh, b_hh)).chunk(4, dim=-1)


def _other_order(x: Tensor, state: tuple, *weights: Tensor) -> tuple:
    swapped = [torch.cat([w.chunk(4)[i] for i in (0, 1, 3, 2)]) for w in weights]
    return lstm_step(x, state, *swapped)


def _swapped(x: Tensor, state: tuple, *weights: Tensor) -> tuple:
    swapped = [torch.cat([w.chunk(4)[i] for i in (1, 0, 2, 3)]) for w in weights]
    return lstm_step(x, state, *swapped)


def _bare_content(x: Tensor, state: tuple, *weights: Tensor) -> tuple:
    i, f, g, o = _gates(x, state, *weights)
    c = f.sigmoid() * state[1] + i.sigmoid() * g
    return o.sigmoid() * c.tanh(), c


def _gated_content(x: Tensor, state: tuple, *weights: Tensor) -> tuple:
    i, f, g, o = _gates(x, state, *weights)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.sigmoid()
    return o.sigmoid() * c.tanh(), c


def _never_forgets(x: Tensor, state: tuple, *weights: Tensor) -> tuple:
    i, _, g, o = _gates(x, state, *weights)
    c = state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _bare_cell(x: Tensor, state: tuple, *weights: Tensor) -> tuple:
    c = lstm_step(x, state, *weights)[1]
    return _gates(x, state, *weights)[3].sigmoid() * c, c


def _old_cell(x: Tensor, state: tuple, *weights: Tensor) -> tuple:
    c = lstm_step(x, state, *weights)[1]
    return _gates(x, state, *weights)[3].sigmoid() * state[1].tanh(), c


def _bare_gates(x: Tensor, state: tuple, *weights: Tensor) -> tuple:
    i, f, g, o = _gates(x, state, *weights)
    c = f * state[1] + i * g.tanh()
    return o * c.tanh(), c


def _tied(x: Tensor, state: tuple, *weights: Tensor) -> tuple:
    _, f, g, o = _gates(x, state, *weights)
    c = f.sigmoid() * state[1] + (1 - f.sigmoid()) * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _input_alone(x: Tensor, state: tuple, *weights: Tensor) -> tuple:
    return lstm_step(x, (torch.zeros_like(state[0]), state[1]), *weights)


def _state_swapped(x: Tensor, state: tuple, *weights: Tensor) -> tuple:
    return lstm_step(x, state[::-1], *weights)


def _cell_first(x: Tensor, state: tuple, *weights: Tensor) -> tuple:
    h, c = lstm_step(x, state, *weights)
    return c, h


# ── parameters ───────────────────────────────────────────────────────────────────────────────────


def _count_inputs() -> Iterator[tuple]:
    for kind in GATES:
        yield kind, 10, 6
        yield kind, 128, 256


# ── clipping ─────────────────────────────────────────────────────────────────────────────────────


def clip(grad_w: Tensor, grad_b: Tensor, max_norm: float) -> tuple[Tensor, Tensor]:
    """Both gradients times one factor, so that their joint 2-norm is at most `max_norm`."""
    norm = math.sqrt(grad_w.square().sum() + grad_b.square().sum())
    factor = max_norm / max(norm, max_norm)  # 1 below the limit
    return grad_w * factor, grad_b * factor


def _clip_inputs() -> Iterator[tuple]:
    for seed, max_norm in enumerate((0.5, 1.0, 1e3)):
        yield _random(seed, 3, 4), _random(seed + 10, 3), max_norm


def _one_by_one(grad_w: Tensor, grad_b: Tensor, max_norm: float) -> tuple[Tensor, Tensor]:
    return tuple(grad * min(1.0, max_norm / grad.norm().item()) for grad in (grad_w, grad_b))


def _always(grad_w: Tensor, grad_b: Tensor, max_norm: float) -> tuple[Tensor, Tensor]:
    norm = math.hypot(grad_w.norm(), grad_b.norm())
    return grad_w * max_norm / norm, grad_b * max_norm / norm


def _by_entry(grad_w: Tensor, grad_b: Tensor, max_norm: float) -> tuple[Tensor, Tensor]:
    return grad_w.clamp(-max_norm, max_norm), grad_b.clamp(-max_norm, max_norm)


def _to_one(grad_w: Tensor, grad_b: Tensor, max_norm: float) -> tuple[Tensor, Tensor]:
    norm = math.hypot(grad_w.norm(), grad_b.norm())
    return (grad_w / norm, grad_b / norm) if norm > max_norm else (grad_w, grad_b)


def _added_norms(grad_w: Tensor, grad_b: Tensor, max_norm: float) -> tuple[Tensor, Tensor]:
    factor = min(1.0, max_norm / (grad_w.norm() + grad_b.norm()).item())
    return grad_w * factor, grad_b * factor


def _without_root(grad_w: Tensor, grad_b: Tensor, max_norm: float) -> tuple[Tensor, Tensor]:
    norm = (grad_w.square().sum() + grad_b.square().sum()).item()
    factor = min(1.0, max_norm / norm)
    return grad_w * factor, grad_b * factor


# ── two linear steps in one ──────────────────────────────────────────────────────────────────────


def _combine_inputs() -> Iterator[tuple]:
    for seed in range(3):
        yield tuple(_random(10 * seed + i, 4) for i in range(4))


def _backwards(a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
    return combine_linear_steps(a2, b2, a1, b1)


# ── a forget bias for a wanted memory ────────────────────────────────────────────────────────────


def bias_for_half_life(steps: float) -> float:
    """The forget bias b for which half of the cell is left after so many steps: σ(b)^steps = ½."""
    kept = 0.5 ** (1 / steps)  # of the cell, at each step
    return math.log(kept / (1 - kept))


def _half_life_inputs() -> Iterator[tuple]:
    for steps in (2.0, 10.0, 100.0):
        yield (steps,)


EXERCISES = {
    "rnn_step": Exercise(
        reference=rnn_step,
        hint="Two matrix–vector products, two biases, one tanh: torch.tanh(w_ih @ x + b_ih + …).",
        cases=(
            Case(
                (
                    torch.tensor([0.5]),
                    torch.tensor([0.25]),
                    torch.tensor([[-2.0]]),
                    torch.tensor([[1.0]]),
                    torch.tensor([0.1]),
                    torch.tensor([0.05]),
                ),
                torch.tensor([math.tanh(-0.6)]),
                why="−2·0.5 + 0.1 + 1·0.25 + 0.05 = −0.6, and then the tanh.",
            ),
        ),
        inputs=_rnn_inputs,
        mistakes={
            "the tanh is left out": _no_tanh,
            "a relu stands in the place of the tanh": _relu,
            "a sigmoid stands in the place of the tanh": _sigmoid,
            "the tanh takes in the input alone, and the old state is added after it": (
                _input_alone_squeezed
            ),
            "the old state is not used": _no_state,
            "the recurrent weight is transposed": _transposed,
            "the second bias is left out": _one_bias,
        },
    ),
    "lstm_step": Exercise(
        reference=lstm_step,
        hint="Compute all four gates at once, (4·H,) numbers, and cut them with .chunk(4): i, f, "
        "g, o. Three of them go through a sigmoid, g through a tanh. The cell is f·c + i·g; the "
        "output gate then decides what of tanh(cell) is shown.",
        cases=(
            Case(
                (torch.ones(1), LAST, ZERO, ZERO, *HALF_OPEN),
                (
                    torch.tensor([0.5 * math.tanh(0.5 + 0.5 * math.tanh(1))]),
                    torch.tensor([0.5 + 0.5 * math.tanh(1)]),
                ),
                why="All gates are ½ and g = tanh(1): c' = ½·1 + ½·tanh(1), h' = ½·tanh(c').",
            ),
            Case(
                (torch.ones(1), LAST, ZERO, ZERO, *OPEN),
                (torch.tensor([math.tanh(1)]), torch.ones(1)),
                why="An open forget gate keeps the cell as it was; g = 0 adds nothing.",
            ),
            Case(
                (torch.ones(1), (torch.ones(1), torch.ones(1)), ZERO, TO_CONTENT, *KEEPING),
                (
                    torch.tensor([math.tanh(1 + 0.5 * math.tanh(1))]),
                    torch.tensor([1 + 0.5 * math.tanh(1)]),
                ),
                why="g = tanh(½·h + ½) = tanh(1), let in by half: c' = 1·1 + ½·tanh(1).",
            ),
        ),
        inputs=_lstm_inputs,
        mistakes={
            "the gates are read in the order i, f, o, g": _other_order,
            "the gates are read in the order f, i, g, o": _swapped,
            "the gates go through no sigmoid": _bare_gates,
            "the input gate is taken for 1 − f": _tied,
            "the old h is not used": _input_alone,
            "h and c are taken out of the state in the wrong order": _state_swapped,
            "g goes through no tanh": _bare_content,
            "g goes through a sigmoid instead of a tanh": _gated_content,
            "the forget gate is not used": _never_forgets,
            "h is made from the cell without its tanh": _bare_cell,
            "h is made from the old cell": _old_cell,
            "c and h are returned in the wrong order": _cell_first,
        },
    ),
    "parameter_count": Exercise(
        reference=parameter_count,
        hint="One set has a weight for the input, H·D numbers, one for the state, H·H, and two "
        "biases of H. A gate is a set, and so is the new content: how many has each kind?",
        cases=(
            Case(("rnn", 2, 3), 21, why="3·2 + 3·3 + 2·3 = 21."),
            Case(("gru", 2, 3), 63, why="Three times the RNN's 21."),
            Case(("lstm", 2, 3), 84, why="Four times the RNN's 21."),
        ),
        inputs=_count_inputs,
        mistakes={
            "only one bias is counted": lambda kind, d, h: GATES[kind] * (h * d + h * h + h),
            "no bias is counted": lambda kind, d, h: GATES[kind] * (h * d + h * h),
            "the input is taken for as wide as the state": lambda kind, d, h: (
                GATES[kind] * (2 * h * h + 2 * h)
            ),
            "the gates are counted and the new content is not": lambda kind, d, h: (
                (GATES[kind] - 1) * (h * d + h * h + 2 * h)
            ),
            "the biases are counted once, not for each set": lambda kind, d, h: (
                GATES[kind] * (h * d + h * h) + 2 * h
            ),
            "GRU and LSTM are confused": lambda kind, d, h: parameter_count(
                {"gru": "lstm", "lstm": "gru"}.get(kind, kind), d, h
            ),
            "the gates are not counted": lambda kind, d, h: h * d + h * h + 2 * h,
        },
    ),
    "clip": Exercise(
        reference=clip,
        solution=(clip, clip_gradients),
        hint="First one norm over all the numbers of both tensors: the root of the sum of all "
        "squares. If it is above max_norm, multiply both by max_norm / norm.",
        cases=(
            Case(
                (torch.tensor([[3.0]]), torch.tensor([4.0]), 1.0),
                (torch.tensor([[0.6]]), torch.tensor([0.8])),
                why="The joint norm of 3 and 4 is 5, so both are divided by 5.",
            ),
            Case(
                (torch.tensor([[0.3]]), torch.tensor([0.4]), 1.0),
                (torch.tensor([[0.3]]), torch.tensor([0.4])),
                why="The norm is 0.5, below the limit: nothing changes.",
            ),
        ),
        inputs=_clip_inputs,
        mistakes={
            "each tensor is clipped by its own norm, which turns the direction": _one_by_one,
            "small gradients are stretched to the limit": _always,
            "each entry is clipped by itself": _by_entry,
            "long gradients are shrunk to a length of 1, whatever the limit": _to_one,
            "the two norms are added; a joint norm is the root of the sum of squares": (
                _added_norms
            ),
            "the root of the sum of squares is not taken": _without_root,
        },
    ),
    "half_life": Exercise(
        reference=bias_for_half_life,
        hint="If half is left after T steps, each step keeps the T-th root of ½. The sigmoid's "
        "inverse turns that share p into the bias ln(p / (1 − p)).",
        cases=(
            Case(
                (2.0,),
                math.log(math.sqrt(0.5) / (1 - math.sqrt(0.5))),
                why="Each step keeps √½ = 0.71, and 0.71·0.71 = ½.",
            ),
            Case((1.0,), 0.0, why="σ(0) = ½: half is gone after one step."),
        ),
        inputs=_half_life_inputs,
        mistakes={
            "the share kept at each step is not turned into a bias": lambda steps: (
                0.5 ** (1 / steps)
            ),
            "half is divided by the number of steps": lambda steps: math.log(
                (1 - 0.5 / steps) / (0.5 / steps)
            ),
            "half is divided by the steps and not turned into a bias": lambda steps: 0.5 / steps,
            "the share kept is turned into its logarithm, not into a bias": lambda steps: (
                math.log(0.5) / steps
            ),
            "the bias is ln T: for many steps that leaves 1/e of the cell, not half": math.log,
            "1 − σ(b) is taken for e^−b, which is near for long memories only": lambda steps: (
                -math.log(math.log(2) / steps)
            ),
            "the sign of the bias is wrong": lambda steps: -bias_for_half_life(steps),
        },
    ),
    "combine": Exercise(
        reference=combine_linear_steps,
        hint="Write the second step with the first one put in for its h: "
        "a₂·(a₁·h + b₁) + b₂. Multiply out: what stands before h, and what stands alone?",
        cases=(
            Case(
                (
                    torch.tensor([2.0]),
                    torch.tensor([1.0]),
                    torch.tensor([3.0]),
                    torch.tensor([5.0]),
                ),
                (torch.tensor([6.0]), torch.tensor([8.0])),
                why="3·(2·h + 1) + 5 = 6·h + 8.",
            ),
        ),
        inputs=_combine_inputs,
        mistakes={
            "the steps are taken in the other order": _backwards,
            "the first step's b is not scaled by the second": lambda a1, b1, a2, b2: (
                a2 * a1,
                b1 + b2,
            ),
            "b₁ and b₂ are added before the factor a₂": lambda a1, b1, a2, b2: (
                a2 * a1,
                a2 * (b1 + b2),
            ),
            "a and b are returned in the wrong order": lambda *steps: combine_linear_steps(*steps)[
                ::-1
            ],
            "the factors are added": lambda a1, b1, a2, b2: (a2 + a1, a2 * b1 + b2),
            "the second step's b is left out": lambda a1, b1, a2, b2: (a2 * a1, a2 * b1),
        },
    ),
}

STATEMENTS = {
    "verdicts": {
        "a": Statement(
            "An LSTM remembers longer than a plain RNN, because it is an LSTM.",
            supported=False,
            why="As torch starts it, it recalled as little. With its forget bias changed it did.",
        ),
        "b": Statement(
            "The gradient at the start is enough to tell which net will learn to recall.",
            supported=False,
            why="GRU and LSTM began with about the same gradient; only the GRU's grew.",
        ),
        "c": Statement(
            "In a plain recurrent net the steps of a text have to wait for one another.",
            supported=True,
            why="The chain of operations grew with the text, whatever the machine.",
        ),
        "d": Statement(
            "So a recurrent net is slower to train than a transformer.",
            supported=False,
            why="A chain is no time: a compiled LSTM walks it fast. See what box A5 says.",
        ),
        "e": Statement(
            "Any recurrence has to be computed a step at a time.",
            supported=False,
            why="One that is linear in the state is computed by a scan, in log₂ T rounds.",
        ),
        "f": Statement(
            "Transformers learn more from the same text than LSTMs.",
            supported=False,
            why="After 300 steps it was the other way round. Scale was not measured.",
        ),
        "g": Statement(
            "After 300 steps a table of four characters in a row knows more than the LSTM.",
            supported=True,
            why="Box A2c: the LSTM lies between counts of three and counts of four.",
        ),
        "h": Statement(
            "With a forget bias of 1, the usual advice, a gradient survives 100 steps.",
            supported=False,
            why="Box A9b: less than a thousandth was left. With 3 it survived.",
        ),
    },
}
