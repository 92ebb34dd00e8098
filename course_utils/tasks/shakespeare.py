"""Shakespeare's works, and plays as plain text: who speaks where. Notebooks 09 and 12.

For the question set over plays (data/shakespeare_questions). It expects what those editions have: a
speech is a block of lines under its speaker's name, in capitals on a line alone. Three of the 37
plays abbreviate the names in mixed case instead ("Ham."); the set leaves them out.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from course_utils.assets.catalogue import describe
from course_utils.assets.fetching import fetch
from course_utils.prompting.answers import extract_label

if TYPE_CHECKING:
    from course_utils.prompting.retrieval import Passage
    from course_utils.tasks.question_sets import PlayQuestion


NAME = re.compile(r"([A-Z][A-Z' ,-]*[A-Z])\.?")
# A name in capitals, alone on the first line of a block, with text on the line below it.
HEADING = re.compile(rf"(?<=\n)[ \t]*\n{NAME.pattern}[ \t]*\n(?=[ \t]*\S)")
NO_SPEAKER = re.compile(r"(ACT|SCENE|SONG|PROLOGUE|EPILOGUE)\b")
NOT_SPOKEN = re.compile(r"\[|(ACT|SCENE)\b")
SMALL_WORDS = {"Of", "The", "And", "To"}
ABSTAINS = re.compile(
    r"\b(don't|do not|cannot|can't|could not|not) (know|say|tell|sure|clear|given|stated|named|"
    r"mentioned|specified|answer|determine)|\bunknown\b|\bunclear\b|\bno ?body\b|\bno one\b"
)


class Speech(NamedTuple):
    """What one person says until the next one speaks; the name stands at `start`."""

    speaker: str
    start: int
    body: int
    end: int


def speeches(text: str) -> list[Speech]:
    """Return the speeches of a play in order; `text[s.body : s.end]` is what is said.

    They begin with the first act, after the list of persons. Stage directions between them belong
    to the speech before. Source text without acts is searched from its beginning.
    """
    act = re.search(r"(?m)^ACT\b", text)
    found = HEADING.finditer(text, act.start() if act else 0)
    headings = [m for m in found if not NO_SPEAKER.match(m[1])]
    ends = [m.start() for m in headings[1:]] + [len(text)]
    return [
        Speech(person(m[1]), m.start(1), m.end(), end)
        for m, end in zip(headings, ends, strict=False)
    ]


def as_dialogue(text: str) -> str:
    """Return a piece of a play with one line for each block.

    Stage directions, and speech without a name above it, stand as they are.

    >>> as_dialogue("DUNCAN.\\nThere's no art\\nTo find the mind's construction in the face.")
    "Duncan: There's no art To find the mind's construction in the face."
    """
    shown = []
    for block in re.split(r"\n[ \t]*\n", text.strip()):
        heading, _, words = block.strip().partition("\n")
        name = NAME.fullmatch(heading.strip())
        speaks = name and words and not NO_SPEAKER.match(heading)
        shown.append(" ".join((f"{person(name[1])}: {words}" if speaks else block).split()))
    return "\n".join(filter(None, shown))


def as_spoken(passage: Passage, speeches: Sequence[Speech]) -> str:
    """Return a passage of a play as dialogue; what goes on from before has its speaker's name too.

    `speeches` are those of the whole play, in order. A passage that begins with a stage direction,
    an act or a scene stands as it is.

    >>> from course_utils.prompting.retrieval import Passage
    >>> as_spoken(Passage("Who is there?", "Toy", 40, 53), [Speech("Fox", 30, 35, 60)])
    'Fox: Who is there?'
    """
    shown = as_dialogue(passage.text)
    at = bisect.bisect_right(speeches, passage.start, key=lambda speech: speech.body) - 1
    goes_on = at >= 0 and passage.start < speeches[at].end and not NOT_SPOKEN.match(shown)
    return f"{speeches[at].speaker}: {shown}" if goes_on and not _has_name(passage) else shown


def _has_name(passage: Passage) -> bool:
    """Does the passage begin with the name of a speaker, alone on its line?"""
    heading, _, words = passage.text.partition("\n")
    return bool(words and NAME.fullmatch(heading.strip()) and not NO_SPEAKER.match(heading))


def person(heading: str) -> str:
    """Return a name in capitals as one writes it.

    >>> person("DUKE OF MILAN")
    'Duke of Milan'
    """
    words = [word.capitalize() for word in heading.split()]
    return " ".join(word.lower() if i and word in SMALL_WORDS else word
                    for i, word in enumerate(words))  # fmt: skip


def find_line(text: str, line: str) -> tuple[int, int]:
    """Return where a line starts and ends, however it is broken; ValueError unless it stands once.

    White space in `line` matches any white space in the text.
    """
    pattern = r"\s+".join(map(re.escape, line.split()))
    found = [match.span() for match in re.finditer(pattern, text)] if pattern else []
    if len(found) != 1:
        raise ValueError(f"{line!r} stands {len(found)} times in this text; it must stand once")
    return found[0]


def holding(passages: Sequence[Passage], question: PlayQuestion) -> set[int]:
    """Return the positions of the passages that hold more than half of the question's line."""
    least = (question.end - question.start) / 2
    return {
        i
        for i, passage in enumerate(passages)
        if passage.source == question.play
        and min(passage.end, question.end) - max(passage.start, question.start) > least
    }


def is_right(reply: str, question: PlayQuestion) -> bool:
    """Is the first name of the reply, among all persons (or plays) in question, an accepted one?

    "Lady Macbeth" is therefore no answer where "Macbeth" is asked for, nor is a list of everybody.
    """
    names = list(dict.fromkeys([*question.accepted, *question.choices]))
    return extract_label(reply, names) in question.accepted


def abstains(reply: str) -> bool:
    """Does the reply say that it does not know?"""
    return not reply.strip() or ABSTAINS.search(reply.lower().replace("’", "'")) is not None


def _body(text: str) -> str:
    """Return a play or poem without its title lines and closing line, with one last newline."""
    _, _, body = text.partition("by William Shakespeare\n")
    return re.sub(r"\s+THE END$", "", body.strip()) + "\n"


def load() -> dict[str, str]:
    """Return title → text of Shakespeare's 37 plays, then of his 5 books of poems.

    A play begins with its list of persons. The lines of title and author at the head, and
    "THE END" where an edition has it, are not part of the text.
    """
    asset = describe("shakespeare")
    folder = fetch(asset)
    return {
        member.title: _body((folder / member.name).read_text(encoding="ascii"))
        for member in asset.members
    }
