"""Exchanges found in plays, and what is counted of replies: by hand, and on the plays."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course_utils.architectures.decoder import Decoder, DecoderConfig
from course_utils.inference.decoding import greedy
from course_utils.tasks import replies, shakespeare
from course_utils.tasks.replies import Exchange

PLAY = """\
ACT I.

FOX.
Who's there,
in the dark?

OWL.
[Aside.]
A bird, my lord. [To him.] Stand!

FOX.
I go.

SCENE II. A wood.

BEAR.
What noise is this?

FOX.
Nothing -
"""


# ── plays ───────────────────────────────────────────────────────────────────────────────────────


def dialogue(n: int) -> str:
    """A play of n speeches."""
    return "ACT I.\n\n" + "\n\n".join(f"{'FOX' if i % 2 else 'OWL'}.\nAy." for i in range(n))


def test_split_works_holds_out_plays_with_speakers_alone():
    texts = {"sonnets": "Shall I", **{f"play {i}": dialogue(100) for i in range(5)}}
    texts["short"] = dialogue(99)
    splits = [replies.split_works(texts, seed, n_dev=2, n_test=2) for seed in range(9)]
    for train, dev, test in splits:
        assert sorted([*train, *dev, *test]) == sorted(texts)
        assert (len(dev), len(test)) == (2, 2)
        assert {"sonnets", "short"} < set(train)
        assert train == [title for title in texts if title in train]
    assert len({tuple(split.test) for split in splits}) > 1
    assert splits[3] == replies.split_works(dict(sorted(texts.items())[::-1]), 3, 2, 2)._replace(
        train=splits[3].train
    )
    with pytest.raises(ValueError, match="n_dev is 2 and n_test 3 of 5 plays"):
        replies.split_works(texts, 0, n_dev=2, n_test=3)


def test_load_plays_cleans_and_keeps_whole_plays():
    plays, works = replies.load_plays(0), shakespeare.load()
    assert list(plays.texts) == list(works)
    assert sorted(title for part in plays.split for title in part) == sorted(works)
    assert [len(part) for part in plays.split] == [36, 3, 3]
    assert "Sonnets" in " ".join(plays.split.train)
    assert not any("\n\n\n" in text or " \n" in text for text in plays.texts.values())
    assert plays.of("test") == [plays.texts[title] for title in plays.split.test]


# ── exchanges ───────────────────────────────────────────────────────────────────────────────────


def test_exchanges_by_hand():
    """Lines joined, directions gone, none across the scenes, none with an open end."""
    assert replies.exchanges(PLAY) == [
        Exchange("Who's there, in the dark?", "A bird, my lord. Stand!"),
        Exchange("A bird, my lord. Stand!", "I go."),
    ]


def test_exchanges_limits_count_characters():
    said, reply = len("Who's there, in the dark?"), len("A bird, my lord. Stand!")
    assert len(replies.exchanges(PLAY, said, reply)) == 2
    assert Exchange("A bird, my lord. Stand!", "I go.") in replies.exchanges(PLAY, said, reply - 1)
    assert len(replies.exchanges(PLAY, said, reply - 1)) == 1
    assert len(replies.exchanges(PLAY, said - 1, reply)) == 1
    with pytest.raises(ValueError, match="longest_reply 0; both are at least 1"):
        replies.exchanges(PLAY, 10, 0)


def test_spoken_drops_a_direction_that_is_never_closed():
    assert replies.spoken("To be [Aside. or not") == "To be"


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("Who? ", "question"),
        ("Ho!", "exclamation"),
        ("Ay.", "statement"),
        ("Ay. Who goes there?", "question"),
        ("Ay,", None),
        ("", None),
    ],
)
def test_kind_of_is_the_last_character(reply, kind):
    assert replies.kind_of(reply) == kind


def test_by_kind_names_the_kind_that_is_missing():
    with pytest.raises(ValueError, match="no reply is of the kind 'exclamation'"):
        replies.by_kind([Exchange("a", "b?"), Exchange("a", "b.")])


def test_the_plays_have_thousands_of_exchanges_of_all_kinds():
    texts = shakespeare.load()
    found = [pair for title in ("Macbeth", "Othello") for pair in replies.exchanges(texts[title])]
    counts = {kind: len(of) for kind, of in replies.by_kind(found).items()}
    assert len(found) > 200
    assert min(counts.values()) > 20
    assert counts["statement"] == max(counts.values())
    assert not any("[" in part for pair in found for part in pair)


def test_some_of_each_draws_from_the_whole_list():
    items = [Exchange("a", f"{i}{mark}") for i in range(30) for mark in "?!"] + [
        Exchange("a", "only.")
    ]
    drawn = replies.some_of_each(items, 4, seed=1)
    assert [replies.kind_of(item.reply) for item in drawn] == [
        *4 * ["question"],
        *4 * ["exclamation"],
        "statement",
    ]
    assert len(set(drawn)) == 9
    assert drawn == replies.some_of_each(items, 4, seed=1) != replies.some_of_each(items, 4, seed=2)
    assert {item.reply for item in drawn[:4]} != {f"{i}?" for i in range(4)}
    with pytest.raises(ValueError, match="n is 0; draw at least 1"):
        replies.some_of_each(items, 0, seed=1)


# ── prompts ─────────────────────────────────────────────────────────────────────────────────────


def test_draw_prompts_deals_kinds_out_evenly_whatever_the_order():
    items = [Exchange(f"line {i}", "b?") for i in range(9)]
    drawn = replies.draw_prompts(items, 6, seed=1)
    assert drawn == replies.draw_prompts(items[::-1], 6, seed=1)
    assert sorted(kind for _, kind in drawn) == sorted(2 * list(replies.INSTRUCTIONS))
    assert len({said for said, _ in drawn}) == 6
    with pytest.raises(ValueError, match="n is 10; there are 9 different lines"):
        replies.draw_prompts(items, 10, seed=1)


def test_asked_refuses_another_kind():
    with pytest.raises(ValueError, match="kind is 'song'; it must be one of question"):
        replies.asked("Ho", "song")


# ── replies ─────────────────────────────────────────────────────────────────────────────────────


def tiny() -> Decoder:
    """A decoder with weights so large that what it sees changes what it says."""
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(11, d_model=16, n_heads=2, n_layers=2, d_ff=24))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(20 if weight.dim() > 1 else 1)
    return model


def test_write_replies_is_what_each_prompt_gets_alone():
    """Greedy, in batches of two, padded on the left: the tokens of one prompt at a time."""
    model, prompts = tiny(), [[1, 2, 3], [4], [5, 6, 7, 8, 9], [10, 2], [8, 7, 6, 5, 4, 3]]
    together = replies.write_replies(
        model, prompts, end=0, max_new_tokens=6, temperature=0, batch_size=2
    )
    for prompt, tokens in zip(prompts, together, strict=True):
        read, _ = model.eval().read_and_reorder()
        (alone,) = greedy(lambda ids, read=read: read(ids, None)[0], prompt, 6, stop=[0])
        assert tokens == alone.tokens


def test_write_replies_draws_by_seed_and_leaves_the_mode():
    model = tiny().train()
    first, again, other = (
        replies.write_replies(model, 8 * [[1, 2]], end=0, seed=seed, temperature=20)
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert len(set(first)) > 1
    assert model.training


def test_left_padded_by_hand():
    ids, mask = replies.left_padded([[5, 6], [7], [8, 9, 10]], pad=0)
    assert ids.tolist() == [[0, 5, 6], [0, 0, 7], [8, 9, 10]]
    assert mask.tolist() == [[0, 1, 1], [0, 0, 1], [1, 1, 1]]


def test_left_padded_refuses_nothing():
    with pytest.raises(ValueError, match="a prompt of no tokens"):
        replies.left_padded([[1], []], pad=0)


# ── what is counted ─────────────────────────────────────────────────────────────────────────────


def test_obeys_needs_the_end():
    assert replies.obeys("Ay!", "exclamation", ended=True)
    assert not replies.obeys("Ay!", "exclamation", ended=False)
    assert not replies.obeys("Ay!", "question", ended=True)


@given(st.lists(st.sampled_from([*replies.INSTRUCTIONS, None]), min_size=1, max_size=5))
def test_share_by_chance_is_the_mean_over_all_deals(said):
    wanted = [list(replies.INSTRUCTIONS)[i % 3] for i in range(len(said))]
    deals = list(permutations(wanted))
    mean = sum(
        sum(a == b for a, b in zip(said, deal, strict=True)) / len(said) for deal in deals
    ) / len(deals)
    assert replies.share_by_chance(said, wanted) == pytest.approx(mean)
