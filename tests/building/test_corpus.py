"""Cleaning, duplicates, splits and packing: by hand, and what each step took away adds up."""

from __future__ import annotations

import unicodedata
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from course_utils.building import corpus, tokenizer
from course_utils.building.corpus import Removed, Split

WORDS = [f"w{i}" for i in range(40)]
TEXTS = st.lists(st.text(max_size=30), max_size=6)

# ── cleaning ──────────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None, max_examples=150)
@given(
    st.text(
        st.one_of(st.characters(), st.sampled_from("e\u0301\x00\r\n \t\ufeff\u2028")), max_size=30
    )
)
@example("e\x00\u0301 \r \n\n\n\n")
def test_clean_twice_is_clean_once(text):
    cleaned = corpus.clean(text)
    assert corpus.clean(cleaned) == cleaned
    assert unicodedata.is_normalized("NFC", cleaned)
    assert "\r" not in cleaned
    assert " \n" not in cleaned
    assert "\n\n\n" not in cleaned
    cleaned.encode()  # no half surrogate pair is left


def test_clean_leaves_verse_as_it_is():
    verse = "Shall I compare thee\n    to a summer's day?\n\nThou art\tmore lovely 🙂"
    assert corpus.clean(verse) == verse


def test_clean_all_counts_what_each_step_took():
    texts = ["a \r\nb\x07", "\ufeffcafe\u0301\n\n\n\nc", " \x00 "]
    left, removed = corpus.clean_all(texts)
    assert left == ["a\nb", "café\n\nc"]
    assert removed == [
        Removed("line ends", 0, 1),
        Removed("control characters", 0, 3),
        Removed("composed characters", 0, 1),
        Removed("blanks at line ends", 0, 3),
        Removed("blank lines", 0, 2),
        Removed("empty", 1, 0),
    ]


@pytest.mark.parametrize("texts", [[], [""], [" \n", "\x00"]])
def test_an_empty_corpus(texts):
    for act in (corpus.clean_all, corpus.prepare):
        with pytest.raises(ValueError, match=f"of {len(texts)} documents none holds a character"):
            act(texts)


def test_as_text_of_bytes_that_are_no_utf8():
    assert corpus.as_text("\ufeffnaïve".encode()) == "naïve"
    with pytest.raises(ValueError, match=r"byte 2 of 5, 0xef, is no UTF-8 .*latin-1"):
        corpus.as_text("naïve".encode("latin-1"))


# ── duplicates ────────────────────────────────────────────────────────────────────────────────────


def test_exact_duplicates_keep_the_first():
    texts = ["To be, or not", "to be or NOT!", "not or be to", "...", "!!!", "..."]
    assert corpus.exact_duplicates(texts) == [1, 5]


def test_shingles_by_hand():
    assert corpus.shingles("a b c d", n=3) == {"a b c", "b c d"}
    assert corpus.shingles("a b", n=3) == {"a b"}
    assert corpus.shingles("a a a", n=1) == {"a"}
    with pytest.raises(ValueError, match="n is 0"):
        corpus.shingles("a", n=0)


def test_jaccard_by_hand():
    assert corpus.jaccard("abc", "bcd") == 0.5
    assert corpus.jaccard("ab", "cd") == 0
    assert corpus.jaccard("", "") == 1


@pytest.mark.parametrize("shared", [0, 5, 20, 35, 40])
def test_signature_agrees_as_often_as_sets_overlap(shared):
    """4,096 hashes: four standard deviations of a share near ½ are 0.03."""
    a = {f"a{i}" for i in range(40 - shared)} | set(WORDS[:shared])
    b = {f"b{i}" for i in range(40 - shared)} | set(WORDS[:shared])
    rows = [corpus.signature(members, n_hashes=4096) for members in (a, b)]
    assert corpus.estimated_jaccard(*rows) == pytest.approx(corpus.jaccard(a, b), abs=0.03)


def test_signature_is_the_same_in_every_process():
    """Python's own hash of a str is not."""
    assert corpus.signature({"to be", "or not"}, n_hashes=3).tolist() == [
        min((a * x + b) % corpus.PRIME for x in map(corpus._hash, ("to be", "or not")))
        for a, b in zip(*_factors(3), strict=True)
    ]
    assert corpus._hash("to be") == 621702540


def _factors(n):
    draw = torch.Generator().manual_seed(0)
    a = torch.randint(1, corpus.PRIME, (n, 1), generator=draw).flatten().tolist()
    return a, torch.randint(0, corpus.PRIME, (n, 1), generator=draw).flatten().tolist()


def test_signature_of_nothing():
    with pytest.raises(ValueError, match="the set has 0 members"):
        corpus.signature(set())


def test_candidates_share_a_whole_band():
    rows = torch.tensor([[1, 2, 3, 4], [1, 9, 3, 9], [9, 2, 3, 4], [3, 4, 1, 2]])
    assert corpus.candidates(rows, bands=2) == {(0, 2)}
    assert corpus.candidates(rows, bands=1) == set()
    assert corpus.candidates(rows, bands=4) == {(0, 1), (0, 2), (1, 2)}
    for bands in (0, 3):
        with pytest.raises(ValueError, match=f"bands is {bands}; it must divide the 4 hashes"):
            corpus.candidates(rows, bands)


def versions(draw_seed: int) -> list[str]:
    """Texts of 40 words and copies with one to twenty words changed."""
    draw = torch.Generator().manual_seed(draw_seed)
    texts = []
    for i in range(5):
        words = [f"d{i}{word}" for word in WORDS]
        for changed in (0, 1, 2, 8, 20):
            copy = list(words)
            for at in torch.randperm(40, generator=draw)[:changed].tolist():
                copy[at] = f"x{changed}{at}"
            texts.append(" ".join(copy))
    return texts


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.9])
def test_near_duplicates_are_those_of_comparing_all(threshold):
    """At one hash a band no similar pair escapes: the sets decide, and the earlier text stays."""
    texts = versions(0)
    sets = [corpus.shingles(text, 2) for text in texts]
    gone: set[int] = set()
    for first, second in sorted(combinations(range(len(texts)), 2), key=lambda pair: pair[::-1]):
        if first not in gone and corpus.jaccard(sets[first], sets[second]) >= threshold:
            gone.add(second)
    found = corpus.near_duplicates(texts, threshold, n=2, bands=128)
    assert found == sorted(gone)
    assert 0 < len(found) < len(texts)


def test_near_duplicates_of_few():
    assert corpus.near_duplicates([]) == []
    assert corpus.near_duplicates(["one text"]) == []
    assert corpus.near_duplicates(["one text", "One text", "another"], 1) == [1]
    for threshold in (0, 1.1):
        with pytest.raises(ValueError, match=f"threshold is {threshold}"):
            corpus.near_duplicates(["a"], threshold)


def test_near_duplicates_do_not_chain():
    """b is like a, c like b but not like a: b goes, and c stays."""
    a, b, c = ("p q r s t u", "q r s t u v", "r s t u v w")
    assert corpus.near_duplicates([a, b, c], 0.7, n=1, bands=128) == [1]


@settings(deadline=None, max_examples=60)
@given(TEXTS)
def test_prepare_accounts_for_every_character(texts):
    try:
        left, removed = corpus.prepare(texts)
    except ValueError:
        assert not any(map(corpus.clean, texts))
        return
    assert len(texts) - len(left) == sum(step.documents for step in removed)
    assert sum(map(len, texts)) - sum(map(len, left)) == sum(step.characters for step in removed)


def test_prepare_by_hand():
    line = " ".join(WORDS)
    left, removed = corpus.prepare([line, line.upper(), line + " more", "another"])
    assert left == [line, "another"]
    assert [(step.step, step.documents) for step in removed[-2:]] == [
        ("exact duplicates", 1),
        ("near duplicates", 1),
    ]


# ── splits ────────────────────────────────────────────────────────────────────────────────────────


def test_split_by_play_depends_on_the_seed_alone():
    splits = [corpus.split_by_play(WORDS, 1, 1, seed=seed) for seed in range(9)]
    assert len({split.dev[0] for split in splits}) > 1
    assert not set(splits[0].train) & {*splits[0].dev, *splits[0].test}
    assert corpus.split_by_play(WORDS[::-1], 1, 1, seed=3) == splits[3]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text("abc", min_size=1), min_size=4, unique=True), st.integers(0, 9))
def test_split_by_play_takes_each_once(titles, seed):
    split = corpus.split_by_play(titles, n_dev=1, n_test=2, seed=seed)
    assert sorted([*split.train, *split.dev, *split.test]) == sorted(titles)
    assert (len(split.dev), len(split.test)) == (1, 2)
    assert corpus.split_by_play(titles[::-1], n_dev=1, n_test=2, seed=seed) == split


def test_split_by_play_refuses():
    with pytest.raises(ValueError, match="'a' stands twice"):
        corpus.split_by_play(["a", "b", "a"], 1, 1)
    for n_dev, n_test in ((-1, 1), (1, 2), (3, 0)):
        with pytest.raises(ValueError, match=f"n_dev is {n_dev} and n_test {n_test} of 3 plays"):
            corpus.split_by_play(["a", "b", "c"], n_dev, n_test)
    assert corpus.split_by_play(["a"], 0, 0) == Split(["a"], [], [])


def test_of_titles():
    assert corpus.of_titles({"a": "A", "b": "B"}, ["b"]) == ["B"]
    with pytest.raises(ValueError, match="'c' is not among the 2 texts"):
        corpus.of_titles({"a": "A", "b": "B"}, ["c"])


def test_corpus_gives_the_texts_of_a_part():
    texts = {"a": "one", "b": "two", "c": "six", "d": "ten"}
    parted = corpus.Corpus(texts, Split(["d", "a"], ["b"], ["c"]))
    assert [parted.of(part) for part in Split._fields] == [["ten", "one"], ["two"], ["six"]]
    with pytest.raises(ValueError, match="part is 'exam'; it must be one of train, dev, test"):
        parted.of("exam")


# ── packing ───────────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(1, 9), max_size=7), min_size=1, max_size=5), st.integers(1, 6))
def test_pack_keeps_order_and_counts_the_rest(documents, length):
    stream = [id for document in documents for id in [*document, 0]]
    if len(stream) < length:
        with pytest.raises(ValueError, match=f"{len(stream)} tokens do not fill one row"):
            corpus.pack(documents, length, end=0)
        return
    rows, left_out = corpus.pack(documents, length, end=0)
    assert rows.flatten().tolist() == stream[: len(stream) - left_out]
    assert rows.shape == (len(stream) // length, length)
    assert 0 <= left_out < length


def test_pack_refuses():
    with pytest.raises(ValueError, match="length is 0"):
        corpus.pack([[1]], 0, end=0)
    with pytest.raises(ValueError, match="0 tokens do not fill one row of 2"):
        corpus.pack([], 2, end=0)


def test_batches_give_each_row_once():
    rows = torch.arange(14).view(7, 2)
    draw = torch.Generator().manual_seed(1)
    found = list(corpus.batches(rows, 3, draw))
    assert [len(batch) for batch in found] == [3, 3, 1]
    together = torch.cat(found)
    assert not torch.equal(together, rows)
    assert torch.equal(together[together[:, 0].argsort()], rows)
    assert torch.equal(torch.cat(list(corpus.batches(rows, 3, draw.manual_seed(1)))), together)
    with pytest.raises(ValueError, match="size is 0"):
        next(corpus.batches(rows, 0))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text("to be", max_size=9), max_size=5), st.integers(1, 6))
def test_packed_is_the_texts_with_an_end_after_each(texts, length):
    """Cut to whole rows; a typed end sign ends nothing."""
    small = tokenizer.train(["to be or not to be"], 4, specials=["<end>"])
    texts = [*texts, "to be <end> or"]
    rows = corpus.packed(small, texts, length, "<end>")
    stream = [id for text in texts for id in (*small.encode(text), 0)]
    assert rows.shape[1] == length
    assert rows.flatten().tolist() == stream[: len(stream) // length * length]


def test_packed_needs_the_end_among_the_special_tokens():
    plain = tokenizer.train(["to be"], 0)
    with pytest.raises(ValueError, match=r"end is '<end>'; the special tokens are \[\]"):
        corpus.packed(plain, ["to be"], 2, "<end>")


@given(st.integers(1, 40), st.integers(1, 50))
def test_spread_out_reaches_both_ends_at_even_distances(n_rows, n):
    kept = corpus.spread_out(torch.arange(n_rows).unsqueeze(1), n).flatten().tolist()
    assert len(set(kept)) == len(kept) == min(n, n_rows)
    gaps = [b - a for a, b in pairwise(kept)]
    assert kept[0] == 0
    if len(kept) > 1:
        assert kept[-1] == n_rows - 1
        assert max(gaps) - min(gaps) <= 1


def test_spread_out_refuses():
    with pytest.raises(ValueError, match="n is 0; keep at least 1 row"):
        corpus.spread_out(torch.zeros(3, 2), 0)
