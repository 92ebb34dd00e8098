"""Plausible wrong versions of course_utils.finetuning.transfer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from planting import Bug, originals
from torch import nn

right = originals("finetuning.transfer")


def freeze_the_first(module):
    """Only what the module holds itself, not what its parts hold."""
    for parameter in module.parameters(recurse=False):
        parameter.requires_grad_(False)
    return sum(p.numel() for p in module.parameters())


def train_first(model, blocks, k):
    right["train_last"](model, blocks, k)
    right["freeze"](model)
    for block in list(blocks)[:k]:
        block.requires_grad_(True)
    return right["trainable"](model)


def train_last_by_a_slice(model, blocks, k):
    """[-0:] is everything."""
    right["train_last"](model, blocks, k)
    right["freeze"](model)
    for block in list(blocks)[-k:]:
        block.requires_grad_(True)
    return right["trainable"](model)


def train_last_too(model, blocks, k):
    """Thaws, but never freezes."""
    if not 0 <= k <= len(blocks):
        raise ValueError(f"k is {k}; there are {len(blocks)} blocks")
    for block in list(blocks)[len(blocks) - k :]:
        block.requires_grad_(True)
    return right["trainable"](model)


def count_all(model):
    return sum(p.numel() for p in model.parameters())


def depths_with_the_head_below(model, blocks):
    found = right["depths"](model, blocks)
    return {name: 0 if at > len(blocks) else at for name, at in found.items()}


def depths_from_one(model, blocks):
    return {name: max(at - 1, 0) for name, at in right["depths"](model, blocks).items()}


def rates_turned_round(model, blocks, rate, decay):
    groups = right["layerwise_rates"](model, blocks, rate, decay)
    rates = [group["lr"] for group in groups][::-1]
    return [group | {"lr": lr} for group, lr in zip(groups, rates, strict=True)]


def rates_one_lower(model, blocks, rate, decay):
    groups = right["layerwise_rates"](model, blocks, rate, decay)
    return [group | {"lr": group["lr"] * decay} for group in groups]


def rates_of_frozen_too(model, blocks, rate, decay):
    groups = right["layerwise_rates"](model, blocks, rate, decay)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    return [{"params": frozen, "lr": 0.0}, *groups] if frozen else groups


def last_place(hidden, mask=None):
    return hidden[:, -1]


def last_by_the_sum(hidden, mask=None):
    """The number of real tokens, less one: wrong where padding stands on the left."""
    if mask is None:
        return hidden[:, -1]
    return hidden[torch.arange(len(hidden)), mask.sum(1) - 1]


class ClassifierWithAnOpinion(right["Classifier"]):
    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.head.reset_parameters()


class ClassifierThatSeesPadding(right["Classifier"]):
    def forward(self, ids, mask=None):
        return self.head(self.dropout(self.pool(self.encoder(ids, mask), None)))


class ClassifierWhoseEncoderSeesPadding(right["Classifier"]):
    def forward(self, ids, mask=None):
        every = None if mask is None else torch.ones_like(mask)
        return self.head(self.dropout(self.pool(self.encoder(ids, every), mask)))


class ClassifierOfTwoHeads(right["Classifier"]):
    """Drops the answer, not what comes in."""

    def forward(self, ids, mask=None):
        return F.relu(self.head(self.pool(self.encoder(ids, mask), mask)))


def classes_of_any_size(labels, n_labels):
    labels = list(labels)
    if labels and min(labels) != max(labels):
        return
    right["check_classes"](labels, n_labels)


def instruction_that_counts_the_prompt(prompt, answer, limit):
    example = right["instruction"](prompt, answer, limit)
    return example._replace(labels=list(example.ids))


def instruction_that_loses_the_first(prompt, answer, limit):
    """The labels are moved already, and the loss moves them again."""
    example = right["instruction"](prompt, answer, limit)
    return example._replace(labels=[*example.labels[1:], -100])


def instruction_cut_off(prompt, answer, limit):
    if len(prompt) + len(answer) <= limit:
        return right["instruction"](prompt, answer, limit)
    example = right["instruction"](prompt, answer, len(prompt) + len(answer))
    return right["Example"](example.ids[:limit], example.labels[:limit])


def chat_without_ends(turns):
    return right["chat_prompt"](turns).replace("<|im_end|>\n<|im_start|>", "\n<|im_start|>")


def pad_with_labels(examples, pad_id=0):
    """Empty places are learned: the labels are the ids."""
    batch = right["pad"](examples, pad_id)
    return batch._replace(labels=torch.where(batch.mask == 0, pad_id, batch.labels))


def pad_on_the_left(examples, pad_id=0):
    batch = right["pad"](examples, pad_id)
    turned = []
    for ids, labels, mask in zip(*batch, strict=True):
        n = int((mask == 0).sum())
        turned.append([part.roll(n) for part in (ids, labels, mask)])
    return right["Batch"](*(torch.stack(part) for part in zip(*turned, strict=True)))


def loss_as_the_mean_of_rows(logits, labels):
    """A short answer's token weighs more than a long one's."""
    right["answer_loss"](logits, labels)
    rows = [
        right["answer_loss"](one.unsqueeze(0), two.unsqueeze(0))
        for one, two in zip(logits, labels, strict=True)
    ]
    return torch.stack(rows).mean()


def loss_unshifted(logits, labels):
    right["answer_loss"](logits, labels)
    return right["label_loss"](logits, labels)


def loss_over_all_places(logits, labels):
    """Divided by all places, empty ones too."""
    counted = (labels[:, 1:] != -100).sum()
    return right["answer_loss"](logits, labels) * counted / labels.numel()


def loss_moved_the_other_way(logits, labels):
    right["answer_loss"](logits, labels)
    return nn.functional.cross_entropy(
        logits[:, 1:].flatten(0, 1), labels[:, :-1].flatten(), ignore_index=-100
    )


BUGS = [
    Bug("freeze", "goes no deeper", freeze_the_first),
    Bug("train_last", "thaws the first", train_first),
    Bug("train_last", "thaws all for 0", train_last_by_a_slice),
    Bug("train_last", "freezes nothing", train_last_too),
    Bug("trainable", "counts all", count_all),
    Bug("depths", "puts the head below", depths_with_the_head_below),
    Bug("depths", "counts from the embedding", depths_from_one),
    Bug("layerwise_rates", "is fastest below", rates_turned_round),
    Bug("layerwise_rates", "slows the top", rates_one_lower),
    Bug("layerwise_rates", "takes frozen parts", rates_of_frozen_too),
    Bug("last_token", "takes padding", last_place, "classifier or pools"),
    Bug("last_token", "counts tokens", last_by_the_sum, "pools"),
    Bug("Classifier", "starts at random", ClassifierWithAnOpinion),
    Bug("Classifier", "pools padding", ClassifierThatSeesPadding),
    Bug("Classifier", "reads padding", ClassifierWhoseEncoderSeesPadding),
    Bug("Classifier", "has a ReLU behind it", ClassifierOfTwoHeads),
    Bug("check_classes", "takes any label", classes_of_any_size),
    Bug("instruction", "counts the prompt", instruction_that_counts_the_prompt),
    Bug("instruction", "moves the labels", instruction_that_loses_the_first),
    Bug("instruction", "cuts answers off", instruction_cut_off),
    Bug("chat_prompt", "ends no turn", chat_without_ends),
    Bug("pad", "teaches padding", pad_with_labels),
    Bug("pad", "fills on the left", pad_on_the_left),
    Bug("answer_loss", "is the mean of the rows' means", loss_as_the_mean_of_rows),
    Bug("answer_loss", "is not shifted", loss_unshifted),
    Bug("answer_loss", "divides by all places", loss_over_all_places),
    Bug("answer_loss", "is shifted the other way", loss_moved_the_other_way),
]
