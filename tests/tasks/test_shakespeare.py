"""Plays: speeches, lines, and what counts as an answer, on a play small enough to check by eye."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from course_utils.prompting.retrieval import Passage, chunk_blocks, chunk_words
from course_utils.tasks import shakespeare
from course_utils.tasks.question_sets import PlayQuestion

PLAY = """PERSONS

LADY FOX.
HEN.

ACT I.

SCENE I. A farm.

[Enter LADY FOX.]

LADY FOX.
Good morning, friends.
Is the door
open?

[She tries it.]

It is not open.

HEN OF THE NORTH
No door is open to a fox.

SONG.
La la la.

HEN'S SON.
Run, mother!
"""


def question(**changes) -> PlayQuestion:
    start, end = shakespeare.find_line(PLAY, "Is the door open?")
    values = dict(
        id="toy-01-exact",
        line="toy-01",
        form="exact",
        kind="speaker",
        question='Who says, "Is the door open?"?',
        answer="Fox",
        accepted=("Fox", "Reynard"),
        play="Toy",
        speaker="Fox",
        quote="Is the door open?",
        speech=PLAY.index("LADY FOX.\nGood"),
        start=start,
        end=end,
        famous=False,
        choices=("Fox", "Lady Fox", "Hen"),
    )
    return PlayQuestion(**(values | changes))


# ── speeches ──────────────────────────────────────────────────────────────────────────────────────


def test_speeches_are_found_after_the_list_of_persons_and_songs_have_no_speaker() -> None:
    found = shakespeare.speeches(PLAY)
    assert [s.speaker for s in found] == ["Lady Fox", "Hen of the North", "Hen's Son"]
    assert [PLAY[s.start :].split("\n")[0] for s in found] == [
        "LADY FOX.",
        "HEN OF THE NORTH",
        "HEN'S SON.",
    ]


def test_speeches_go_on_after_a_stage_direction() -> None:
    first, second, _ = shakespeare.speeches(PLAY)
    assert PLAY[first.body : first.end].startswith("Good morning")
    assert "It is not open." in PLAY[first.body : first.end]
    assert PLAY[second.body : second.end].startswith("No door is open")


def test_speeches_of_a_text_without_any_are_none() -> None:
    assert shakespeare.speeches("") == []
    assert shakespeare.speeches("Shall I compare thee to a summer's day?") == []


def test_speeches_of_real_plays_alternate() -> None:
    text = shakespeare.load()["The Tempest"]
    found = shakespeare.speeches(text)
    assert 600 < len(found) < 700
    assert found[0].speaker == "Master"
    assert all(a.start < a.body <= a.end <= b.start for a, b in pairwise(found))


def test_as_dialogue_puts_the_name_before_the_words() -> None:
    piece = PLAY[PLAY.index("[Enter") : PLAY.index("HEN'S SON")]
    assert shakespeare.as_dialogue(piece).split("\n") == [
        "[Enter LADY FOX.]",
        "Lady Fox: Good morning, friends. Is the door open?",
        "[She tries it.]",
        "It is not open.",
        "Hen of the North: No door is open to a fox.",
        "SONG. La la la.",
    ]


@pytest.mark.parametrize("piece", ["", " \n\n ", "HEN.", "half a speech"])
def test_as_dialogue_of_no_whole_speech_is_the_text_itself(piece: str) -> None:
    assert shakespeare.as_dialogue(piece) == piece.strip()


def passage(start: int, end: int) -> Passage:
    return Passage(PLAY[start:end], "Toy", start, end)


@pytest.mark.parametrize(
    ("first", "last", "shown"),
    [
        ("open?", "not open.", "Lady Fox: open?\n[She tries it.]\nIt is not open."),
        ("LADY FOX.\nGood", "Is the", "Lady Fox: Good morning, friends. Is the"),
        ("[She tries", "it.]", "[She tries it.]"),
        ("It is not", "not open.", "Lady Fox: It is not open."),
        ("SONG.", "la la.", "Hen of the North: SONG. La la la."),
        ("SCENE I", "A farm.", "SCENE I. A farm."),
        ("PERSONS", "HEN.", "PERSONS\nLady Fox: HEN."),
        ("Run,", "mother!", "Hen's Son: Run, mother!"),
    ],
)
def test_as_spoken_names_the_speaker_of_what_goes_on(first: str, last: str, shown: str) -> None:
    start = PLAY.index(first)
    found = passage(start, PLAY.index(last, start) + len(last))
    assert shakespeare.as_spoken(found, shakespeare.speeches(PLAY)) == shown


def test_as_spoken_names_nobody_before_the_first_speech() -> None:
    farm = PLAY.index("A farm.")
    assert shakespeare.as_spoken(passage(farm, farm + 7), shakespeare.speeches(PLAY)) == "A farm."
    assert shakespeare.as_spoken(passage(farm, farm + 7), []) == "A farm."


@pytest.mark.parametrize(
    ("heading", "name"),
    [
        ("DUKE OF MILAN", "Duke of Milan"),
        ("THE DUKE", "The Duke"),
        ("MACDUFF'S SON", "Macduff's Son"),
    ],
)
def test_person_writes_a_heading_as_a_name(heading: str, name: str) -> None:
    assert shakespeare.person(heading) == name


# ── lines ─────────────────────────────────────────────────────────────────────────────────────────


def test_find_line_across_line_breaks() -> None:
    start, end = shakespeare.find_line(PLAY, "Is the door open?")
    assert PLAY[start:end] == "Is the door\nopen?"


@pytest.mark.parametrize("line", ["Is the window open?", "open", "", " "])
def test_find_line_refuses_what_does_not_stand_there_once(line: str) -> None:
    with pytest.raises(ValueError, match="must stand once"):
        shakespeare.find_line(PLAY, line)


def test_find_line_takes_signs_as_they_are() -> None:
    assert shakespeare.find_line("a b (c) a.b", "a.b") == (8, 11)


# ── passages ──────────────────────────────────────────────────────────────────────────────────────


def test_holding_finds_the_one_passage_with_more_than_half_of_the_line() -> None:
    asked = question()
    passages = chunk_blocks(PLAY, size=12, source="Toy")
    (at,) = shakespeare.holding(passages, asked)
    assert "Is the door\nopen?" in passages[at].text


def test_holding_needs_the_right_play() -> None:
    assert shakespeare.holding(chunk_blocks(PLAY, size=12, source="Other"), question()) == set()


@given(st.integers(3, 40))
def test_holding_is_never_two_passages_without_overlap(size: int) -> None:
    passages = chunk_words(PLAY, size=size, overlap=0, source="Toy")
    held = shakespeare.holding(passages, question())
    assert len(held) <= 1
    if size >= 8:  # a line of four words is cut at most once, into unequal or equal halves
        spans = [(passages[i].start, passages[i].end) for i in held]
        middle = (question().start + question().end) / 2
        assert all(a <= middle <= b for a, b in spans)


# ── answers ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("Fox", True),
        (" FOX.\n", True),
        ("It is said by Reynard.", True),
        ("Lady Fox", False),  # another person
        ("Hen, Fox", False),  # the first name counts
        ("Foxes", False),
        ("", False),
        ("I don't know.", False),
    ],
)
def test_is_right(reply: str, right: bool) -> None:
    assert shakespeare.is_right(reply, question()) is right


@given(st.sampled_from(["Fox", "Reynard"]), st.sampled_from(["", " said so", "!", " or Hen"]))
def test_is_right_for_any_accepted_name_whatever_follows(name: str, rest: str) -> None:
    assert shakespeare.is_right(name + rest, question())


@pytest.mark.parametrize(
    "reply",
    ["I don't know.", "I do not know who", "It is not stated", "Unknown", " ", "I’m not sure"],
)
def test_abstains_when_it_says_so(reply: str) -> None:
    assert shakespeare.abstains(reply)


@pytest.mark.parametrize("reply", ["Fox", "Nothing says more than Hen", "I know: Hen"])
def test_abstains_not_when_it_names_somebody(reply: str) -> None:
    assert not shakespeare.abstains(reply)


def test_shakespeare():
    works = shakespeare.load()
    assert len(works) == 42
    assert list(works)[36:] == [
        "The Winter's Tale",
        "A Lover's Complaint",
        "The Passionate Pilgrim",
        "The Phoenix and the Turtle",
        "The Rape of Lucrece",
        "The Sonnets",
    ]
    assert sum(map(len, works.values())) > 5_000_000
    for title, text in works.items():
        assert text.isascii()
        assert not re.search(r"gutenberg|\betext|^by william|the end\n$", text, re.I), title
        assert text == text.strip() + "\n"
    assert "To be, or not to be,--that is the question:--" in works["Hamlet"]
    assert works["The Sonnets"].startswith("I\n\nFrom fairest creatures we desire increase,\n")
    assert len(re.findall(r"^[IVXLC]+$", works["The Sonnets"], re.MULTILINE)) == 154
