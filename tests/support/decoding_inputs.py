"""What the tests of decoding share."""

from __future__ import annotations

import math

import torch

INF = math.inf


# Next-token probabilities after each token: greedy takes 0 → 1 → 1, but 0 → 2 → 3 is likelier.
CHAIN = torch.tensor(
    [
        [0.0, 0.5, 0.4, 0.1],
        [0.3, 0.4, 0.3, 0.0],
        [0.05, 0.05, 0.0, 0.9],
        [1.0, 0.0, 0.0, 0.0],
    ]
)


def chain(ids):
    return CHAIN[ids[:, -1]].log()


VOCAB, PAD = 96, 1


MANY = list(range(2, VOCAB, 4))  # stop tokens that come often


def prompts(count, length=5):
    return torch.randint(2, VOCAB, (count, 1, length), generator=torch.Generator().manual_seed(1))


def generate(model, prompt, max_new_tokens, **options):
    """transformers' own answer: the new tokens of each returned sequence, padded."""
    options = {"do_sample": False, "pad_token_id": PAD, **options}
    mask = torch.ones_like(prompt)
    out = model.generate(prompt, attention_mask=mask, max_new_tokens=max_new_tokens, **options)
    ids = out if isinstance(out, torch.Tensor) else out.sequences
    return ids[:, prompt.shape[1] :].tolist(), out


def padded(continuations, pad=PAD):
    longest = max(len(c.tokens) for c in continuations)
    return [[*c.tokens, *[pad] * (longest - len(c.tokens))] for c in continuations]


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)  # fp32, other summation order


TEXTS = (
    "The capital of France is",
    "Once upon a time there was",
    "The largest planet is",
    "Water boils at",
    "My favourite food is",
    "Two plus two equals",
    "The opposite of hot is",
    "In the beginning",
    "The cat sat on the",
    "Birds fly because",
    "The sun rises in the",
    "A triangle has",
    "She opened the door and",
    "The first president was",
    "To make tea, you",
    "Dogs are known for",
    "The colour of grass is",
    "He looked at me and said",
    "Snow is white because",
    "The answer to the question is",
)


def smollm2_prompts(tokenizer):
    return [tokenizer(text, return_tensors="pt").input_ids for text in TEXTS]
