"""Retrieval against the production libraries, on Shakespeare's plays.

Run with `pytest -s tests/benchmarks/bench_retrieval.py`. Each test prints one row per comparison
(ratio above one: ours is faster) and holds it to its target. The two sides run in turns, on one
thread, and are compared by processor time: on a loaded machine a side that waits for a core looks
many times slower on the clock than it is (57 s for 4 s of work were seen). The clock is shown too.
"""

from __future__ import annotations

import random
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch

from course_utils import models
from course_utils.assets import fetching
from course_utils.assets.catalogue import describe
from course_utils.prompting import retrieval
from course_utils.tasks import shakespeare

QUERIES = 300


@pytest.fixture(scope="module")
def passages():
    plays = shakespeare.load().items()
    return [p for title, text in plays for p in retrieval.chunk_blocks(text, source=title)]


@pytest.fixture(scope="module")
def documents(passages):
    return [retrieval.tokenize(passage.text) for passage in passages]


@pytest.fixture(scope="module")
def queries(documents):
    """Ten words in a row from passages drawn at random."""
    chosen = random.Random(0).sample([words for words in documents if len(words) > 20], QUERIES)
    return [words[5:15] for words in chosen]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Return the processor time of one call and its time on the clock."""
    cpu, clock = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - clock


def hold(what: str, ours: Callable, theirs: Callable, target: float, repeats: int = 5) -> None:
    """Compare the two in turns, print the row, and fail below the target."""
    ours(), theirs()  # warm up
    pairs = []
    for i in range(repeats):
        first, second = (ours, theirs) if i % 2 == 0 else (theirs, ours)
        one, other = seconds(first), seconds(second)
        pairs.append((one, other) if i % 2 == 0 else (other, one))
    ratios = [their[0] / our[0] for our, their in pairs]
    middle = [[statistics.median(pair[side][t] for pair in pairs) for t in (0, 1)]
              for side in (0, 1)]  # fmt: skip
    print(
        f"\n{what}: {statistics.median(ratios):.2f}× ({min(ratios):.2f} to {max(ratios):.2f}; "
        f"target {target}×); processor {middle[0][0]:.3f} s against {middle[1][0]:.3f} s, "
        f"clock {middle[0][1]:.3f} s against {middle[1][1]:.3f} s"
    )
    assert statistics.median(ratios) >= target


def bm25s_index(documents):
    import bm25s

    index = bm25s.BM25(method="lucene")
    index.index(documents, show_progress=False)
    return index


def test_bm25_against_bm25s(documents, queries):
    ours, theirs = retrieval.BM25(documents), bm25s_index(documents)

    def search(index):
        return [index.search(query, 10) for query in queries]

    def their_search(index):
        return index.retrieve(queries, k=10, show_progress=False)

    n = len(documents)
    hold(f"bm25s, index {n} passages", lambda: retrieval.BM25(documents),
         lambda: bm25s_index(documents), 0.5)  # fmt: skip
    hold(f"bm25s, {QUERIES} searches", lambda: search(ours), lambda: their_search(theirs), 0.5)
    hold(f"bm25s, index and {QUERIES} searches", lambda: search(retrieval.BM25(documents)),
         lambda: their_search(bm25s_index(documents)), 0.5)  # fmt: skip


def test_bm25_against_rank_bm25(documents, queries):
    from rank_bm25 import BM25Okapi

    few = queries[:60]

    def ours():
        index = retrieval.BM25(documents, variant="okapi")
        return [index.search(query, 10) for query in few]

    def theirs():
        index = BM25Okapi(documents)
        return [np.argsort(-index.get_scores(query))[:10] for query in few]

    what = f"rank-bm25, index {len(documents)} passages and {len(few)} searches"
    hold(what, ours, theirs, 10, repeats=3)


def test_encoding_against_sentence_transformers(passages):
    from sentence_transformers import SentenceTransformer

    texts = [p.text for p in random.Random(0).sample(passages, 48)]
    embed = retrieval.embedder(*models.load_encoder())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # third parties' advice while importing and loading
        library = SentenceTransformer(str(fetching.fetch(describe("minilm"))), device="cpu")
    hold(f"sentence-transformers, {len(texts)} passages",
         lambda: embed(texts), lambda: library.encode(texts, show_progress_bar=False),
         1.0, repeats=3)  # fmt: skip
