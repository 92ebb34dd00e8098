"""Plausible wrong versions of course_utils.compression.rtn."""

from __future__ import annotations

import torch
from planting import Bug, originals, refusing

right = originals("compression.rtn")


def symmetric_with_the_unused_code(x, bits):
    """Divides by 2^(bits−1): the largest number would need a code that there is not."""
    q = 2 ** (bits - 1)
    scale = x.abs().amax(-1, keepdim=True) / q
    codes = (x / scale.clamp(min=1e-30)).round().clamp(-q, q - 1)
    return codes.to(torch.int8), scale


def symmetric_scale_of_the_tensor(x, bits):
    codes, scale = right["quantize_symmetric"](x.reshape(1, -1), bits)
    return codes.reshape(x.shape), scale.expand(len(x), 1)


def symmetric_cut_off(x, bits):
    """Truncates where it should round."""
    _, scale = right["quantize_symmetric"](x, bits)
    return right["_divided"](x, scale).trunc().to(torch.int8), scale


def minimum_with_one_step_too_many(x, bits):
    codes, scale, minimum = right["quantize_minimum"](x, bits)
    scale = scale * (2**bits - 1) / 2**bits
    codes = right["_divided"](x - minimum, scale).round().clamp(0, 2**bits - 1)
    return codes.to(torch.uint8), scale, minimum


def zero_point_without_widening(x, bits):
    codes, scale, minimum = right["quantize_minimum"](x, bits)
    zero = right["_divided"](-minimum, scale).round().clamp(0, 2**bits - 1)
    return codes, scale, zero.to(torch.int16)


def zero_point_in_bytes(codes, scale, zero):
    """Bytes without a sign wrap around: 0 − 1 is 255."""
    return (codes - zero.to(torch.uint8)) * scale


def groups_down_the_columns(weight, granularity, group_size=64):
    return right["into_groups"](weight.T.contiguous().view_as(weight), granularity, group_size)


def packed_highest_bit_first(codes, bits):
    places = torch.arange(bits - 1, -1, -1, dtype=torch.uint8)
    stream = (codes.flatten().to(torch.uint8).unsqueeze(1) >> places & 1).flatten()
    return right["pack_bits"](stream, 1)


def packed_one_a_byte(codes, bits):
    return codes.flatten().to(torch.uint8)


def bits_without_scales(bits, group_size, scale_bits=16, offset_bits=0):
    return bits


def bits_with_scales_of_each_weight(bits, group_size, scale_bits=16, offset_bits=0):
    return bits + scale_bits + offset_bits


def tied_weights_too(model, quantize, skip=()):
    done = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and not name.endswith(tuple(skip))
    ]
    for name in done:
        layer = model.get_submodule(name)
        layer.weight.data = quantize(layer.weight.data)
    return done


def bug(function, description, wrong, tests=""):
    return Bug(function, description, refusing(right[function], wrong), tests)


BUGS = [
    bug("quantize_symmetric", "divides by 2^(bits−1)", symmetric_with_the_unused_code),
    bug("quantize_symmetric", "shares one scale", symmetric_scale_of_the_tensor),
    bug("quantize_symmetric", "truncates", symmetric_cut_off),
    bug("quantize_minimum", "has one step too many", minimum_with_one_step_too_many),
    bug("quantize_zero_point", "does not widen the range", zero_point_without_widening),
    Bug("into_groups", "groups down the columns", groups_down_the_columns, "grid_each"),
    Bug("pack_bits", "puts the highest bit first", packed_highest_bit_first),
    Bug("pack_bits", "takes a byte a code", packed_one_a_byte),
    Bug("bits_per_weight", "forgets the scales", bits_without_scales),
    Bug("bits_per_weight", "gives each weight a scale", bits_with_scales_of_each_weight),
    Bug("quantize_linears", "quantizes the embedding", tied_weights_too),
    Bug(
        "dequantize_zero_point", "wraps around", zero_point_in_bytes, "torchs or zero_point_by_hand"
    ),
]
