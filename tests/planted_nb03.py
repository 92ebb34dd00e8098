"""Wrong versions for the exercises of notebook 03."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from planting import Bug

from course_utils import transformer
from course_utils.transformer import IGNORED

right_loss, right_hide = transformer.label_loss, transformer.hide_chosen


class DecoderBlockAlwaysCausal(transformer.DecoderBlock):
    def forward(self, x, **seen):
        return super().forward(x, **{**seen, "causal": True})


def rms_norm_by_sum(x, weight, eps):
    return weight * x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


def rms_norm_of_everything(x, weight, eps):
    return weight * x * torch.rsqrt(x.square().mean() + eps)


def rms_norm_as_layer_norm(x, weight, eps):
    return F.layer_norm(x, x.shape[-1:], weight, None, eps)


def rms_norm_eps_after_the_root(x, weight, eps):
    return weight * x / (x.square().mean(-1, keepdim=True).sqrt() + eps)


def mean_pool_with_padding(hidden, mask=None):
    return hidden.mean(dim=1)


def mean_pool_by_length(hidden, mask=None):
    mask = torch.ones(hidden.shape[:2]) if mask is None else mask
    return (hidden * mask.unsqueeze(-1)).mean(dim=1)


def mean_pool_without_clamp(hidden, mask=None):
    mask = torch.ones(hidden.shape[:2]) if mask is None else mask
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


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
    return right_loss(logits, ids if mask is None else ids.masked_fill(mask == 0, IGNORED))


def next_token_loss_of_previous(logits, ids, mask=None):
    labels = ids if mask is None else ids.masked_fill(mask == 0, IGNORED)
    return right_loss(logits[:, 1:], labels[:, :-1])


def next_token_loss_with_padding(logits, ids, mask=None):
    return right_loss(logits[:, :-1], ids[:, 1:])


def next_token_loss_summed(logits, ids, mask=None):
    labels = ids if mask is None else ids.masked_fill(mask == 0, IGNORED)
    flat = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return F.cross_entropy(*flat, ignore_index=IGNORED, reduction="sum")


def hide_chosen_asks_for_all(ids, chosen, fate, random, mask_id):
    return right_hide(ids, chosen, fate, random, mask_id)[0], ids


def hide_chosen_asks_for_inputs(ids, chosen, fate, random, mask_id):
    inputs, _ = right_hide(ids, chosen, fate, random, mask_id)
    return inputs, torch.where(chosen, inputs, IGNORED)


def hide_chosen_always_masks(ids, chosen, fate, random, mask_id):
    return torch.where(chosen, mask_id, ids), torch.where(chosen, ids, IGNORED)


def hide_chosen_hides_others(ids, chosen, fate, random, mask_id):
    inputs, _ = right_hide(ids, torch.ones_like(chosen), fate, random, mask_id)
    return inputs, torch.where(chosen, ids, IGNORED)


def hide_chosen_swaps_shares(ids, chosen, fate, random, mask_id):
    """80 % drawn at random, 10 % masked."""
    inputs = torch.where(chosen & (fate < 0.8), random, ids)
    inputs = torch.where(chosen & (fate >= 0.9), mask_id, inputs)
    return inputs, torch.where(chosen, ids, IGNORED)


def _bugs(function: str, tests: str = "", **wrong) -> list[Bug]:
    return [
        Bug(function, name.replace("_", " "), version, tests=tests, exercise=f"03.{function}")
        for name, version in wrong.items()
    ]


TRANSFORMER = [
    Bug("DecoderBlock", "keeps its triangle", DecoderBlockAlwaysCausal, tests="triangle"),
    *_bugs(
        "rms_norm",
        takes_the_sum=rms_norm_by_sum,
        takes_the_mean_over_tokens_too=rms_norm_of_everything,
        is_a_layer_norm=rms_norm_as_layer_norm,
        adds_eps_after_the_root=rms_norm_eps_after_the_root,
    ),
    *_bugs(
        "mean_pool",
        tests="mean_pool or padding",
        averages_padding=mean_pool_with_padding,
        divides_by_the_length=mean_pool_by_length,
        divides_by_zero=mean_pool_without_clamp,
    ),
    *_bugs(
        "shift_right",
        hands_out_ignored_labels=shift_right_with_ignored,
        stays_in_place=shift_right_in_place,
        goes_left=shift_right_leftwards,
        keeps_the_last=shift_right_longer,
    ),
    *_bugs(
        "next_token_loss",
        tests="loss",
        asks_for_the_own_token=next_token_loss_of_own,
        asks_for_the_previous_token=next_token_loss_of_previous,
        counts_the_padding=next_token_loss_with_padding,
        adds_up=next_token_loss_summed,
    ),
    *_bugs(
        "hide_chosen",
        asks_for_all=hide_chosen_asks_for_all,
        asks_for_its_inputs=hide_chosen_asks_for_inputs,
        always_masks=hide_chosen_always_masks,
        hides_what_was_not_chosen=hide_chosen_hides_others,
        swaps_the_shares=hide_chosen_swaps_shares,
    ),
]
