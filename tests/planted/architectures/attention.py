"""Plausible wrong versions of course_utils.architectures.attention."""

from __future__ import annotations

import math

import torch
from planting import Bug, originals

right = originals("architectures.attention")


def causal_mask_blind_to_itself(n_queries, n_keys=None, device=None):
    mask = right["causal_mask"](n_queries, n_keys)
    return mask.tril(mask.shape[1] - n_queries - 1)


def causal_mask_one_ahead(n_queries, n_keys=None, device=None):
    n_keys = n_keys or n_queries
    return torch.ones(n_queries, n_keys).tril(n_keys - n_queries + 1).bool()


def causal_mask_at_the_left(n_queries, n_keys=None, device=None):
    return torch.ones(n_queries, n_keys or n_queries).tril().bool()


def padding_mask_inverted(real):
    """nn.MultiheadAttention's convention: True = ignore."""
    return ~right["padding_mask"](real)


def padding_mask_of_queries(real):
    return right["padding_mask"](real).transpose(-2, -1)


def attention_weights_unscaled(q, k, mask=None, *, scale=None, bias=None):
    return right["attention_weights"](q, k, mask, scale=scale or 1.0, bias=bias)


def attention_weights_over_queries(q, k, mask=None, *, scale=None, bias=None):
    scores = (scale or q.shape[-1] ** -0.5) * q @ k.transpose(-2, -1)
    scores = scores if mask is None else scores.masked_fill(~mask, -1e30)
    return scores.softmax(dim=-2)


def attention_weights_masked_after(q, k, mask=None, *, scale=None, bias=None):
    """Weights are cut off after the softmax, and no longer sum to 1."""
    weights = right["attention_weights"](q, k, scale=scale, bias=bias)
    return weights if mask is None else weights * mask


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


def weights_without_root(q, k, mask=None, *, scale=None, bias=None):
    return right["attention_weights"](q, k, mask, scale=1.0 if scale is None else scale, bias=bias)


def weights_divided_by_the_size(q, k, mask=None, *, scale=None, bias=None):
    scale = 1 / q.shape[-1] if scale is None else scale
    return right["attention_weights"](q, k, mask, scale=scale, bias=bias)


def weights_over_queries(q, k, mask=None, *, scale=None, bias=None):
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = scale * q @ k.transpose(-2, -1) + (0 if bias is None else bias)
    return (scores if mask is None else scores.masked_fill(~mask, -1e9)).softmax(-2)


def weights_masked_afterwards(q, k, mask=None, *, scale=None, bias=None):
    weights = right["attention_weights"](q, k, scale=scale, bias=bias)
    return weights if mask is None else weights * mask


def weights_masked_with_zero(q, k, mask=None, *, scale=None, bias=None):
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = scale * q @ k.transpose(-2, -1) + (0 if bias is None else bias)
    return (scores if mask is None else scores * mask).softmax(-1)


def weights_mask_inverted(q, k, mask=None, *, scale=None, bias=None):
    return right["attention_weights"](q, k, None if mask is None else ~mask, scale=scale, bias=bias)


def mask_at_the_left(n_queries, n_keys=None, device=None):
    return torch.ones(n_queries, n_keys or n_queries, dtype=torch.bool).tril()


def mask_without_itself(n_queries, n_keys=None, device=None):
    n_keys = n_queries if n_keys is None else n_keys
    return torch.ones(n_queries, n_keys, dtype=torch.bool).tril(n_keys - n_queries - 1)


def mask_one_ahead(n_queries, n_keys=None, device=None):
    n_keys = n_queries if n_keys is None else n_keys
    return torch.ones(n_queries, n_keys, dtype=torch.bool).tril(n_keys - n_queries + 1)


def mask_inverted(n_queries, n_keys=None, device=None):
    return ~right["causal_mask"](n_queries, n_keys, device)


BUGS = [
    Bug("causal_mask", "hides the token itself", causal_mask_blind_to_itself),
    Bug("causal_mask", "shows one token of the future", causal_mask_one_ahead),
    Bug("causal_mask", "stands at the left", causal_mask_at_the_left),
    Bug("padding_mask", "is inverted", padding_mask_inverted),
    Bug("padding_mask", "masks queries", padding_mask_of_queries),
    Bug("attention_weights", "does not scale", attention_weights_unscaled, tests="is_torchs"),
    Bug(
        "attention_weights",
        "adds up over queries",
        attention_weights_over_queries,
        tests="is_torchs or shares",
    ),
    Bug(
        "attention_weights",
        "masks after the softmax",
        attention_weights_masked_after,
        tests="is_torchs or shares",
    ),
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
    Bug(
        "attention_weights",
        "lacks 1/√D",
        weights_without_root,
        tests="is_torchs",
        exercise="02.weights",
    ),
    Bug(
        "attention_weights",
        "divides by D",
        weights_divided_by_the_size,
        tests="is_torchs",
        exercise="02.weights",
    ),
    Bug(
        "attention_weights",
        "sums to 1 over queries",
        weights_over_queries,
        tests="is_torchs",
        exercise="02.weights",
    ),
    Bug(
        "attention_weights",
        "zeroes weights after the softmax",
        weights_masked_afterwards,
        tests="is_torchs",
        exercise="02.weights",
    ),
    Bug(
        "attention_weights",
        "gives hidden keys the score 0",
        weights_masked_with_zero,
        tests="is_torchs",
        exercise="02.weights",
    ),
    Bug(
        "attention_weights",
        "shows what is hidden",
        weights_mask_inverted,
        tests="is_torchs",
        exercise="02.weights",
    ),
    Bug("causal_mask", "begins at the left", mask_at_the_left, exercise="02.causal_mask"),
    Bug("causal_mask", "leaves the token out", mask_without_itself, exercise="02.causal_mask"),
    Bug("causal_mask", "peeks at the next token", mask_one_ahead, exercise="02.causal_mask"),
    Bug("causal_mask", "says what is hidden", mask_inverted, exercise="02.causal_mask"),
]
