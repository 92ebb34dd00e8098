"""How good a ranking is: recall, reciprocal rank, nDCG. Notebook 12.

Source: Järvelin & Kekäläinen 2002 (nDCG).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence

from course_utils.prompting.retrieval import check_unique

# ── metrics ───────────────────────────────────────────────────────────────────────────────────


def recall_at_k(ranking: Sequence[Hashable], relevant: Collection[Hashable], k: int) -> float:
    """Return the share of the relevant items that stand among the first k.

    Raises ValueError when nothing is relevant, for k below one, and for a repeated item.

    >>> recall_at_k(["x", "gold", "y"], {"gold", "silver"}, k=2)
    0.5
    """
    _check_judged(ranking, relevant, k)
    return len(set(ranking[:k]) & set(relevant)) / len(set(relevant))


def reciprocal_rank(ranking: Sequence[Hashable], relevant: Collection[Hashable]) -> float:
    """Return 1 / rank of the first relevant item, 0 when there is none; its mean is the MRR.

    Raises ValueError when nothing is relevant and for a repeated item.

    >>> reciprocal_rank(["x", "gold", "y"], {"gold"})
    0.5
    """
    _check_judged(ranking, relevant, 1)
    wanted = set(relevant)
    return next((1 / rank for rank, item in enumerate(ranking, 1) if item in wanted), 0.0)


def ndcg_at_k(ranking: Sequence[Hashable], gains: Mapping[Hashable, float], k: int) -> float:
    """Return the discounted gain of the first k over that of the best possible ranking.

    An item at rank r adds gain / log2(r + 1); items without a gain add nothing. Source: Järvelin
    & Kekäläinen 2002, with linear gains as in trec_eval. Raises ValueError for a negative gain,
    or one that is not finite, when no gain is positive, for k below one, and for a repeated item.

    >>> ndcg_at_k(["x", "y", "gold"], {"gold": 1}, k=3)  # 1 / log2(4), of at best 1
    0.5
    """
    if odd := [gain for gain in gains.values() if not 0 <= gain < math.inf]:
        raise ValueError(f"a gain is {odd[0]}; gains must be finite and not negative")
    _check_judged(ranking, [item for item, gain in gains.items() if gain > 0], k)
    best = discounted_gain(sorted(gains.values(), reverse=True)[:k])
    return discounted_gain(gains.get(item, 0) for item in ranking[:k]) / best


def discounted_gain(gains: Iterable[float]) -> float:
    """Return the sum of each gain over log2(1 + its rank), ranks from one.

    >>> discounted_gain([1, 0, 1])  # 1 / log2(2) + 1 / log2(4)
    1.5
    """
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def _check_judged(ranking: Sequence[Hashable], relevant: Collection[Hashable], k: int) -> None:
    if not relevant:
        raise ValueError("nothing is relevant to this query; leave it out of the evaluation")
    if k < 1:
        raise ValueError(f"k is {k}; look at one result at least")
    check_unique(ranking)


def evaluate(
    rankings: Sequence[Sequence[Hashable]],
    relevant: Sequence[Collection[Hashable]],
    *,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Return recall@k and nDCG@k for each k, and MRR, averaged over queries.

    `relevant` holds one collection per ranking; every relevant item has gain one. Raises
    ValueError when the two differ in length or there is no query.
    """
    if not rankings or len(rankings) != len(relevant):
        raise ValueError(
            f"there are {len(rankings)} rankings and {len(relevant)} judgements; give one of each "
            "per query, and at least one"
        )
    pairs = list(zip(rankings, relevant, strict=True))
    table = {f"recall@{k}": [recall_at_k(r, gold, k) for r, gold in pairs] for k in ks}
    table["mrr"] = [reciprocal_rank(r, gold) for r, gold in pairs]
    for k in ks:
        table[f"ndcg@{k}"] = [ndcg_at_k(r, dict.fromkeys(gold, 1), k) for r, gold in pairs]
    return {name: sum(values) / len(values) for name, values in table.items()}
