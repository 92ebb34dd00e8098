"""Floating-point formats to the bit: sign, exponent, fraction. Notebook 13.

A number is (−1)^sign · 2^(exponent − bias) · (1 + fraction / 2^m), with m bits of fraction; an
exponent of 0 marks the numbers next to 0, which have no leading 1. IEEE 754; bfloat16 is the upper
half of a float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Format(NamedTuple):
    """A type of torch, the integers of its size, and its bits of exponent and fraction."""

    dtype: torch.dtype
    integers: torch.dtype
    exponent: int
    fraction: int

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.fraction

    @property
    def bias(self) -> int:
        return 2 ** (self.exponent - 1) - 1


FORMATS = {
    "float32": Format(torch.float32, torch.int32, 8, 23),
    "float16": Format(torch.float16, torch.int16, 5, 10),
    "bfloat16": Format(torch.bfloat16, torch.int16, 8, 7),
}


def bit_fields(x: float, name: str) -> tuple[str, str, str]:
    """The bits of x in a format of `FORMATS`, in text: sign, exponent, fraction.

    x is rounded to the nearest number that the format has.

    >>> bit_fields(-0.75, "float16")  # −1.5 · 2^−1, and 14 − 15 = −1
    ('1', '01110', '1000000000')
    """
    form = _format(name)
    whole = torch.tensor(x, dtype=torch.float64).to(form.dtype).view(form.integers).item()
    bits = format(whole & (2**form.bits - 1), f"0{form.bits}b")
    return bits[0], bits[1 : 1 + form.exponent], bits[1 + form.exponent :]


def from_fields(sign: str, exponent: str, fraction: str) -> float:
    """The number that these bits stand for, infinities and what is no number included.

    >>> from_fields("1", "01110", "1000000000")
    -0.75
    """
    if not all(bits and set(bits) <= {"0", "1"} for bits in (sign, exponent, fraction)):
        raise ValueError(f"{sign!r}, {exponent!r}, {fraction!r}: give each as 0s and 1s in a text")
    e, part = int(exponent, 2), int(fraction, 2) / 2 ** len(fraction)
    bias, factor = 2 ** (len(exponent) - 1) - 1, -1.0 if sign == "1" else 1.0
    if e == 2 ** len(exponent) - 1:
        return factor * float("inf") if part == 0 else float("nan")
    return factor * (2.0 ** (e - bias) * (1 + part) if e else 2.0 ** (1 - bias) * part)


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise ValueError(f"format is {name!r}; it must be one of {', '.join(FORMATS)}")
    return FORMATS[name]
