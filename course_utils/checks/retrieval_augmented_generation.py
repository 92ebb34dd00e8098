"""The exercises of notebook 12, with the mistakes that learners make in them."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator

from course_utils.exercises import Case, Exercise
from course_utils.prompting import retrieval
from course_utils.prompting.context import assemble_context
from course_utils.prompting.ranking import discounted_gain, ndcg_at_k

Documents = list[list[str]]
Ranking = list[str]
FARM = ["the", "fox", "hen", "barn"]

# ── BM25 ─────────────────────────────────────────────────────────────────────────────────────────


def bm25(query: list[str], documents: Documents, **how: float) -> list[float]:
    """Score every document for a query of words, with k1 = 1.5 and b = 0.75."""
    return retrieval.bm25_scores(query, documents, **how)


def _bm25_inputs() -> Iterator[tuple]:
    for seed in range(4):
        draw = random.Random(seed)
        documents = [draw.choices(FARM, k=draw.randint(1, 9)) for _ in "12345"]
        yield draw.choices([*FARM, "owl"], k=3), documents


def _idf_of_occurrences(query: list[str], documents: Documents) -> list[float]:
    """As if every occurrence of a word were a document that contains it."""
    total = Counter(word for document in documents for word in document)
    average = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        norm = 1.5 * (0.25 + 0.75 * len(document) / average)
        terms = (
            math.log(1 + (len(documents) - total[w] + 0.5) / (total[w] + 0.5))
            * document.count(w)
            / (document.count(w) + norm)
            for w in query
        )
        scores.append(sum(terms))
    return scores


def _length_ignored(query: list[str], documents: Documents) -> list[float]:
    return bm25(query, documents, b=0.0)


def _never_saturates(query: list[str], documents: Documents) -> list[float]:
    counts = [Counter(document) for document in documents]
    idf = retrieval.idf(Counter(w for c in counts for w in c), len(documents), "lucene")
    return [sum(idf.get(word, 0) * count[word] for word in query) for count in counts]


def _each_word_once(query: list[str], documents: Documents) -> list[float]:
    return bm25(list(dict.fromkeys(query)), documents)


# ── fusion ───────────────────────────────────────────────────────────────────────────────────────


def _rankings() -> Iterator[tuple]:
    for seed in range(4):
        draw = random.Random(seed)
        yield ([draw.sample("abcdef", k=draw.randint(1, 6)) for _ in range(3)],)


def _from_zero(rankings: list[Ranking]) -> list[tuple[str, float]]:
    return retrieval.reciprocal_rank_fusion(rankings, k=59)


def _best_place(rankings: list[Ranking]) -> list[tuple[str, float]]:
    places: dict[str, int] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, 1):
            places[item] = min(rank, places.get(item, rank))
    return [(item, 1 / (60 + place)) for item, place in sorted(places.items(), key=lambda p: p[1])]


def _in_order_of_appearance(rankings: list[Ranking]) -> list[tuple[str, float]]:
    scores = dict(retrieval.reciprocal_rank_fusion(rankings))
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


# ── a context within a budget ────────────────────────────────────────────────────────────────────


def fill_context(texts: list[str], budget: int) -> str:
    """Number the texts that fit, "[1] …", parted by blank lines, in at most `budget` words.

    The number counts as a word. What does not fit is left out; shorter texts after it may enter.
    """
    passages = [retrieval.Passage(text, str(i), 0, len(text)) for i, text in enumerate(texts)]
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


def _over_the_edge(texts: list[str], budget: int) -> str:
    return fill_context(texts, budget + 1)


EXERCISES = {
    "bm25_scores": Exercise(
        reference=bm25,
        solution=(retrieval.bm25_scores, retrieval.idf),
        hint="Count the words of each document with a Counter. For idf you need, for every word, "
        "in how many documents it stands, however often. Each word of the query adds one term.",
        cases=(
            Case(
                (["fox"], [["fox"], ["hen"]]),
                [math.log(2) / 2.5, 0.0],
                why="One document of two holds the word: idf = ln(1 + 1.5/1.5) = ln 2. Both have "
                "the average length, so the term is ln 2 · 1 / (1 + 1.5).",
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
            "idf counts occurrences instead of documents": _idf_of_occurrences,
            "the document's length is left out": _length_ignored,
            "the count is not divided, so every repetition counts in full": _never_saturates,
            "a word that is twice in the query counts once": _each_word_once,
        },
    ),
    "reciprocal_rank_fusion": Exercise(
        reference=retrieval.reciprocal_rank_fusion,
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
        "k, and for the k largest of all gains; divide.",
        cases=(
            Case(
                (["x", "a"], {"a": 1.0}, 2),
                1 / math.log2(3),
                why="The only relevant item stands at rank 2: 1 / log2(3); the best would be 1.",
            ),
            Case(
                (["a", "b"], {"a": 1.0, "b": 3.0, "c": 2.0}, 2),
                (1 + 3 / math.log2(3)) / (3 + 2 / math.log2(3)),
                why="The best two would be b and c, although c was not found.",
            ),
        ),
        inputs=_judged,
        mistakes={
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
        },
    ),
}
