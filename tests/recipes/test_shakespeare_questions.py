"""The questions over Shakespeare's plays: reproducible, at the places they name, split by play."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from course_utils.prompting.retrieval import FUNCTION_WORDS, tokenize
from course_utils.recipes import shakespeare_questions as generator
from course_utils.tasks import question_sets, shakespeare

FOLDER = Path(__file__).parents[2] / "data" / "shakespeare_questions"
SPLITS = ("dev", "test")
QUESTIONS = {split: question_sets.load_shakespeare_questions(split) for split in SPLITS}
EVERY = [question for split in SPLITS for question in QUESTIONS[split]]
EXACT = [question for question in EVERY if question.form == "exact"]
PARAPHRASED = [question for question in EVERY if question.form == "paraphrase"]


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return shakespeare.load()


def flat(text: str) -> str:
    return " ".join(text.split())


def test_the_generator_writes_the_files_byte_for_byte() -> None:
    for name, text in generator.files().items():
        assert (FOLDER / name).read_bytes() == text.encode(), f"{name}: run its recipe"


def test_there_are_enough_of_each_form() -> None:
    assert len(EVERY) >= 200
    forms = Counter(question.form for question in EVERY)
    assert forms["exact"] == forms["paraphrase"] >= 100
    assert set(Counter(q.kind for q in QUESTIONS["test"])) == {"speaker", "addressee", "play"}


def test_ids_and_questions_are_unique() -> None:
    assert len({question.id for question in EVERY}) == len(EVERY)
    assert len({question.question for question in EVERY}) == len(EVERY)
    assert len({flat(question.quote) for question in EVERY}) == len(EVERY) // 2


def test_splits_share_no_play() -> None:
    dev, test = ({question.play for question in QUESTIONS[split]} for split in SPLITS)
    assert not dev & test
    assert (len(dev), len(test)) == (3, 5)


def test_both_questions_about_a_line_agree() -> None:
    asked = ("id", "form", "question")
    for exact, paraphrase in zip(EXACT, PARAPHRASED, strict=True):
        same = exact._replace(**{key: getattr(paraphrase, key) for key in asked})
        assert same == paraphrase


@pytest.mark.parametrize("question", EXACT, ids=lambda q: q.line)
def test_the_line_stands_where_it_is_said_to_under_its_speaker(question, texts) -> None:
    text = texts[question.play]
    assert flat(text[question.start : question.end]) == question.quote
    assert question.speech < question.start
    heading = text[question.speech :].split("\n", 1)[0]
    assert shakespeare.person(heading.strip(" .")) == question.speaker
    between = text[question.speech + len(heading) : question.start]
    assert not shakespeare.HEADING.search(between), "someone else speaks in between"
    assert question.question.count(question.quote.rstrip(".,;:")) == 1


@pytest.mark.parametrize("question", EXACT, ids=lambda q: q.line)
def test_the_answer_can_be_read_off_the_text(question, texts) -> None:
    assert question.answer == question.accepted[0]
    assert shakespeare.is_right(question.answer, question)
    if question.kind == "play":
        assert question.answer == question.play
        assert question.answer in question.choices
    elif question.kind == "speaker":
        assert question.answer == question.speaker
        assert question.answer in question.choices
    else:  # the speech names the one it is said to, and the line itself does not
        speech = next(
            s for s in shakespeare.speeches(texts[question.play]) if s.start == question.speech
        )
        words = texts[question.play][speech.body : speech.end]
        assert question.answer != question.speaker
        assert re.search(rf"\b{question.answer}\b", words)


@pytest.mark.parametrize("question", EVERY, ids=lambda q: q.id)
def test_no_question_gives_its_answer_away(question) -> None:
    assert question.question.endswith("?")
    for name in question.accepted:
        assert not re.search(rf"\b{re.escape(name)}\b", question.question, re.IGNORECASE)


@pytest.mark.parametrize("question", PARAPHRASED, ids=lambda q: q.line)
def test_a_paraphrase_shares_hardly_a_word_with_its_line(question) -> None:
    """Words about its structure left out, and compared by their first five letters."""
    said = {word[:5] for word in tokenize(question.quote, drop=FUNCTION_WORDS)}
    asked = {word[:5] for word in tokenize(question.question, drop=FUNCTION_WORDS)} - {"play"}
    assert len(asked & said) <= 1, sorted(asked & said)
    assert len(asked) >= 3
    assert not re.search(rf"\b{re.escape(question.speaker)}\b", question.question, re.IGNORECASE)


def test_the_loader_refuses_another_split() -> None:
    with pytest.raises(ValueError, match=r"split is 'train'; it must be one of dev, test"):
        question_sets.load_shakespeare_questions("train")
