"""The exercises of notebook 09, with the mistakes that learners make in them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from course_utils.exercises import Case, Exercise, Statement
from course_utils.inference import processors
from course_utils.inference.processors import (
    repetition_penalty,
    repetition_penalty_plain,
    top_p,
    top_p_plain,
)

# Probabilities 1/2, 1/4, 1/8, 1/8 in another order: easy to add up by hand.
LOGITS = torch.tensor([1 / 4, 1 / 2, 1 / 8, 1 / 8]).log()
OUT = -math.inf


def _random_logits(seed: int, size: int = 8) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 2


# ── temperature ──────────────────────────────────────────────────────────────────────────────────


def softmax_with_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities of the next token at a temperature > 0: logits (V,) → probabilities (V,)."""
    return processors.temperature(logits, temperature).softmax(-1)


def _temperature_inputs() -> Iterator[tuple]:
    for seed, temperature in enumerate((0.3, 0.7, 1.0, 2.0)):
        yield _random_logits(seed), temperature


def _multiplied(logits: Tensor, temperature: float) -> Tensor:
    return (logits * temperature).softmax(-1)


def _divided_too_late(logits: Tensor, temperature: float) -> Tensor:
    return logits.softmax(-1) / temperature


def _divided_and_rescaled(logits: Tensor, temperature: float) -> Tensor:
    divided = logits.softmax(-1) / temperature
    return divided / divided.sum(-1, keepdim=True)


def _power_not_rescaled(logits: Tensor, temperature: float) -> Tensor:
    return logits.softmax(-1) ** (1 / temperature)


def _exponentials(logits: Tensor, temperature: float) -> Tensor:
    return (logits / temperature).exp()


def _logarithms(logits: Tensor, temperature: float) -> Tensor:
    return (logits / temperature).log_softmax(-1)


def _without_softmax(logits: Tensor, temperature: float) -> Tensor:
    return logits / temperature


# ── top-p ────────────────────────────────────────────────────────────────────────────────────────


def _top_p_inputs() -> Iterator[tuple]:
    for seed, p in enumerate((0.1, 0.5, 0.8, 0.95)):
        yield _random_logits(seed), p


def _nucleus(logits: Tensor, p: float, shift: int) -> Tensor:
    """Keep so many of the likeliest tokens more than are needed."""
    ranked, order = logits.softmax(-1).sort(descending=True, stable=True)
    before = ranked.cumsum(-1) - ranked + 1e-6 * (shift < 0)
    size = (before < p).sum(-1, keepdim=True) + shift
    dropped = torch.arange(logits.shape[-1]).expand_as(order) >= size
    return logits.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), OUT)


def _one_too_few(logits: Tensor, p: float) -> Tensor:
    return _nucleus(logits, p, -1)


def _one_too_many(logits: Tensor, p: float) -> Tensor:
    return _nucleus(logits, p, 1)


def _unsorted(logits: Tensor, p: float) -> Tensor:
    mass = logits.softmax(-1)
    return torch.where(mass.cumsum(-1) - mass < p, logits, OUT)


def _one_by_one(logits: Tensor, p: float) -> Tensor:
    return torch.where(logits.softmax(-1) >= p, logits, OUT)


def _in_sorted_order(logits: Tensor, p: float) -> Tensor:
    return top_p(logits, p).sort(descending=True).values


# ── repetition penalty ───────────────────────────────────────────────────────────────────────────


def _penalty_inputs() -> Iterator[tuple]:
    for seed, penalty in enumerate((1.1, 1.3, 2.0)):
        yield _random_logits(seed), torch.tensor([seed, 3, 5, 3]), penalty


def _always_divide(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    return logits.scatter(-1, ids, logits.gather(-1, ids) / penalty)


def _per_occurrence(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    counts = torch.zeros_like(logits).scatter_add(-1, ids, torch.ones_like(ids, dtype=logits.dtype))
    return torch.where(logits < 0, logits * penalty**counts, logits / penalty**counts)


def _subtract(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    return logits.scatter(-1, ids, logits.gather(-1, ids) - penalty)


# ── beam search ──────────────────────────────────────────────────────────────────────────────────


def expand_and_prune(totals: Tensor, logprobs: Tensor, num_beams: int) -> list[tuple[int, int]]:
    """The (beam, token) pairs of the `num_beams` likeliest continuations, best first.

    totals (B,): log-probability of each beam so far; logprobs (B, V): of each next token after it.
    """
    sums = totals[:, None] + logprobs  # (B, V)
    best = sums.flatten().topk(num_beams).indices
    return [(int(at) // sums.shape[1], int(at) % sums.shape[1]) for at in best]


def _beam_inputs() -> Iterator[tuple]:
    for seed, num_beams in enumerate((1, 2, 3)):
        logprobs = _random_logits(seed, 15).view(3, 5).log_softmax(-1)
        yield torch.tensor([-1.0, -1.5, -2.0]), logprobs, num_beams


def _forget_the_past(totals: Tensor, logprobs: Tensor, num_beams: int) -> list[tuple[int, int]]:
    return expand_and_prune(torch.zeros_like(totals), logprobs, num_beams)


def _one_per_beam(totals: Tensor, logprobs: Tensor, num_beams: int) -> list[tuple[int, int]]:
    best, token = (totals[:, None] + logprobs).max(-1)
    return [(int(b), int(token[b])) for b in best.argsort(descending=True)[:num_beams]]


def _wrong_width(totals: Tensor, logprobs: Tensor, num_beams: int) -> list[tuple[int, int]]:
    best = (totals[:, None] + logprobs).flatten().topk(num_beams).indices
    return [(int(at) // len(totals), int(at) % len(totals)) for at in best]


EXERCISES = {
    "temperature": Exercise(
        reference=softmax_with_temperature,
        solution=(softmax_with_temperature, processors.temperature),
        hint="Divide the logits by the temperature first, then take the softmax of the result.",
        cases=(
            Case((LOGITS + 1, 1.0), LOGITS.exp(), why="A temperature of 1 changes nothing."),
            Case(
                (torch.tensor([0.0, math.log(4.0)]), 2.0),
                torch.tensor([1 / 3, 2 / 3]),
                why="Odds of 1 : 4 become 1 : 2, because 4 to the power of 1/2 is 2.",
            ),
        ),
        inputs=_temperature_inputs,
        mistakes={
            "the logits are multiplied by the temperature": _multiplied,
            "the probabilities are divided instead of the logits": _divided_too_late,
            "the probabilities are divided and scaled back to a sum of one, which changes "
            "nothing: divide the logits": _divided_and_rescaled,
            "the probabilities are raised to the power of 1/T, but not scaled to a sum of one": (
                _power_not_rescaled
            ),
            "e to the power of logit/T is not divided by the sum over all tokens": _exponentials,
            "these are logarithms of probabilities": _logarithms,
            "the logits are not turned into probabilities": _without_softmax,
        },
    ),
    "top_p": Exercise(
        reference=top_p,
        solution=(top_p_plain,),
        hint="Sort the probabilities, likeliest first. A token stays if the probability of all "
        "tokens before it is still below p. Put the kept logits back in their places.",
        cases=(
            Case(
                (LOGITS, 0.6),
                torch.tensor([LOGITS[0], LOGITS[1], OUT, OUT]),
                why="1/2 is below 0.6, so the token of 1/4 is needed too; together they are 3/4.",
            ),
            Case(
                (LOGITS, 0.2),
                torch.tensor([OUT, LOGITS[1], OUT, OUT]),
                why="The likeliest token alone has 1/2, which is enough for 0.2.",
            ),
        ),
        inputs=_top_p_inputs,
        mistakes={
            "the token that crosses the threshold is left out": _one_too_few,
            "one token more than needed is kept": _one_too_many,
            "the probabilities are added up in vocabulary order, not sorted": _unsorted,
            "the kept logits stay in sorted order": _in_sorted_order,
            "each probability is compared with p one by one, not their sum": _one_by_one,
        },
    ),
    "repetition_penalty": Exercise(
        reference=repetition_penalty,
        solution=(repetition_penalty_plain,),
        hint="Take the set of the ids. For each of its tokens: a negative logit is multiplied by "
        "the penalty, any other is divided by it. Work on a clone.",
        cases=(
            Case(
                (torch.tensor([2.0, -2.0, 1.0]), torch.tensor([0, 1, 0]), 2.0),
                torch.tensor([1.0, -4.0, 1.0]),
                why="Token 0 occurs twice and is divided once; token 1 is negative: multiplied.",
            ),
        ),
        inputs=_penalty_inputs,
        mistakes={
            "negative logits are divided, which makes them likelier": _always_divide,
            "a token is penalised once per occurrence": _per_occurrence,
            "the penalty is subtracted": _subtract,
        },
    ),
    "expand_and_prune": Exercise(
        reference=expand_and_prune,
        hint="Add each beam's total to its row of log-probabilities, look for the largest sums in "
        "the whole table, and turn a flat position into (row, column) with the vocabulary size.",
        cases=(
            Case(
                (torch.tensor([-1.0, -1.2]), torch.tensor([[-3.0, -2.0], [-0.1, -2.5]]), 2),
                [(1, 0), (0, 1)],
                why="−1.2 − 0.1 = −1.3 is best, then −1.0 − 2.0 = −3.0.",
            ),
            Case(
                (torch.tensor([-0.1, -9.0]), torch.tensor([[-0.7, -0.8], [-0.1, -3.0]]), 2),
                [(0, 0), (0, 1)],
                why="Both continuations may come from one beam.",
            ),
        ),
        inputs=_beam_inputs,
        mistakes={
            "the log-probability of the beam so far is not added": _forget_the_past,
            "every beam gives only its best token": _one_per_beam,
            "the flat position is divided by the number of beams": _wrong_width,
        },
    ),
}

STATEMENTS = {
    "settings": {
        "a": Statement(
            "Greedy decoding finds the likeliest text, because it takes the likeliest token.",
            False,
            "I6: exact search found a likelier text of four tokens after one prompt or more.",
        ),
        "b": Statement(
            "Where one answer is right, the search for the likeliest is right more often than a "
            "draw.",
            True,
            "I8b: on the same words, beam search against the exact chance of top-k 5.",
        ),
        "c": Statement(
            "It takes several beams to be right more often than a draw.",
            False,
            "Section 8: greedy decoding, which is one beam, is ahead of the draw already, by more "
            "than four beams add to it.",
        ),
        "d": Statement(
            "A lower maximum length makes a model express itself more briefly.",
            False,
            "I4: the model is not told of it; the text is cut off.",
        ),
        "e": Statement(
            "The repetition penalty forbids sequences that stood in the text before.",
            False,
            "I5a: it looks at single tokens, in any order. N-gram blocking is the other rule.",
        ),
        "f": Statement(
            "Text by people is less predictable to a language model than what it writes itself.",
            False,
            "I1b: undecided here, and it changes along the text. GPT-2 Large was surprised less by "
            "people than by its own samples (Holtzman et al. 2020).",
        ),
    }
}
