"""Retrieval for generation: chunk, index, search, fuse. Notebook 12.

BM25 stands here twice: `bm25_scores` reads like the formula, `BM25` is the inverted index that
gives the same numbers fast. The dense side takes any `embed(texts) -> array`; `embedder` builds
one from an encoder and its tokenizer by mean pooling. Everything works on plain sequences.

Sources: Robertson & Zaragoza 2009 (BM25), Lù 2024 (scores computed when indexing), Reimers &
Gurevych 2019 (mean pooling), Cormack et al. 2009 (reciprocal rank fusion).
"""

from __future__ import annotations

import math
import operator
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from course_utils.architectures.encoder import mean_pool
from course_utils.prompting.words import WORD, counted_spans, pieces
from course_utils.training import batches_by_length

VARIANTS = ("lucene", "okapi")
Embed = Callable[[Sequence[str]], Any]
# Words that say how a sentence is built rather than what it is about.
FUNCTION_WORDS = frozenset(
    re.split(
        r"\s+",
        """a about after all also am an and any are as at be because been before being but by can
        could did do does for from had has have he her here hers him his how i if in into is it
        its me my no nor not of on or our out over shall she should so some such than that the
        their them then there these they this those to too under up us was we were what when
        where which who whom whose why will with would you your""",
    )
)


class Hit(NamedTuple):
    """One search result: the document's position in the corpus, and its score."""

    index: int
    score: float


@dataclass(frozen=True)
class Passage:
    """A piece of a text: `text == whole[start:end]`, where `whole` is the text of `source`."""

    text: str
    source: str
    start: int
    end: int


# ── chunking and words ────────────────────────────────────────────────────────────────────────


def chunk_words(
    text: str, *, size: int = 120, overlap: int = 20, source: str = ""
) -> list[Passage]:
    """Cut a text into windows of `size` words, each sharing `overlap` words with the one before.

    Words are runs without white space, and single characters where a script has no spaces (or a
    run is too long for a word), so that an encoder reads each window whole; the last may be
    shorter. Empty text gives no passage. Raises ValueError unless 0 <= overlap < size.

    >>> [passage.text for passage in chunk_words("To be, or not to be", size=3, overlap=1)]
    ['To be, or', 'or not to', 'to be']
    """
    if not 0 <= overlap < size:
        raise ValueError(
            f"overlap is {overlap} and size {size}; a window must advance, so 0 <= overlap < size"
        )
    spans = list(counted_spans(text))
    last_start = max(len(spans) - overlap, 1)  # later windows would repeat the overlap alone
    windows = [spans[at : at + size] for at in range(0, last_start, size - overlap) if spans]
    return [_passage(text, window[0][0], window[-1][1], source) for window in windows]


def chunk_blocks(text: str, *, size: int = 120, source: str = "") -> list[Passage]:
    """Pack whole blocks (parted by blank lines) into passages of at most `size` words.

    A play's speeches and a book's paragraphs are such blocks, so that a line stays with its
    speaker. A block longer than `size` words (as `chunk_words` counts them) is cut into as few
    parts as will do, of even length, so that none is a rest of two words. Raises ValueError for a
    size below one.

    >>> [passage.text for passage in chunk_blocks("FOX.\\nHello!\\n\\nHEN.\\nGo away now.", size=4)]
    ['FOX.\\nHello!', 'HEN.\\nGo away now.']
    """
    if size < 1:
        raise ValueError(f"size is {size}; a passage holds at least one word")
    passages, held, room = [], [], size  # held: where the blocks of the open passage stand
    for start, end, words in _parts(text, size):
        if words > room:
            passages.append(_passage(text, held[0][0], held[-1][1], source))
            held, room = [], size
        held.append((start, end))
        room -= words
    if held:
        passages.append(_passage(text, held[0][0], held[-1][1], source))
    return passages


def _parts(text: str, size: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, end, words) of the blocks of a text; one above `size` words in even parts."""
    for start, end in _blocks(text):
        words = sum(1 for _ in counted_spans(text[start:end]))
        even = math.ceil(words / math.ceil(words / size))
        for i, part in enumerate(chunk_words(text[start:end], size=even, overlap=0)):
            yield start + part.start, start + part.end, min(even, words - i * even)


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """Yield where each run of lines that are not blank starts and ends, white space stripped."""
    at, start, end = 0, -1, -1
    for line in [*text.splitlines(keepends=True), ""]:
        if line.strip():
            start = at + len(line) - len(line.lstrip()) if start < 0 else start
            end = at + len(line.rstrip())
        elif start >= 0:
            yield start, end
            start = -1
        at += len(line)


def _passage(text: str, start: int, end: int, source: str) -> Passage:
    return Passage(text[start:end], source, start, end)


def tokenize(text: str, *, drop: Collection[str] = ()) -> list[str]:
    """Return the words of a text in lower case, apostrophes kept inside ("o'er"), `drop` left out.

    Digits count as words; hyphens and underscores part them. However "ô" or "ﬁ" is encoded, the
    word is the same (Unicode's form NFKC). A run of Chinese, or of another script without spaces,
    gives its characters and their pairs.

    >>> tokenize("Who's there? 北京!")
    ["who's", 'there', '北', '北京', '京']
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    found = WORD.findall(text.replace("’", "'").replace("\u00ad", ""))  # and no soft hyphens
    words = [piece for word in found for piece in pieces(word)]
    return [word for word in words if word not in drop] if drop else words


# ── BM25 ──────────────────────────────────────────────────────────────────────────────────────


def bm25_scores(
    query: Sequence[str],
    documents: Sequence[Sequence[str]],
    *,
    k1: float = 1.5,
    b: float = 0.75,
    variant: str = "lucene",
) -> list[float]:
    """Score every document for a query of words: the formula, term by term.

    With f the word's count in the document, n the number of documents that hold it, N of all,
    and |d| / avg the document's length against the average,

        idf · f / (f + k1 · (1 − b + b · |d| / avg)).

    "lucene": idf = ln(1 + (N − n + ½) / (n + ½)), always positive. "okapi": the same times
    (k1 + 1), idf = ln((N − n + ½) / (n + ½)), and where that is negative, a quarter of the
    average idf (Robertson & Zaragoza 2009, section 3; Trotman et al. 2014). A word that stands
    twice in the query counts twice. Raises ValueError for a corpus without words and for
    parameters out of range.

    >>> [round(score, 6) for score in bm25_scores(["fox"], [["fox"], ["hen"]])]  # ln 2 / (1 + 1.5)
    [0.277259, 0]
    """
    _check_corpus(documents, k1, b, variant)
    counts = [Counter(document) for document in documents]
    average = sum(map(len, documents)) / len(documents)
    containing = Counter(chain.from_iterable(counts))
    weights = idf(containing, len(documents), variant)
    scale = k1 + 1 if variant == "okapi" else 1
    scores = []
    for count, document in zip(counts, documents, strict=True):
        norm = k1 * (1 - b + b * len(document) / average)
        terms = (weights.get(word, 0) * scale * count[word] / (count[word] + norm) for word in query
                 if count[word])  # fmt: skip
        scores.append(sum(terms))
    return scores


def idf(containing: Mapping[Any, int], n_documents: int, variant: str) -> dict[Any, float]:
    """Return each word's weight from the number of documents that contain it.

    >>> round(idf({"fox": 1}, 2, "lucene")["fox"], 6)  # ln(1 + 1.5 / 1.5)
    0.693147
    """
    odds = {word: (n_documents - n + 0.5) / (n + 0.5) for word, n in containing.items()}
    if variant == "lucene":
        return {word: math.log1p(value) for word, value in odds.items()}
    weights = {word: math.log(value) for word, value in odds.items()}
    floor = 0.25 * math.fsum(weights.values()) / len(weights)
    return {word: value if value >= 0 else floor for word, value in weights.items()}


def _check_corpus(documents: Sequence[Sequence[str]], k1: float, b: float, variant: str) -> None:
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; it must be one of {', '.join(VARIANTS)}")
    if not (k1 > 0 and math.isfinite(k1) and 0 <= b <= 1):
        raise ValueError(f"k1 is {k1} and b {b}; they must satisfy k1 > 0 and 0 <= b <= 1")
    if isinstance(documents, str) or any(isinstance(words, str) for words in documents):
        raise ValueError("a document is a text; pass lists of words, as tokenize(text) gives them")
    if not any(len(words) for words in documents):
        what = f"{len(documents)} documents without a word" if documents else "an empty corpus"
        raise ValueError(f"there is nothing to search in {what}; check what was loaded and chunked")


class BM25:
    """An inverted index: for each word, the documents that hold it and what it adds to their score.

    All of the formula that does not depend on the query is computed when indexing, so a search
    only adds up (Lù 2024). Same scores and errors as `bm25_scores`.
    """

    def __init__(
        self,
        documents: Sequence[Sequence[str]],
        *,
        k1: float = 1.5,
        b: float = 0.75,
        variant: str = "lucene",
    ) -> None:
        _check_corpus(documents, k1, b, variant)
        words = list(chain.from_iterable(documents))
        self.vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
        self.n_documents = len(documents)
        lengths = np.fromiter(map(len, documents), np.int64, len(documents))
        counts = self._count(words, lengths)
        weights = self._idf_by_row(np.diff(counts.indptr), variant)
        norm = k1 * (1 - b + b * lengths / lengths.mean())
        scale = k1 + 1 if variant == "okapi" else 1
        self.starts, self.documents = counts.indptr.tolist(), counts.indices.astype(np.intp)
        weight = np.repeat(weights * scale, np.diff(counts.indptr))
        self.values = weight * counts.data / (counts.data + norm[counts.indices])

    def _count(self, words: list[str], lengths: np.ndarray) -> sparse.csr_matrix:
        """Return the (words, documents) matrix of counts."""
        rows = np.fromiter(map(self.vocabulary.__getitem__, words), np.int32, len(words))
        columns = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        shape = (len(self.vocabulary), len(lengths))
        return sparse.csr_matrix((np.ones(len(words)), (rows, columns)), shape=shape)

    def _idf_by_row(self, containing: np.ndarray, variant: str) -> np.ndarray:
        weights = idf(dict(enumerate(containing.tolist())), self.n_documents, variant)
        return np.fromiter(weights.values(), np.float64, len(weights))

    def scores(self, query: Sequence[str]) -> np.ndarray:
        """Return the score of every document, (N,); unknown words add nothing."""
        if isinstance(query, str):
            raise ValueError("the query is a text; pass its words, as tokenize(text) gives them")
        scores = np.zeros(self.n_documents)
        for word in query:
            row = self.vocabulary.get(word)
            if row is not None:
                at = slice(self.starts[row], self.starts[row + 1])
                scores[self.documents[at]] += self.values[at]  # each document once per word
        return scores

    def search(self, query: Sequence[str], k: int = 10) -> list[Hit]:
        """Return the k best documents, best first; equal scores in the order of the corpus.

        Only documents that score above zero: fewer than k when fewer do, none for a query
        without a known word. Raises ValueError for k below one.
        """
        scores = self.scores(query)
        best = top_k(scores, k, above=0)
        return [Hit(*pair) for pair in zip(best.tolist(), scores[best].tolist(), strict=True)]


def top_k(scores: np.ndarray, k: int, *, above: float = -math.inf) -> np.ndarray:
    """Return the indices of the k highest scores, highest first, ties by the lower index.

    Fewer when fewer than k scores exist or exceed `above`. Raises ValueError for k below one.
    """
    k = operator.index(k)  # an unsigned number of NumPy's has no negative
    if k < 1:
        raise ValueError(f"k is {k}; ask for at least one result")
    least = np.partition(scores, -k)[-k] if k < len(scores) else -math.inf
    candidates = np.flatnonzero((scores >= least) & (scores > above))  # sort only these
    return candidates[np.argsort(-scores[candidates], kind="stable")[:k]]


# ── dense retrieval ───────────────────────────────────────────────────────────────────────────


def embedder(
    model: Callable, tokenizer: Callable, *, batch_size: int = 16, max_length: int = 256
) -> Embed:
    """Return `embed(texts) -> (N, D) float32 array` of unit vectors, by mean pooling.

    `model` and `tokenizer` follow the conventions of transformers (`last_hidden_state`,
    `input_ids`). Texts are encoded in order of their number of tokens, so that a batch holds
    hardly any padding; longer ones are cut at `max_length` tokens. `embed` raises ValueError for
    no text at all, and for a text that is none.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least one")

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> np.ndarray:
        _check_texts(texts)
        ids = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
        batches = batches_by_length(list(map(len, ids)), batch_size)
        parts = [_encode(model, tokenizer, [ids[i] for i in batch]) for batch in batches]
        vectors = torch.empty(len(ids), parts[0].shape[1])
        vectors[torch.tensor(list(chain.from_iterable(batches)))] = torch.cat(parts)
        return vectors.numpy()

    return embed


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise ValueError("embed takes a list of texts; put the one text into a list")
    if not len(texts):
        raise ValueError("there is no text to embed; pass at least one")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"texts[{i}] is a {type(text).__name__}; embed takes texts")
        if lone := re.search("[\ud800-\udfff]", text):
            raise ValueError(
                f"texts[{i}] holds half a character, {lone[0]!r}, at place {lone.start()}; decode "
                "the text again from its bytes, or take the half out"
            )


def _encode(model: Any, tokenizer: Any, ids: list[list[int]]) -> Tensor:
    """Pad one batch of token ids, run the encoder, pool and normalize: (B, D) on the CPU."""
    device = getattr(model, "device", "cpu")
    padding = getattr(tokenizer, "pad_token_id", None) or 0
    rows = [torch.tensor(row) for row in ids]
    padded = pad_sequence(rows, batch_first=True, padding_value=padding).to(device)  # (B, T)
    ones = [torch.ones_like(row) for row in rows]
    mask = pad_sequence(ones, batch_first=True).to(device)  # (B, T)
    hidden = model(input_ids=padded, attention_mask=mask).last_hidden_state  # (B, T, D)
    return torch.nn.functional.normalize(mean_pool(hidden, mask), dim=-1).float().cpu()


class DenseIndex:
    """Unit vectors of a corpus, (N, D), searched by cosine with the query's vector."""

    def __init__(self, texts: Sequence[str], embed: Embed) -> None:
        """Embed the corpus. Raises ValueError when it is empty or `embed` returns nonsense."""
        if not len(texts):
            raise ValueError("there is nothing to search in an empty corpus; check what was loaded")
        self.embed = embed
        self.vectors = _unit(embed(texts), len(texts))

    def scores(self, query: str) -> np.ndarray:
        """Return the cosine of every document with the query, (N,)."""
        return self.vectors @ _unit(self.embed([query]), 1)[0]

    def search(self, query: str, k: int = 10) -> list[Hit]:
        """Return the k nearest documents, nearest first; all of them when k exceeds N."""
        return self.search_many([query], k)[0]

    def search_many(self, queries: Sequence[str], k: int = 10) -> list[list[Hit]]:
        """Search for several queries at once: one batch through the encoder, one product."""
        found = _unit(self.embed(queries), len(queries)) @ self.vectors.T  # (queries, N)
        best = [top_k(scores, k).tolist() for scores in found]
        return [
            [Hit(i, float(scores[i])) for i in row] for row, scores in zip(best, found, strict=True)
        ]


def _unit(vectors: Any, n: int) -> np.ndarray:
    """Return `n` vectors at length one; zeros stay zeros. ValueError for anything else."""
    array = np.asarray(vectors, dtype=np.float32)
    if array.ndim != 2 or len(array) != n:
        raise ValueError(f"embed returned shape {array.shape} for {n} texts; it must be ({n}, D)")
    if not np.isfinite(array).all():
        raise ValueError("embed returned NaN or infinity; check the encoder's weights and dtype")
    norms = np.linalg.norm(array, axis=1, keepdims=True)
    return array / np.where(norms > 0, norms, 1)


# ── fusion ────────────────────────────────────────────────────────────────────────────────────


def reciprocal_rank_fusion(
    rankings: Iterable[Sequence[Hashable]], *, k: float = 60
) -> list[tuple[Any, float]]:
    """Merge rankings by the sum of 1 / (k + rank), ranks from one: (item, score), best first.

    Only ranks count, so scores of different scales can be fused. Equal sums keep the order in
    which the items were first seen. Source: Cormack et al. 2009. Raises ValueError for a
    negative k, and for an item that stands twice in one ranking.

    >>> reciprocal_rank_fusion([["a", "b"], ["b"]], k=3)  # 1/5 + 1/4, and 1/4
    [('b', 0.45), ('a', 0.25)]
    """
    if k < 0:
        raise ValueError(f"k is {k}; it must not be negative (60 is customary)")
    scores: dict[Any, float] = {}
    for ranking in rankings:
        check_unique(ranking)
        for rank, item in enumerate(ranking, start=1):
            scores[item] = scores.get(item, 0.0) + 1 / (k + rank)
    return sorted(scores.items(), key=lambda pair: -pair[1])


def check_unique(ranking: Sequence[Hashable]) -> None:
    if len(set(ranking)) < len(ranking):
        twice = Counter(ranking).most_common(1)[0][0]
        raise ValueError(f"{twice!r} stands twice in one ranking; keep its best place only")
