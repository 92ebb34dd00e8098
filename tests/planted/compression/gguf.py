"""Plausible wrong versions of course_utils.compression.gguf."""

from __future__ import annotations

import torch
from planting import Bug, originals

right = originals("compression.gguf")
BYTES = "bytes or by_hand"


def round_half_to_even(x):
    return x.round().to(torch.int8)


def q8_0_by_128(x):
    blocks = right["into_blocks"](x, 32)
    scale = blocks.abs().amax(1, keepdim=True) / 128
    codes = (blocks * right["inverse"](scale)).round().clamp(-128, 127).to(torch.int8)
    data = torch.cat([right["half_bytes"](scale), codes.view(torch.uint8)], dim=1)
    return right["from_blocks"](data, x.shape)


def signed_by_the_absolute(x, levels):
    """The scale is above 0, so that the farthest number may have no code."""
    blocks = right["into_blocks"](x, 32)
    scale = blocks.abs().amax(1, keepdim=True) / (levels // 2)
    codes = blocks * right["inverse"](scale) + (levels // 2 + 0.5)
    return codes.to(torch.uint8).clamp(max=levels - 1), scale


def signed_with_the_stored_scale(x, levels):
    """Divides by the float16; llama.cpp divides by the float32 before it is rounded."""
    blocks = right["into_blocks"](x, 32)
    _, scale = right["_signed_codes"](x, levels)
    codes = blocks * right["inverse"](scale.half().float()) + (levels // 2 + 0.5)
    return codes.to(torch.uint8).clamp(max=levels - 1), scale


def farthest_of_the_positive(blocks):
    """Where 7 and −7 are as far, always takes 7."""
    low, high = blocks.aminmax(dim=1)
    return torch.where(high >= -low, high, low).unsqueeze(1)


def above_minimum_by_levels(x, levels):
    blocks = right["into_blocks"](x, 32)
    minimum = blocks.amin(1, keepdim=True)
    scale = (blocks.amax(1, keepdim=True) - minimum) / levels
    codes = (blocks - minimum) * right["inverse"](scale) + 0.5
    return codes.to(torch.uint8).clamp(max=levels - 1), scale, minimum


def halves_of_neighbours(codes):
    """Numbers 2i and 2i + 1 share a byte."""
    return codes[:, ::2] | codes[:, 1::2] << 4


def halves_swapped(codes):
    packed = right["in_halves"](codes)
    return packed >> 4 | packed << 4


def fifth_bits_highest_first(codes):
    places = torch.arange(7, -1, -1, dtype=torch.uint8)
    return ((codes >> 4).reshape(-1, 4, 8) << places).sum(dim=-1, dtype=torch.uint8)


def half_high_byte_first(scale):
    return right["half_bytes"](scale).flip(1)


BUGS = [
    Bug("_round_away", "rounds halves to even", round_half_to_even, BYTES),
    Bug("quantize_q8_0", "divides by 128", q8_0_by_128, BYTES),
    Bug("_signed_codes", "has scales above 0", signed_by_the_absolute, BYTES),
    Bug("_signed_codes", "divides by the stored scale", signed_with_the_stored_scale, BYTES),
    Bug("_farthest", "takes the positive of two", farthest_of_the_positive, BYTES),
    Bug("_codes_above_minimum", "counts levels, not steps", above_minimum_by_levels, BYTES),
    Bug("in_halves", "pairs neighbours", halves_of_neighbours, BYTES),
    Bug("in_halves", "swaps the halves", halves_swapped, BYTES),
    Bug("fifth_bits", "has the highest bit first", fifth_bits_highest_first, BYTES),
    Bug("half_bytes", "has the high byte first", half_high_byte_first, BYTES),
]
