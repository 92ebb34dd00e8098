"""Byte-pair encoding against `tokenizers`: the same merges, the same ids, the same text."""

from __future__ import annotations

import itertools
import json
import re
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Theirs
from tokenizers import decoders, models, pre_tokenizers, trainers

from course_utils.building import tokenizer as bpe
from course_utils.building import tokenizer_files as files

SPECIALS = ["<end>", "<end>!", "<|user|>"]
CORPUS = [
    "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer",
    "Für Elise; déjà vu, 日本語 и русский, 12 345 and 2½, don't we'll — 🙂🙂 aaaa aaaaaa\n\n \tend",
]
OURS = bpe.train(CORPUS, 60, specials=SPECIALS)
APART = bpe.train(CORPUS, 60, specials=SPECIALS, digits=True)
# Letters that Unicode assigned after the interpreter's tables are cut otherwise than by tokenizers.
ASSIGNED = st.characters(exclude_categories=["Cs", "Cn"])
PROSE = st.text(st.sampled_from("abe 'tn12²½\t\n\r\x1c\x85\u00a0éß日🙂_.<|>"), max_size=60)
TEXTS = st.one_of(st.text(ASSIGNED, max_size=40), PROSE)


def theirs_of(tokenizer: bpe.Tokenizer, *, specials: bool = False) -> Theirs:
    """The same merges in `tokenizers`, which by default takes special tokens out of any text."""
    theirs = Theirs.from_str(files.to_json(tokenizer))
    theirs.encode_special_tokens = not specials
    return theirs


THEIRS = {
    (digits, specials): theirs_of(tokenizer, specials=specials)
    for digits, tokenizer in ((False, OURS), (True, APART))
    for specials in (False, True)
}


def trained_by_tokenizers(texts, size, specials=(), min_frequency=2, digits=False) -> Theirs:
    theirs = Theirs(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    apart = pre_tokenizers.Digits(individual_digits=True)
    theirs.pre_tokenizer = pre_tokenizers.Sequence([apart, level]) if digits else level
    theirs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=min_frequency,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator(texts, trainer)
    return theirs


# ── training ──────────────────────────────────────────────────────────────────────────────────────


def test_train_by_hand():
    """hug 10, pug 5, pun 12, bun 4, hugs 5: u g 20, then u n 16, then h ug 15, p un 12."""
    words = {b"hug": 10, b"pug": 5, b"pun": 12, b"bun": 4, b"hugs": 5}
    merges = [(b"u", b"g"), (b"u", b"n"), (b"h", b"ug"), (b"p", b"un")]
    for learn in (bpe.learn_plain, bpe.learn_merges):
        assert learn(words, 4, bpe.byte_tokens()) == merges


@settings(deadline=None, max_examples=40)
@given(st.text("ab c", min_size=1, max_size=80), st.integers(0, 12))
@example("aaaaaaa aaaa aaa", 5)
def test_learn_merges_is_the_plain_loop(text, n_merges):
    words = bpe.count_words([text])
    plain = bpe.learn_plain(words, n_merges, bpe.byte_tokens())
    assert bpe.learn_merges(words, n_merges, bpe.byte_tokens()) == plain


@pytest.mark.parametrize("digits", [False, True])
def test_train_writes_the_very_file_of_tokenizers(digits):
    """Byte for byte: order of merges, ids, options."""
    ours = APART if digits else OURS
    theirs = trained_by_tokenizers(CORPUS, len(ours), SPECIALS, digits=digits)
    assert files.to_json(ours) == theirs.to_str(pretty=True)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.text("abc d", min_size=1, max_size=60), min_size=1, max_size=3), st.integers(1, 3)
)
def test_train_decides_ties_as_tokenizers(texts, min_frequency):
    """Tiny texts are nearly all ties: of equal counts, the pair with the lower ids comes first."""
    ours = bpe.train(texts, 10, min_frequency=min_frequency)
    theirs = trained_by_tokenizers(texts, len(ours), min_frequency=min_frequency)
    assert json.loads(files.to_json(ours))["model"] == json.loads(theirs.to_str())["model"]


def test_train_gives_fewer_merges_than_asked():
    few = bpe.train(["ab ab"], 1000)
    assert few.merges == [(b"a", b"b")]
    assert len(few) == 257
    assert bpe.train(["ab ab"], 1000, min_frequency=1).merges == [(b"a", b"b"), (b" ", b"ab")]
    assert bpe.train(["ab ab"], 0).merges == []


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_train_on_an_empty_corpus(texts):
    with pytest.raises(ValueError, match="the corpus holds 0 characters"):
        bpe.train(texts, 3)


@pytest.mark.parametrize("text", ["one string", b"bytes"])
def test_train_on_what_is_no_list(text):
    with pytest.raises(TypeError, match=f"texts is one {type(text).__name__}; give a list"):
        bpe.train(text, 3)


def test_train_refuses_wrong_numbers_and_names():
    with pytest.raises(ValueError, match="n_merges is -1"):
        bpe.train(["ab"], -1)
    with pytest.raises(ValueError, match="min_frequency 0"):
        bpe.train(["ab"], 1, min_frequency=0)
    with pytest.raises(ValueError, match="each stands once"):
        bpe.train(["ab"], 1, specials=["<a>", "<a>"])
    with pytest.raises(ValueError, match="which stands everywhere"):
        bpe.train(["ab"], 1, specials=[""])


def test_merge_pair_overlaps_nowhere():
    assert bpe.merge_pair("aaaaa", ("a", "a"), "A") == ["A", "A", "a"]
    assert bpe.merge_pair("abab", ("a", "b"), "X") == ["X", "X"]
    assert bpe.merge_pair("baab", ("a", "b"), "X") == ["b", "a", "X"]  # "ba" is another pair
    assert bpe.merge_pair("", ("a", "b"), "X") == []


# ── words ─────────────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None, max_examples=100)
@given(TEXTS, st.booleans())
@example("a  1  b   ", True)
@example("x\x1cy \x1f z", False)  # white space to Python, none to Unicode
def test_split_words_is_byte_levels(text, digits):
    words = bpe.split_words(text, digits=digits)
    assert "".join(words) == text
    cut = THEIRS[digits, False].pre_tokenizer.pre_tokenize_str(text)
    assert [bpe_word.encode() for bpe_word in words] == [files.unspell(w) for w, _ in cut]


def test_split_words_knows_each_white_space_of_unicode():
    spaces = [c for c in map(chr, range(0x3001)) if re.fullmatch(f"[{bpe.WHITE}]", c)]
    assert len(spaces) == 25  # White_Space in PropList.txt, Unicode 4.1 to 16
    assert {unicodedata.category(c) for c in spaces} == {"Cc", "Zs", "Zl", "Zp"}


# ── encoding and decoding ─────────────────────────────────────────────────────────────────────────


@settings(deadline=None, max_examples=200)
@given(TEXTS, st.booleans())
@example("the question: 2½ 🙂", False)
@example("a  1  12 b", True)
def test_encode_is_tokenizers(text, digits):
    tokenizer = APART if digits else OURS
    ids = tokenizer.encode(text)
    assert ids == THEIRS[digits, False].encode(text).ids
    assert tokenizer.decode(ids) == text
    assert THEIRS[digits, False].decode(ids, skip_special_tokens=False) == text


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.sampled_from([*SPECIALS, "<", "end>"]), TEXTS), max_size=4))
@example(["to be", "<end>!", "<end>", "<end"])
def test_encode_with_specials_is_tokenizers(pieces):
    """Of several special tokens that stand at one place the longest is meant."""
    text = "".join(pieces)
    ids = OURS.encode(text, specials=True)
    assert ids == THEIRS[False, True].encode(text).ids
    for specials in (True, False):
        said = THEIRS[False, True].decode(ids, skip_special_tokens=not specials)
        assert OURS.decode(ids, specials=specials) == said


def test_encode_takes_a_users_special_token_as_text():
    """Who types the end of a turn does not end it."""
    tokenizer, text = bpe.train(CORPUS, 5, specials=SPECIALS), "hello<end>"
    assert not set(tokenizer.encode(text)) & set(tokenizer.specials.values())
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text, specials=True)[-1] == tokenizer.specials["<end>"]


def test_encode_takes_the_longest_special_token():
    tokenizer = bpe.train(CORPUS, 0, specials=SPECIALS)
    assert tokenizer.encode("<end>!<end>", specials=True) == [1, 0]


def test_encode_merges_in_the_order_learned():
    """b c was learned first, so a b never forms in abc, although it stands further left."""
    ranks = {(b"b", b"c"): 0, (b"a", b"b"): 1}
    assert bpe.encode_word(b"abcab", ranks, lambda token: True) == [b"a", b"bc", b"ab"]
    assert bpe.encode_word(b"", ranks, lambda token: True) == []


def test_encode_loses_bytes_that_have_no_token_as_tokenizers_does():
    """What stood around a lost byte are neighbours then, and merge."""
    vocab = {bytes([b]): b for b in range(256) if b != ord("x")} | {b"ab": 256}
    lossy = bpe.Tokenizer(vocab, [(b"a", b"b")], {})
    assert lossy.missing_bytes == [ord("x")]
    assert lossy.encode("axb") == theirs_of(lossy).encode("axb").ids == [256]
    assert OURS.missing_bytes == []


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, len(OURS) - 1), max_size=20))
def test_decode_of_any_ids_is_tokenizers(ids):
    """Bytes that are no UTF-8 become U+FFFD, one for each broken sequence."""
    assert OURS.decode(ids) == THEIRS[False, True].decode(ids, skip_special_tokens=False)


def test_decode_half_a_character():
    tokenizer = bpe.train(CORPUS, 0)
    ids = [tokenizer.vocab[bytes([byte])] for byte in "é".encode()]
    assert tokenizer.decode(ids) == "é"
    assert tokenizer.decode(ids[:1]) == "\ufffd"
    assert tokenizer.decode_bytes(ids[:1]) == b"\xc3"


def test_decode_refuses_an_id_that_is_none():
    with pytest.raises(ValueError, match=f"id {len(OURS)} is no token; the vocabulary has"):
        OURS.decode([0, len(OURS)])


def test_encode_refuses_half_a_surrogate_pair():
    for act in (OURS.encode, lambda text: bpe.train([text], 1)):
        with pytest.raises(ValueError, match="half a surrogate pair"):
            act("a\ud83d")


def test_encode_a_long_word():
    """Merging is by rounds over the word: 20,000 letters without a blank take no time."""
    text = "ab" * 10_000
    assert OURS.encode(text) == THEIRS[False, False].encode(text).ids


def test_a_tokenizer_that_does_not_fit_together():
    with pytest.raises(ValueError, match="needs b'ab': it has no id"):
        bpe.Tokenizer({b"a": 0, b"b": 1}, [(b"a", b"b")], {})
    with pytest.raises(ValueError, match="3 tokens have 2 ids"):
        bpe.Tokenizer({b"a": 0, b"b": 1}, [], {"<end>": 1})


# ── a real one ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def theirs_of_smollm2(smollm2):
    return smollm2[1].backend_tokenizer


@pytest.fixture(scope="module")
def ours_of_smollm2(theirs_of_smollm2):
    return files.from_json(theirs_of_smollm2.to_str())


def test_smollm2s_merges_are_loaded(ours_of_smollm2):
    assert len(ours_of_smollm2.merges) == 48_900
    assert len(ours_of_smollm2) == 49_152
    assert len(ours_of_smollm2.missing_bytes) == 21
    assert ours_of_smollm2.digits


@settings(deadline=None, max_examples=150)
@given(text=TEXTS, specials=st.booleans())
@example("<|im_start|>user\nWhat is 12 + 345?<|im_end|>\n", True)
@example("The capital of France is Paris.\n\n1. naïve — 日本語 🙂", False)
def test_smollm2s_ids(ours_of_smollm2, theirs_of_smollm2, text, specials):
    theirs_of_smollm2.encode_special_tokens = not specials
    try:
        theirs = theirs_of_smollm2.encode(text, add_special_tokens=False).ids
    finally:
        theirs_of_smollm2.encode_special_tokens = False
    ids = ours_of_smollm2.encode(text, specials=specials)
    assert ids == theirs
    assert ours_of_smollm2.decode(ids) == theirs_of_smollm2.decode(ids, skip_special_tokens=False)


def test_smollm2s_ids_of_a_play(ours_of_smollm2, theirs_of_smollm2):
    from course_utils.tasks import shakespeare

    text = next(iter(shakespeare.load().values()))[:50_000]
    assert ours_of_smollm2.encode(text) == theirs_of_smollm2.encode(text).ids


def test_all_ids_come_from_somewhere():
    """Specials, bytes, merges: no id is left out, none is used twice."""
    ids = itertools.chain(OURS.specials.values(), OURS.vocab.values())
    assert sorted(ids) == list(range(len(OURS)))
