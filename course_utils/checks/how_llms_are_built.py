"""The exercises of notebook 00, with the mistakes that learners make in them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from course_utils.architectures.objectives import IGNORED
from course_utils.building.preference import dpo_loss
from course_utils.building.pretraining import bits_per_byte
from course_utils.building.tokenizer import merge_pair
from course_utils.exercises import Case, Exercise, Statement

# ── merging a pair ───────────────────────────────────────────────────────────────────────────────


def _merge_inputs() -> Iterator[tuple]:
    yield [], (1, 2), 9
    yield [1], (1, 2), 9
    yield [1, 1, 1, 1, 1], (1, 1), 9
    yield [2, 1, 2, 1], (1, 2), 9
    yield [b"a", b"b", b"a"], (b"a", b"b"), b"ab"


def _overlapping(symbols: list, pair: tuple, merged: object) -> list:
    out, taken = [], False
    for i, symbol in enumerate(symbols):
        if tuple(symbols[i : i + 2]) == tuple(pair):
            out.append(merged)
            taken = True
        elif not taken:
            out.append(symbol)
        else:
            taken = False
    return out


def _once(symbols: list, pair: tuple, merged: object) -> list:
    for i in range(len(symbols) - 1):
        if (symbols[i], symbols[i + 1]) == tuple(pair):
            return [*symbols[:i], merged, *symbols[i + 2 :]]
    return list(symbols)


def _second_kept(symbols: list, pair: tuple, merged: object) -> list:
    return [
        merged if tuple(symbols[i : i + 2]) == tuple(pair) else symbol
        for i, symbol in enumerate(symbols)
    ]


def _either_way(symbols: list, pair: tuple, merged: object) -> list:
    out, i = [], 0
    while i < len(symbols):
        here = tuple(symbols[i : i + 2])
        both = here in (tuple(pair), tuple(pair)[::-1])
        out.append(merged if both else symbols[i])
        i += 2 if both else 1
    return out


# ── bits per byte ────────────────────────────────────────────────────────────────────────────────


def _bits_inputs() -> Iterator[tuple]:
    yield 3.97, 1000, 2400
    yield 5.5, 300, 300
    yield 0.7, 10, 41


def _nats_kept(nats: float, n_tokens: int, n_bytes: int) -> float:
    return nats * n_tokens / n_bytes


def _upside_down(nats: float, n_tokens: int, n_bytes: int) -> float:
    return nats * n_bytes / n_tokens / 0.6931471805599453


def _a_token(nats: float, n_tokens: int, n_bytes: int) -> float:
    return nats / 0.6931471805599453


def _times_ln2(nats: float, n_tokens: int, n_bytes: int) -> float:
    return nats * n_tokens * 0.6931471805599453 / n_bytes


# ── what counts ──────────────────────────────────────────────────────────────────────────────────


def labels(prompt: list[int], answer: list[int], end: int) -> list[int]:
    """−100 for the prompt's tokens, then the answer's and the end sign."""
    return [-100] * len(prompt) + [*answer, end]


def _label_inputs() -> Iterator[tuple]:
    yield [1, 50, 51, 2], [60, 61, 62], 0
    yield [1, 2], [60], 0
    yield [1, 60, 2], [60, 60], 0  # the answer repeats the prompt


def _no_end(prompt: list[int], answer: list[int], end: int) -> list[int]:
    return [*labels(prompt, answer, end)[:-1], IGNORED]


def _everything(prompt: list[int], answer: list[int], end: int) -> list[int]:
    return [*prompt, *answer, end]


def _moved(prompt: list[int], answer: list[int], end: int) -> list[int]:
    return [*labels(prompt, answer, end)[1:], IGNORED]


def _questions(prompt: list[int], answer: list[int], end: int) -> list[int]:
    return [*prompt, *[IGNORED] * (len(answer) + 1)]


# ── direct preference optimisation ───────────────────────────────────────────────────────────────


def _dpo_inputs() -> Iterator[tuple]:
    for seed in range(3):
        draw = torch.Generator().manual_seed(seed)
        numbers = [-20 * torch.rand(4, generator=draw) - 1 for _ in range(4)]
        yield (*numbers, (0.1, 0.5, 1.0)[seed])


def _tensors(chosen: float, rejected: float, old_chosen: float, old_rejected: float) -> tuple:
    return tuple(torch.tensor([x]) for x in (chosen, rejected, old_chosen, old_rejected))


def _no_reference(
    chosen: Tensor, rejected: Tensor, old_chosen: Tensor, old_rejected: Tensor, beta: float = 0.1
) -> Tensor:
    return -F.logsigmoid(beta * (chosen - rejected))


def _beta_outside(
    chosen: Tensor, rejected: Tensor, old_chosen: Tensor, old_rejected: Tensor, beta: float = 0.1
) -> Tensor:
    return beta * dpo_loss(chosen, rejected, old_chosen, old_rejected, 1.0)


def _the_wrong_way(
    chosen: Tensor, rejected: Tensor, old_chosen: Tensor, old_rejected: Tensor, beta: float = 0.1
) -> Tensor:
    return dpo_loss(rejected, chosen, old_rejected, old_chosen, beta)


def _no_logarithm(
    chosen: Tensor, rejected: Tensor, old_chosen: Tensor, old_rejected: Tensor, beta: float = 0.1
) -> Tensor:
    return -(-dpo_loss(chosen, rejected, old_chosen, old_rejected, beta)).exp()


def _a_mean(
    chosen: Tensor, rejected: Tensor, old_chosen: Tensor, old_rejected: Tensor, beta: float = 0.1
) -> Tensor:
    return dpo_loss(chosen, rejected, old_chosen, old_rejected, beta).mean()


EXERCISES = {
    "merge_pair": Exercise(
        reference=merge_pair,
        hint="Walk with an index i. Where symbols[i] and symbols[i + 1] are the pair, append the "
        "merged token and go on by two; else append symbols[i] and go on by one.",
        cases=(
            Case(([1, 1, 1, 2], (1, 1), 9), [9, 1, 2], why="From the left: the third 1 is alone."),
            Case((["l", "o", "w"], ("l", "o"), "lo"), ["lo", "w"]),
        ),
        inputs=_merge_inputs,
        mistakes={
            "merged pairs overlap": _overlapping,
            "only the first occurrence is merged": _once,
            "the pair's second symbol stays behind the merged one": _second_kept,
            "the pair is merged in either order": _either_way,
        },
    ),
    "bits_per_byte": Exercise(
        reference=bits_per_byte,
        hint="All guesses together cost nats · n_tokens. Divide by ln 2 for bits, and by the bytes "
        "that they spell.",
        cases=(
            Case((1.3862943611198906, 10, 25), 0.8, why="2 bits a token, 2.5 bytes a token."),
            Case((0.6931471805599453, 8, 8), 1.0, why="A bit for a token of one byte."),
        ),
        inputs=_bits_inputs,
        mistakes={
            "nats are not turned into bits": _nats_kept,
            "tokens and bytes have changed places": _upside_down,
            "it is bits per token, and bytes play no part": _a_token,
            "it is multiplied by ln 2: a nat is more than a bit": _times_ln2,
        },
    ),
    "labels": Exercise(
        reference=labels,
        hint="One label for each token of prompt + answer + [end]: −100 for the prompt, the token "
        "itself for the others. Nothing is shifted here; the loss does that.",
        cases=(
            Case(
                ([7, 8], [9], 2),
                [-100, -100, 9, 2],
                why="The end sign counts: else the model never learns to stop.",
            ),
        ),
        inputs=_label_inputs,
        mistakes={
            "the end sign is not learned: such a model never stops": _no_end,
            "the prompt is learned too": _everything,
            "labels are shifted by one, which the loss does itself": _moved,
            "the question is learned, and the answer is not": _questions,
        },
    ),
    "dpo_loss": Exercise(
        reference=dpo_loss,
        hint="ratio = (chosen − reference_chosen) − (rejected − reference_rejected), and then "
        "−F.logsigmoid(beta · ratio), one loss a pair.",
        cases=(
            Case(
                (*_tensors(-5.0, -5.0, -5.0, -5.0), 0.1),
                torch.tensor([0.6931472]),
                why="Nothing has been learned: −ln σ(0) = ln 2.",
            ),
            Case(
                (*_tensors(-2.0, -6.0, -4.0, -5.0), 0.5),
                torch.tensor([0.2014133]),
                why="0.5 · [(−2 + 4) − (−6 + 5)] = 1.5, and ln(1 + e^−1.5).",
            ),
        ),
        inputs=_dpo_inputs,
        mistakes={
            "the reference is missing: that is another method": _no_reference,
            "β stands outside the logarithm": _beta_outside,
            "chosen and rejected have changed places": _the_wrong_way,
            "the logarithm is missing": _no_logarithm,
            "losses are averaged: give one for each pair": _a_mean,
        },
    ),
}

STATEMENTS = {
    "verdicts": {
        "a": Statement(
            "Pre-training is left out at no cost if the model is tuned on replies anyway.",
            supported=False,
            why="In the recorded chains without it people's replies cost more in every seed.",
        ),
        "b": Statement(
            "Tuning on replies made the model better at everything.",
            supported=False,
            why="Unseen plays cost over half a nat a token more than before.",
        ),
        "c": Statement(
            "A model with fewer nats per token is the better one, whatever its tokenizer.",
            supported=False,
            why="Longer tokens are fewer and dearer; bits per byte can be compared.",
        ),
        "d": Statement(
            "After preference tuning, a judge who was not asked rated replies higher.",
            supported=True,
            why="Line by line, on the same lines, with an interval above 0.",
        ),
        "e": Statement(
            "The higher the reward that is optimised, the better the replies.",
            supported=False,
            why="In the recorded chains with three times the rounds it rose, and fewer obeyed.",
        ),
        "f": Statement(
            "A file that loads and answers fluently holds the model that was trained.",
            supported=False,
            why="With rows in the wrong order it loaded, answered, and was another model.",
        ),
    },
}
