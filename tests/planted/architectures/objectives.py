"""Plausible wrong versions of course_utils.architectures.objectives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from planting import Bug, originals

from course_utils.architectures.objectives import IGNORED

right = originals("architectures.objectives")


def hide_tokens_always_masked(ids, mask_id, vocab_size, **options):
    inputs, labels = right["hide_tokens"](ids, mask_id, vocab_size, **options)
    return torch.where(labels >= 0, mask_id, inputs), labels


def hide_tokens_ignores_keep(ids, mask_id, vocab_size, *, keep=None, **options):
    return right["hide_tokens"](ids, mask_id, vocab_size, **options)


def hide_tokens_asks_for_all(ids, mask_id, vocab_size, **options):
    return right["hide_tokens"](ids, mask_id, vocab_size, **options)[0], ids


def label_loss_counts_all(logits, labels):
    """Ignored labels are 0 in the sum, but divide it."""
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    return losses / labels.numel()


def hide_chosen_swaps_shares(ids, chosen, fate, random, mask_id):
    """80 % drawn at random, 10 % masked."""
    inputs = torch.where(chosen & (fate < 0.8), random, ids)
    inputs = torch.where(chosen & (fate >= 0.9), mask_id, inputs)
    return inputs, torch.where(chosen, ids, IGNORED)


def counted_nats_add_one(seen, unseen, order, vocab_size):
    """Laplace's counts of the longest context alone, without the shorter ones."""
    flat = right["_codes"](seen, order, vocab_size).flatten()
    count = torch.bincount(flat, minlength=vocab_size ** (order + 1)).view(-1, vocab_size)
    p = (count + 1) / (count.sum(1, keepdim=True) + vocab_size)
    return -p.flatten()[right["_codes"](unseen, order, vocab_size)].log()


def counted_nats_across_rows(seen, unseen, order, vocab_size):
    return right["counted_nats"](seen.reshape(1, -1), unseen, order, vocab_size)


def counted_nats_of_the_exam(seen, unseen, order, vocab_size):
    return right["counted_nats"](unseen, unseen, order, vocab_size)


BUGS = [
    Bug("counted_nats", "add-one instead", counted_nats_add_one, tests="witten"),
    Bug("counted_nats", "counts across rows", counted_nats_across_rows, tests="witten"),
    Bug("counted_nats", "counts the exam", counted_nats_of_the_exam, tests="counted_nats_are"),
    Bug("hide_tokens", "always masks", hide_tokens_always_masked, tests="hidden_tokens"),
    Bug("hide_tokens", "ignores keep", hide_tokens_ignores_keep, tests="hidden_tokens"),
    Bug("hide_tokens", "asks for every token", hide_tokens_asks_for_all, tests="hidden_tokens"),
    Bug("label_loss", "divides by all labels", label_loss_counts_all, tests="loss"),
    Bug("hide_chosen", "swaps the shares", hide_chosen_swaps_shares, exercise="03.hide_chosen"),
]
