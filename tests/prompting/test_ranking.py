"""Ranking metrics against trec_eval, scikit-learn, and by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retrieval_inputs import prop
from sklearn.metrics import ndcg_score

from course_utils.prompting.ranking import evaluate, ndcg_at_k, recall_at_k, reciprocal_rank


def test_recall_at_k_by_hand():
    ranking, relevant = ["a", "b", "c", "d"], {"b", "d", "x"}
    assert [recall_at_k(ranking, relevant, k) for k in (1, 2, 4, 9)] == [
        0, pytest.approx(1 / 3), pytest.approx(2 / 3), pytest.approx(2 / 3),
    ]  # fmt: skip


def test_reciprocal_rank_by_hand():
    assert reciprocal_rank(["a", "b", "c"], {"c", "b"}) == 0.5
    assert reciprocal_rank(["a"], {"z"}) == 0
    assert reciprocal_rank([], {"z"}) == 0


def test_ndcg_at_k_by_hand():
    """Gains 3, 0, 2 at ranks 1 to 3 against the best order 3, 2, 1."""
    got = ndcg_at_k(["a", "x", "b"], {"a": 3, "b": 2, "c": 1}, 3)
    best = 3 + 2 / math.log2(3) + 1 / math.log2(4)
    assert got == pytest.approx((3 + 2 / math.log2(4)) / best, rel=1e-12)


@st.composite
def judged(draw):
    """A ranking of some items without repeats, and graded judgements, at least one positive."""
    items = [f"d{i}" for i in range(8)]
    ranking = draw(st.permutations(items))[: draw(st.integers(0, 8))]
    gains = {item: draw(st.integers(0, 3)) for item in items[: draw(st.integers(1, 8))]}
    gains[draw(st.sampled_from(items))] = 2
    return ranking, gains


@prop
@given(judged())
def test_recall_at_k_reciprocal_rank_and_ndcg_at_k_equal_trec_eval(case):
    pytrec_eval = pytest.importorskip("pytrec_eval", reason="no wheel for this machine")
    ranking, gains = case
    scores = {item: float(len(ranking) - i) for i, item in enumerate(ranking)}
    evaluator = pytrec_eval.RelevanceEvaluator(
        {"q": gains}, {"recall.1,3,5", "ndcg_cut.1,3,5", "recip_rank"}
    )
    theirs = evaluator.evaluate({"q": scores or {"nothing": 0.0}})["q"]
    relevant = [item for item, gain in gains.items() if gain > 0]
    for k in (1, 3, 5):
        recall = recall_at_k(ranking, relevant, k)
        assert recall == pytest.approx(theirs[f"recall_{k}"], abs=1e-9)
        ndcg = ndcg_at_k(ranking, gains, k)
        assert ndcg == pytest.approx(theirs[f"ndcg_cut_{k}"], abs=1e-9)
    mrr = reciprocal_rank(ranking, relevant)
    assert mrr == pytest.approx(theirs["recip_rank"], abs=1e-9)


@prop
@given(judged(), st.integers(1, 8))
def test_ndcg_at_k_equals_scikit_learn(case, k):
    _, gains = case
    items = [f"d{i}" for i in range(8)]
    relevance = [gains.get(item, 0) for item in items]
    scores = [8.0 - i for i in range(8)]
    theirs = ndcg_score([relevance], [scores], k=k)
    assert ndcg_at_k(items, gains, k) == pytest.approx(theirs, rel=1e-9)


@prop
@given(judged(), st.integers(1, 8))
def test_recall_at_k_and_ndcg_at_k_stay_between_zero_and_one(case, k):
    ranking, gains = case
    relevant = [item for item, gain in gains.items() if gain > 0]
    assert 0 <= recall_at_k(ranking, relevant, k) <= 1
    assert 0 <= ndcg_at_k(ranking, gains, k) <= 1 + 1e-12
    best = sorted(gains, key=lambda item: -gains[item])
    assert ndcg_at_k(best, gains, k) == pytest.approx(1)


def test_recall_at_k_reciprocal_rank_and_ndcg_at_k_bad_input():
    with pytest.raises(ValueError, match="nothing is relevant"):
        recall_at_k(["a"], [], 1)
    with pytest.raises(ValueError, match="nothing is relevant"):
        reciprocal_rank(["a"], [])
    with pytest.raises(ValueError, match="nothing is relevant"):
        ndcg_at_k(["a"], {"a": 0}, 1)
    with pytest.raises(ValueError, match="k is 0"):
        recall_at_k(["a"], ["a"], 0)
    with pytest.raises(ValueError, match="'a' stands twice"):
        ndcg_at_k(["a", "a"], {"a": 1}, 2)
    for odd in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"a gain is {odd}"):
            ndcg_at_k(["a"], {"a": 1, "b": odd}, 2)


def test_recall_at_k_and_ndcg_at_k_of_one():
    assert recall_at_k(["a", "b"], ["a"], 1) == ndcg_at_k(["a", "b"], {"a": 1}, 1) == 1
    assert ndcg_at_k(["b", "a"], {"a": 1, "b": 0}, 1) == 0


def test_evaluate_by_hand():
    table = evaluate([["a", "b"], ["c", "d"]], [["a"], ["d", "e"]], ks=(1, 2))
    second = (1 / math.log2(3)) / (1 + 1 / math.log2(3))
    expected = {
        "recall@1": 0.5,
        "recall@2": 0.75,
        "mrr": 0.75,
        "ndcg@1": 0.5,
        "ndcg@2": (1 + second) / 2,
    }
    assert table == pytest.approx(expected, rel=1e-12)


def test_evaluate_bad_input():
    with pytest.raises(ValueError, match="0 rankings and 0 judgements"):
        evaluate([], [])
    with pytest.raises(ValueError, match="1 rankings and 2 judgements"):
        evaluate([["a"]], [["a"], ["b"]])
