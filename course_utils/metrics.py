"""What the course measures: likelihood, error rates, accuracy, diversity, bytes and time ratios."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn


def perplexity(logprobs: Sequence[float]) -> float:
    """exp(−mean log-probability) of tokens, in nats. ValueError when there are none.

    Comparable only between texts scored by one model with one tokenizer. Infinite where it is
    larger than a float can be: when the mean is below −709, or a token has no probability at all.

    >>> round(perplexity([math.log(1 / 2), math.log(1 / 8)]), 9)
    4.0
    """
    if len(logprobs) == 0:
        raise ValueError("perplexity of no tokens is undefined; score at least one token")
    try:
        return math.exp(-math.fsum(logprobs) / len(logprobs))
    except OverflowError:
        return math.inf


def edit_distance(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Least number of insertions, deletions and substitutions that turn `a` into `b`.

    Source: Wagner & Fischer 1974, one row of the table at a time.

    >>> edit_distance("kitten", "sitting")
    3
    """
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            substitute = diagonal + (x != y)
            diagonal = row[j]
            row[j] = min(substitute, row[j] + 1, row[j - 1] + 1)
    return row[-1]


@dataclass(frozen=True)
class ErrorRates:
    """`symbol`: edits per reference symbol (PER, CER); `word`: share of sequences not exact."""

    symbol: float
    word: float
    n: int


def error_rates(
    hypotheses: Sequence[Sequence[Hashable]], references: Sequence[Sequence[Sequence[Hashable]]]
) -> ErrorRates:
    """Score each hypothesis against the nearest of its references.

    `references[i]` lists the acceptable sequences for hypothesis i. ValueError when the lengths
    differ, or an item has no reference.
    """
    if len(hypotheses) != len(references) or not hypotheses:
        raise ValueError(
            f"{len(hypotheses)} hypotheses and {len(references)} lists of references; "
            "give one list per hypothesis, and at least one"
        )
    edits = symbols = wrong = 0
    for hypothesis, accepted in zip(hypotheses, references, strict=True):
        if not accepted:
            raise ValueError(f"no reference for hypothesis {list(hypothesis)!r}")
        distance, length = min((edit_distance(hypothesis, ref), len(ref)) for ref in accepted)
        edits, symbols, wrong = edits + distance, symbols + length, wrong + (distance > 0)
    return ErrorRates(edits / max(symbols, 1), wrong / len(hypotheses), len(hypotheses))


@dataclass(frozen=True)
class Interval:
    """A share, or a mean of values from 0 to 1: `value` in [`low`, `high`] from `n` trials."""

    value: float
    low: float
    high: float
    n: int


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it lies between 0 and 1 (0.95 is customary)")


def accuracy(correct: Sequence[bool], confidence: float = 0.95) -> Interval:
    """Share of true outcomes with its Wilson score interval (Wilson 1927).

    Raises ValueError when there are none, or when `confidence` is not between 0 and 1.
    """
    from scipy.stats import binomtest

    _check_confidence(confidence)
    if len(correct) == 0:
        raise ValueError("accuracy of no outcomes is undefined; give at least one")
    hits = sum(bool(c) for c in correct)
    test = binomtest(hits, len(correct))
    low, high = test.proportion_ci(confidence, method="wilson")
    return Interval(hits / len(correct), float(low), float(high), len(correct))


def mean_interval(
    values: Sequence[float], confidence: float = 0.95, *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean of scores per item with its bootstrap interval (percentiles; Efron 1979).

    For scores that are no plain yes or no, such as reciprocal ranks. The items are drawn again, as
    many as there are, `resamples` times; the interval holds the middle `confidence` of the means.
    Equal scores give an interval of no width, however few. Raises ValueError when there are none,
    when `resamples` < 1, or when `confidence` is not between 0 and 1.
    """
    import numpy as np

    _check_confidence(confidence)
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; at least one is needed (2000 are customary)")
    scores = np.asarray(values, dtype=float)
    if scores.size == 0:
        raise ValueError("the mean of no scores is undefined; give at least one")
    drawn = np.random.default_rng(seed).integers(scores.size, size=(resamples, scores.size))
    low, high = np.quantile(scores[drawn].mean(1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(scores.mean()), float(low), float(high), scores.size)


def paired_p_value(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Exact McNemar test: could two methods be equally right on the same items? Two-sided."""
    return _mcnemar(*_disagreements(a, b))


def _disagreements(a: Sequence[bool], b: Sequence[bool]) -> tuple[int, int]:
    """How many items only the first has right, and how many only the second."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} outcomes; a paired test needs the same items")
    pairs = Counter((bool(x), bool(y)) for x, y in zip(a, b, strict=True))
    return pairs[True, False], pairs[False, True]


def _mcnemar(only_a: int, only_b: int) -> float:
    from scipy.stats import binomtest

    return 1.0 if only_a + only_b == 0 else float(binomtest(only_a, only_a + only_b).pvalue)


@dataclass(frozen=True)
class Paired:
    """One method against another on the same units: `difference` of their means, a − b.

    [`low`, `high`] is its 95 % interval (Student's t over the `n` pairs). `p_value`: how often the
    difference is as large when each pair's sign is flipped at random, as if the two were one; the
    differences that came out of it are `flipped`.
    """

    difference: float
    low: float
    high: float
    p_value: float
    n: int
    spread: float = field(repr=False)
    flipped: tuple[float, ...] = field(repr=False)

    def by_chance(self) -> Iterator[Paired]:
        """The same pairs with their signs flipped at random: worlds in which neither is ahead."""
        for difference in self.flipped:
            yield _paired(difference, self.spread, self.n, self.flipped)


def paired(a: Sequence[float], b: Sequence[float], *, flips: int = 1000, seed: int = 0) -> Paired:
    """Compare scores (or outcomes) of two methods, unit by unit: a[i] and b[i] are of one unit.

    All sign flips are tried where there are at most `flips` of them, so many random ones otherwise.
    Raises ValueError for other lengths, fewer than two pairs, or values that are no finite numbers.
    Source: Fisher 1935 (sign flips); Student 1908.

    >>> paired([1, 1, 1, 0, 1, 1], [0, 0, 1, 0, 0, 0]).p_value
    0.125
    """
    import numpy as np
    from scipy.stats import permutation_test

    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values; pairs need the same units in both")
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    if len(differences) < 2 or not np.isfinite(differences).all():
        raise ValueError(f"{len(differences)} pairs; give two or more, of finite numbers")
    test = permutation_test(
        (differences,),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=flips,
        rng=np.random.default_rng(seed),
    )
    spread = float(np.square(differences).mean())  # the same whatever the signs are
    flipped = tuple(map(float, np.ravel(test.null_distribution)))
    return _paired(float(differences.mean()), spread, len(differences), flipped)


def _paired(difference: float, spread: float, n: int, flipped: tuple[float, ...]) -> Paired:
    from scipy.stats import t

    variance = max(spread - difference**2, 0.0) / (n - 1)  # of the mean
    half = float(t.ppf(0.975, n - 1)) * math.sqrt(variance)
    as_large = sum(abs(x) >= abs(difference) - 1e-12 for x in flipped)
    drawn = len(flipped) < 2**n  # then the pairs as they came count as one more draw
    p_value = (as_large + drawn) / (len(flipped) + drawn)
    return Paired(difference, difference - half, difference + half, p_value, n, spread, flipped)


def ngrams(tokens: Sequence[Hashable], n: int) -> list[tuple]:
    """All windows of `n` neighbouring tokens, in order.

    >>> ngrams("abc", 2)
    [('a', 'b'), ('b', 'c')]
    """
    if n < 1:
        raise ValueError(f"n is {n}; an n-gram has at least one token")
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def distinct_n(texts: Sequence[Sequence[Hashable]], n: int) -> float:
    """Different n-grams over all n-grams of the texts together, 0 to 1 (Li et al. 2016)."""
    found = [gram for tokens in texts for gram in ngrams(tokens, n)]
    if not found:
        raise ValueError(f"no text has {n} tokens; distinct-{n} is undefined")
    return len(set(found)) / len(found)


def ends_in_loop(tokens: Sequence[Hashable], *, times: int = 3, least: int = 2) -> bool:
    """Whether a text ends in one phrase of `least` tokens or more, `times` times over.

    The loop must be running when the text ends: one that the text left again does not count.

    >>> ends_in_loop("a b a b a b".split()), ends_in_loop("a b a b c".split())
    (True, False)
    """
    if times < 2 or least < 1:
        raise ValueError(f"times is {times} and least {least}; they must be at least 2 and 1")
    longest = len(tokens) // times
    return any(
        all(tokens[-n:] == tokens[-(i + 1) * n : -i * n] for i in range(1, times))
        for n in range(least, longest + 1)
    )


@dataclass(frozen=True)
class Ratio:
    """How many times `fast` fits into `slow`: the median over repeats, and their range."""

    median: float
    low: float
    high: float
    fast_seconds: float
    slow_seconds: float


def seconds_in_turns(
    calls: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every call, `repeats` times, so that what else a machine does hits all alike.

    The calls take turns, every other round in reverse. Raises ValueError when `repeats` < 1, or
    `warmup` < 0.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; at least one is needed")
    if warmup < 0:
        raise ValueError(f"warmup is {warmup}; it must not be negative (0: no call to warm up)")
    for _ in range(warmup):
        for call in calls.values():
            call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(repeats):
        for name in list(calls) if i % 2 == 0 else reversed(calls):
            start = clock()
            calls[name]()
            found[name].append(clock() - start)
    return found


def timed_in_turns(
    first: Callable[[], object],
    second: Callable[[], object],
    repeats: int,
    *,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> list[tuple[float, float]]:
    """`seconds_in_turns` of two calls, in pairs."""
    calls = {"first": first, "second": second}
    found = seconds_in_turns(calls, repeats, warmup=warmup, clock=clock)
    return list(zip(found["first"], found["second"], strict=True))


def time_ratio(
    fast: Callable[[], object], slow: Callable[[], object], repeats: int = 5, warmup: int = 1
) -> Ratio:
    """Time two callables in turns and compare them pair by pair.

    Seconds are medians of wall-clock time per call. Raises ValueError when both are one callable.
    """
    if fast == slow:
        raise ValueError("time_ratio compares a callable with itself; pass two")
    pairs = timed_in_turns(fast, slow, repeats, warmup=warmup)
    ratios = [slow_seconds / fast_seconds for fast_seconds, slow_seconds in pairs]
    middle = statistics.median
    fast_seconds, slow_seconds = map(middle, zip(*pairs, strict=True))
    return Ratio(middle(ratios), min(ratios), max(ratios), fast_seconds, slow_seconds)


def kept_for_backward(call: Callable[[], object]) -> int:
    """Bytes that `call` leaves in memory for its backward pass, shared storage counted once."""
    from torch.autograd.graph import saved_tensors_hooks

    storages = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage  # held, so that its address is not used again
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        call()
    return sum(storage.nbytes() for storage in storages.values())


def checksum(module: nn.Module) -> str:
    """SHA-256 of a module's state, to show that weights did or did not change."""
    import hashlib

    import torch

    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()


# ── labels ────────────────────────────────────────────────────────────────────────────────────


def check_labels(labels: Sequence[str]) -> None:
    if isinstance(labels, str) or len(labels) < 2 or not all(labels):
        raise ValueError(f"labels is {labels!r}; give a list of at least two texts")
    if len(set(labels)) < len(labels):
        raise ValueError(f"labels is {list(labels)}; each must occur once")


# ── evaluation ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Evaluation:
    """What predictions are worth, item by item and together.

    `accuracy` has its Wilson interval. `recall[label]` is the share of that label's items that
    were found, and `balanced` the mean of these, ½ for a guess between two labels whatever their
    shares. `predicted[label]` counts predictions; `unanswered` those that were None.
    """

    accuracy: Interval
    balanced: float
    recall: dict[str, float]
    predicted: dict[str, int]
    unanswered: int
    correct: tuple[bool, ...]


def evaluate(
    predictions: Sequence[str | None], truth: Sequence[str], *, labels: Sequence[str]
) -> Evaluation:
    """Compare predictions with the truth; None, an answer without a label, counts as wrong.

    Raises ValueError for different lengths, nothing to compare, or a label not in `labels`.
    """
    check_labels(labels)
    if len(predictions) != len(truth) or not len(truth):
        raise ValueError(
            f"{len(predictions)} predictions for {len(truth)} items; give one for each, and at "
            "least one"
        )
    known: set[Hashable] = set(labels)
    if unknown := [label for label in (*predictions, *truth) if label not in {*known, None}]:
        raise ValueError(f"{unknown[0]!r} is no label; known are {list(labels)}")
    if None in truth:
        raise ValueError("the truth of an item is None; leave items without a label out")
    correct = tuple(bool(p == t) for p, t in zip(predictions, truth, strict=True))
    hits = Counter(t for t, right in zip(truth, correct, strict=True) if right)
    recall = {label: hits[label] / n for label, n in Counter(truth).items()}
    return Evaluation(
        accuracy=accuracy(correct),
        balanced=math.fsum(recall.values()) / len(recall),
        recall={label: recall[label] for label in labels if label in recall},
        predicted={label: list(predictions).count(label) for label in labels},
        unanswered=list(predictions).count(None),
        correct=correct,
    )


class Comparison(NamedTuple):
    """Accuracy of one method less that of another on the same items, and an exact p-value."""

    difference: float
    p_value: float
    only_first: int
    only_second: int


def compare(first: Evaluation, second: Evaluation) -> Comparison:
    """Compare two methods item by item (McNemar's exact test). ValueError for other items."""
    only_first, only_second = _disagreements(first.correct, second.correct)
    difference = (only_first - only_second) / len(first.correct)
    return Comparison(difference, _mcnemar(only_first, only_second), only_first, only_second)
