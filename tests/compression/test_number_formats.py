"""Bits of numbers against torch and against struct."""

from __future__ import annotations

import math
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course_utils.compression import number_formats
from course_utils.compression.number_formats import FORMATS, bit_fields, from_fields


@pytest.mark.parametrize("name", FORMATS)
@given(st.floats(allow_nan=False))
def test_from_fields_is_what_torch_rounds_to(name, x):
    rounded = torch.tensor(x, dtype=torch.float64).to(FORMATS[name].dtype).item()
    fields = bit_fields(x, name)
    assert from_fields(*fields) == rounded
    assert tuple(map(len, fields)) == (1, FORMATS[name].exponent, FORMATS[name].fraction)


@given(st.floats(width=32, allow_nan=False))
def test_bit_fields_are_structs(x):
    whole = int.from_bytes(struct.pack(">f", x), "big")
    assert "".join(bit_fields(x, "float32")) == format(whole, "032b")
    if math.isfinite(x):
        whole = int.from_bytes(struct.pack(">e", x), "big") if abs(x) < 65504 else None
        if whole is not None and not 0 < abs(x) < 1e-30:  # no rounding twice
            assert "".join(bit_fields(x, "float16")) == format(whole, "016b")


def test_bfloat16_by_hand():
    """1.5 · 2^0; 3.140625 is the nearest to π that 7 bits of fraction allow."""
    assert bit_fields(1.5, "bfloat16") == ("0", "01111111", "1000000")
    assert from_fields(*bit_fields(math.pi, "bfloat16")) == 3.140625


def test_fields_of_what_is_no_number():
    assert from_fields("0", "11111", "0000000000") == math.inf
    assert from_fields("1", "11111", "0000000000") == -math.inf
    assert math.isnan(from_fields("0", "11111", "0000000001"))
    assert from_fields("0", "00000", "0000000001") == 2.0**-24  # no leading 1 below 2^-14
    assert bit_fields(1e6, "float16")[1] == "11111"  # beyond 65,504


def test_bad_fields_and_formats():
    with pytest.raises(ValueError, match="format is 'fp8'; it must be one of float32, float16"):
        bit_fields(1.0, "fp8")
    with pytest.raises(ValueError, match="give each as 0s and 1s"):
        from_fields("0", "012", "0")
    assert number_formats.FORMATS["float16"].bias == 15
