"""Wrong versions for the exercises and helpers of notebook 02."""

from __future__ import annotations

import math

import torch
from planting import Bug

from course_utils import attention

right_weights, right_mask = attention.attention_weights, attention.causal_mask
right_rotate, right_table = attention.rotate_plain, attention.sinusoidal_positions
right_path = attention.path_length


def weights_without_root(q, k, mask=None, *, scale=None, bias=None):
    return right_weights(q, k, mask, scale=1.0 if scale is None else scale, bias=bias)


def weights_divided_by_the_size(q, k, mask=None, *, scale=None, bias=None):
    scale = 1 / q.shape[-1] if scale is None else scale
    return right_weights(q, k, mask, scale=scale, bias=bias)


def weights_over_queries(q, k, mask=None, *, scale=None, bias=None):
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = scale * q @ k.transpose(-2, -1) + (0 if bias is None else bias)
    return (scores if mask is None else scores.masked_fill(~mask, -1e9)).softmax(-2)


def weights_masked_afterwards(q, k, mask=None, *, scale=None, bias=None):
    weights = right_weights(q, k, scale=scale, bias=bias)
    return weights if mask is None else weights * mask


def weights_masked_with_zero(q, k, mask=None, *, scale=None, bias=None):
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = scale * q @ k.transpose(-2, -1) + (0 if bias is None else bias)
    return (scores if mask is None else scores * mask).softmax(-1)


def weights_mask_inverted(q, k, mask=None, *, scale=None, bias=None):
    return right_weights(q, k, None if mask is None else ~mask, scale=scale, bias=bias)


def mask_at_the_left(n_queries, n_keys=None, device=None):
    return torch.ones(n_queries, n_keys or n_queries, dtype=torch.bool).tril()


def mask_without_itself(n_queries, n_keys=None, device=None):
    n_keys = n_queries if n_keys is None else n_keys
    return torch.ones(n_queries, n_keys, dtype=torch.bool).tril(n_keys - n_queries - 1)


def mask_one_ahead(n_queries, n_keys=None, device=None):
    n_keys = n_queries if n_keys is None else n_keys
    return torch.ones(n_queries, n_keys, dtype=torch.bool).tril(n_keys - n_queries + 1)


def mask_inverted(n_queries, n_keys=None, device=None):
    return ~right_mask(n_queries, n_keys, device)


def rotated_backwards(x, position, theta=10_000.0):
    return right_rotate(x, -position, theta)


def rotated_at_one_speed(x, position, theta=10_000.0):
    return torch.cat([right_rotate(pair, position, theta) for pair in x.split(2)])


def rotated_in_halves(x, position, theta=10_000.0):
    turned = right_rotate(x.view(2, -1).T.flatten(), position, theta)
    return turned.view(-1, 2).T.flatten()


def rotated_with_half_the_exponent(x, position, theta=10_000.0):
    return right_rotate(x, position, math.sqrt(theta))


def table_in_halves(n_positions, d_model):
    table = right_table(n_positions, d_model)
    return torch.cat([table[:, 0::2], table[:, 1::2]], dim=1)


def table_from_one(n_positions, d_model):
    return right_table(n_positions + 1, d_model)[1:]


def table_with_half_the_exponent(n_positions, d_model):
    frequencies = attention.rotary_frequencies(d_model, theta=100.0)
    angles = torch.arange(n_positions).unsqueeze(1) * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def path_counts_the_leaf(output, source):
    return right_path(output, source) + 1


def path_is_the_longest(output, source):
    """Depth first, and the longest of all ways."""

    def longest(node):
        if getattr(node, "variable", None) is source:
            return 0
        ways = [longest(following) for following, _ in node.next_functions if following]
        return 1 + max(ways) if ways else -math.inf

    if output.grad_fn is None or (length := longest(output.grad_fn)) < 0:
        raise ValueError("no path leads back")
    return length


ATTENTION = [
    Bug("attention_weights", "lacks 1/√D", weights_without_root,
        tests="is_torchs", exercise="02.weights"),
    Bug("attention_weights", "divides by D", weights_divided_by_the_size,
        tests="is_torchs", exercise="02.weights"),
    Bug("attention_weights", "sums to 1 over queries", weights_over_queries,
        tests="is_torchs", exercise="02.weights"),
    Bug("attention_weights", "zeroes weights after the softmax", weights_masked_afterwards,
        tests="is_torchs", exercise="02.weights"),
    Bug("attention_weights", "gives hidden keys the score 0", weights_masked_with_zero,
        tests="is_torchs", exercise="02.weights"),
    Bug("attention_weights", "shows what is hidden", weights_mask_inverted,
        tests="is_torchs", exercise="02.weights"),
    Bug("causal_mask", "begins at the left", mask_at_the_left, exercise="02.causal_mask"),
    Bug("causal_mask", "leaves the token out", mask_without_itself, exercise="02.causal_mask"),
    Bug("causal_mask", "peeks at the next token", mask_one_ahead, exercise="02.causal_mask"),
    Bug("causal_mask", "says what is hidden", mask_inverted, exercise="02.causal_mask"),
    Bug("rotate_plain", "turns backwards", rotated_backwards,
        tests="rotation", exercise="02.rotate"),
    Bug("rotate_plain", "has one speed", rotated_at_one_speed,
        tests="rotation", exercise="02.rotate"),
    Bug("rotate_plain", "pairs halves", rotated_in_halves,
        tests="rotation", exercise="02.rotate"),
    Bug("rotate_plain", "halves the exponent", rotated_with_half_the_exponent,
        tests="rotation", exercise="02.rotate"),
    Bug("sinusoidal_positions", "sorts sines from cosines", table_in_halves,
        tests="sinusoidal", exercise="02.sinusoidal"),
    Bug("sinusoidal_positions", "counts from 1", table_from_one,
        tests="sinusoidal", exercise="02.sinusoidal"),
    Bug("sinusoidal_positions", "halves the exponent", table_with_half_the_exponent,
        tests="sinusoidal", exercise="02.sinusoidal"),
    Bug("path_length", "counts the leaf", path_counts_the_leaf),
    Bug("path_length", "takes the longest way", path_is_the_longest),
]  # fmt: skip


def kept_counts_twice(call):
    sizes = []

    def note(tensor):
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        call()
    return sum(sizes)


def kept_counts_the_result(call):
    return call().nbytes


METRICS = [
    Bug("kept_for_backward", "counts shared storage twice", kept_counts_twice),
    Bug("kept_for_backward", "measures the result", kept_counts_the_result),
]
