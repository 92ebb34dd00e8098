"""Spelling to sound in each family: what it is asked, what it writes, and that it can learn."""

from __future__ import annotations

import math

import pytest
import torch

from course_utils.tasks import families, pronunciation, two_meanings
from course_utils.tasks.families import FAMILIES, MASK
from course_utils.tasks.pronunciation import PAD, Entry

WORDS = [Entry("cab", (("K", "AE", "B"),)), Entry("be", (("B", "IY"),)),
         Entry("fab", (("F", "AE", "B"),)), Entry("fee", (("F", "IY"),))]  # fmt: skip


def test_words_stand_right_before_what_follows():
    source = torch.tensor([[5, 6, PAD, PAD], [7, 8, 9, 4]])
    assert families.right_aligned(source).tolist() == [[0, 0, 5, 6], [7, 8, 9, 4]]
    assert families.places(source, 5).tolist() == [[5, 6, MASK, MASK, MASK], [7, 8, 9, 4, MASK]]


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_learns_four_words(name):
    family = FAMILIES[name]
    options = {"d_model": 32, "steps": 60, "seed": 0, "n_places": 6}
    net, history = families.learn(name, family, WORDS, **options)
    assert history.losses[-1] < 0.1
    write = families.writer(family, net, 6)
    assert families.wrong(write, WORDS) == [(0, 3), (0, 2), (0, 3), (0, 2)]


def test_the_loss_is_that_of_writing_step_by_step():
    """Teacher forcing and writing see the same: the likeliest next sound is the one written."""
    for name in ("decoder", "prefix LM", "encoder–decoder"):
        family = FAMILIES[name]
        net = families.build(family, 16, seed=1).eval()
        (said,) = families.writer(family, net, 6)(*_source("cab"))
        batch = pronunciation.collate([(pronunciation.word_ids("cab"), said[:5])])
        ids = torch.cat([families.right_aligned(batch.source), batch.target_in], dim=1)
        n_prefix = 3 if family.sees_letters_both_ways else 0
        likeliest = net(ids, n_prefix)[0, 3:].argmax(-1).tolist()
        assert likeliest[: len(said[:5])] == said[:5]


def _source(word: str) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.tensor([pronunciation.word_ids(word)])
    return source, source != PAD


def test_the_baseline_gives_each_letter_its_most_frequent_sound():
    write = families.letter_by_letter(
        [*WORDS, Entry("be", (("B", "EH"),)), Entry("he", (("HH", "EH"),))]
    )
    assert pronunciation.transcribe(write, ["be"]) == [["B", "EH"]]


def test_frequencies_are_those_of_what_each_is_asked():
    """fee and be by hand: F IY </s> and B IY </s>; in 4 places two more of </s>."""
    words = [WORDS[3], WORDS[1]]
    of_six = {"F": 1 / 6, "B": 1 / 6, "IY": 2 / 6, "</s>": 2 / 6}
    of_eight = {"F": 1 / 8, "B": 1 / 8, "IY": 2 / 8, "</s>": 4 / 8}
    for places, shares in ((0, of_six), (4, of_eight)):
        expected = -sum(p * math.log(p) for p in shares.values())
        assert families.by_frequency(words, places) == pytest.approx(expected)
    two_places = families.by_frequency(words, 2)  # as its loss, it asks for no more than fits
    assert two_places == pytest.approx(0.5 * math.log(4) + 0.5 * math.log(2))


def test_words_of_two_meanings_end_their_beginnings():
    words = two_meanings.load()
    assert len(words) == len({word.word for word in words}) == 40
    assert all(word.start.endswith(" " + word.word) for word in words)
    assert all(len(set(word.continuations)) == len(set(word.likenesses)) == 2 for word in words)
