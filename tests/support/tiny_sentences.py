"""A tiny encoder, a tokenizer whose tokens are letters, and editorials for them."""

from __future__ import annotations

import torch

from course_utils.architectures.encoder import Encoder, EncoderConfig
from course_utils.tasks.editorials import Sentence

WORDS = "a bb ccc dd e ff ggg"  # seven, so that sentences are long enough to be drawn


class Coded(dict):
    def to(self, device):
        return self


def tokenizer(texts, **_):
    """A letter a token; padded with 0."""
    rows = [[ord(letter) % 29 + 1 for letter in text] for text in texts]
    longest = max(map(len, rows))
    padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return Coded(input_ids=padded, attention_mask=(padded > 0).long())


def tiny_encoder(seed=0):
    """Its rows are 8 numbers and 16."""
    torch.manual_seed(seed)
    sizes = dict(vocab_size=30, d_model=8, n_heads=2, n_layers=2, d_ff=16)
    return Encoder(EncoderConfig(**sizes)).eval().requires_grad_(False)


def rows():
    """Six editorials of three sentences."""
    return [Sentence(i, f"{WORDS} {'x' * j}{i}") for i in range(6) for j in range(3)]
