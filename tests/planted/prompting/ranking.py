"""Plausible wrong versions of course_utils.prompting.ranking."""

from __future__ import annotations

from planting import Bug, originals

right = originals("prompting.ranking")


def recall_at_k_as_precision(ranking, relevant, k):
    right["recall_at_k"](ranking, relevant, k)
    return len(set(ranking[:k]) & set(relevant)) / k


def recall_at_k_as_hit_rate(ranking, relevant, k):
    return float(right["recall_at_k"](ranking, relevant, k) > 0)


def reciprocal_rank_of_the_last(ranking, relevant):
    ranks = [rank for rank, item in enumerate(ranking, start=1) if item in set(relevant)]
    return 1 / ranks[-1] if ranks else 0.0


def reciprocal_rank_from_zero(ranking, relevant):
    return next((1 / (i + 2) for i, item in enumerate(ranking) if item in set(relevant)), 0.0)


def ndcg_at_k_exponential(ranking, gains, k):
    return right["ndcg_at_k"](ranking, {item: 2**gain - 1 for item, gain in gains.items()}, k)


def discounted_by_rank(gains):
    return sum(gain / rank for rank, gain in enumerate(gains, start=1))


def evaluate_sums(rankings, relevant, *, ks=(1, 5, 10)):
    table = right["evaluate"](rankings, relevant, ks=ks)
    return {name: value * len(rankings) for name, value in table.items()}


BUGS = [
    Bug("recall_at_k", "is precision", recall_at_k_as_precision),
    Bug("recall_at_k", "is the hit rate", recall_at_k_as_hit_rate),
    Bug("reciprocal_rank", "takes the last relevant item", reciprocal_rank_of_the_last),
    Bug("reciprocal_rank", "is off by one", reciprocal_rank_from_zero),
    Bug("ndcg_at_k", "uses exponential gains", ndcg_at_k_exponential, exercise="12.ndcg_at_k"),
    Bug("discounted_gain", "divides by the rank", discounted_by_rank, tests="ndcg_at_k"),
    Bug("evaluate", "sums instead of averaging", evaluate_sums),
]
