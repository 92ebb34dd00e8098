"""Plausible wrong versions of course_utils.compression.k_quants."""

from __future__ import annotations

import torch
from planting import Bug, originals

right = originals("compression.k_quants")
BYTES = "bytes_are or bytes_of_more"


def sum_in_pairs(x):
    """As torch.sum adds: another order, and another last bit."""
    return x.sum(dim=0)


def candidates_from_one_side(peak, largest):
    return [-(largest + 0.1 * step) / peak for step in (0, *range(1, 19))]


def scale_by_the_peak(x, largest=32):
    """No search."""
    peak = x.gather(0, x.abs().argmax(0, keepdim=True)).squeeze(0)
    safe = torch.where(peak == 0, torch.ones_like(peak), peak)
    codes = (x * (-largest / safe)).round().clamp(-largest, largest - 1) + largest
    return peak / -largest, codes


def importance_of_one(x):
    return torch.ones_like(x)


def importance_by_the_float32_root(x):
    """A root that may be off by its last bit."""
    root = (right["in_order"](x * x) / len(x)).sqrt()
    return torch.nextafter(root, torch.full_like(root, torch.inf)) + x.abs()


def line_with_any_minimum(w, wx, wll, wl, wxl):
    """Lets the minimum rise above 0, where six bits without a sign cannot follow."""
    determinant = w * wll - wl * wl
    return (w * wxl - wx * wl) / determinant, (wll * wx - wl * wxl) / determinant, determinant


def line_from_the_first_minimum(x, largest, first, steps):
    """Each candidate starts from the smallest number, and not from the minimum kept so far."""
    start, *others = right["step_counts"](largest, first, steps)
    low, high, weight = x.amin(0).clamp(max=0), x.amax(0), right["importance"](x)
    flat = low == high
    high = high.masked_fill(flat, 1)
    w, wx = right["in_order"](weight), right["in_order"](weight * x)
    inverse = start / (high - low)
    kept, scale, minimum = ((x - low) * inverse).round().clamp(0, largest), 1 / inverse, low
    best = right["_error"](x, weight, kept, scale, minimum)
    for count in others:
        codes = ((x - low) * (count / (high - low))).round().clamp(0, largest)
        weighted = weight * codes
        sums = right["in_order"](torch.stack([weighted * codes, weighted, weighted * x], dim=1))
        slope, offset, determinant = right["solve_line"](w, wx, *sums)
        error = right["_error"](x, weight, codes, slope, offset)
        better = (determinant > 0) & (error < best)
        best, scale = torch.where(better, error, best), torch.where(better, slope, scale)
        minimum, kept = torch.where(better, offset, minimum), torch.where(better, codes, kept)
    return scale.masked_fill(flat, 0), -minimum, kept.masked_fill(flat, 0)


def six_bits_by_64(scales):
    """Counts the 64 codes, not the 63 steps between them."""
    top = scales.amax(1, keepdim=True).clamp(min=0) + 0.0
    inverse = torch.where(top > 0, 63 / top, torch.zeros_like(top))
    found = (inverse * scales).round().clamp(max=63).to(torch.uint8)
    return right["to_half"](top / 64), found


def scales_packed_in_order(scales, minima):
    """Four values of six bits to three bytes, one after the other."""
    values = torch.cat([scales, minima], dim=1).reshape(-1, 4, 4)
    a, b, c, d = values.unbind(dim=2)
    return torch.stack([a | b << 6, b >> 2 | c << 4, c >> 4 | d << 2], dim=2).flatten(1)


def low_and_high_of_neighbours(codes):
    low = (codes[:, ::2] & 0xF) | (codes[:, 1::2] & 0xF) << 4
    a, b, c, d = (codes >> 4).reshape(-1, 64, 4).unbind(dim=2)
    return low, a | b << 2 | c << 4 | d << 6


def plain_scale_without_weights(x, largest=32):
    peak = x[x.abs().argmax()]
    if peak == 0:
        return torch.zeros(()), torch.zeros_like(x)
    best = None
    for candidate in right["scale_candidates"](peak, largest):
        codes = (candidate * x).round().clamp(-largest, largest - 1)
        xl, ll = (x * codes).sum(), (codes * codes).sum()
        if best is None or xl * xl > best * ll:
            scale, best, kept = xl / ll, xl / ll * xl, codes
    return scale, kept + largest


def plain_line_that_keeps_the_last(x, largest, first, steps):
    scale, minus, codes = right["fit_line_plain"](x, largest, first, 0)
    return scale, minus, codes


BUGS = [
    Bug("in_order", "adds in another order", sum_in_pairs, "loop_does"),
    Bug("scale_candidates", "tries one side only", candidates_from_one_side, BYTES),
    Bug("fit_scale", "does not search", scale_by_the_peak, BYTES),
    Bug("importance", "weighs all alike", importance_of_one, BYTES),
    Bug("importance", "is off by the root's last bit", importance_by_the_float32_root, BYTES),
    Bug("solve_line", "lets the minimum rise above 0", line_with_any_minimum),
    Bug("fit_line", "starts from the first minimum", line_from_the_first_minimum, BYTES),
    Bug("_six_bits", "divides by 64", six_bits_by_64, BYTES),
    Bug("pack_scales", "packs in order", scales_packed_in_order, BYTES),
    Bug("_low_and_high", "pairs neighbours", low_and_high_of_neighbours, BYTES),
    Bug("fit_scale_plain", "does not weigh", plain_scale_without_weights),
    Bug("fit_line_plain", "tries one candidate", plain_line_that_keeps_the_last),
]
