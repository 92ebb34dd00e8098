"""Plausible wrong versions of course_utils.prompting.labels."""

from __future__ import annotations

import numpy as np
from planting import Bug, originals

right = originals("prompting.labels")


def score_labels_transposed(prompts, endings, logprobs):
    scores = right["score_labels"](prompts, endings, logprobs)
    return scores.T if len(prompts) == len(endings) else scores


def label_probabilities_of_the_batch(scores):
    right["label_probabilities"](scores)
    shares = np.exp(np.asarray(scores) - np.max(scores))
    return shares / shares.sum()


def label_probabilities_overflow(scores):
    right["label_probabilities"](scores)
    shares = np.exp(np.asarray(scores, dtype=float))
    return shares / np.maximum(shares.sum(axis=-1, keepdims=True), 1e-250)


def label_probabilities_not_shared(scores):
    right["label_probabilities"](scores)
    return np.exp(np.asarray(scores, dtype=float))


def content_free_probabilities_of_the_first(prompt_of, endings, logprobs, *, inputs=("N/A",)):
    return right["content_free_probabilities"](prompt_of, endings, logprobs, inputs=inputs[:1])


def content_free_probabilities_mean_of_logs(prompt_of, endings, logprobs, *, inputs=("N/A",)):
    scores = right["score_labels"]([prompt_of(text) for text in inputs], endings, logprobs)
    return right["label_probabilities"](scores.mean(axis=0))


def predict_unlikeliest(probabilities, labels):
    right["predict"](probabilities, labels)
    return [labels[i] for i in np.asarray(probabilities).argmin(axis=1)]


def predict_last_of_equals(probabilities, labels):
    right["predict"](probabilities, labels)
    flipped = np.asarray(probabilities)[:, ::-1]
    return [labels[::-1][i] for i in flipped.argmax(axis=1)]


BUGS = [
    Bug("score_labels", "is transposed", score_labels_transposed),
    Bug("label_probabilities", "shares over the batch", label_probabilities_of_the_batch),
    Bug("label_probabilities", "underflows", label_probabilities_overflow),
    Bug("label_probabilities", "does not share", label_probabilities_not_shared),
    Bug(
        "content_free_probabilities",
        "takes one input only",
        content_free_probabilities_of_the_first,
    ),
    Bug("content_free_probabilities", "averages logs", content_free_probabilities_mean_of_logs),
    Bug("predict", "takes the unlikeliest", predict_unlikeliest),
    Bug("predict", "takes the last of equals", predict_last_of_equals),
]
