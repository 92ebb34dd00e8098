"""Sentences as vectors: an encoder, what comes into its layers, and lessons for copies of it.

Notebooks 14 and 16. A *lesson* is a batch of texts with the vectors that the whole model gives
them: what a rounded or pruned copy learns to say again.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from course_utils import models
from course_utils.architectures import pretrained
from course_utils.architectures.encoder import Encoder, embed_sentences
from course_utils.compression.calibration import Moments, collect_moments

Text = tuple[Tensor, Tensor]  # ids and mask (B, T)
Lesson = tuple[Text, Tensor]  # and unit vectors (B, D)


def load(model: str = "minilm", device: torch.device | str = "cpu") -> tuple[Encoder, Callable]:
    """An encoder in the course's own module, in eval mode without gradients, and its tokenizer."""
    bert, tokenizer = models.load_encoder(model, device=device)
    encoder = Encoder(pretrained.bert_config(bert.config.to_dict())).to(device)
    pretrained.load_bert_weights(encoder, bert.state_dict())
    return encoder.eval().requires_grad_(False), tokenizer


def batches(
    tokenizer: Callable, texts: Sequence[str], size: int = 16, device: torch.device | str = "cpu"
) -> list[Text]:
    """Ids and masks, `size` texts at a time, in the order given; cut at 64 tokens.

    Raises ValueError for no text at all, and a size below 1.
    """
    if not texts or size < 1:
        raise ValueError(f"{len(texts)} texts in batches of {size}; give at least one of each")
    found = []
    for start in range(0, len(texts), size):
        part = list(texts[start : start + size])
        options = dict(padding=True, truncation=True, max_length=64, return_tensors="pt")
        coded = tokenizer(part, **options).to(device)
        found.append((coded["input_ids"], coded["attention_mask"]))
    return found


@torch.no_grad()
def vectors_of(model: Encoder, texts: Sequence[Text]) -> Tensor:
    """A unit vector for each text of these batches (N, D)."""
    return torch.cat([embed_sentences(model, *batch) for batch in texts])


def moments(model: Encoder, texts: Sequence[Text]) -> dict[str, Moments]:
    """What comes into each linear layer while the model reads, padding left out."""
    options = dict(call=lambda net, batch: net(*batch), mask_of=lambda batch: batch[1])
    return collect_moments(model, texts, **options)


def lessons(
    model: Encoder,
    tokenizer: Callable,
    texts: Sequence[str],
    size: int = 12,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[Lesson]:
    """Batches of texts of like length, in a random order, each with the model's own vectors.

    What does not fill a batch is left out.
    """
    whole = len(texts) // size * size
    found = batches(tokenizer, sorted(texts[:whole], key=len), size, device)
    random.Random(seed).shuffle(found)
    return [(batch, vectors_of(model, [batch])) for batch in found]


def lessons_by_stops(
    model: Encoder,
    tokenizer: Callable,
    texts: Sequence[str],
    stops: Sequence[int],
    size: int,
    *,
    seed: int,
    device: torch.device | str,
) -> list[Lesson]:
    """`lessons` up to the last of `stops` (0, …); those up to an earlier one do not depend on it.

    Texts are taken in turn, and from the first again where there are too few.
    """
    found: list[Lesson] = []
    for start, end in itertools.pairwise(stops):
        part = [texts[i % len(texts)] for i in range(start * size, end * size)]
        found += lessons(model, tokenizer, part, size, seed=seed, device=device)
    return found


def mean_cosine(model: Encoder, texts: Sequence[Text], wanted: Tensor) -> float:
    """Of the model's vectors of texts and those wanted of it, unit vectors (N, D)."""
    return (vectors_of(model, texts) * wanted).sum(dim=-1).mean().item()


def distance(model: Encoder, lesson: Lesson) -> Tensor:
    """1 − the mean cosine of the model's vectors and the lesson's: a loss, 0 if they are equal."""
    (ids, mask), wanted = lesson
    return 1 - (embed_sentences(model, ids, mask) * wanted).sum(dim=-1).mean()


def learn_blocks(model: Encoder) -> list[nn.Parameter]:
    """Let the blocks learn and the embeddings stay; the parameters that learn."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("blocks."))
    return [p for p in model.parameters() if p.requires_grad]
