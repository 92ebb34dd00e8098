"""The exercises of notebook 02, with the mistakes that learners make in them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from course_utils.architectures.attention import attention_weights, causal_mask, looks_back
from course_utils.architectures.positions import (
    rotary_frequencies,
    rotate_plain,
    sinusoidal_positions,
)
from course_utils.exercises import Case, Exercise, Statement


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ── weights ──────────────────────────────────────────────────────────────────────────────────────


def weights(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """softmax(q kᵀ/√D) over the keys that `mask` shows: (T_q, D), (T_k, D) → (T_q, T_k)."""
    scores = q @ k.T / math.sqrt(q.shape[1])
    return scores.masked_fill(~mask, -math.inf).softmax(dim=1)


def _weights_inputs() -> Iterator[tuple]:
    for seed, (n_queries, n_keys) in enumerate(((3, 3), (2, 5), (4, 4))):
        mask = causal_mask(n_queries, n_keys)
        yield _random(seed, n_queries, 8), _random(seed + 10, n_keys, 8), mask
    yield _random(3, 3, 8), _random(13, 5, 8), torch.ones(3, 5, dtype=torch.bool)


def _scores(q: Tensor, k: Tensor, scale: float | None, bias: Tensor | None) -> Tensor:
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return scale * q @ k.transpose(-2, -1) + (0 if bias is None else bias)


def _without_root(
    q: Tensor, k: Tensor, mask: Tensor | None = None, *, scale: float | None = None, **bias: Tensor
) -> Tensor:
    return attention_weights(q, k, mask, scale=1.0 if scale is None else scale, **bias)


def _by_the_size(
    q: Tensor, k: Tensor, mask: Tensor | None = None, *, scale: float | None = None, **bias: Tensor
) -> Tensor:
    return attention_weights(q, k, mask, scale=1 / q.shape[-1] if scale is None else scale, **bias)


def _over_queries(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    scores = _scores(q, k, scale, bias)
    shown = scores if mask is None else scores.masked_fill(~mask, -math.inf)
    return shown.softmax(dim=-2).nan_to_num()


def _masked_afterwards(
    q: Tensor, k: Tensor, mask: Tensor | None = None, **options: Tensor
) -> Tensor:
    weights = attention_weights(q, k, **options)
    return weights if mask is None else weights * mask


def _masked_with_zero(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    scores = _scores(q, k, scale, bias)
    return (scores if mask is None else scores * mask).softmax(dim=-1)


def _mask_inverted(q: Tensor, k: Tensor, mask: Tensor | None = None, **options: Tensor) -> Tensor:
    return attention_weights(q, k, None if mask is None else ~mask, **options)


# ── causal mask ──────────────────────────────────────────────────────────────────────────────────


def _mask_inputs() -> Iterator[tuple]:
    yield from ((1, 1), (4, 4), (1, 6), (2, 7))


def _triangle(n_queries: int, n_keys: int | None, ahead: int) -> Tensor:
    n_keys = n_queries if n_keys is None else n_keys
    return torch.ones(n_queries, n_keys, dtype=torch.bool).tril(n_keys - n_queries + ahead)


def _at_the_left(n_queries: int, n_keys: int | None = None, device: Any = None) -> Tensor:
    return torch.ones(n_queries, n_keys or n_queries, dtype=torch.bool).tril()


def _without_itself(n_queries: int, n_keys: int | None = None, device: Any = None) -> Tensor:
    return _triangle(n_queries, n_keys, -1)


def _one_ahead(n_queries: int, n_keys: int | None = None, device: Any = None) -> Tensor:
    return _triangle(n_queries, n_keys, 1)


def _what_is_hidden(n_queries: int, n_keys: int | None = None, device: Any = None) -> Tensor:
    return ~causal_mask(n_queries, n_keys)


# ── rotary positions ─────────────────────────────────────────────────────────────────────────────


def _rotate_inputs() -> Iterator[tuple]:
    for seed, position in enumerate((0, 1, 7, 100)):
        yield _random(seed, 8), position


def _backwards(x: Tensor, position: int, theta: float = 10_000.0) -> Tensor:
    return rotate_plain(x, -position, theta)


def _one_speed(x: Tensor, position: int, theta: float = 10_000.0) -> Tensor:
    return torch.cat([rotate_plain(pair, position, theta) for pair in x.split(2)])


def _halves(x: Tensor, position: int, theta: float = 10_000.0) -> Tensor:
    """Pairs half a head apart, as in the weights of transformers."""
    neighbours = x.view(2, -1).T.flatten()
    return rotate_plain(neighbours, position, theta).view(-1, 2).T.flatten()


def _half_the_exponent(x: Tensor, position: int, theta: float = 10_000.0) -> Tensor:
    return rotate_plain(x, position, math.sqrt(theta))  # θ^(−i/D)


# ── sinusoidal positions ─────────────────────────────────────────────────────────────────────────


def _sinusoidal_inputs() -> Iterator[tuple]:
    yield from ((1, 2), (3, 4), (16, 8))


def _in_halves(n_positions: int, d_model: int) -> Tensor:
    table = sinusoidal_positions(n_positions, d_model)
    return torch.cat([table[:, 0::2], table[:, 1::2]], dim=1)


def _from_one(n_positions: int, d_model: int) -> Tensor:
    return sinusoidal_positions(n_positions + 1, d_model)[1:]


def _half_as_far(n_positions: int, d_model: int) -> Tensor:
    frequencies = rotary_frequencies(d_model, theta=100.0)
    angles = torch.arange(n_positions).unsqueeze(1) * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


# ── bytes in a cache ─────────────────────────────────────────────────────────────────────────────


def cache_bytes(
    n_layers: int, n_heads: int, n_kv_heads: int, d_head: int, n_tokens: int, number_bytes: int
) -> int:
    """Bytes of all keys and values that a decoder keeps of so many tokens."""
    return 2 * n_layers * n_kv_heads * d_head * n_tokens * number_bytes


def _cache_inputs() -> Iterator[tuple]:
    yield from ((30, 9, 3, 64, 2048, 4), (32, 32, 32, 128, 4096, 2), (28, 16, 8, 128, 1, 2))


# ── an induction head's stripe ───────────────────────────────────────────────────────────────────


def induction(weights: Tensor, period: int) -> Tensor:
    """Mean weight on the token that came after this one a period ago: (T, T) → a number."""
    return looks_back(weights, period - 1, start=period)


def _induction_inputs() -> Iterator[tuple]:
    for seed, (n, period) in enumerate(((6, 3), (8, 4), (10, 5))):
        scores = _random(seed, n, n).masked_fill(~causal_mask(n), -math.inf)
        yield scores.softmax(-1), period


def _twin(weights: Tensor, period: int) -> Tensor:
    return looks_back(weights, period, start=period)


def _before_the_twin(weights: Tensor, period: int) -> Tensor:
    return looks_back(weights, period + 1)


def _first_half_too(weights: Tensor, period: int) -> Tensor:
    return looks_back(weights, period - 1)


def _over_all(weights: Tensor, period: int) -> Tensor:
    queries = torch.arange(period, len(weights))
    return weights[queries, queries - period + 1].sum() / len(weights)


# A text of two tokens, twice. Weight on the twin is 1/2, on what followed it 1/4.
STRIPED = torch.tensor(
    [
        [1.0, 0.0, 0.0, 0.0],
        [0.9, 0.1, 0.0, 0.0],
        [0.5, 0.25, 0.25, 0.0],
        [0.125, 0.5, 0.25, 0.125],
    ]
)

LN3 = math.log(3) * math.sqrt(2)  # divided by √2 it is ln 3, and e^(ln 3) = 3

EXERCISES = {
    "weights": Exercise(
        reference=attention_weights,
        solution=(weights, attention_weights),
        hint="Scores are q @ k.T divided by the square root of q.shape[1]. Set the scores of "
        "hidden keys to -inf before the softmax, which runs over the keys of each query.",
        cases=(
            Case(
                (
                    torch.tensor([[1.0, 0.0]]),
                    torch.tensor([[LN3, 5.0], [0.0, 5.0]]),
                    torch.tensor([[True, True]]),
                ),
                torch.tensor([[0.75, 0.25]]),
                why="The scaled scores are ln 3 and 0, so the weights are as 3 : 1.",
            ),
            Case(
                (
                    torch.tensor([[1.0, 0.0], [1.0, 0.0]]),
                    torch.tensor([[LN3, 5.0], [0.0, 5.0]]),
                    torch.tensor([[True, False], [True, True]]),
                ),
                torch.tensor([[1.0, 0.0], [0.75, 0.25]]),
                why="The first query sees one key, which gets everything.",
            ),
        ),
        inputs=_weights_inputs,
        mistakes={
            "the scores are not divided by √D": _without_root,
            "the scores are divided by D instead of √D": _by_the_size,
            "the softmax runs over the queries instead of the keys": _over_queries,
            "hidden keys are set to 0 after the softmax, so that a row sums to less than 1": (
                _masked_afterwards
            ),
            "hidden scores become 0, which is a score like any other, instead of −∞": (
                _masked_with_zero
            ),
            "the mask is read the other way round": _mask_inverted,
        },
    ),
    "causal_mask": Exercise(
        reference=causal_mask,
        hint="Key j is visible to query i if j ≤ i + (n_keys − n_queries): the queries are the "
        "last of the steps. torch.ones(…, dtype=torch.bool).tril(shift) keeps what lies on or "
        "below a diagonal.",
        cases=(
            Case(
                (2, 2),
                torch.tensor([[True, False], [True, True]]),
                why="Without a cache: a token sees itself and what was before it.",
            ),
            Case(
                (2, 4),
                torch.tensor([[True, True, True, False], [True, True, True, True]]),
                why="Two tokens are in the cache; the queries are the third and the fourth.",
            ),
        ),
        inputs=_mask_inputs,
        mistakes={
            "the triangle stands at the left, so that new tokens cannot see the cache": (
                _at_the_left
            ),
            "a token does not see itself": _without_itself,
            "a token sees the one after it": _one_ahead,
            "True means hidden, as in nn.MultiheadAttention": _what_is_hidden,
        },
    ),
    "rotate": Exercise(
        reference=rotate_plain,
        hint="Pair i is x[2i], x[2i + 1], and turns by position · 10000^(−2i/D). A turn by φ makes "
        "(a, b) into (a·cos φ − b·sin φ, a·sin φ + b·cos φ).",
        cases=(
            Case(
                (torch.tensor([1.0, 0.0, 1.0, 0.0]), 0),
                torch.tensor([1.0, 0.0, 1.0, 0.0]),
                why="Position 0 turns nothing.",
            ),
            Case(
                (torch.tensor([1.0, 0.0, 1.0, 0.0]), 1),
                torch.tensor([math.cos(1), math.sin(1), math.cos(0.01), math.sin(0.01)]),
                why="The first pair turns by 1, the second by 10000^(−1/2) = 0.01.",
            ),
        ),
        inputs=_rotate_inputs,
        mistakes={
            "the pairs turn the other way": _backwards,
            "all pairs turn equally fast": _one_speed,
            "numbers half a vector apart are paired, instead of neighbours": _halves,
            "the exponent is i/D instead of 2i/D": _half_the_exponent,
        },
        atol=1e-4,  # 32-bit angles of position 100
    ),
    "sinusoidal": Exercise(
        reference=sinusoidal_positions,
        hint="The angle of pair i at a position is position · 10000^(−2i/d_model). Its sine goes "
        "to column 2i, its cosine to column 2i + 1. Positions start at 0.",
        cases=(
            Case(
                (2, 4),
                torch.tensor(
                    [
                        [0.0, 1.0, 0.0, 1.0],
                        [math.sin(1), math.cos(1), math.sin(0.01), math.cos(0.01)],
                    ]
                ),
                why="At position 0 all angles are 0: sines 0, cosines 1.",
            ),
        ),
        inputs=_sinusoidal_inputs,
        mistakes={
            "all sines come before all cosines": _in_halves,
            "positions start at 1": _from_one,
            "the exponent is i/d_model instead of 2i/d_model": _half_as_far,
        },
    ),
    "cache_bytes": Exercise(
        reference=cache_bytes,
        hint="Each layer keeps, for each token and each pair of key and value heads, one key and "
        "one value of d_head numbers.",
        cases=(
            Case(
                (1, 2, 1, 3, 10, 4),
                240,
                why="One layer and one shared pair: 10 tokens × (3 + 3) numbers × 4 bytes.",
            ),
        ),
        inputs=_cache_inputs,
        mistakes={
            "only keys are counted, or only values": lambda n, h, g, d, t, b: n * g * d * t * b,
            "all heads keep a key and a value, although some share them": (
                lambda n, h, g, d, t, b: 2 * n * h * d * t * b
            ),
            "one layer is counted instead of all": lambda n, h, g, d, t, b: 2 * g * d * t * b,
            "numbers are counted instead of bytes": lambda n, h, g, d, t, b: 2 * n * g * d * t,
        },
    ),
    "induction": Exercise(
        reference=induction,
        hint="Query i, from period on, has its twin at i − period. What came after the twin stands "
        "at i − period + 1. Take the mean of these weights.",
        cases=(
            Case(
                (STRIPED, 2),
                torch.tensor(0.25),
                why="Queries 2 and 3 look at tokens 1 and 2 with a quarter each.",
            ),
        ),
        inputs=_induction_inputs,
        mistakes={
            "it looks at the twin itself, not at what came after it": _twin,
            "it looks at what came before the twin": _before_the_twin,
            "queries of the first half count too, where nothing has come twice yet": (
                _first_half_too
            ),
            "the sum is divided by the number of all tokens": _over_all,
        },
    ),
}

STATEMENTS = {
    "measured": {
        "a": Statement(
            "A trained head prefers some tokens far more than a head with random weights does.",
            supported=True,
            why="Untrained heads were nearly uniform (A11c).",
        ),
        "b": Statement(
            "The token with the largest weight is the one that matters most.",
            supported=False,
            why="The first token had the largest weight, and a small value (A11e).",
        ),
        "c": Statement(
            "Without the scale 1/√D a softmax over 64-number vectors gets no gradient.",
            supported=False,
            why="At 64 numbers the middle query gets more without it; at 1,024 next to none "
            "(A11a2).",
        ),
        "d": Statement(
            "An LSTM cannot recall a symbol over a distance at which attention can.",
            supported=False,
            why="With the right forget bias it recalled over 16; over 48 it was slower (A10b).",
        ),
        "e": Statement(
            "Some heads look for what followed the same token earlier in the text.",
            supported=True,
            why="They did so in random tokens, and without them the copying broke (A11g, A11h).",
        ),
        "f": Statement(
            "A cache makes a decoder need less memory.",
            supported=False,
            why="It saves time and costs memory, for every token the same (A10e).",
        ),
    },
}
