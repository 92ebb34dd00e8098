"""The exercises of notebook 12, with the mistakes that learners make in them."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from course_utils.exercises import Case, Exercise, Statement
from course_utils.prompting.context import assemble_context
from course_utils.prompting.ranking import discounted_gain, ndcg_at_k
from course_utils.prompting.retrieval import Passage, bm25_scores, idf, reciprocal_rank_fusion

Documents = list[list[str]]
Ranking = list[str]
FARM = ["the", "fox", "hen", "barn"]

# ── BM25 ─────────────────────────────────────────────────────────────────────────────────────────


def _bm25_inputs() -> Iterator[tuple]:
    for seed in range(4):
        draw = random.Random(seed)
        documents = [draw.choices(FARM, k=draw.randint(1, 9)) for _ in "12345"]
        yield draw.choices([*FARM, "owl"], k=3), documents


def _idf_of_occurrences(
    query: list[str], documents: Documents, *, variant: str = "lucene", **how: float
) -> list[float]:
    """As if every occurrence of a word were a document that contains it."""
    plain = {w: bm25_scores([w], documents, variant=variant, **how) for w in set(query)}
    if variant != "lucene":
        return bm25_scores(query, documents, variant=variant, **how)
    containing = idf(Counter(w for d in documents for w in set(d)), len(documents), variant)
    occurring = idf(Counter(w for d in documents for w in d), len(documents), variant)
    times = {w: occurring[w] / containing[w] if w in containing else 0.0 for w in plain}
    return [sum(times[w] * plain[w][i] for w in query) for i in range(len(documents))]


def _length_ignored(
    query: list[str], documents: Documents, *, b: float = 0.75, **how: Any
) -> list[float]:
    return bm25_scores(query, documents, b=0.0, **how)


def _never_saturates(
    query: list[str], documents: Documents, *, variant: str = "lucene", **how: float
) -> list[float]:
    counts = [Counter(document) for document in documents]
    weights = idf(Counter(w for c in counts for w in c), len(documents), variant)
    return [sum(weights.get(word, 0) * count[word] for word in query) for count in counts]


def _each_word_once(query: list[str], documents: Documents, **how: Any) -> list[float]:
    return bm25_scores(list(dict.fromkeys(query)), documents, **how)


def _older_form(
    query: list[str], documents: Documents, *, k1: float = 1.5, **how: Any
) -> list[float]:
    """As many textbooks have it: the count times (k1 + 1), which changes no ranking."""
    return [(k1 + 1) * score for score in bm25_scores(query, documents, k1=k1, **how)]


def _negative_idf(
    query: list[str], documents: Documents, *, variant: str = "lucene", **how: Any
) -> list[float]:
    """The logarithm without the 1 added: negative where more than half of the documents hold it."""
    n = Counter(word for document in documents for word in set(document))
    here = idf(n, len(documents), variant)
    bare = {w: math.log((len(documents) - n[w] + 0.5) / (n[w] + 0.5)) / here[w] for w in here}
    parts = {w: bm25_scores([w], documents, variant=variant, **how) for w in bare}
    return [sum(bare[w] * parts[w][i] for w in query if w in bare) for i in range(len(documents))]


# ── fusion ───────────────────────────────────────────────────────────────────────────────────────


def _rankings() -> Iterator[tuple]:
    for seed in range(4):
        draw = random.Random(seed)
        yield ([draw.sample("abcdef", k=draw.randint(1, 6)) for _ in range(3)],)


def _from_zero(rankings: Iterable[Ranking], *, k: float = 60) -> list[tuple[str, float]]:
    return reciprocal_rank_fusion(rankings, k=max(k - 1, 0))


def _best_place(rankings: Iterable[Ranking], *, k: float = 60) -> list[tuple[str, float]]:
    places: dict[str, int] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, 1):
            places[item] = min(rank, places.get(item, rank))
    return [(item, 1 / (k + place)) for item, place in sorted(places.items(), key=lambda p: p[1])]


def _in_order_of_appearance(
    rankings: Iterable[Ranking], *, k: float = 60
) -> list[tuple[str, float]]:
    rankings = list(rankings)
    scores = dict(reciprocal_rank_fusion(rankings, k=k))
    seen = dict.fromkeys(item for ranking in rankings for item in ranking)
    return [(item, scores[item]) for item in seen]


# ── nDCG ─────────────────────────────────────────────────────────────────────────────────────────


def _judged() -> Iterator[tuple]:
    for seed in range(4):
        draw = random.Random(seed)
        gains = {item: float(draw.randint(0, 3)) for item in "abcd"} | {"e": 1.0}
        yield draw.sample("abcdefg", k=6), gains, draw.randint(1, 5)


def _discounted(gains: list[float]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))


def _not_normalised(ranking: Ranking, gains: dict[str, float], k: int) -> float:
    return _discounted([gains.get(item, 0) for item in ranking[:k]])


def _against_itself(ranking: Ranking, gains: dict[str, float], k: int) -> float:
    found = [gains.get(item, 0) for item in ranking[:k]]
    return _discounted(found) / (_discounted(sorted(found, reverse=True)) or 1)


def _ideal_not_cut(ranking: Ranking, gains: dict[str, float], k: int) -> float:
    return _not_normalised(ranking, gains, k) / _discounted(sorted(gains.values(), reverse=True))


def _no_discount(ranking: Ranking, gains: dict[str, float], k: int) -> float:
    return sum(gains.get(item, 0) for item in ranking[:k]) / sum(sorted(gains.values())[-k:])


def _exponential_gains(ranking: Ranking, gains: dict[str, float], k: int) -> float:
    return ndcg_at_k(ranking, {item: 2**gain - 1 for item, gain in gains.items()}, k)


def _logarithm_of_the_rank(ranking: Ranking, gains: dict[str, float], k: int) -> float:
    """Järvelin and Kekäläinen's first form: ranks one and two are not discounted."""

    def total(found: list[float]) -> float:
        return sum(gain / max(1, math.log2(rank)) for rank, gain in enumerate(found, 1))

    best = sorted(gains.values(), reverse=True)[:k]
    return total([gains.get(item, 0) for item in ranking[:k]]) / total(best)


# ── a context within a budget ────────────────────────────────────────────────────────────────────


def fill_context(texts: list[str], budget: int) -> str:
    """Number the texts that fit, "[1] …", parted by blank lines, in at most `budget` words.

    The number counts as a word. What does not fit is left out; shorter texts after it may enter.
    """
    passages = [Passage(text, str(i), 0, len(text)) for i, text in enumerate(texts)]
    count = {"template": "[{n}] {text}", "count_tokens": lambda text: len(text.split())}
    return assemble_context(passages, budget, **count).text


def _budgets() -> Iterator[tuple]:
    texts = ["one two three", "a b c d e f g h", "x y", "p q r s", "z"]
    for budget in (4, 8, 9, 13, 40):
        yield texts, budget


def _stop_at_the_first(texts: list[str], budget: int) -> str:
    for n in range(len(texts), 0, -1):
        shown = "\n\n".join(f"[{i}] {text}" for i, text in enumerate(texts[:n], 1))
        if len(shown.split()) <= budget:
            return shown
    return ""


def _numbers_not_counted(texts: list[str], budget: int) -> str:
    taken: list[str] = []
    for text in texts:
        if sum(len(t.split()) for t in [*taken, text]) <= budget:
            taken.append(text)
    return "\n\n".join(f"[{i}] {text}" for i, text in enumerate(taken, 1))


def _numbers_with_holes(texts: list[str], budget: int) -> str:
    taken: list[str] = []
    for i, text in enumerate(texts, 1):
        if len("\n\n".join([*taken, f"[{i}] {text}"]).split()) <= budget:
            taken.append(f"[{i}] {text}")
    return "\n\n".join(taken)


def _joined_by_one_newline(texts: list[str], budget: int) -> str:
    return fill_context(texts, budget).replace("\n\n", "\n")


def _over_the_edge(texts: list[str], budget: int) -> str:
    return fill_context(texts, budget + 1)


EXERCISES = {
    "bm25_scores": Exercise(
        reference=bm25_scores,
        solution=(bm25_scores, idf),
        hint="Count the words of each document with a Counter. For idf you need, for every word, "
        "in how many documents it stands, however often. Each word of the query adds one term.",
        cases=(
            Case(
                (["fox"], [["fox", "fox", "hen"], ["hen"]]),
                [math.log(2) * 2 / (2 + 1.5 * (0.25 + 0.75 * 3 / 2)), 0.0],
                why="One document of two holds the word: idf = ln(1 + 1.5/1.5) = ln 2. It holds it "
                "twice, and has 3 words where the average is 2, so the term is "
                "ln 2 · 2 / (2 + 1.5 · (1 − 0.75 + 0.75 · 3/2)).",
            ),
            Case(
                (["fox", "fox"], [["fox"], ["hen"]]),
                [2 * math.log(2) / 2.5, 0.0],
                why="A word that stands twice in the query adds its term twice.",
            ),
            Case(
                (["owl"], [["fox", "hen"], ["hen"]]),
                [0.0, 0.0],
                why="A word that stands nowhere adds nothing.",
            ),
        ),
        inputs=_bm25_inputs,
        mistakes={
            "the count is multiplied by (k₁ + 1), as in an older form of the formula: all scores "
            "are 2.5 times as large, the rankings the same": _older_form,
            "the 1 inside the logarithm is left out, so that a word of most documents counts "
            "against them": _negative_idf,
            "idf counts occurrences instead of documents": _idf_of_occurrences,
            "the document's length is left out": _length_ignored,
            "the count is not divided, so every repetition counts in full": _never_saturates,
            "a word that is twice in the query counts once": _each_word_once,
        },
    ),
    "reciprocal_rank_fusion": Exercise(
        reference=reciprocal_rank_fusion,
        hint="Keep a dictionary from item to sum. Go through every ranking with enumerate(…, 1), "
        "add 1 / (60 + rank), and sort the items by their sum.",
        cases=(
            Case(
                ([["a", "b"], ["b", "c"]],),
                [("b", 1 / 62 + 1 / 61), ("a", 1 / 61), ("c", 1 / 62)],
                why="b is second in one list and first in the other: 1/(60+2) + 1/(60+1).",
            ),
        ),
        inputs=_rankings,
        mistakes={
            "ranks start at zero": _from_zero,
            "only the best place of an item counts": _best_place,
            "the result is not sorted": _in_order_of_appearance,
        },
    ),
    "ndcg_at_k": Exercise(
        reference=ndcg_at_k,
        solution=(ndcg_at_k, discounted_gain),
        hint="Write a helper that adds up gain / log2(rank + 1). Call it for the ranking's first "
        "k, and for the k largest of all gains; divide. A gain counts as it is, not as 2^gain − 1.",
        cases=(
            Case(
                (["x", "y", "a"], {"a": 1.0}, 3),
                1 / math.log2(4),
                why="The only relevant item stands at rank 3: 1 / log2(4); the best would be 1.",
            ),
            Case(
                (["a", "b"], {"a": 1.0, "b": 3.0, "c": 2.0}, 2),
                (1 + 3 / math.log2(3)) / (3 + 2 / math.log2(3)),
                why="The best two would be b and c, although c was not found.",
            ),
        ),
        inputs=_judged,
        mistakes={
            "a gain counts as 2^gain − 1; here it counts as it is": _exponential_gains,
            "the discount is log2(rank), not log2(rank + 1)": _logarithm_of_the_rank,
            "the sum is not divided by that of the best ranking": _not_normalised,
            "the best ranking is made of what was found, not of all there is": _against_itself,
            "the best ranking is not cut at k": _ideal_not_cut,
            "the gains are not discounted": _no_discount,
        },
    ),
    "fill_context": Exercise(
        reference=fill_context,
        solution=(assemble_context,),
        hint="Keep a list of what is in. For each text, try it with the next free number; if the "
        "words of everything joined are within the budget, keep it.",
        cases=(
            Case(
                (["a b c", "d e f g", "h"], 6),
                "[1] a b c\n\n[2] h",
                why="[1] a b c has 4 words, the second text would make 9; [2] h makes 6.",
            ),
        ),
        inputs=_budgets,
        mistakes={
            "nothing is tried after the first text that does not fit": _stop_at_the_first,
            "the numbers are not counted as words": _numbers_not_counted,
            "texts keep their place in the list as number": _numbers_with_holes,
            "one word too many is let in": _over_the_edge,
            "texts are joined by one newline; blank lines part them": _joined_by_one_newline,
        },
    ),
}


STATEMENTS = {
    "rag": {
        "a": Statement(
            "Fusing two searches gives the best of both.",
            False,
            "R2d: only where both are half right. At either end the better search alone is ahead.",
        ),
        "b": Statement(
            "What stands in the context decides what this model answers, right or wrong.",
            True,
            "R2b and R2j: wrong passages and false sentences were followed as well.",
        ),
        "c": Statement(
            "The more passages a prompt holds, the better the answers.",
            False,
            "Section 12: the gold passage was there at least as often, and R2k left open whether "
            "the answers got better.",
        ),
        "d": Statement(
            "An answer that its citation supports can be trusted.",
            False,
            "R2i: supported answers were wrong, because another name of the passage was taken.",
        ),
        "e": Statement(
            "An injected text needs an order to take an answer over.",
            False,
            "R2g2: a mention of a name at the end of the passage was enough.",
        ),
    }
}
