"""Plausible wrong versions of course_utils.finetuning.ratings."""

from __future__ import annotations

from collections import Counter

import torch
import torch.nn.functional as F
from planting import Bug, originals, refusing

right = originals("finetuning.ratings")


def common_by_count(texts, least=2):
    """Occurrences, not texts."""
    found = Counter(word for text in texts for word in text)
    return sorted(word for word, n in found.items() if n >= least)


def counted_once(texts, vocabulary):
    return right["count_words"](texts, vocabulary).clamp(max=1)


def balance_of_kinds(texts, good, bad):
    """A word that stands twice counts once."""
    return right["balance"]([sorted(set(text)) for text in texts], good, bad)


def ridge_without_leverage(features, targets, penalties=right["PENALTIES"]):
    """The training error chooses, so that the least penalty always wins."""
    return right["ridge"](features, targets, penalties[:1])


def ridge_without_a_mean(features, targets, penalties=right["PENALTIES"]):
    fit = right["ridge"](features, targets, penalties)
    return fit._replace(offset=0.0)


def ridge_in_fixed_units(features, targets, penalties=right["PENALTIES"]):
    x = features.double()
    unit = torch.linalg.svdvals(x - x.mean(dim=0)).square().mean().item()
    return right["ridge"](features, targets, [p / unit for p in penalties])


def correlation_about_zero(a, b):
    return F.cosine_similarity(a.double(), b.double(), dim=0).item()


def recall_by_dot_products(questions, answers, scale=20.0):
    logits = scale * questions @ answers.T
    return F.cross_entropy(logits, torch.arange(len(logits)), reduction="none")


def recall_without_scale(questions, answers, scale=20.0):
    return right["recall_nats"](questions, answers, 1.0)


BUGS = [
    Bug("common_words", "counts a word twice in one text", common_by_count),
    Bug("count_words", "says whether, not how often", counted_once),
    Bug("balance", "counts a word once", balance_of_kinds),
    Bug("ridge", "chooses by the training error", refusing(right["ridge"], ridge_without_leverage)),
    Bug("ridge", "has no intercept", refusing(right["ridge"], ridge_without_a_mean)),
    Bug("ridge", "minds the features' unit", refusing(right["ridge"], ridge_in_fixed_units)),
    Bug(
        "correlation",
        "does not take the means away",
        refusing(right["correlation"], correlation_about_zero),
    ),
    Bug("recall_nats", "minds lengths", refusing(right["recall_nats"], recall_by_dot_products)),
    Bug("recall_nats", "has no scale", refusing(right["recall_nats"], recall_without_scale)),
]
