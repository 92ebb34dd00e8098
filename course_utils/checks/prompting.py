"""The exercises of notebook 10, with the mistakes that learners make in them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from course_utils.exercises import Case, Exercise, Statement
from course_utils.prompting.labels import calibrate
from course_utils.prompting.prompts import Shot, Template, fit_budget

# ── the prompt ───────────────────────────────────────────────────────────────────────────────────

FORM = "Tweet: {text}\nSentiment: {label}"


def form_prompt(shots: list[tuple[str, str]], text: str) -> str:
    """The shots as filled-in forms, then the text in a form of its own, its label left open.

    >>> form_prompt([("Day", "positive")], "Night")
    'Tweet: Day\\nSentiment: positive\\n\\nTweet: Night\\nSentiment:'
    """
    return Template(FORM).prompt(text, [Shot(*shot) for shot in shots])


def _prompt_inputs() -> Iterator[tuple]:
    rows = [("What a day", "positive"), ("Rain {again}", "negative"), ("  Yes! ", "positive")]
    yield from ((rows[:k], "My phone broke") for k in range(4))
    yield rows[::-1], ""


def _ends_with_a_blank(shots: list[tuple[str, str]], text: str) -> str:
    return form_prompt(shots, text) + " "


def _ends_with_a_line(shots: list[tuple[str, str]], text: str) -> str:
    return form_prompt(shots, text) + "\n"


def _no_empty_line(shots: list[tuple[str, str]], text: str) -> str:
    forms = [f"Tweet: {shot}\nSentiment: {label}" for shot, label in shots]
    return "\n".join([*forms, f"Tweet: {text}\nSentiment:"])


def _question_first(shots: list[tuple[str, str]], text: str) -> str:
    forms = [f"Tweet: {shot}\nSentiment: {label}" for shot, label in shots]
    return "\n\n".join([f"Tweet: {text}\nSentiment:", *forms])


def _last_shot_first(shots: list[tuple[str, str]], text: str) -> str:
    return form_prompt(shots[::-1], text)


def _without_shots(shots: list[tuple[str, str]], text: str) -> str:
    return form_prompt([], text)


def _without_labels(shots: list[tuple[str, str]], text: str) -> str:
    forms = [f"Tweet: {shot}\nSentiment:" for shot, _ in [*shots, (text, "")]]
    return "\n\n".join(forms)


# ── calibration ──────────────────────────────────────────────────────────────────────────────────


def _calibrate_inputs() -> Iterator[tuple]:
    for seed in range(3):
        rows = np.random.default_rng(seed).dirichlet(np.ones(3), size=4)
        yield rows[:3], rows[3]


def _multiply(probabilities: np.ndarray, content_free: np.ndarray) -> np.ndarray:
    lifted = np.asarray(probabilities) * np.asarray(content_free)
    return lifted / lifted.sum(axis=1, keepdims=True)


def _subtract(probabilities: np.ndarray, content_free: np.ndarray) -> np.ndarray:
    return np.asarray(probabilities) - np.asarray(content_free)


def _unnormalized(probabilities: np.ndarray, content_free: np.ndarray) -> np.ndarray:
    return np.asarray(probabilities) / np.asarray(content_free)


def _softmax(probabilities: np.ndarray, content_free: np.ndarray) -> np.ndarray:
    raised = np.exp(np.asarray(probabilities) / np.asarray(content_free))
    return raised / raised.sum(axis=1, keepdims=True)


def _columns(probabilities: np.ndarray, content_free: np.ndarray) -> np.ndarray:
    lifted = np.asarray(probabilities) / np.asarray(content_free)
    return lifted / lifted.sum(axis=0)


# ── the token budget ─────────────────────────────────────────────────────────────────────────────


def fit_lines(shots: list[str], question: str, budget: int) -> list[str]:
    """Drop shots from the front until shots and question have at most `budget` words.

    Raises ValueError when even the question has more.
    """
    return fit_budget(
        shots,
        lambda kept: "\n".join([*kept, question]),
        count_tokens=lambda prompt: len(prompt.split()),
        budget=budget,
    )


SHOTS = ["so good : yes", "no : no", "not at all : no", "oh yes : yes"]


def _fit_inputs() -> Iterator[tuple]:
    for budget in (2, 5, 6, 9, 10, 14, 17, 40):
        yield SHOTS, "well :", budget


def _from_the_end(shots: list[str], question: str, budget: int) -> list[str]:
    kept = list(shots)
    while kept and len(" ".join([*kept, question]).split()) > budget:
        kept.pop()
    return kept


def _without_the_question(shots: list[str], question: str, budget: int) -> list[str]:
    return fit_lines(shots, "", budget)


def _below_the_budget(shots: list[str], question: str, budget: int) -> list[str]:
    return fit_lines(shots, question, max(budget - 1, len(question.split())))


def _skip_the_long_ones(shots: list[str], question: str, budget: int) -> list[str]:
    kept, left = [], budget - len(question.split())
    for shot in reversed(shots):
        if len(shot.split()) <= left:
            kept.insert(0, shot)
            left -= len(shot.split())
    return kept


EXERCISES = {
    "prompt": Exercise(
        reference=form_prompt,
        hint="Make a list of forms, each “Tweet: …”, a new line, “Sentiment: …”; add the open form "
        "of the question, and join them with two new lines: an empty line is two in a row.",
        cases=(
            Case(([], "Hi"), "Tweet: Hi\nSentiment:", why="Without shots only the open form."),
            Case(
                ([("Day", "positive")], "Night"),
                "Tweet: Day\nSentiment: positive\n\nTweet: Night\nSentiment:",
                why="An empty line stands between the forms, and nothing after the last colon.",
            ),
        ),
        inputs=_prompt_inputs,
        mistakes={
            "the prompt ends with a blank, which belongs to the next token": _ends_with_a_blank,
            "the prompt ends with a new line": _ends_with_a_line,
            "the empty line between the forms is missing": _no_empty_line,
            "the question stands before the shots": _question_first,
            "the shots stand in reverse order": _last_shot_first,
            "the shots are left out": _without_shots,
            "the shots' labels are left out": _without_labels,
        },
    ),
    "calibrate": Exercise(
        reference=calibrate,
        hint="Divide each row by content_free, label by label. Then divide each row by its own "
        "sum: sum(axis=1, keepdims=True) keeps the shape that this needs.",
        cases=(
            Case(
                (np.array([[0.6, 0.4]]), np.array([0.75, 0.25])),
                np.array([[1 / 3, 2 / 3]]),
                why="0.6 / 0.75 = 0.8 and 0.4 / 0.25 = 1.6: one third and two thirds of 2.4.",
            ),
            Case(
                (np.array([[0.9, 0.1], [0.5, 0.5]]), np.array([0.5, 0.5])),
                np.array([[0.9, 0.1], [0.5, 0.5]]),
                why="A prompt without a leaning needs no correction.",
            ),
        ),
        inputs=_calibrate_inputs,
        mistakes={
            "the leaning is multiplied in instead of divided out": _multiply,
            "the leaning is subtracted": _subtract,
            "the rows are not made to sum to 1": _unnormalized,
            "a softmax is taken of the quotients: the same order, other numbers": _softmax,
            "columns instead of rows are made to sum to 1": _columns,
        },
    ),
    "fit": Exercise(
        reference=fit_lines,
        solution=(fit_lines, fit_budget),
        hint="Count the words of all shots and of the question together. While they are too many, "
        "drop the first shot. Copy the list before you drop anything.",
        cases=(
            Case(
                (["good : yes", "bad : no", "fine : yes"], "awful :", 8),
                ["bad : no", "fine : yes"],
                why="Three words each and two of the question: 11 are too many, 8 are not.",
            ),
            Case((["good : yes"], "awful :", 4), [], why="5 words are too many; 2 remain."),
        ),
        inputs=_fit_inputs,
        mistakes={
            "shots are dropped from the end": _from_the_end,
            "the words of the question are not counted": _without_the_question,
            "a prompt of exactly the budget is cut too": _below_the_budget,
            "a long shot is passed over and an older one kept": _skip_the_long_ones,
        },
    ),
}

STATEMENTS = {
    "examples": {
        "a": Statement(
            "Examples help this model, since one of the draws with examples did well.",
            supported=False,
            why="The comparator is no example at all, and a draw picked afterwards proves nothing.",
        ),
        "b": Statement(
            "Which label an example is shown with changes the answers.",
            supported=True,
            why="P3a changes the label alone and watches the answers follow it.",
        ),
        "c": Statement(
            "More examples are worse than fewer.",
            supported=False,
            why="P3c compares a few with none, and does not order the numbers among themselves.",
        ),
        "d": Statement(
            "What the model was trained for bounds how far back it finds a fact.",
            supported=True,
            why="P2c changes the distance alone; as large a step inside the bound does far less.",
        ),
        "e": Statement(
            "Large models, too, are best without examples.",
            supported=False,
            why="One small model was asked; Brown et al. (2020) report the contrary of large ones.",
        ),
    },
}
