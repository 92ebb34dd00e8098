"""Prompts as code: templates, shots, label scores, calibration, answers, budgets, evaluation.

A model comes in only as a function: `logprobs(prompts, endings)` gives the log-probability of each
ending after each prompt, in nats, and `count_tokens(prompt)` a prompt's length. An engine of
`course_utils.engines` has both as methods, but anything that keeps to this will do.

    stem = plain_prompt(text, shots, template="Tweet: {text}\\nSentiment: {label}")
    scores = score_labels([stem], label_endings(labels), logprobs)
    predict(label_probabilities(scores), labels)

Sources: Brown et al. 2020 (zero, one and few shots), Zhao et al. 2021 (contextual calibration), Liu
et al. 2022 (nearest shots), Lu et al. 2022 (order).
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from course_utils.metrics import Proportion, accuracy, paired_p_value

if TYPE_CHECKING:
    from course_utils.retrieval import DenseIndex

__all__ = [
    "CONTENT_FREE",
    "TEMPLATE",
    "Comparison",
    "Evaluation",
    "Shot",
    "balanced_shots",
    "calibrate",
    "chat_prompt",
    "compare",
    "content_free_probabilities",
    "different_orders",
    "evaluate",
    "extract_label",
    "extract_number",
    "fill",
    "fit_budget",
    "label_endings",
    "label_probabilities",
    "nearest_shots",
    "plain_prompt",
    "predict",
    "random_shots",
    "score_labels",
]

TEMPLATE = "Text: {text}\nSentiment: {label}"
CONTENT_FREE = ("N/A", "[MASK]", "")  # inputs that say nothing (Zhao et al. 2021, section 5)

Message = dict[str, str]
Prompt = str | list[Message]
Logprobs = Callable[[Sequence[Prompt], Sequence[str]], Sequence[Sequence[float]]]
Part = TypeVar("Part")


class Shot(NamedTuple):
    """A solved example to show in a prompt."""

    text: str
    label: str


# ── templates ─────────────────────────────────────────────────────────────────────────────────


_FIELD = re.compile(r"\{([a-z_]+)\}")


def fill(template: str, **fields: str) -> str:
    """Put each field in the place of its {name}, all in one pass.

    Braces inside a field's own text stay as they are, unlike in `str.format` twice. Raises
    ValueError when the template names a field that is not given, or lacks one that is.
    """
    named = set(_FIELD.findall(template))
    if odd := sorted(named ^ set(fields)):
        where = "is not given" if odd[0] in named else "is not in the template"
        raise ValueError(f"the field {{{odd[0]}}} {where} {template!r}")
    return _FIELD.sub(lambda match: fields[match[1]], template)


def _stem(template: str) -> tuple[str, str]:
    """Part a template into what comes before the label, and the blanks between them."""
    head, label, after = template.partition("{label}")
    if not label or after:
        raise ValueError(f"the template must end with {{label}}, unlike {template!r}")
    return head.rstrip(" "), head[len(head.rstrip(" ")) :]


def plain_prompt(
    text: str,
    shots: Sequence[Shot] = (),
    *,
    template: str = TEMPLATE,
    instruction: str = "",
    separator: str = "\n\n",
) -> str:
    """Return a prompt to complete: instruction, shots, and the text up to where its label begins.

    The last line ends before the blank: a tokenizer of today has it inside the next word, so that
    a prompt which ends with a blank asks for a word that begins with none. The endings to score
    come from `label_endings`. Raises ValueError for a template without {text}, or that does not
    end with {label}.
    """
    stem, _ = _stem(template)
    shown = [fill(template, text=shot.text, label=shot.label) for shot in shots]
    parts = [instruction] if instruction else []
    return separator.join([*parts, *shown, fill(stem, text=text)])


def label_endings(labels: Sequence[str], *, template: str = TEMPLATE) -> list[str]:
    """Return the labels as they go on after `plain_prompt`: with the template's blank in front.

    After `chat_prompt` the labels themselves are the endings. Raises ValueError for labels that
    `predict` could not tell apart or score.
    """
    _check_labels(labels)
    _, blank = _stem(template)
    return [blank + label for label in labels]


def chat_prompt(
    text: str, shots: Sequence[Shot] = (), *, template: str = "{text}", system: str = ""
) -> list[Message]:
    """Return a chat: each shot a question and its answer, then the text as the last question.

    `template` is what the user says, with {text}. How a chat becomes a text is the engine's
    business. Raises ValueError for a template without {text}.
    """
    messages = [{"role": "system", "content": system}] if system else []
    for shot in shots:
        messages.append({"role": "user", "content": fill(template, text=shot.text)})
        messages.append({"role": "assistant", "content": shot.label})
    return [*messages, {"role": "user", "content": fill(template, text=text)}]


# ── shots ─────────────────────────────────────────────────────────────────────────────────────


def _check_count(k: int, available: int, what: str) -> None:
    if not 0 <= k <= available:
        raise ValueError(
            f"{k} shots are asked for, and {what} {available}; ask for 0 to {available}"
        )


def random_shots(pool: Sequence[Shot], k: int, *, seed: int) -> list[Shot]:
    """Draw k shots without replacement, in random order. ValueError when the pool has fewer."""
    _check_count(k, len(pool), "the pool holds")
    return random.Random(seed).sample(list(pool), k)


def balanced_shots(pool: Sequence[Shot], k: int, *, labels: Sequence[str], seed: int) -> list[Shot]:
    """Draw k shots, as many of each label as of any other, in random order.

    Where k is no multiple of the number of labels, those that get one more are drawn too. Raises
    ValueError for a shot with a label that is not in `labels`, and when one has too few shots.
    """
    _check_labels(labels)
    if unknown := {shot.label for shot in pool} - set(labels):
        raise ValueError(f"the pool has the label {min(unknown)!r}; known are {list(labels)}")
    _check_count(k, len(pool), "the pool holds")
    draw = random.Random(seed)
    counts = Counter([*labels] * (k // len(labels)) + draw.sample(list(labels), k % len(labels)))
    shots = []
    for label in labels:
        own = [shot for shot in pool if shot.label == label]
        _check_count(counts[label], len(own), f"of label {label!r} the pool holds")
        shots += draw.sample(own, counts[label])
    draw.shuffle(shots)
    return shots


def nearest_shots(text: str, pool: Sequence[Shot], k: int, *, index: DenseIndex) -> list[Shot]:
    """Return the k shots whose texts are most like `text`, the most like it last, next to it.

    `index` is a `retrieval.DenseIndex` of the pool's texts, in the pool's order. A shot with the
    very text is left out, since it would give its label away. Raises ValueError when there are
    fewer than k others. Source: Liu et al. 2022, section 3 (kATE).
    """
    others = [i for i, shot in enumerate(pool) if shot.text != text]
    _check_count(k, len(others), "the pool holds other texts:")
    if k == 0:
        return []
    hits = index.search(text, k + len(pool) - len(others))
    best = [hit.index for hit in hits if pool[hit.index].text != text][:k]
    return [pool[i] for i in reversed(best)]


def different_orders(shots: Sequence[Shot], n: int, *, seed: int) -> list[list[Shot]]:
    """Return n different orders of the same shots, the given one first (Lu et al. 2022).

    Raises ValueError when there are fewer than n; equal shots do not make another order.
    """
    repeats = math.prod(math.factorial(count) for count in Counter(shots).values())
    possible = math.factorial(len(shots)) // repeats
    if not 1 <= n <= possible:
        raise ValueError(f"{n} orders are asked for, and these shots have {possible}")
    draw, orders = random.Random(seed), [list(shots)]
    while len(orders) < n:
        shuffled = draw.sample(list(shots), len(shots))
        if shuffled not in orders:
            orders.append(shuffled)
    return orders


# ── labels ────────────────────────────────────────────────────────────────────────────────────


def _check_labels(labels: Sequence[str]) -> None:
    if isinstance(labels, str) or len(labels) < 2 or not all(labels):
        raise ValueError(f"labels is {labels!r}; give a list of at least two texts")
    if len(set(labels)) < len(labels):
        raise ValueError(f"labels is {list(labels)}; each must occur once")


def score_labels(
    prompts: Sequence[Prompt], endings: Sequence[str], logprobs: Logprobs
) -> np.ndarray:
    """Return log p(ending | prompt) in nats of every label after every prompt: (N, L).

    Raises ValueError without prompts, and when `logprobs` returns another shape or NaN.
    """
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(f"prompts is {prompts!r}; give a list of at least one prompt")
    scores = np.asarray(logprobs(list(prompts), list(endings)), dtype=float)
    if scores.shape != (len(prompts), len(endings)):
        raise ValueError(
            f"logprobs returned shape {scores.shape} for {len(prompts)} prompts and "
            f"{len(endings)} endings; it must be ({len(prompts)}, {len(endings)})"
        )
    if np.isnan(scores).any():
        raise ValueError("logprobs returned NaN; check the model's weights and dtype")
    return scores


def label_probabilities(scores: np.ndarray) -> np.ndarray:
    """Share the probability out among the labels: log-probabilities (N, L) → rows that sum to 1.

    Raises ValueError for a row in which no label is possible.
    """
    scores = np.asarray(scores, dtype=float)
    top = scores.max(axis=-1, keepdims=True)
    if not np.isfinite(top).all():
        raise ValueError("a row has no label with a finite log-probability")
    shares = np.exp(scores - top)
    return shares / shares.sum(axis=-1, keepdims=True)


def content_free_probabilities(
    prompt_of: Callable[[str], Prompt],
    endings: Sequence[str],
    logprobs: Logprobs,
    *,
    inputs: Sequence[str] = CONTENT_FREE,
) -> np.ndarray:
    """Return what the prompt alone makes of the labels: (L,), the mean over inputs without content.

    `prompt_of(text)` builds the prompt, shots and all. Source: Zhao et al. 2021, section 5.
    """
    prompts = [prompt_of(text) for text in inputs]
    return label_probabilities(score_labels(prompts, endings, logprobs)).mean(axis=0)


def calibrate(probabilities: np.ndarray, content_free: np.ndarray) -> np.ndarray:
    """Divide out what the prompt says without any content, and let rows sum to 1 again.

    (N, L) or (L,), and (L,) → the shape of the first. W = diag(content_free)⁻¹, b = 0 in Zhao et
    al. 2021, equation 1; normalized by the sum, which leaves the order of the labels as theirs.
    Raises ValueError when the shapes don't match or a label has nothing to divide by.
    """
    probabilities, content_free = np.asarray(probabilities), np.asarray(content_free)
    if content_free.ndim != 1 or probabilities.shape[-1:] != content_free.shape:
        raise ValueError(
            f"probabilities have shape {probabilities.shape} and content_free "
            f"{content_free.shape}; they must be (N, L) and (L,)"
        )
    if not (content_free > 0).all():
        raise ValueError(f"content_free is {content_free.tolist()}; each label needs more than 0")
    lifted = probabilities / content_free
    return lifted / lifted.sum(axis=-1, keepdims=True)


def predict(probabilities: np.ndarray, labels: Sequence[str]) -> list[str]:
    """Return the likeliest label of each row (N, L); of equal ones the first.

    Raises ValueError when there are not as many labels as columns.
    """
    _check_labels(labels)
    probabilities = np.asarray(probabilities)
    if probabilities.ndim != 2 or probabilities.shape[1] != len(labels):
        raise ValueError(
            f"probabilities have shape {probabilities.shape} for {len(labels)} labels; "
            f"they must be (N, {len(labels)})"
        )
    return [labels[i] for i in probabilities.argmax(axis=1)]


# ── answers in a text ─────────────────────────────────────────────────────────────────────────


# A sign counts unless it stands between numbers ("10-12"); digits inside a word ("x2") do not.
_NUMBER = re.compile(
    r"""
    (?P<sign> (?<![\w.)]) [-−] )?  \$?  (?<![^\W\d])(?<!\d)
    (?P<digits> [0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?
              | [0-9]+(?:\.[0-9]+)?
              | (?<![0-9])\.[0-9]+ )
    (?P<power> [eE][-+]?[0-9]{1,3}\b )?
    """,
    re.VERBOSE,
)


def extract_number(text: str, *, after: str = "") -> int | float | None:
    """Return the number that a text gives as its answer, or None when it has none.

    It is the last one, since a model reasons first and answers last; with `after` ("answer is")
    it is the first one behind the last place where these words stand, if there is any. Reads
    "1,234", "$3.50", "−7", ".5" and "1e6"; leaves units, per cent signs and fractions alone.
    """
    place = text.lower().rfind(after.lower()) if after else -1
    if place >= 0 and (behind := _NUMBER.search(text, place + len(after))):
        return _value(behind)
    found = list(_NUMBER.finditer(text))
    return _value(found[-1]) if found else None


def _value(match: re.Match[str]) -> int | float | None:
    digits = match["digits"].replace(",", "")
    sign = -1 if match["sign"] else 1
    if match["power"] or "." in digits:
        number = sign * float(digits + (match["power"] or ""))
        return int(number) if number.is_integer() else number
    return sign * int(digits)


def extract_label(text: str, labels: Sequence[str]) -> str | None:
    """Return the label that occurs first in a text, as whole words in any case, or None.

    Where two begin at one place, the longer: "not positive" before "not". It does not understand
    the text: "positively" is no label, and "not positive" holds one.
    """
    _check_labels(labels)
    by_name = {label.lower(): label for label in labels}
    if len(by_name) < len(labels):
        raise ValueError(f"labels is {list(labels)}; two differ in nothing but capital letters")
    longest_first = sorted(labels, key=len, reverse=True)
    either = "|".join(rf"(?<!\w){re.escape(label)}(?!\w)" for label in longest_first)
    found = re.search(either, text, re.IGNORECASE)
    return by_name[found[0].lower()] if found else None


# ── the context window ────────────────────────────────────────────────────────────────────────


def fit_budget(
    parts: Sequence[Part],
    build: Callable[[list[Part]], Prompt],
    *,
    count_tokens: Callable[[Prompt], int],
    budget: int,
) -> list[Part]:
    """Drop parts from the front until the prompt `build(parts)` has at most `budget` tokens.

    Parts are shots, facts or turns of a chat, the least needed first: the oldest, or the least
    alike as `nearest_shots` orders them. A budget is the context window less the tokens of the
    answer. Raises ValueError when even `build([])` does not fit.
    """
    kept = list(parts)
    while (size := count_tokens(build(kept))) > budget:
        if not kept:
            raise ValueError(
                f"the prompt has {size} tokens with all its parts dropped, and the budget is "
                f"{budget}; shorten the text or the instruction, or take a larger context window"
            )
        del kept[0]
    return kept


# ── evaluation ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Evaluation:
    """What predictions are worth, item by item and together.

    `accuracy` has its Wilson interval. `recall[label]` is the share of that label's items that
    were found, and `balanced` the mean of these, ½ for a guess between two labels whatever their
    shares. `predicted[label]` counts predictions; `unanswered` those that were None.
    """

    accuracy: Proportion
    balanced: float
    recall: dict[str, float]
    predicted: dict[str, int]
    unanswered: int
    correct: tuple[bool, ...]


def evaluate(
    predictions: Sequence[str | None], truth: Sequence[str], *, labels: Sequence[str]
) -> Evaluation:
    """Compare predictions with the truth; None, an answer without a label, counts as wrong.

    Raises ValueError for different lengths, nothing to compare, or a label not in `labels`.
    """
    _check_labels(labels)
    if len(predictions) != len(truth) or not len(truth):
        raise ValueError(
            f"{len(predictions)} predictions for {len(truth)} items; give one for each, and at "
            "least one"
        )
    known: set[Hashable] = set(labels)
    if unknown := [label for label in (*predictions, *truth) if label not in {*known, None}]:
        raise ValueError(f"{unknown[0]!r} is no label; known are {list(labels)}")
    if None in truth:
        raise ValueError("the truth of an item is None; leave items without a label out")
    correct = tuple(p == t for p, t in zip(predictions, truth, strict=True))
    hits = Counter(t for t, right in zip(truth, correct, strict=True) if right)
    recall = {label: hits[label] / n for label, n in Counter(truth).items()}
    return Evaluation(
        accuracy=accuracy(correct),
        balanced=math.fsum(recall.values()) / len(recall),
        recall={label: recall[label] for label in labels if label in recall},
        predicted={label: list(predictions).count(label) for label in labels},
        unanswered=list(predictions).count(None),
        correct=correct,
    )


class Comparison(NamedTuple):
    """Accuracy of one method less that of another on the same items, and an exact p-value."""

    difference: float
    p_value: float
    only_first: int
    only_second: int


def compare(first: Evaluation, second: Evaluation) -> Comparison:
    """Compare two methods item by item (McNemar's exact test). ValueError for other items."""
    p_value = paired_p_value(first.correct, second.correct)
    pairs = Counter(zip(first.correct, second.correct, strict=True))
    only_first, only_second = pairs[True, False], pairs[False, True]
    difference = (only_first - only_second) / len(first.correct)
    return Comparison(difference, p_value, only_first, only_second)
