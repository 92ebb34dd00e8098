"""Chunks, BM25, dense search and fusion against worked cases, plain forms, and libraries."""

from __future__ import annotations

import math
import unicodedata
import warnings
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi
from retrieval_inputs import prop, texts

from course_utils.architectures.encoder import mean_pool
from course_utils.assets.catalogue import describe
from course_utils.prompting import retrieval
from course_utils.prompting.retrieval import BM25, DenseIndex, Passage
from course_utils.prompting.words import LONGEST_WORD

PLAY = """ACT I.

KING.
So shaken as we are, so wan with care,
Find we a time for frighted peace to pant.

PRINCE.  Away!

FALSTAFF.
Now, Hal, what time of day is it, lad?
"""


def test_chunk_words_by_hand():
    passages = retrieval.chunk_words("a bb  c\nd e", size=3, overlap=1, source="s")
    assert passages == [Passage("a bb  c", "s", 0, 7), Passage("c\nd e", "s", 6, 11)]


@pytest.mark.parametrize(
    ("n", "size", "overlap", "expected"),
    [
        (0, 3, 0, []),
        (1, 3, 1, [(0, 1)]),
        (3, 3, 1, [(0, 3)]),
        (4, 3, 1, [(0, 3), (2, 4)]),
        (5, 3, 1, [(0, 3), (2, 5)]),
        (6, 3, 0, [(0, 3), (3, 6)]),
        (7, 3, 2, [(0, 3), (1, 4), (2, 5), (3, 6), (4, 7)]),
        (2, 1, 0, [(0, 1), (1, 2)]),
    ],
)
def test_chunk_words_windows(n, size, overlap, expected):
    words = [f"w{i}" for i in range(n)]
    passages = retrieval.chunk_words(" ".join(words), size=size, overlap=overlap)
    assert [p.text.split() for p in passages] == [words[a:b] for a, b in expected]


@prop
@given(texts, st.integers(1, 9), st.data())
def test_chunk_words_loses_nothing(text, size, data):
    overlap = data.draw(st.integers(0, size - 1))
    passages = retrieval.chunk_words(text, size=size, overlap=overlap)
    assert all(text[p.start : p.end] == p.text for p in passages)
    assert all(len(p.text.split()) <= size for p in passages)
    new = [p.text.split()[overlap if i else 0 :] for i, p in enumerate(passages)]
    assert [word for part in new for word in part] == text.split()


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (3, 3), (3, 4), (3, -1), (-2, 0)])
def test_chunk_words_that_do_not_advance(size, overlap):
    with pytest.raises(ValueError, match=f"overlap is {overlap} and size {size}"):
        retrieval.chunk_words("a b c", size=size, overlap=overlap)


@pytest.mark.parametrize("cut", [retrieval.chunk_words, retrieval.chunk_blocks])
@pytest.mark.parametrize("text", ["红楼梦第一回" * 400, "红楼梦。" * 300, "สวัสดี" * 200, "x" * 5000])
def test_chunk_words_and_chunk_blocks_of_a_text_without_spaces(cut, text):
    passages = cut(text)
    assert max(len(p.text) for p in passages) <= 120 + LONGEST_WORD
    assert all(text[p.start : p.end] == p.text for p in passages)
    covered = {place for p in passages for place in range(p.start, p.end)}
    assert covered == set(range(len(text)))


def test_chunk_blocks_of_chinese_are_read_whole_by_the_encoder(minilm):
    _, tokenizer = minilm
    text = "话说宝玉在那里，忽听得有人说道：「林姑娘来了！」" * 100
    lengths = [len(tokenizer(p.text).input_ids) for p in retrieval.chunk_blocks(text)]
    assert 100 < max(lengths) <= 256


def test_chunk_blocks_by_hand():
    passages = retrieval.chunk_blocks(PLAY, size=21, source="Henry IV")
    assert [len(p.text.split()) for p in passages] == [21, 12]
    assert passages[0].text.startswith("ACT I.\n\nKING.\nSo shaken")
    assert passages[1].text.startswith("PRINCE.  Away!\n\nFALSTAFF.")
    assert all(PLAY[p.start : p.end] == p.text for p in passages)


def test_chunk_blocks_cuts_a_block_that_is_too_long():
    passages = retrieval.chunk_blocks("a b\n\nc d e f g\n\nh", size=3)
    assert [p.text for p in passages] == ["a b", "c d e", "f g\n\nh"]


def test_chunk_blocks_cuts_into_even_parts_and_leaves_no_rest():
    passages = retrieval.chunk_blocks(" ".join(["a"] * 41), size=20)
    assert [len(p.text.split()) for p in passages] == [14, 14, 13]


@prop
@given(texts, st.integers(1, 9))
def test_chunk_blocks_loses_nothing(text, size):
    passages = retrieval.chunk_blocks(text, size=size)
    assert all(text[p.start : p.end] == p.text for p in passages)
    assert all(0 < len(p.text.split()) <= size for p in passages)
    assert [word for p in passages for word in p.text.split()] == text.split()


@prop
@given(st.lists(st.integers(1, 6), max_size=12), st.integers(6, 15))
def test_chunk_blocks_keeps_blocks_whole_and_packs_them_tight(lengths, size):
    blocks = [" ".join([f"b{i}"] * n) for i, n in enumerate(lengths)]
    passages = retrieval.chunk_blocks("\n\n".join(blocks), size=size)
    assert [block for p in passages for block in p.text.split("\n\n")] == blocks
    for here, after in pairwise(passages):
        assert len(here.text.split()) + len(after.text.split("\n\n")[0].split()) > size


def test_chunk_blocks_of_no_size():
    with pytest.raises(ValueError, match="size is 0"):
        retrieval.chunk_blocks("a", size=0)


def test_chunk_blocks_takes_time_in_proportion_to_the_text():
    """A pattern that backtracks over white space would take minutes here."""
    assert retrieval.chunk_blocks("a" + "\n" * 30_000 + " " * 30_000 + "b", size=1)[1].text == "b"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("Who's there?", ["who's", "there"]),
        (
            "weep o’er my 2nd father's death--anew",
            ["weep", "o'er", "my", "2nd", "father's", "death", "anew"],
        ),
        ("'tis snake_case 'quoted'", ["tis", "snake", "case", "quoted"]),
        ("ÉTÉ Ωmega", ["été", "ωmega"]),
        ("[1] … —", ["1"]),
        ("e\u0301te\u0301 \ufb01n co\u00adoperate", ["été", "fin", "cooperate"]),
        ("STRASSE Straße", ["strasse", "strasse"]),
        ("हिन्दी", ["हिन्दी"]),
        ("GPT模型", ["gpt", "模", "模型", "型"]),
    ],
)
def test_tokenize_by_hand(text, words):
    assert retrieval.tokenize(text) == words


def test_tokenize_drops_words():
    assert retrieval.tokenize("To be or not", drop={"to", "or"}) == ["be", "not"]


@prop
@given(st.text(alphabet="aé\u0301ñÇ'’ -ﬁ模型", max_size=40))
def test_tokenize_is_the_same_in_every_normal_form(text):
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")]
    assert all(retrieval.tokenize(form) == retrieval.tokenize(text) for form in forms)


def test_search_finds_a_word_in_another_normal_form():
    corpus = [unicodedata.normalize("NFD", text) for text in ("L'impôt sur le sel", "La mer")]
    index = BM25([retrieval.tokenize(text) for text in corpus])
    (hit,) = index.search(retrieval.tokenize(unicodedata.normalize("NFC", "impôt sel")))
    assert hit.index == 0


def test_search_finds_characters_in_a_script_without_spaces():
    corpus = ["我爱北京天安门。", "京都在日本。", "今天下雨。"]
    index = BM25([retrieval.tokenize(text) for text in corpus])
    assert [hit.index for hit in index.search(retrieval.tokenize("北京"))] == [0, 1]
    assert [hit.index for hit in index.search(retrieval.tokenize("京"))] == [1, 0]


CORPUS = [["to", "be", "or", "not", "to", "be"], ["be", "gone"], ["the", "rest", "is", "silence"]]


def test_bm25_scores_by_hand():
    """Three documents of 6, 2 and 4 words, average 4; `be` in two of them, `to` in one."""
    idf_be, idf_to = math.log(1 + 1.5 / 2.5), math.log(1 + 2.5 / 1.5)
    norm_0 = 1.5 * (0.25 + 0.75 * 6 / 4)
    norm_1 = 1.5 * (0.25 + 0.75 * 2 / 4)
    first = idf_be * 2 / (2 + norm_0) + idf_to * 2 / (2 + norm_0)
    expected = [first, idf_be * 1 / (1 + norm_1), 0]
    got = retrieval.bm25_scores(["to", "be", "unknown"], CORPUS)
    assert got == pytest.approx(expected, rel=1e-12)  # fp64, other summation order


def test_bm25_scores_okapi_by_hand():
    """`be` stands in two of three documents: its idf is negative, so a quarter of the mean counts.

    Eight words stand in one document each: their idf is ln(2.5 / 1.5).
    """
    rare, common = math.log(2.5 / 1.5), math.log(1.5 / 2.5)
    floor = 0.25 * (8 * rare + common) / 9
    norm_1 = 1.5 * (0.25 + 0.75 * 2 / 4)
    got = retrieval.bm25_scores(["be"], CORPUS, variant="okapi")
    assert got[1] == pytest.approx(floor * 2.5 / (1 + norm_1), rel=1e-12)


@st.composite
def corpora(draw):
    """Lists of words with ties and empty documents, and queries with repeats and unknown words."""
    words = st.sampled_from("abcdefgh")
    documents = draw(st.lists(st.lists(words, max_size=12), min_size=1, max_size=9))
    documents.append(draw(st.lists(words, min_size=1, max_size=5)))
    query = draw(st.lists(st.sampled_from("abcdefghz"), max_size=5))
    return documents, query


parameters = st.fixed_dictionaries(
    {"k1": st.sampled_from((0.5, 1.2, 1.5, 3.0)), "b": st.sampled_from((0.0, 0.4, 0.75, 1.0))}
)


@prop
@given(corpora(), parameters, st.sampled_from(retrieval.VARIANTS))
def test_bm25_class_gives_the_scores_of_the_formula(corpus, options, variant):
    documents, query = corpus
    plain = retrieval.bm25_scores(query, documents, variant=variant, **options)
    fast = retrieval.BM25(documents, variant=variant, **options).scores(query)
    np.testing.assert_allclose(fast, plain, rtol=1e-12, atol=1e-15)  # fp64, other order of sums


@prop
@given(corpora(), parameters)
def test_bm25_scores_okapi_equal_rank_bm25(corpus, options):
    documents, query = corpus
    with np.errstate(invalid="ignore"):  # 0 / 0 there for an empty document at b = 1
        theirs = np.nan_to_num(BM25Okapi(documents, **options).get_scores(query))
    ours = retrieval.bm25_scores(query, documents, variant="okapi", **options)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)  # fp64; ln a − ln b there
    fast = retrieval.BM25(documents, variant="okapi", **options).scores(query)
    np.testing.assert_allclose(fast, theirs, rtol=1e-9, atol=1e-12)


def bm25s_scores(documents, query, options) -> np.ndarray:
    import bm25s

    index = bm25s.BM25(method="lucene", **options)
    index.index(documents, show_progress=False)
    known = [word for word in query if word in index.vocab_dict]
    return index.get_scores(known) if known else np.zeros(len(documents))


@prop
@given(corpora(), parameters)
def test_bm25_scores_lucene_equal_bm25s(corpus, options):
    documents, query = corpus
    theirs = bm25s_scores(documents, query, options)
    ours = retrieval.bm25_scores(query, documents, **options)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)  # bm25s keeps fp32
    np.testing.assert_allclose(BM25(documents, **options).scores(query), theirs, 1e-5, 1e-6)


def test_plays_are_scored_as_by_the_libraries(plays):
    documents, queries = plays
    ours = BM25(documents), BM25(documents, variant="okapi")
    rank = BM25Okapi(documents)
    for query in queries[:5]:
        np.testing.assert_allclose(ours[1].scores(query), rank.get_scores(query), 1e-9, 1e-9)
    import bm25s

    library = bm25s.BM25(method="lucene")
    library.index(documents, show_progress=False)
    for query in queries:
        np.testing.assert_allclose(ours[0].scores(query), library.get_scores(query), 1e-5, 1e-5)


@pytest.fixture(scope="module")
def plays():
    """Passages of three plays as words, and lines taken from them as queries."""
    from course_utils.tasks import shakespeare

    texts = list(shakespeare.load().items())[:3]
    passages = [p for title, text in texts for p in retrieval.chunk_blocks(text, source=title)]
    documents = [retrieval.tokenize(p.text) for p in passages]
    queries = [document[3:13] for document in documents[5::40] if len(document) > 15]
    return documents, queries


def test_plays_are_searched_for_the_passage_a_line_was_taken_from(plays):
    documents, queries = plays
    index = BM25(documents)
    sources = [i for i in range(5, len(documents), 40) if len(documents[i]) > 15]
    found = [hits[0].index for hits in (index.search(query, 1) for query in queries)]
    assert np.mean(np.array(found) == sources) > 0.9  # some lines stand twice in a play


@prop
@given(corpora(), st.integers(1, 12))
def test_bm25_search_is_a_sorted_cut_of_the_scores(corpus, k):
    documents, query = corpus
    index = BM25(documents)
    scores = index.scores(query).tolist()
    expected = sorted((i for i, s in enumerate(scores) if s > 0), key=lambda i: (-scores[i], i))
    hits = index.search(query, k)
    assert [hit.index for hit in hits] == expected[:k]
    assert [hit.score for hit in hits] == [scores[i] for i in expected[:k]]


def test_bm25_search_without_known_words_finds_nothing():
    index = BM25(CORPUS)
    assert index.search(["quark"], 5) == []
    assert index.search([], 5) == []
    assert not index.scores(["quark"]).any()


def test_bm25_search_with_k_beyond_the_corpus_gives_what_there_is():
    assert [hit.index for hit in BM25(CORPUS).search(["be"], 99)] == [1, 0]


def test_bm25_words_need_not_be_text():
    assert BM25([[1, 2], [2, 3]]).search([3])[0].index == 1


@pytest.mark.parametrize("build", [BM25, lambda d, **o: retrieval.bm25_scores(["a"], d, **o)])
@pytest.mark.parametrize(
    ("documents", "options", "message"),
    [
        ([], {}, "an empty corpus"),
        ([[], []], {}, "2 documents without a word"),
        ("to be", {}, "a document is a text"),
        (["to be", "or not"], {}, "a document is a text"),
        ([["a"]], {"k1": 0}, "k1 is 0"),
        ([["a"]], {"k1": math.nan}, "k1 is nan"),
        ([["a"]], {"b": 1.1}, "b 1.1"),
        ([["a"]], {"variant": "plus"}, "variant is 'plus'"),
    ],
)
def test_bm25_scores_bad_input(build, documents, options, message):
    with pytest.raises(ValueError, match=message):
        build(documents, **options)


def test_bm25_query_as_a_text_is_refused():
    with pytest.raises(ValueError, match="the query is a text"):
        BM25(CORPUS).search("to be")


def test_top_k_by_hand():
    scores = np.array([1.0, 3.0, 2.0, 3.0, 0.0])
    assert retrieval.top_k(scores, 2).tolist() == [1, 3]
    assert retrieval.top_k(scores, 3).tolist() == [1, 3, 2]
    assert retrieval.top_k(scores, 1).tolist() == [1]  # a tie: the earlier one
    assert retrieval.top_k(scores, 9).tolist() == [1, 3, 2, 0, 4]
    assert retrieval.top_k(scores, 9, above=1).tolist() == [1, 3, 2]
    assert retrieval.top_k(np.array([]), 3).tolist() == []


@prop
@given(st.lists(st.sampled_from((-1.0, 0.0, 0.5, 2.0)), max_size=30), st.integers(1, 35))
def test_top_k_equals_a_stable_sort(scores, k):
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]
    assert retrieval.top_k(np.array(scores), k).tolist() == expected


@pytest.mark.parametrize("k", [0, -1])
def test_top_k_of_none(k):
    with pytest.raises(ValueError, match=f"k is {k}"):
        retrieval.top_k(np.ones(3), k)


class Letters:
    """An encoder small enough to check by hand: a token is a letter, its vector one-hot.

    The first token of a batch row is seen by every token of the row (as attention would), and the
    calls are counted.
    """

    pad_token_id = 0
    device = "cpu"

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int]] = []

    def tokenize(self, texts, truncation, max_length):
        assert truncation
        ids = [[ord(c) - 96 for c in text][:max_length] for text in texts]
        return {"input_ids": [row or [9] for row in ids]}

    def __call__(self, input_ids, attention_mask):
        self.shapes.append(tuple(input_ids.shape))
        assert ((input_ids != 0) == attention_mask.bool()).all()
        hidden = torch.nn.functional.one_hot(input_ids, 10).float()
        return SimpleNamespace(last_hidden_state=hidden + hidden[:, :1])

    def embedder(self, **options):
        tokenizer = lambda *args, **kwargs: self.tokenize(*args, **kwargs)  # noqa: E731
        return retrieval.embedder(self, tokenizer, **options)


def test_embedder_by_hand_and_in_the_order_given():
    vectors = Letters().embedder(batch_size=2)(["a", "abb", "b", "aaaa", "ba"])
    assert vectors.dtype == np.float32
    a, b = np.eye(10)[1], np.eye(10)[2]
    raw = [2 * a, a + (a + 2 * b) / 3, 2 * b, 2 * a, b + (a + b) / 2]
    expected = [v / np.linalg.norm(v) for v in raw]
    np.testing.assert_allclose(vectors, expected, atol=1e-6)  # fp32


def test_embedder_batches_by_length_so_that_little_is_padded():
    letters = Letters()
    letters.embedder(batch_size=2)(["a", "abcdefgh", "b", "abcdefg"])
    assert letters.shapes == [(2, 1), (2, 8)]


def test_embedder_cuts_long_texts():
    letters = Letters()
    vectors = letters.embedder(max_length=2)(["abc", "ab"])
    np.testing.assert_array_equal(vectors[0], vectors[1])


def test_embedder_of_one_text_a_batch_and_one_token():
    vectors = Letters().embedder(batch_size=1, max_length=1)(["ab", "b"])
    np.testing.assert_allclose(vectors, np.eye(10)[[1, 2]], atol=1e-6)  # fp32


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", "b\ud83d!"], r"texts\[1\] holds half a character, '\\ud83d', at place 1; decode"),
        (["a", None], r"texts\[1\] is a NoneType; embed takes texts"),
        ([b"a"], r"texts\[0\] is a bytes"),
    ],
)
def test_embedder_names_a_text_that_is_none(texts, message):
    with pytest.raises(ValueError, match=message):
        Letters().embedder()(texts)


def test_embedder_bad_input():
    with pytest.raises(ValueError, match="batch_size is 0"):
        Letters().embedder(batch_size=0)
    with pytest.raises(ValueError, match="takes a list"):
        Letters().embedder()("one text")
    with pytest.raises(ValueError, match="no text to embed"):
        Letters().embedder()([])


LINES = [
    "So shaken as we are, so wan with care,",
    "Hi",
    "",
    "Find we a time for frighted peace to pant, and breathe short-winded accents of new broils "
    "to be commenced in stronds afar remote. " * 12,
    "Ünïcode — 漢字 🙂",
    *[f"Line {n} of the play, " + "word " * (n % 9) for n in range(20)],
]


@pytest.fixture(scope="module")
def sentence_transformer():
    from sentence_transformers import SentenceTransformer

    from course_utils.assets import fetching

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # third parties' advice while importing and loading
        return SentenceTransformer(str(fetching.fetch(describe("minilm"))), device="cpu")


def test_embedder_equals_sentence_transformers_on_minilm(minilm, sentence_transformer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = sentence_transformer.encode(LINES, show_progress_bar=False)
    for batch_size in (1, 16):
        ours = retrieval.embedder(*minilm, batch_size=batch_size)(LINES)
        # fp32: other batches, so other padding and blocking in the matrix products
        np.testing.assert_allclose(ours, theirs, atol=2e-6, rtol=0)


def test_mean_pool_equals_sentence_transformers_on_minilm(minilm, sentence_transformer):
    model, tokenizer = minilm
    batch = tokenizer(LINES[:2], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    pooling = sentence_transformer[1]
    theirs = pooling({"token_embeddings": hidden, "attention_mask": batch["attention_mask"]})
    ours = mean_pool(hidden, batch["attention_mask"])
    torch.testing.assert_close(ours, theirs["sentence_embedding"], atol=1e-6, rtol=0)  # fp32


def test_dense_index_on_minilm_finds_a_paraphrase(minilm):
    texts = ["The king is dead.", "Rain fell all night on the harbour.", "She bakes fresh bread."]
    hits = DenseIndex(texts, retrieval.embedder(*minilm)).search("The monarch has passed away.", 2)
    assert hits[0].index == 0
    assert hits[0].score > hits[1].score


def by_table(table):
    return lambda texts: np.array([table[text] for text in texts])


def test_dense_index_by_hand():
    embed = by_table({"x": [2.0, 0], "y": [0, 5.0], "xy": [1.0, 1], "0": [0.0, 0], "q": [3.0, 1]})
    index = DenseIndex(["x", "y", "xy", "0"], embed)
    root = math.sqrt(10)
    expected = [3 / root, 1 / root, 4 / root / math.sqrt(2), 0]
    np.testing.assert_allclose(index.scores("q"), expected, atol=1e-6)  # fp32
    assert [hit.index for hit in index.search("q", 99)] == [0, 2, 1, 3]
    assert [hit.index for hit in index.search("q", 1)] == [0]
    many = index.search_many(["q", "y"], 2)
    assert [[hit.index for hit in hits] for hits in many] == [[0, 2], [1, 2]]


@pytest.mark.parametrize(
    ("texts", "vectors", "message"),
    [
        ([], [], "nothing to search in an empty corpus"),
        (["a"], [[1.0], [2.0]], r"shape \(2, 1\) for 1 texts"),
        (["a"], [1.0], r"shape \(1,\) for 1 texts"),
        (["a"], [[math.nan]], "NaN or infinity"),
    ],
)
def test_dense_index_bad_input(texts, vectors, message):
    with pytest.raises(ValueError, match=message):
        DenseIndex(texts, lambda _: np.array(vectors))


def test_dense_index_with_k_of_none():
    with pytest.raises(ValueError, match="k is 0"):
        DenseIndex(["a"], lambda texts: np.ones((len(texts), 2))).search("a", 0)


def test_reciprocal_rank_fusion_by_hand():
    fused = retrieval.reciprocal_rank_fusion([["a", "b", "c"], ["b", "d"]], k=60)
    expected = [("b", 1 / 62 + 1 / 61), ("a", 1 / 61), ("d", 1 / 62), ("c", 1 / 63)]
    assert [item for item, _ in fused] == [item for item, _ in expected]
    assert [s for _, s in fused] == pytest.approx([s for _, s in expected], rel=1e-12)


def test_reciprocal_rank_fusion_keeps_first_seen_order_in_ties():
    fused = retrieval.reciprocal_rank_fusion([["b", "a"], ["a", "b"]])
    assert [item for item, _ in fused] == ["b", "a"]


@prop
@given(st.lists(st.permutations(range(5)), max_size=4), st.sampled_from((0, 1, 60)))
def test_reciprocal_rank_fusion_is_the_sum_over_rankings(rankings, k):
    fused = dict(retrieval.reciprocal_rank_fusion(rankings, k=k))
    for item in range(5) if rankings else ():
        expected = sum(1 / (k + ranking.index(item) + 1) for ranking in rankings)
        assert fused[item] == pytest.approx(expected, rel=1e-12)
    assert list(fused.values()) == sorted(fused.values(), reverse=True)


def test_reciprocal_rank_fusion_of_nothing_and_bad_input():
    assert retrieval.reciprocal_rank_fusion([]) == []
    assert retrieval.reciprocal_rank_fusion([[], []]) == []
    with pytest.raises(ValueError, match="k is -1"):
        retrieval.reciprocal_rank_fusion([["a"]], k=-1)
    with pytest.raises(ValueError, match="'a' stands twice"):
        retrieval.reciprocal_rank_fusion([["a", "b", "a"]])
