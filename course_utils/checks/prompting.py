"""The exercises of notebook 10, with the mistakes that learners make in them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from course_utils.exercises import Case, Exercise
from course_utils.prompting.labels import calibrate
from course_utils.prompting.prompts import fit_budget

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


def _columns(probabilities: np.ndarray, content_free: np.ndarray) -> np.ndarray:
    lifted = np.asarray(probabilities) / np.asarray(content_free)
    return lifted / lifted.sum(axis=0)


# ── balanced shots ───────────────────────────────────────────────────────────────────────────────


def first_balanced(labels: list[str], k: int) -> list[int]:
    """Positions of the first k / (number of different labels) shots of each label, in order.

    `prompting.balanced_shots` does the same, but draws the shots and their order at random.
    """
    quota = k // len(set(labels))
    seen = dict.fromkeys(labels, 0)
    chosen = []
    for position, label in enumerate(labels):
        if seen[label] < quota:
            chosen.append(position)
            seen[label] += 1
    return chosen


def _balanced_inputs() -> Iterator[tuple]:
    for seed, k in enumerate((2, 4, 6)):
        draw = np.random.default_rng(seed).permutation(["positive"] * 9 + ["negative"] * 4)
        yield draw.tolist(), k
    yield ["no", "maybe", "yes", "yes", "no", "maybe", "no"], 6


def _first(labels: list[str], k: int) -> list[int]:
    return list(range(k))


def _k_of_each(labels: list[str], k: int) -> list[int]:
    return first_balanced(labels, k * len(set(labels)))


def _label_by_label(labels: list[str], k: int) -> list[int]:
    return sorted(first_balanced(labels, k), key=lambda i: labels.index(labels[i]))


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


# ── the Wilson interval ──────────────────────────────────────────────────────────────────────────


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Low and high end of the Wilson interval of `hits` among `n`; z = 1.96 for 95 % (Wilson 1927).

    These are the shares p that lie z standard errors √(p (1 − p) / n) away from hits / n.
    """
    share, slack = hits / n, z**2 / n
    centre = (share + slack / 2) / (1 + slack)
    half = z * math.sqrt(share * (1 - share) / n + slack / (4 * n)) / (1 + slack)
    return centre - half, centre + half


def _wilson_inputs() -> Iterator[tuple]:
    yield from ((5, 10), (48, 60), (1, 3), (60, 60))


def _normal(hits: int, n: int) -> tuple[float, float]:
    share = hits / n
    half = 1.959964 * math.sqrt(share * (1 - share) / n)
    return share - half, share + half


def _not_divided(hits: int, n: int) -> tuple[float, float]:
    low, high = wilson(hits, n)
    return low * (1 + 1.959964**2 / n), high * (1 + 1.959964**2 / n)


def _around_the_share(hits: int, n: int) -> tuple[float, float]:
    low, high = wilson(hits, n)
    return hits / n - (high - low) / 2, hits / n + (high - low) / 2


EXERCISES = {
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
            "columns instead of rows are made to sum to 1": _columns,
        },
    ),
    "balanced": Exercise(
        reference=first_balanced,
        hint="Each label may be taken k // len(set(labels)) times. Go through the labels once, "
        "and keep a count for each.",
        cases=(
            Case(
                (["yes", "yes", "yes", "no", "yes", "no"], 4),
                [0, 1, 3, 5],
                why="Two of each: the third and fourth “yes” are passed over.",
            ),
            Case((["yes", "no"], 0), [], why="No shots at all are balanced."),
        ),
        inputs=_balanced_inputs,
        mistakes={
            "the first k are taken, whatever their labels": _first,
            "k of each label are taken, not k in all": _k_of_each,
            "they are returned label by label, not in the order of the pool": _label_by_label,
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
    "wilson": Exercise(
        reference=wilson,
        hint="With share = hits / n and slack = z² / n: the centre is (share + slack / 2) / "
        "(1 + slack), and half the width is z · √(share · (1 − share) / n + slack / (4 n)) / "
        "(1 + slack).",
        cases=(
            Case(
                (0, 4),
                (0.0, 0.4899),
                why="With z² = 3.84 and no hit: 3.84 / (4 + 3.84) = 0.4899.",
            ),
            Case((2, 4), (0.1500, 0.8500), why="One half in four trials says very little."),
        ),
        inputs=_wilson_inputs,
        mistakes={
            "the normal approximation is used, which is no interval at 0 or n hits": _normal,
            "the division by 1 + z²/n is missing": _not_divided,
            "the interval is centred on the share itself": _around_the_share,
        },
        atol=1e-4,
    ),
}
