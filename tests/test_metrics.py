"""Hand-worked cases, properties and equality with scipy and torch for every metric."""

from __future__ import annotations

import itertools
import math
import time
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prompting_inputs import LABELS
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score

from course_utils import metrics
from course_utils.metrics import compare, evaluate

words = st.lists(st.sampled_from("abc"), max_size=8)


def test_perplexity_of_a_fair_die_is_six():
    assert metrics.perplexity([math.log(1 / 6)] * 4) == pytest.approx(6)
    with pytest.raises(ValueError, match="no tokens"):
        metrics.perplexity([])


@pytest.mark.parametrize("logprobs", [[-800.0], [-1.0, -math.inf]])
def test_perplexity_beyond_floats_is_infinite(logprobs):
    assert metrics.perplexity(logprobs) == math.inf


def test_perplexity_of_one_certain_token_and_of_the_largest_that_floats_hold():
    assert metrics.perplexity([0.0]) == 1
    assert metrics.perplexity([-709.0]) == pytest.approx(math.exp(709))


def test_numbers_of_numpy_and_torch_are_as_good_as_pythons():
    assert metrics.perplexity(np.log(np.full(4, 0.25))) == pytest.approx(4)
    assert metrics.perplexity(torch.full((4,), 0.25).log()) == pytest.approx(4)
    assert metrics.accuracy(np.array([True, False])) == metrics.accuracy([True, False])
    assert metrics.paired_p_value(torch.tensor([1, 1, 0]), [False, False, True]) == 1.0
    assert metrics.ngrams("abc", np.int64(2)) == [("a", "b"), ("b", "c")]
    found = evaluate(np.array(LABELS), np.array(LABELS), labels=np.array(LABELS).tolist())
    assert found == evaluate(LABELS, LABELS, labels=LABELS)


def test_perplexity_equals_torch_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 50, generator=generator, dtype=torch.float64)
    targets = torch.randint(50, (9,), generator=generator)
    logprobs = logits.log_softmax(-1)[torch.arange(9), targets]
    expected = torch.nn.functional.cross_entropy(logits, targets).exp().item()
    assert metrics.perplexity(logprobs.tolist()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("flaw", "lawn", 2), ("", "", 0)],
)
def test_edit_distance_by_hand(a, b, distance):
    assert metrics.edit_distance(a, b) == distance


@given(words, words, words)
def test_edit_distance_is_a_metric(a, b, c):
    d = metrics.edit_distance
    assert (d(a, b) == 0) == (a == b)
    assert d(a, b) == d(b, a)
    assert d(a, c) <= d(a, b) + d(b, c)
    assert abs(len(a) - len(b)) <= d(a, b) <= max(len(a), len(b))


def test_error_rates_take_the_nearest_reference():
    rates = metrics.error_rates(["abc", "xy"], [["abd", "abc"], ["xyz"]])
    assert rates == metrics.ErrorRates(symbol=1 / 6, word=1 / 2, n=2)


@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [(["a"], [], "1 hypotheses and 0"), ([], [], "at least one"), (["a"], [[]], "no reference")],
)
def test_error_rates_bad_input(hypotheses, references, message):
    with pytest.raises(ValueError, match=message):
        metrics.error_rates(hypotheses, references)


def test_accuracy_with_wilson_interval_by_formula():
    hits, n, z = 7, 20, 1.959963984540054
    middle = (hits / n + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(hits / n * (1 - hits / n) / n + z * z / (4 * n * n))
    got = metrics.accuracy([True] * 7 + [False] * 13)
    assert (got.low, got.high) == pytest.approx((middle - half, middle + half), rel=1e-9)
    assert got.value == 0.35
    with pytest.raises(ValueError, match="no outcomes"):
        metrics.accuracy([])


def test_mean_interval_of_a_coin_by_the_normal_approximation():
    scores = [0.0, 1.0] * 200
    found = metrics.mean_interval(scores)
    half = 1.96 * 0.5 / math.sqrt(len(scores))
    assert (found.value, found.n) == (0.5, 400)
    assert found.low == pytest.approx(0.5 - half, abs=0.005)  # the quantiles of 2,000 draws
    assert found.high == pytest.approx(0.5 + half, abs=0.005)
    narrower = metrics.mean_interval(scores, 0.5)
    assert narrower.high - narrower.low < 0.5 * (found.high - found.low)


def test_mean_interval_agrees_with_scipy():
    from scipy.stats import bootstrap

    scores = [1.0, 0.5, 0.25, 0.0, 0.0, 1.0, 1 / 3, 0.1] * 5
    found = metrics.mean_interval(scores)
    theirs = bootstrap((scores,), lambda x, axis: x.mean(axis), method="percentile", rng=1)
    interval = theirs.confidence_interval
    assert found.low == pytest.approx(interval.low, abs=0.02)  # other draws
    assert found.high == pytest.approx(interval.high, abs=0.02)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_mean_interval_lies_within_the_scores(scores):
    found = metrics.mean_interval(scores, resamples=50)
    assert min(scores) - 1e-9 <= found.low <= found.high <= max(scores) + 1e-9
    assert found == metrics.mean_interval(scores, resamples=50)


@pytest.mark.parametrize("interval", [metrics.accuracy, metrics.mean_interval])
@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_confidence_is_a_share(interval, confidence):
    with pytest.raises(ValueError, match=f"confidence is {confidence}; it lies between 0 and 1"):
        interval([True, False], confidence)


def test_mean_interval_of_no_resamples():
    with pytest.raises(ValueError, match="resamples is 0"):
        metrics.mean_interval([0.5], resamples=0)


def test_mean_interval_of_nothing():
    with pytest.raises(ValueError, match="at least one"):
        metrics.mean_interval([])


def test_paired_test_by_hand():
    a, b = [True] * 6 + [False], [False] * 6 + [False]
    assert metrics.paired_p_value(a, b) == pytest.approx(2 * 0.5**6)
    assert metrics.paired_p_value(a, a) == 1.0
    with pytest.raises(ValueError, match="same items"):
        metrics.paired_p_value(a, b[:-1])


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("abcxyxyxy", True),  # xy, three times, at the end
        ("xyxyxyabc", False),  # left again
        ("abcxyxy", False),  # twice only
        ("abcccc", False),  # one token is no phrase
        ("abcabcabc", True),  # the whole text
        ("abcabcxbc", False),
        ("ab", False),
    ],
)
def test_ends_in_loop(text, loops):
    assert metrics.ends_in_loop(text) is loops
    assert metrics.ends_in_loop(list(text)) is loops


def test_ends_in_loop_of_other_sizes():
    assert metrics.ends_in_loop("abccc", least=1)
    assert metrics.ends_in_loop("abab", times=2)
    with pytest.raises(ValueError, match="times is 1"):
        metrics.ends_in_loop("aaa", times=1)


def test_distinct_n_by_hand():
    assert metrics.distinct_n(["abab", "ab"], 2) == 2 / 4
    with pytest.raises(ValueError, match="distinct-3"):
        metrics.distinct_n(["ab"], 3)
    with pytest.raises(ValueError, match="n is 0"):
        metrics.ngrams("ab", 0)


def test_calls_take_turns_forwards_and_backwards():
    order: list[str] = []
    calls = {name: partial(order.append, name) for name in "abc"}
    ticks = iter(range(100))
    found = metrics.seconds_in_turns(calls, 2, warmup=1, clock=lambda: next(ticks))
    assert "".join(order) == "abc" + "abc" + "cba"
    assert found == {name: [1, 1] for name in "abc"}
    with pytest.raises(ValueError, match="repeats is 0"):
        metrics.seconds_in_turns(calls, 0)


def test_time_ratio_finds_the_slower():
    ratio = metrics.time_ratio(lambda: time.sleep(0.002), lambda: time.sleep(0.02), repeats=3)
    assert ratio.low <= ratio.median <= ratio.high
    assert ratio.median > 3  # 10 asleep; a loaded machine adds to both
    assert ratio.fast_seconds < ratio.slow_seconds
    with pytest.raises(ValueError, match="itself"):
        metrics.time_ratio(time.time, time.time)
    with pytest.raises(ValueError, match="repeats is 0"):
        metrics.time_ratio(time.time, time.sleep, repeats=0)


def test_time_ratio_refuses_before_it_calls():
    called = []
    with pytest.raises(ValueError, match="itself"):
        metrics.time_ratio(called.clear, called.clear)
    call = partial(called.append, 1)
    with pytest.raises(ValueError, match="itself"):
        metrics.time_ratio(call, call)
    with pytest.raises(ValueError, match="warmup is -1"):
        metrics.time_ratio(call, called.clear, warmup=-1)
    with pytest.raises(ValueError, match="repeats is 0"):
        metrics.time_ratio(call, called.clear, repeats=0)
    assert called == []


def test_calls_take_turns_in_alternating_order():
    called, ticks = [], iter(range(100))
    calls = partial(called.append, "a"), partial(called.append, "b")
    pairs = metrics.timed_in_turns(*calls, 3, warmup=2, clock=lambda: next(ticks))
    assert "".join(called) == "abab" + "ab" + "ba" + "ab"
    assert pairs == [(1, 1)] * 3


def test_kept_for_backward_by_hand():
    """exp keeps its result, a product its factors, one storage counts once, no grad: nothing."""
    x, y = (torch.ones(6, requires_grad=True) for _ in range(2))
    assert metrics.kept_for_backward(lambda: x.exp()) == 24
    assert metrics.kept_for_backward(lambda: x * y) == 48
    assert metrics.kept_for_backward(lambda: x * x) == 24
    assert metrics.kept_for_backward(lambda: x.exp() * y) == 48
    assert metrics.kept_for_backward(lambda: x + y) == 0
    with torch.no_grad():
        assert metrics.kept_for_backward(lambda: x.exp()) == 0


def test_checksum_sees_any_change():
    layer = torch.nn.Linear(3, 5)
    before = metrics.checksum(layer)
    assert metrics.checksum(layer) == before
    with torch.no_grad():
        layer.bias[4] += 1e-6
    assert metrics.checksum(layer) != before


def test_evaluate_by_hand():
    truth = ["positive", "positive", "positive", "negative"]
    got = evaluate(["positive", "negative", None, "negative"], truth, labels=LABELS)
    assert got.correct == (True, False, False, True)
    assert got.accuracy.value == 0.5
    assert (got.accuracy.low, got.accuracy.high) == pytest.approx((0.15, 0.85), abs=0.001)
    assert got.recall == pytest.approx({"positive": 1 / 3, "negative": 1})
    assert got.balanced == pytest.approx(2 / 3)
    assert got.predicted == {"positive": 1, "negative": 2}
    assert got.unanswered == 1


many = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1)


@given(many)
def test_evaluate_equals_scikit_learn(pairs):
    predictions, truth = map(list, zip(*pairs, strict=True))
    got = evaluate(predictions, truth, labels=list("abc"))
    assert got.accuracy.value == pytest.approx(accuracy_score(truth, predictions))
    theirs = recall_score(truth, predictions, labels=list(got.recall), average=None)
    assert list(got.recall.values()) == pytest.approx(theirs.tolist())
    if set(predictions) <= set(truth) and len(set(truth)) > 1:  # otherwise scikit-learn warns
        assert got.balanced == pytest.approx(balanced_accuracy_score(truth, predictions))


@pytest.mark.parametrize(
    ("predictions", "truth", "message"),
    [
        ([], [], "at least one"),
        (["positive"], [], "1 predictions for 0 items"),
        (["good"], ["positive"], "'good' is no label"),
        (["positive"], ["good"], "'good' is no label"),
        (["positive"], [None], "the truth of an item is None"),
    ],
)
def test_evaluate_bad_input(predictions, truth, message):
    with pytest.raises(ValueError, match=message):
        evaluate(predictions, truth, labels=LABELS)


def test_compare_by_hand():
    truth = ["positive"] * 6
    first = evaluate(["positive"] * 5 + ["negative"], truth, labels=LABELS)
    second = evaluate(["negative"] * 5 + ["negative"], truth, labels=LABELS)
    got = compare(first, second)
    assert got == (5 / 6, 0.0625, 5, 0)  # five in a row of fair coins, on either side: 2 / 2⁵
    assert compare(second, first) == (-5 / 6, 0.0625, 0, 5)
    assert compare(first, first) == (0, 1, 0, 0)


def test_compare_other_items():
    one = evaluate(["positive"], ["positive"], labels=LABELS)
    two = evaluate(["positive"] * 2, ["positive"] * 2, labels=LABELS)
    with pytest.raises(ValueError, match="same items"):
        compare(one, two)


def test_paired_by_hand():
    """Five of five differences are 1: two of the 32 sign flips are as large."""
    got = metrics.paired([1] * 5 + [0], [0] * 6)
    assert got.difference == pytest.approx(5 / 6)
    assert got.p_value == pytest.approx(2 * 2 / 64)
    assert got.n == 6


def test_paired_is_scipys():
    from scipy.stats import permutation_test, ttest_1samp

    draw = np.random.default_rng(0)
    a, b = draw.normal(0.4, 1, 9), draw.normal(0, 1, 9)
    got = metrics.paired(a, b)
    expected = permutation_test((a - b,), np.mean, permutation_type="samples", vectorized=False)
    assert got.p_value == pytest.approx(expected.pvalue)  # both try all 512 flips
    interval = ttest_1samp(a - b, 0).confidence_interval()
    assert (got.low, got.high) == pytest.approx((interval.low, interval.high))


def test_by_chance_are_the_pairs_with_other_signs():
    a, b = [3.0, 1.0, 2.0], [1.0, 1.5, 0.0]
    worlds = sorted(world.difference for world in metrics.paired(a, b).by_chance())
    flips = itertools.product((-1, 1), repeat=3)
    differences = np.subtract(a, b)
    assert worlds == pytest.approx(sorted((differences * signs).mean() for signs in flips))
    ahead = metrics.paired(a, b)
    behind = metrics.paired(b, a)
    turned = next(w for w in ahead.by_chance() if w.difference == pytest.approx(-ahead.difference))
    assert (turned.low, turned.high) == pytest.approx((behind.low, behind.high))
    assert turned.p_value == behind.p_value


def test_paired_draws_flips_where_there_are_too_many():
    got = metrics.paired([1.0] * 40, [0.0] * 40, flips=99)
    assert len(got.flipped) == 99
    assert got.p_value == pytest.approx(1 / 100)  # the pairs as they came count as a draw
    assert got.low == got.high == 1


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1, 0], [1], "2 and 1 values"),
        ([1], [0], "two or more"),
        ([1, math.nan], [0, 0], "finite"),
    ],
)
def test_pairs_that_are_none(a, b, message):
    with pytest.raises(ValueError, match=message):
        metrics.paired(a, b)
