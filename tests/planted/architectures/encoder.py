"""Plausible wrong versions of course_utils.architectures.encoder."""

from __future__ import annotations

import torch
from planting import Bug, originals

right = originals("architectures.encoder")


def mean_pool_everything(hidden, mask=None):
    return hidden.mean(dim=1)


def mean_pool_over_all_tokens(hidden, mask=None):
    """Padding is left out of the sum but counted."""
    return hidden.mean(dim=1) if mask is None else (hidden * mask.unsqueeze(-1)).mean(dim=1)


class EncoderBlockPreNorm(right["EncoderBlock"]):
    def forward(self, x, mask):
        x = x + self.attention(self.attention_norm(x), mask=mask)
        return x + self.feed_forward(self.feed_forward_norm(x))


class EncoderBlockOneResidual(right["EncoderBlock"]):
    def forward(self, x, mask):
        x = self.attention_norm(x + self.attention(x, mask=mask))
        return self.feed_forward_norm(self.feed_forward(x))


def mean_pool_with_padding(hidden, mask=None):
    return hidden.mean(dim=1)


def mean_pool_by_length(hidden, mask=None):
    mask = torch.ones(hidden.shape[:2]) if mask is None else mask
    return (hidden * mask.unsqueeze(-1)).mean(dim=1)


def mean_pool_without_clamp(hidden, mask=None):
    mask = torch.ones(hidden.shape[:2]) if mask is None else mask
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


BUGS = [
    Bug("mean_pool", "counts padding", mean_pool_everything, tests="mean_pool or padding"),
    Bug("mean_pool", "divides by all", mean_pool_over_all_tokens, tests="mean_pool or padding"),
    Bug("EncoderBlock", "normalises first", EncoderBlockPreNorm, tests="berts"),
    Bug("EncoderBlock", "lacks a residual", EncoderBlockOneResidual, tests="berts"),
    Bug(
        "mean_pool",
        "averages padding",
        mean_pool_with_padding,
        tests="mean_pool or padding",
        exercise="03.mean_pool",
    ),
    Bug(
        "mean_pool",
        "divides by the length",
        mean_pool_by_length,
        tests="mean_pool or padding",
        exercise="03.mean_pool",
    ),
    Bug(
        "mean_pool",
        "divides by zero",
        mean_pool_without_clamp,
        tests="mean_pool or padding",
        exercise="03.mean_pool",
    ),
]
