"""The exercises of notebook 12: textbook variants are named, and white space is seen."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from course_utils.checks.retrieval_augmented_generation import STATEMENTS, fill_context
from course_utils.exercises import find, first_problem
from course_utils.prompting.ranking import ndcg_at_k


def bm25(query, documents, *, numerator=1.0, inside=1.0):
    """A learner's BM25: `numerator` 2.5 is the form with (k1 + 1), `inside` 0 the idf without 1."""
    counts = [Counter(document) for document in documents]
    average = sum(map(len, documents)) / len(documents)
    scores = []
    for count, document in zip(counts, documents, strict=True):
        norm = 1.5 * (0.25 + 0.75 * len(document) / average)
        score = 0.0
        for word in query:
            n = sum(word in other for other in counts)
            idf = math.log(inside + (len(documents) - n + 0.5) / (n + 0.5))
            score += idf * numerator * count[word] / (count[word] + norm)
        scores.append(score)
    return scores


def problem(name, attempt):
    return first_problem(find(f"12.{name}"), attempt)


def test_a_plain_bm25_passes():
    assert problem("bm25_scores", bm25) is None


def test_the_older_bm25_is_named_and_not_taken_for_another_mistake():
    found = problem("bm25_scores", lambda q, d: bm25(q, d, numerator=2.5))
    assert "(k₁ + 1)" in found
    assert "every repetition counts in full" not in found


def test_an_idf_that_may_be_negative_is_named():
    assert "1 inside the logarithm" in problem("bm25_scores", lambda q, d: bm25(q, d, inside=0.0))


def test_repetitions_that_count_in_full_are_named():
    def attempt(query, documents):
        n = {w: sum(w in d for d in documents) for w in query}
        idf = {w: math.log(1 + (len(documents) - n[w] + 0.5) / (n[w] + 0.5)) for w in query}
        return [sum(idf[w] * d.count(w) for w in query) for d in documents]

    assert "every repetition counts in full" in problem("bm25_scores", attempt)


def test_exponential_gains_are_named():
    def attempt(ranking, gains, k):
        return ndcg_at_k(ranking, {item: 2**gain - 1 for item, gain in gains.items()}, k)

    assert "2^gain − 1" in problem("ndcg_at_k", attempt)


def test_the_older_discount_is_named():
    def total(gains):
        return sum(g / max(1, math.log2(r)) for r, g in enumerate(gains, 1))

    def attempt(ranking, gains, k):
        best = sorted(gains.values(), reverse=True)[:k]
        return total([gains.get(item, 0) for item in ranking[:k]]) / total(best)

    assert "log2(rank)" in problem("ndcg_at_k", attempt)


def test_gains_without_a_discount_are_named():
    def attempt(ranking, gains, k):
        found = sum(gains.get(item, 0) for item in ranking[:k])
        return found / sum(sorted(gains.values(), reverse=True)[:k])

    assert "not discounted" in problem("ndcg_at_k", attempt)


def test_one_newline_instead_of_two_can_be_seen():
    found = problem("fill_context", lambda t, b: fill_context(t, b).replace("\n\n", "\n"))
    assert "only white space differs" in found
    assert "blank lines part them" in found
    assert r"\n\n" in found


@pytest.mark.parametrize("table", STATEMENTS.values())
def test_some_statements_are_supported_and_some_are_not(table):
    assert {statement.supported for statement in table.values()} == {True, False}
