"""Plausible wrong versions of course_utils.finetuning.label_words."""

from __future__ import annotations

import math

import torch
from planting import Bug, originals

right = originals("finetuning.label_words")


def nats_among_labels(logits, labels, truth):
    """Everything but the labels is left out before the softmax: form costs nothing."""
    cost = right["label_nats"](logits, labels, truth)
    return cost._replace(format=torch.zeros_like(cost.format))


def nats_with_the_sum_as_choice(logits, labels, truth):
    cost = right["label_nats"](logits, labels, truth)
    return cost._replace(choice=cost.format + cost.choice)


def nats_of_sorted_labels(logits, labels, truth):
    return right["label_nats"](logits, sorted(labels), truth)


def format_of_any_row(logits, labels):
    right["check_label_ids"](labels)
    found = torch.isin(logits.argmax(dim=-1), torch.tensor(list(labels)))
    return found.any().expand(len(logits))


def chosen_token(logits, labels):
    return torch.tensor(list(labels))[right["chosen"](logits, labels)]


def prior_in_bits(truth):
    return right["prior_nats"](truth) / math.log(2)


BUGS = [
    Bug("label_nats", "leaves form out", nats_among_labels),
    Bug("label_nats", "counts form twice", nats_with_the_sum_as_choice),
    Bug("label_nats", "sorts the labels", nats_of_sorted_labels),
    Bug("in_format", "asks whether any text has it", format_of_any_row),
    Bug("chosen", "gives tokens", chosen_token),
    Bug("prior_nats", "counts in bits", prior_in_bits),
]
