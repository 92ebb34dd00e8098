"""Plausible wrong versions of course_utils.architectures.positions."""

from __future__ import annotations

import torch
from planting import Bug, originals

right = originals("architectures.positions")


def rotary_frequencies_half_as_far(d_head, theta=10_000.0):
    """θ^(−i/D) instead of θ^(−2i/D)."""
    return 1 / theta ** (torch.arange(d_head // 2).float() / d_head)


def rotate_the_other_way(x, cos, sin):
    return right["rotate"](x, cos, -sin)


def rotate_neighbours(x, cos, sin):
    """The paper's pairs with the other layout's angles."""
    partner = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return x * cos + partner * sin.abs()


def pair_halves_not(weight, n_heads):
    return weight


def pair_halves_across_heads(weight, n_heads):
    return right["pair_halves"](weight, 1)


def linear_scaling_the_other_way(frequencies, factor):
    return frequencies * factor


def dynamic_scaling_always(d_head, theta, factor, length, original_length):
    """As if every text were as long as the factor allows."""
    longest = int(factor * original_length)
    return right["dynamic_scaling"](d_head, theta, factor, longest, original_length)


def yarn_scaling_without_magnitude(*arguments):
    return right["yarn_scaling"](*arguments)[0], 1.0


def yarn_scaling_inverted(frequencies, theta, factor, *rest):
    mixed, magnitude = right["yarn_scaling"](frequencies, theta, factor, *rest)
    return frequencies + frequencies / factor - mixed, magnitude


def llama3_scaling_all(frequencies, factor, low, high, original_length):
    return frequencies / factor


def relative_buckets_mirrored(n_queries, n_keys, *, both_ways=True, **options):
    found = right["relative_buckets"](n_queries, n_keys, both_ways=both_ways, **options)
    return found.flip(1)


def relative_buckets_at_the_left(n_queries, n_keys, **options):
    """With a cache, queries would stand at the start."""
    return right["relative_buckets"](n_keys, n_keys, **options)[:n_queries]


BUGS = [
    Bug(
        "rotary_frequencies",
        "halves the exponent",
        rotary_frequencies_half_as_far,
        tests="rotation or positions",
    ),
    Bug("rotate", "turns the other way", rotate_the_other_way, tests="rotation"),
    Bug("rotate", "mixes the layouts", rotate_neighbours, tests="rotation"),
    Bug("pair_halves", "does nothing", pair_halves_not, tests="pair_halves or rotation"),
    Bug("pair_halves", "ignores the heads", pair_halves_across_heads),
    Bug("linear_scaling", "multiplies", linear_scaling_the_other_way, tests="scaled or scaling"),
    Bug("dynamic_scaling", "always stretches", dynamic_scaling_always, tests="scaled or scaling"),
    Bug("yarn_scaling", "forgets the factor", yarn_scaling_without_magnitude, tests="scaled"),
    Bug("yarn_scaling", "stretches the fast ones", yarn_scaling_inverted, tests="scaled"),
    Bug("llama3_scaling", "stretches all", llama3_scaling_all, tests="scaled"),
    Bug("relative_buckets", "looks the other way", relative_buckets_mirrored, tests="buckets"),
    Bug("relative_buckets", "starts at the left", relative_buckets_at_the_left, tests="buckets"),
]
