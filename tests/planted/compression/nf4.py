"""Plausible wrong versions of course_utils.compression.nf4, those among them that are taught."""

from __future__ import annotations

import torch
from planting import Bug, originals

right = originals("compression.nf4")
quantile = torch.special.ndtri


def levels_of_equal_probability(offset=right["OFFSET"]):
    """Midpoints of 16 equally likely bins: no 0, and no code for it."""
    levels = quantile((torch.arange(16).double() + 0.5) / 16).float()
    return levels / levels.abs().max()


def levels_with_halves_swapped(offset=right["OFFSET"]):
    return -right["normal_levels"](offset).flip(0)


def levels_in_float64(offset=right["OFFSET"]):
    below = torch.linspace(offset, 0.5, 8, dtype=torch.float64)[:-1]
    above = torch.linspace(offset, 0.5, 9, dtype=torch.float64)[:-1]
    levels = torch.cat([-quantile(below), torch.zeros(1), quantile(above)]).sort().values
    return (levels / levels.abs().max()).float()


def dynamic_without_one():
    levels = right["dynamic_levels"]().clone()
    levels[-1] = 0.992968738079071
    return levels


def scaled_by_deviation(x, group_size=64):
    """Mean off, divided by the deviation, cut at ±1: another format."""
    groups = right["_in_rows"](x, group_size)
    scaled = (groups - groups.mean(1, keepdim=True)) / groups.std(1, keepdim=True).clamp(min=1e-9)
    return scaled.clamp(-1, 1), groups.abs().amax(1)


def scaled_by_rows(x, group_size=64):
    """One scale a tensor."""
    groups, largest = right["scaled_groups"](x, group_size)
    return groups * (largest / largest.max()).unsqueeze(1), largest.max().expand(len(largest))


def nearest_below(scaled, levels):
    return torch.bucketize(scaled, levels, right=True).sub(1).clamp(min=0)


def quantize_low_half_first(x, group_size=64):
    packed, largest = right["quantize_nf4"](x, group_size)
    return packed >> 4 | packed << 4, largest


def quantize_spare_half_zero(x, group_size=64):
    packed, largest = right["quantize_nf4"](x, group_size)
    if x.numel() % 2:
        packed[-1] &= 0xF0
    return packed, largest


def bytes_low_half_first():
    return right["levels_of_bytes"]().flip(1).contiguous()


def scales_with_their_mean(largest, group_size=256):
    codes, second, mean = right["quantize_scales"](largest - largest.mean(), group_size)
    return codes, second, mean


def scales_by_nearest(largest, group_size=256):
    """Not by the table: one code in a thousand is another."""
    _, second, mean = right["quantize_scales"](largest, group_size)
    rows = right["_in_rows"](largest - mean, group_size)
    scaled = rows / second.clamp(min=1e-30).unsqueeze(1)
    codes = right["nearest"](scaled, right["dynamic_levels"]())
    return codes.flatten()[: len(largest)].to(torch.uint8), second, mean


def dequantize_scales_without_mean(codes, second, mean, group_size=256):
    return right["dequantize_scales"](codes, second, 0 * mean, group_size)


def bits_without_scales(group_size=64, scales_group_size=None):
    return 4.0


def shares_of_groups(x, levels, group_size=64):
    """Counts what was filled up with zeros too."""
    scaled, _ = right["scaled_groups"](x, 2 * group_size)
    codes = right["nearest"](scaled, levels).flatten()
    return torch.bincount(codes, minlength=len(levels)) / len(codes)


def entropy_in_nats(shares):
    return right["level_entropy"](shares) * 0.6931472


def fitted_unweighted(x, levels, group_size=64, steps=20):
    scaled, _ = right["scaled_groups"](x, group_size)
    levels = levels.clone()
    for _ in range(steps):
        codes = right["nearest"](scaled, levels)
        for i, level in enumerate(levels.tolist()):
            if level not in (-1, 0, 1) and (codes == i).any():
                levels[i] = scaled[codes == i].mean()
    return levels


def fitted_without_zero(x, levels, group_size=64, steps=20):
    levels = right["fitted_levels"](x, levels, group_size, steps).clone()
    levels[levels == 0] = 1e-3
    return levels


BUGS = [
    Bug("normal_levels", "takes equally likely bins", levels_of_equal_probability),
    Bug("normal_levels", "has 8 levels below 0", levels_with_halves_swapped),
    Bug("normal_levels", "steps in float64", levels_in_float64),
    Bug("dynamic_levels", "cannot say 1", dynamic_without_one),
    Bug("scaled_groups", "standardises", scaled_by_deviation, "quantize_nf4"),
    Bug("scaled_groups", "has one scale a tensor", scaled_by_rows, "quantize_nf4"),
    Bug("nearest", "takes the level below", nearest_below, "nearest_plain or quantize_nf4"),
    Bug("quantize_nf4", "has the low half first", quantize_low_half_first),
    Bug("quantize_nf4", "fills up with code 0", quantize_spare_half_zero),
    Bug("levels_of_bytes", "has the low half first", bytes_low_half_first, "dequantize_nf4"),
    Bug("quantize_scales", "loses the mean", scales_with_their_mean, "double_quantization"),
    Bug("quantize_scales", "looks nothing up", scales_by_nearest, "double_quantization"),
    Bug("dequantize_scales", "forgets the mean", dequantize_scales_without_mean, "double_quantiz"),
    Bug("nf4_bits", "forgets the scales", bits_without_scales),
    Bug("level_shares", "has larger groups", shares_of_groups),
    Bug("level_entropy", "is in nats", entropy_in_nats),
    Bug("fitted_levels", "does not weigh", fitted_unweighted),
    Bug("fitted_levels", "moves 0", fitted_without_zero),
]
