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


def next_token_loss_unshifted(logits, ids, mask=None):
    labels = ids if mask is None else ids.masked_fill(mask == 0, IGNORED)
    return right["label_loss"](logits, labels)


def next_token_loss_counts_padding(logits, ids, mask=None):
    return right["next_token_loss"](logits, ids)


def label_loss_counts_all(logits, labels):
    """Ignored labels are 0 in the sum, but divide it."""
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    return losses / labels.numel()


def shift_right_keeps_ignored(labels, start, pad):
    return F.pad(labels[:, :-1], (1, 0), value=start)


def shift_right_not(labels, start, pad):
    return labels.masked_fill(labels == IGNORED, pad)


def shift_right_with_ignored(labels, start, pad):
    return F.pad(labels[:, :-1], (1, 0), value=start)


def shift_right_in_place(labels, start, pad):
    return labels.masked_fill(labels == IGNORED, pad)


def shift_right_leftwards(labels, start, pad):
    shifted = F.pad(labels[:, 1:], (0, 1), value=start)
    return shifted.masked_fill(shifted == IGNORED, pad)


def shift_right_longer(labels, start, pad):
    shifted = F.pad(labels, (1, 0), value=start)
    return shifted.masked_fill(shifted == IGNORED, pad)


def next_token_loss_of_own(logits, ids, mask=None):
    return right["label_loss"](logits, ids if mask is None else ids.masked_fill(mask == 0, IGNORED))


def next_token_loss_of_previous(logits, ids, mask=None):
    labels = ids if mask is None else ids.masked_fill(mask == 0, IGNORED)
    return right["label_loss"](logits[:, 1:], labels[:, :-1])


def next_token_loss_with_padding(logits, ids, mask=None):
    return right["label_loss"](logits[:, :-1], ids[:, 1:])


def next_token_loss_summed(logits, ids, mask=None):
    labels = ids if mask is None else ids.masked_fill(mask == 0, IGNORED)
    flat = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return F.cross_entropy(*flat, ignore_index=IGNORED, reduction="sum")


def hide_chosen_asks_for_all(ids, chosen, fate, random, mask_id):
    return right["hide_chosen"](ids, chosen, fate, random, mask_id)[0], ids


def hide_chosen_asks_for_inputs(ids, chosen, fate, random, mask_id):
    inputs, _ = right["hide_chosen"](ids, chosen, fate, random, mask_id)
    return inputs, torch.where(chosen, inputs, IGNORED)


def hide_chosen_always_masks(ids, chosen, fate, random, mask_id):
    return torch.where(chosen, mask_id, ids), torch.where(chosen, ids, IGNORED)


def hide_chosen_hides_others(ids, chosen, fate, random, mask_id):
    inputs, _ = right["hide_chosen"](ids, torch.ones_like(chosen), fate, random, mask_id)
    return inputs, torch.where(chosen, ids, IGNORED)


def hide_chosen_swaps_shares(ids, chosen, fate, random, mask_id):
    """80 % drawn at random, 10 % masked."""
    inputs = torch.where(chosen & (fate < 0.8), random, ids)
    inputs = torch.where(chosen & (fate >= 0.9), mask_id, inputs)
    return inputs, torch.where(chosen, ids, IGNORED)


BUGS = [
    Bug("hide_tokens", "always masks", hide_tokens_always_masked, tests="hidden_tokens"),
    Bug("hide_tokens", "ignores keep", hide_tokens_ignores_keep, tests="hidden_tokens"),
    Bug("hide_tokens", "asks for every token", hide_tokens_asks_for_all, tests="hidden_tokens"),
    Bug("next_token_loss", "does not shift", next_token_loss_unshifted, tests="loss"),
    Bug("next_token_loss", "counts padding", next_token_loss_counts_padding),
    Bug("label_loss", "divides by all labels", label_loss_counts_all, tests="loss"),
    Bug("shift_right", "leaves -100 in", shift_right_keeps_ignored),
    Bug("shift_right", "does not shift", shift_right_not),
    Bug(
        "shift_right",
        "hands out ignored labels",
        shift_right_with_ignored,
        exercise="03.shift_right",
    ),
    Bug("shift_right", "stays in place", shift_right_in_place, exercise="03.shift_right"),
    Bug("shift_right", "goes left", shift_right_leftwards, exercise="03.shift_right"),
    Bug("shift_right", "keeps the last", shift_right_longer, exercise="03.shift_right"),
    Bug(
        "next_token_loss",
        "asks for the own token",
        next_token_loss_of_own,
        tests="loss",
        exercise="03.next_token_loss",
    ),
    Bug(
        "next_token_loss",
        "asks for the previous token",
        next_token_loss_of_previous,
        tests="loss",
        exercise="03.next_token_loss",
    ),
    Bug(
        "next_token_loss",
        "counts the padding",
        next_token_loss_with_padding,
        tests="loss",
        exercise="03.next_token_loss",
    ),
    Bug(
        "next_token_loss",
        "adds up",
        next_token_loss_summed,
        tests="loss",
        exercise="03.next_token_loss",
    ),
    Bug("hide_chosen", "asks for all", hide_chosen_asks_for_all, exercise="03.hide_chosen"),
    Bug(
        "hide_chosen", "asks for its inputs", hide_chosen_asks_for_inputs, exercise="03.hide_chosen"
    ),
    Bug("hide_chosen", "always masks", hide_chosen_always_masks, exercise="03.hide_chosen"),
    Bug(
        "hide_chosen",
        "hides what was not chosen",
        hide_chosen_hides_others,
        exercise="03.hide_chosen",
    ),
    Bug("hide_chosen", "swaps the shares", hide_chosen_swaps_shares, exercise="03.hide_chosen"),
]
