"""Plausible wrong versions of course_utils.prompting.retrieval."""

from __future__ import annotations

import math
import re
import unicodedata

import numpy as np
from planting import Bug, originals

from course_utils.prompting import retrieval
from course_utils.prompting.words import WORD

right = originals("prompting.retrieval")


def chunk_words_without_overlap(text, *, size=120, overlap=20, source=""):
    return right["chunk_words"](text, size=size, overlap=0, source=source)


def chunk_words_without_the_rest(text, *, size=120, overlap=20, source=""):
    passages = right["chunk_words"](text, size=size, overlap=overlap, source=source)
    return [p for p in passages if len(p.text.split()) == size]


def chunk_blocks_as_windows(text, *, size=120, source=""):
    return right["chunk_words"](text, size=size, overlap=0, source=source)


def chunk_blocks_with_a_rest(text, *, size=120, source=""):
    """Windows of full size, so that the last part of a block may be two words."""
    passages = []
    for whole in right["chunk_blocks"](text, size=10**9 if size > 0 else size, source=source):
        for start, end in right["_blocks"](whole.text):
            for p in right["chunk_words"](whole.text[start:end], size=size, overlap=0):
                at = whole.start + start
                passages.append(retrieval.Passage(p.text, source, at + p.start, at + p.end))
    return passages


def chunk_blocks_one_each(text, *, size=120, source=""):
    blocks = [text[start:end] for start, end in right["_blocks"](text)]
    return [retrieval.Passage(b, source, (at := text.index(b)), at + len(b)) for b in blocks]


def tokenize_with_capitals(text, *, drop=()):
    return [word for word in WORD.findall(text) if word not in drop]


def tokenize_at_spaces(text, *, drop=()):
    return [word for word in text.lower().split() if word not in drop]


def tokenize_as_encoded(text, *, drop=()):
    """Without a normal form."""
    return [word for word in WORD.findall(text.lower().replace("’", "'")) if word not in drop]


def tokenize_without_accents(text, *, drop=()):
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return right["tokenize"](plain, drop=drop)


def chunk_words_at_spaces(text, *, size=120, overlap=20, source=""):
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    right["chunk_words"](text, size=size, overlap=overlap)
    windows = [
        spans[at : at + size] for at in range(0, max(len(spans) - overlap, 1), size - overlap)
    ]
    cut = [(window[0][0], window[-1][1]) for window in windows if window]
    return [retrieval.Passage(text[start:end], source, start, end) for start, end in cut]


def embedder_of_anything(model, tokenizer, *, batch_size=16, max_length=256):
    embed = right["embedder"](model, tokenizer, batch_size=batch_size, max_length=max_length)
    return lambda texts: embed([str(text).encode("utf-8", "replace").decode() for text in texts])


def bm25_scores_always_scaled(query, documents, *, k1=1.5, b=0.75, variant="lucene"):
    scale = k1 + 1 if variant == "lucene" else 1
    plain = right["bm25_scores"](query, documents, k1=k1, b=b, variant=variant)
    return [scale * score for score in plain]


def idf_without_halves(containing, n_documents, variant):
    return {word: math.log1p((n_documents - n) / n) for word, n in containing.items()}


def idf_by_occurrences_of_words(containing, n_documents, variant):
    total = sum(containing.values())
    return {word: math.log1p((total - n + 0.5) / (n + 0.5)) for word, n in containing.items()}


def idf_negative(containing, n_documents, variant):
    odds = {word: (n_documents - n + 0.5) / (n + 0.5) for word, n in containing.items()}
    return {w: math.log1p(x) if variant == "lucene" else math.log(x) for w, x in odds.items()}


class BM25AddsOnce(retrieval.BM25):
    def scores(self, query):
        return super().scores(list(dict.fromkeys(query)))


class BM25FindsEverything(retrieval.BM25):
    def search(self, query, k=10):
        scores = self.scores(query)
        return [retrieval.Hit(i, scores[i]) for i in right["top_k"](scores, k).tolist()]


def top_k_unsorted(scores, k, *, above=-math.inf):
    return np.sort(right["top_k"](scores, k, above=above))


def top_k_ties_from_the_end(scores, k, *, above=-math.inf):
    order = np.argsort(scores, kind="stable")[::-1]
    return order[scores[order] > above][:k]


def top_k_lowest(scores, k, *, above=-math.inf):
    return right["top_k"](-scores, k)


def embedder_in_sorted_order(model, tokenizer, *, batch_size=16, max_length=256):
    embed = right["embedder"](model, tokenizer, batch_size=batch_size, max_length=max_length)
    return lambda texts: embed(sorted(texts, key=len, reverse=True))


def embedder_of_any_length(model, tokenizer, *, batch_size=16, max_length=256):
    return right["embedder"](model, tokenizer, batch_size=batch_size, max_length=10_000)


BUGS = [
    Bug("chunk_words", "windows do not overlap", chunk_words_without_overlap),
    Bug("chunk_words", "the short window at the end is lost", chunk_words_without_the_rest),
    Bug("chunk_blocks", "cuts through blocks", chunk_blocks_as_windows),
    Bug("chunk_blocks", "leaves a rest of a long block", chunk_blocks_with_a_rest),
    Bug("chunk_blocks", "does not pack blocks together", chunk_blocks_one_each),
    Bug("tokenize", "keeps capitals", tokenize_with_capitals),
    Bug("tokenize", "has no normal form", tokenize_as_encoded),
    Bug("tokenize", "takes accents away", tokenize_without_accents),
    Bug("chunk_words", "takes a paragraph for a word", chunk_words_at_spaces),
    Bug("embedder", "replaces what is no text in silence", embedder_of_anything),
    Bug("tokenize", "leaves punctuation on words", tokenize_at_spaces),
    Bug(
        "bm25_scores",
        "scales the wrong variant by k1 + 1",
        bm25_scores_always_scaled,
        exercise="12.bm25_scores",
    ),
    Bug("idf", "leaves out the halves", idf_without_halves, tests="bm25_scores"),
    Bug("idf", "counts words, not documents", idf_by_occurrences_of_words, tests="bm25_scores"),
    Bug("idf", "lets frequent words count against", idf_negative, tests="bm25_scores"),
    Bug("BM25", "counts a repeated query word once", BM25AddsOnce, tests="bm25_class"),
    Bug("BM25", "returns documents without the words", BM25FindsEverything, tests="bm25_search"),
    Bug("top_k", "does not sort", top_k_unsorted),
    Bug("top_k", "prefers the later of equal scores", top_k_ties_from_the_end),
    Bug("top_k", "takes the lowest", top_k_lowest),
    Bug("embedder", "returns the order of lengths", embedder_in_sorted_order),
    Bug("embedder", "does not cut long texts", embedder_of_any_length),
]
