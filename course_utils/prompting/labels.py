"""Labels scored by a model: log-probabilities, calibration, prediction. Notebook 10.

A model comes in only as a function: `logprobs(prompts, endings)` gives the log-probability of each
ending after each prompt, in nats. An engine of `course_utils.engines` has it as a method.

Source: Zhao et al. 2021 (contextual calibration).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from course_utils.metrics import check_labels
from course_utils.prompting.prompts import Prompt

CONTENT_FREE = ("N/A", "[MASK]", "")  # inputs that say nothing (Zhao et al. 2021, section 5)
Logprobs = Callable[[Sequence[Prompt], Sequence[str]], Sequence[Sequence[float]]]


def score_labels(
    prompts: Sequence[Prompt], endings: Sequence[str], logprobs: Logprobs
) -> np.ndarray:
    """Return log p(ending | prompt) in nats of every label after every prompt: (N, L).

    Raises ValueError without prompts, and when `logprobs` returns another shape or NaN.

    >>> score_labels(["Hot?"], [" yes", " no"], lambda prompts, endings: [[-1.0, -2.5]])
    array([[-1. , -2.5]])
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

    >>> label_probabilities([[-3, -4]]).round(3)  # 1 / (1 + 1/e), and the rest
    array([[0.731, 0.269]])
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

    >>> threefold = lambda prompts, endings: np.log([[0.3, 0.1]] * len(prompts))
    >>> content_free_probabilities("Tweet: {}".format, [" good", " bad"], threefold)
    array([0.75, 0.25])
    """
    prompts = [prompt_of(text) for text in inputs]
    return label_probabilities(score_labels(prompts, endings, logprobs)).mean(axis=0)


def calibrate(probabilities: np.ndarray, content_free: np.ndarray) -> np.ndarray:
    """Divide out what the prompt says without any content, and let rows sum to 1 again.

    (N, L) or (L,), and (L,) → the shape of the first. W = diag(content_free)⁻¹, b = 0 in Zhao et
    al. 2021, equation 1; normalized by the sum, which leaves the order of the labels as theirs.
    Raises ValueError when the shapes don't match or a label has nothing to divide by.

    >>> calibrate([0.6, 0.4], [0.75, 0.25]).round(3)  # 0.8 and 1.6, of 2.4
    array([0.333, 0.667])
    """
    probabilities, content_free = np.asarray(probabilities), np.asarray(content_free)
    if content_free.ndim != 1 or probabilities.shape[-1:] != content_free.shape:
        raise ValueError(
            f"probabilities have shape {probabilities.shape} and content_free "
            f"{content_free.shape}; they must be (N, L) and (L,)"
        )
    if not ((content_free > 0) & np.isfinite(content_free)).all():
        raise ValueError(
            f"content_free is {content_free.tolist()}; each label needs a number above 0"
        )
    lifted = probabilities / content_free
    return lifted / lifted.sum(axis=-1, keepdims=True)


def predict(probabilities: np.ndarray, labels: Sequence[str]) -> list[str]:
    """Return the likeliest label of each row (N, L); of equal ones the first.

    Raises ValueError when there are not as many labels as columns.

    >>> predict([[0.1, 0.9], [0.5, 0.5]], ["positive", "negative"])
    ['negative', 'positive']
    """
    check_labels(labels)
    probabilities = np.asarray(probabilities)
    if probabilities.ndim != 2 or probabilities.shape[1] != len(labels):
        raise ValueError(
            f"probabilities have shape {probabilities.shape} for {len(labels)} labels; "
            f"they must be (N, {len(labels)})"
        )
    return [labels[i] for i in probabilities.argmax(axis=1)]
