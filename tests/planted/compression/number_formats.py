"""Plausible wrong versions of course_utils.compression.number_formats."""

from __future__ import annotations

from planting import Bug, originals

right = originals("compression.number_formats")


def without_leading_one(sign, exponent, fraction):
    e, part = int(exponent, 2), int(fraction, 2) / 2 ** len(fraction)
    return (-1.0) ** int(sign) * 2.0 ** (e - (2 ** (len(exponent) - 1) - 1)) * part


def leading_one_always(sign, exponent, fraction):
    e, part = int(exponent, 2), int(fraction, 2) / 2 ** len(fraction)
    return (-1.0) ** int(sign) * 2.0 ** (e - (2 ** (len(exponent) - 1) - 1)) * (1 + part)


def cut_not_rounded(x, name):
    """The fraction of a float32 is cut off."""
    if name != "bfloat16":
        return right["bit_fields"](x, name)
    bits = "".join(right["bit_fields"](x, "float32"))[:16]
    return bits[0], bits[1:9], bits[9:]


BUGS = [
    Bug("from_fields", "forgets the leading 1", without_leading_one),
    Bug("from_fields", "has a leading 1 next to 0", leading_one_always),
    Bug("bit_fields", "cuts", cut_not_rounded, tests="by_hand or from_fields"),
]
