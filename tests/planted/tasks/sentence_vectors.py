"""Plausible wrong versions of course_utils.tasks.sentence_vectors."""

from __future__ import annotations

import torch
from planting import Bug, originals

right = originals("tasks.sentence_vectors")


def without_mask(model, texts):
    with torch.no_grad():
        return torch.cat([right["embed_sentences"](model, ids, None) for ids, _ in texts])


def padding_counts(model, texts):
    return right["collect_moments"](model, texts, call=lambda net, batch: net(*batch))


def the_rest_too(model, tokenizer, texts, size=12, *, seed=0, device="cpu"):
    found = right["batches"](tokenizer, sorted(texts, key=len), size, device)
    right["random"].Random(seed).shuffle(found)
    return [(batch, right["vectors_of"](model, [batch])) for batch in found]


def not_shuffled(model, tokenizer, texts, size=12, *, seed=0, device="cpu"):
    return right["lessons"](model, tokenizer, texts, size, seed=0, device=device)


def cosine_itself(model, lesson):
    return 1 - right["distance"](model, lesson)


def everything_learns(model):
    return list(model.requires_grad_().parameters())


BUGS = [
    Bug("vectors_of", "counts padding", without_mask),
    Bug("moments", "counts padding", padding_counts),
    Bug("lessons", "keeps the batch that is not full", the_rest_too),
    Bug("lessons", "has one order for all seeds", not_shuffled),
    Bug("distance", "is the cosine itself", cosine_itself),
    Bug("learn_blocks", "lets the embeddings learn", everything_learns),
]
