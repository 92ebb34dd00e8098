"""Plausible wrong versions of course_utils.architectures.attention."""

from __future__ import annotations

import math

import torch
from planting import Bug, originals

right = originals("architectures.attention")


def padding_mask_inverted(real):
    """nn.MultiheadAttention's convention: True = ignore."""
    return ~right["padding_mask"](real)


def padding_mask_of_queries(real):
    return right["padding_mask"](real).transpose(-2, -1)


def attention_weights_uniform_when_blind(q, k, mask=None, *, scale=None, bias=None):
    if mask is not None:
        mask = mask | ~mask.any(-1, keepdim=True)
    return right["attention_weights"](q, k, mask, scale=scale, bias=bias)


def attention_weights_bias_scaled(q, k, mask=None, *, scale=None, bias=None):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    bias = None if bias is None else bias * scale
    return right["attention_weights"](q, k, mask, scale=scale, bias=bias)


def fused_attention_left_triangle(q, k, v, mask=None, *, causal=False, **options):
    if causal and mask is None:
        mask = torch.ones(q.shape[2], k.shape[2]).tril().bool()
        causal = False
    return right["fused_attention"](q, k, v, mask, causal=causal, **options)


def fused_attention_mask_or_triangle(q, k, v, mask=None, *, causal=False, **options):
    """A given mask switches causality off."""
    causal = causal and mask is None
    return right["fused_attention"](q, k, v, mask, causal=causal, **options)


def share_heads_tiled(kv, n_heads):
    return kv.repeat(1, n_heads // kv.shape[1], 1, 1)


def attention_plain_overflowing(q, k, v, mask=None, scale=None):
    """exp of the scores as they are."""
    scale = 1 / math.sqrt(q.shape[1]) if scale is None else scale
    powers = torch.exp(scale * q @ k.t())
    powers = powers if mask is None else powers * mask
    total = powers.sum(-1, keepdim=True)
    return powers @ v / total.masked_fill(total == 0, 1)


def looks_back_forwards(weights, steps, start=0):
    return right["looks_back"](weights.transpose(-2, -1), steps, start)


def looks_back_from_the_first(weights, steps, start=0):
    return right["looks_back"](weights, steps)


BUGS = [
    Bug("looks_back", "looks ahead", looks_back_forwards),
    Bug("looks_back", "counts the early queries too", looks_back_from_the_first),
    Bug("attention_plain", "overflows", attention_plain_overflowing, tests="large_scores"),
    Bug("padding_mask", "is inverted", padding_mask_inverted),
    Bug("padding_mask", "masks queries", padding_mask_of_queries),
    Bug(
        "attention_weights",
        "looks everywhere when blind",
        attention_weights_uniform_when_blind,
        tests="nothing",
    ),
    Bug("attention_weights", "scales the bias", attention_weights_bias_scaled, tests="bias"),
    Bug(
        "fused_attention",
        "aligns the triangle left",
        fused_attention_left_triangle,
        tests="future or cached",
    ),
    Bug(
        "fused_attention",
        "drops causality for a mask",
        fused_attention_mask_or_triangle,
        tests="bias",
    ),
    Bug("share_heads", "tiles the heads", share_heads_tiled, tests="is_torchs and grouped"),
]
