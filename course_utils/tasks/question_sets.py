"""The question sets that the course authored, with cards in data/. Notebooks 06, 11 and 12."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from course_utils.assets.catalogue import AssetError, data_folder


class PlayQuestion(NamedTuple):
    """A question about a line in one of Shakespeare's plays, with its answer and the line's place.

    `form` is "exact" (the line is quoted) or "paraphrase" (said again in modern English); both
    questions about a line share `line`. `kind` says what is asked for: its "speaker", "addressee"
    or "play". In the text of the play the line stands at `start` to `end`, its speaker's name at
    `speech`. `accepted` are the right answers, `choices` all speakers of the play (or all plays).
    """

    id: str
    line: str
    form: str
    kind: str
    question: str
    answer: str
    accepted: tuple[str, ...]
    play: str
    speaker: str
    quote: str
    speech: int
    start: int
    end: int
    famous: bool
    choices: tuple[str, ...]


QUESTION_SPLITS = ("dev", "test")


def load_shakespeare_questions(split: str = "test") -> list[PlayQuestion]:
    """Return the course's questions over plays: "dev" (three plays) or "test" (five others).

    Raises ValueError for another split. Their card is data/shakespeare_questions/README.md.
    """
    rows = _authored("shakespeare_questions", split, splits=QUESTION_SPLITS)
    file = data_folder() / "shakespeare_questions" / "choices.json"
    choices = json.loads(file.read_text(encoding="utf-8"))
    questions = []
    for row in rows:
        among = choices["plays"] if row["kind"] == "play" else choices["casts"][row["play"]]
        row |= {"accepted": tuple(row["accepted"]), "choices": tuple(among)}
        questions.append(PlayQuestion(**row))
    return questions


AUTHORED_SPLITS = ("shots", "dev", "test")


def _authored(
    name: str, split: str, suffix: str = "", splits: tuple[str, ...] = AUTHORED_SPLITS
) -> list[dict[str, Any]]:
    """Return the rows of one split of a set that the course authored: data/<name>/README.md."""
    if split not in splits:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(splits)}")
    file = data_folder() / name / f"{split}{suffix}.jsonl"
    try:
        # Not splitlines(): it takes some signs that JSON allows in a text for a line's end.
        lines = file.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except OSError as error:
        raise AssetError(
            f"{file} cannot be read ({error.strerror}); restore data/{name}"
        ) from error
    return [json.loads(line) for line in lines]


def load_word_problems(split: str = "test") -> list[dict[str, Any]]:
    """Return the word problems of a split: shots, dev or test; ValueError for another.

    Each has `question`, `answer`, `reasoning`, `program`, and says how hard it is.
    """
    return _authored("word_problems", split)


class ReactSet(NamedTuple):
    """Questions that need look-ups, each with its gold steps, and the pages: title → text."""

    questions: list[dict[str, Any]]
    pages: dict[str, str]


def load_react(split: str = "test") -> ReactSet:
    """Return the ReAct set of a split: shots, dev or test, a world of its own; ValueError else."""
    pages = _authored("react", split, "_pages")
    return ReactSet(_authored("react", split), {page["title"]: page["text"] for page in pages})
