"""The pronunciation task: words and their split, ids and batches, writing and scoring."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course_utils import models
from course_utils.architectures.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from course_utils.architectures.objectives import IGNORED, label_loss
from course_utils.architectures.seq2seq import RecurrentSeq2Seq
from course_utils.tasks import pronunciation
from course_utils.tasks.pronunciation import PAD, START, STOP, SYMBOLS, Entry

WORD = st.text(pronunciation.LETTERS, min_size=1, max_size=12)
SOUND = st.lists(st.sampled_from(pronunciation.PHONEMES), min_size=1, max_size=12).map(tuple)
LEXICON = st.lists(st.builds(Entry, WORD, st.tuples(SOUND)), min_size=1, max_size=60)

CAT = Entry("cat", (("K", "AE", "T"),))
EITHER = Entry("either", (("IY", "DH", "ER"), ("AY", "DH", "ER")))


@pytest.fixture(scope="module")
def words() -> list[Entry]:
    return pronunciation.entries(pronunciation.load_cmudict())


# ── words ─────────────────────────────────────────────────────────────────────────────────────────


def test_entries_drop_stress_duplicates_and_odd_words():
    dictionary = {
        "a": [["AH0"], ["EY1"]],
        "record": [["R", "AH0", "K", "AO1", "R", "D"], ["R", "EH1", "K", "ER0", "D"]],
        "record's": [["R", "AH0"], ["R", "AH1"]],  # one pronunciation without stress
        "three-d": [["TH"]],
        "3d": [["TH"]],
        "'": [["AH0"]],
    }
    assert pronunciation.entries(dictionary) == [
        Entry("a", (("AH",), ("EY",))),
        Entry("record", (("R", "AH", "K", "AO", "R", "D"), ("R", "EH", "K", "ER", "D"))),
        Entry("record's", (("R", "AH"),)),
    ]


def test_cmudict_has_the_symbols_and_sizes_that_the_course_speaks_of(words):
    assert len(words) == 124_926
    assert {p for e in words for sound in e.pronunciations for p in sound} == set(
        pronunciation.PHONEMES
    )
    assert len(SYMBOLS) == len(set(SYMBOLS)) == 3 + 27 + 39
    longest = max(len(sound) for e in words for sound in e.pronunciations)
    assert longest < pronunciation.LONGEST


# ── the split ─────────────────────────────────────────────────────────────────────────────────────


def test_split_is_complete_disjoint_and_the_same_in_any_order(words):
    parts = pronunciation.split(words)
    assert [len(part) for part in parts] == [110_926, 2_000, 12_000]
    names = [{e.word for e in part} for part in parts]
    assert sum(map(len, names)) == len(set.union(*names)) == len(words)
    mixed = random.Random(1).sample(words, len(words))
    assert [{e.word for e in part} for part in pronunciation.split(mixed)] == names


def test_split_keeps_a_possessive_with_its_base_word(words):
    side = {e.word: i for i, part in enumerate(pronunciation.split(words)) for e in part}
    pairs = [(w, pronunciation.base_word(w)) for w in side if "'" in w]
    together = [side[w] == side[base] for w, base in pairs if base in side]
    assert len(together) > 6000
    assert all(together)


@pytest.mark.parametrize(
    ("word", "base"),
    [("aaron's", "aaron"), ("boys'", "boys"), ("'s", "'s"), ("o'neil", "o'neil"), ("its", "its")],
)
def test_base_word_drops_only_a_possessive_ending(word, base):
    assert pronunciation.base_word(word) == base


def test_split_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="n_test 1 and n_dev 1 leave none of 2 words"):
        pronunciation.split([CAT, EITHER], n_test=1, n_dev=1)
    with pytest.raises(ValueError, match="n_test -1"):
        pronunciation.split([CAT, EITHER], n_test=-1, n_dev=0)


# ── ids and batches ───────────────────────────────────────────────────────────────────────────────


@given(WORD, SOUND)
def test_word_ids_and_phoneme_ids_come_back_as_symbols(word, sound):
    assert "".join(pronunciation.symbols_of(pronunciation.word_ids(word))) == word
    assert tuple(pronunciation.symbols_of(pronunciation.phoneme_ids(sound))) == sound


@pytest.mark.parametrize(
    ("word", "odd"), [("Cat", "C"), ("naïve", "ï"), ("", "nothing"), ("a b", "has  ;")]
)
def test_word_ids_refuse_what_they_have_no_letter_for(word, odd):
    with pytest.raises(ValueError, match=odd):
        pronunciation.word_ids(word)


def test_phoneme_ids_refuse_stress():
    with pytest.raises(ValueError, match="'AH0' is no phoneme here"):
        pronunciation.phoneme_ids(["AH0"])


def test_collate_by_hand():
    batch = pronunciation.collate(pronunciation.pairs_of([CAT, EITHER]))
    k, ae, t = pronunciation.phoneme_ids(CAT.pronunciations[0])
    ay = pronunciation.phoneme_ids(["AY"])[0]
    assert batch.source[0].tolist() == [*pronunciation.word_ids("cat"), PAD, PAD, PAD]
    assert batch.lengths.tolist() == [3, 6, 6]
    assert batch.mask[0].tolist() == [True] * 3 + [False] * 3
    assert batch.target_in[0].tolist() == [START, k, ae, t]
    assert batch.labels[0].tolist() == [k, ae, t, STOP]
    assert batch.labels[2, 0] == ay
    assert batch.labels.shape == batch.target_in.shape


def test_collate_pads_labels_with_what_no_loss_counts():
    short = Entry("a", (("AH",),))
    batch = pronunciation.collate(pronunciation.pairs_of([short, CAT]))
    assert batch.labels[0].tolist()[1:] == [STOP, IGNORED, IGNORED]
    assert batch.target_in[0].tolist()[2:] == [PAD, PAD]


def _pairs(batches) -> list:
    return sorted(
        (tuple(source[source != PAD].tolist()), tuple(labels[labels != IGNORED].tolist()))
        for batch in batches
        for source, labels in zip(batch.source, batch.labels, strict=True)
    )


@given(LEXICON, st.integers(1, 9), st.integers(0, 3))
def test_batches_hold_every_pair_once(lexicon, size, seed):
    made = list(pronunciation.batches(lexicon, size, seed, pool=2))
    assert all(1 <= len(batch.source) <= size for batch in made)
    whole = [pronunciation.collate(pronunciation.pairs_of(lexicon))]
    assert _pairs(made) == _pairs(whole)


def test_batches_differ_by_seed_and_hold_little_padding(words):
    some = words[:20_000]
    first, again, other = (
        [b.source for b in pronunciation.batches(some, 64, seed)] for seed in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    padding = sum((b == PAD).sum().item() for b in first) / sum(b.numel() for b in first)
    assert padding < 0.05
    lengths = [b.shape[1] for b in first]
    assert lengths != sorted(lengths)  # short words do not come first


@pytest.mark.parametrize(("lexicon", "size"), [([], 4), ([CAT], 0)])
def test_batches_refuse_nothing(lexicon, size):
    with pytest.raises(ValueError, match="give at least one of each"):
        next(pronunciation.batches(lexicon, size))


# ── writing and scoring ───────────────────────────────────────────────────────────────────────────


def _spell(source: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    """A stand-in for a model: it writes the letters it was given."""
    return [row[real].tolist() for row, real in zip(source, mask, strict=True)]


def test_transcribe_answers_in_the_order_of_the_words():
    words = ["banana", "a", "cat", "zebra", "be"]
    for size in (1, 2, 5):
        assert pronunciation.transcribe(_spell, words, size) == [list(word) for word in words]


def test_score_takes_the_nearest_pronunciation():
    answers = {"cat": ["K", "AE"], "either": ["AY", "DH", "ER"]}

    def write(source, mask):
        names = ["".join(pronunciation.symbols_of(row)) for row in _spell(source, mask)]
        return [pronunciation.phoneme_ids(answers[name]) for name in names]

    rates = pronunciation.score(write, [EITHER, CAT])
    assert rates.word == 1 / 2  # "either" is right by its second pronunciation
    assert rates.symbol == 1 / 6
    assert rates.n == 2


def _seq2seq() -> RecurrentSeq2Seq:
    return RecurrentSeq2Seq(len(SYMBOLS), len(SYMBOLS), d_model=16, d_hidden=16)


def _encoder_decoder() -> EncoderDecoder:
    return EncoderDecoder(
        EncoderDecoderConfig(len(SYMBOLS), d_model=16, n_heads=2, n_layers=1, d_ff=16)
    )


@pytest.mark.parametrize("build", [_seq2seq, _encoder_decoder])
def test_writer_of_either_model_does_not_depend_on_the_batch(build):
    torch.manual_seed(0)
    write = pronunciation.writer(build().eval())
    words = ["cat", "extraordinary", "a", "o'neil"]
    alone = [pronunciation.transcribe(write, [word])[0] for word in words]
    assert pronunciation.transcribe(write, words) == alone
    assert all(len(sounds) <= pronunciation.LONGEST for sounds in alone)


def test_a_model_learns_words_by_heart_from_batches():
    torch.manual_seed(0)
    model = _encoder_decoder()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    lexicon = [CAT, Entry("dog", (("D", "AO", "G"),)), Entry("tack", (("T", "AE", "K"),))]
    for epoch in range(60):
        for batch in pronunciation.batches(lexicon, 3, epoch):
            logits = model(batch.source, batch.target_in, batch.mask)
            loss = label_loss(logits, batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert pronunciation.score(pronunciation.writer(model.eval()), lexicon).word == 0


def test_cmudict_by_hand(monkeypatch, tmp_path):
    lines = ["a AH0", "a(2) EY1", "'tis T IH1 Z", "d'artagnan D AH0 # foreign french", "x(12) EH1"]
    (tmp_path / "cmudict.dict").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(pronunciation, "fetch", lambda name: tmp_path)
    assert pronunciation.load_cmudict() == {
        "a": [["AH0"], ["EY1"]],
        "'tis": [["T", "IH1", "Z"]],
        "d'artagnan": [["D", "AH0"]],
        "x": [["EH1"]],
    }


def test_cmudict():
    words = pronunciation.load_cmudict()
    assert len(words) == 126_052
    assert sum(map(len, words.values())) == 135_166
    assert words["tomato"] == [
        ["T", "AH0", "M", "EY1", "T", "OW2"],
        ["T", "AH0", "M", "AA1", "T", "OW2"],
    ]
    assert words["aalborg"][0] == ["AO1", "L", "B", "AO0", "R", "G"]  # it carries a comment
    phonemes = {p for variants in words.values() for variant in variants for p in variant}
    assert phonemes == set(models.G2P_PHONEMES[4:]) - {"UW"}
    assert not [word for word in words if "(" in word or word != word.lower()]
    assert all(variant for variants in words.values() for variant in variants)
