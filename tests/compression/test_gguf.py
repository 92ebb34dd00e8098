"""Block formats against the `gguf` package and llama.cpp's C functions, byte for byte."""

from __future__ import annotations

import ggml
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from course_utils.compression import gguf

NAMES = ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1"]
# In units of the block's largest number, or of its range: half a step, and a float16's rounding.
HALF_STEPS = {"q8_0": 0.5 / 127, "q4_0": 1 / 8, "q4_1": 0.5 / 15, "q5_0": 1 / 16, "q5_1": 0.5 / 31}


def ours(name):
    return getattr(gguf, f"quantize_{name}"), getattr(gguf, f"dequantize_{name}")


def theirs(name, x):
    with np.errstate(all="ignore"):
        return torch.from_numpy(quants.quantize(x.numpy(), GGMLQuantizationType[name.upper()]))


def weights():
    """Normal rows, rows of all sizes, zeros, constants, small whole numbers: (24, 128)."""
    torch.manual_seed(0)
    x = torch.randn(24, 128)
    x[1:5] *= torch.tensor([[1e-6], [1e-3], [1e2], [1e4]])
    x[5], x[6], x[7], x[8, :40] = 0, 1.5, -1.5, 0
    x[9], x[10], x[11] = x[9].round(), x[10].abs(), -x[11].abs()
    x[12] = torch.arange(128).remainder(15) - 7.0  # −7 … 7: whole steps, and ties for the largest
    return x


@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_the_gguf_packages(name):
    """quantize_ of q8_0, q4_0, q4_1, q5_0, q5_1, and back."""
    quantize, dequantize = ours(name)
    data = quantize(weights())
    assert torch.equal(data, theirs(name, weights()))
    back = quants.dequantize(data.numpy(), GGMLQuantizationType[name.upper()])
    assert torch.equal(dequantize(data), torch.from_numpy(back))


@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_llama_cpps(name):
    assert torch.equal(ours(name)[0](weights()), ggml.quantize(name, weights()))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(
    x=arrays.arrays(
        np.float32, (2, 32), elements=st.floats(-6e4, 6e4, width=32, allow_subnormal=False)
    )
)
def test_bytes_of_any_block_and_its_error(name, x):
    """Byte for byte, and no number moves by more than half a step.

    Where the largest is far from 0 on one side, _0 formats clip the other side by up to a step.
    """
    x = torch.from_numpy(x)
    quantize, dequantize = ours(name)
    data = quantize(x)
    if x.abs().amax() > 1e-30:  # below it, gguf takes 1 / scale to be infinite
        assert torch.equal(data, theirs(name, x))
    span = x.amax(1) - x.amin(1) if name.endswith("1") else x.abs().amax(1)
    error = (dequantize(data) - x).abs().amax(1)
    rounding = 2e-3 * x.abs().amax(1) + 1e-6  # float16 has 11 bits, and no numbers below 6e-8
    assert (error <= HALF_STEPS[name] * span + rounding).all(), (name, error, span)


def test_q8_0_by_hand():
    """Scale 254 / 127 = 2, the float16 4000; 5 / 2 and −5 / 2 go away from 0."""
    x = torch.zeros(1, 32)
    x[0, :4] = torch.tensor([254.0, 5.0, -5.0, 1.0])
    assert gguf.quantize_q8_0(x)[0, :6].tolist() == [0x00, 0x40, 127, 3, 253, 1]


def test_q4_0_by_hand():
    """Farthest 4: scale −0.5, the float16 b800; −x / 0.5 + 8 is 0, 7, 12 and 8."""
    x = torch.zeros(1, 32)
    x[0, :2], x[0, 16] = torch.tensor([4.0, 0.5]), -2.0
    assert gguf.quantize_q4_0(x)[0, :5].tolist() == [0x00, 0xB8, 0xC0, 0x87, 0x88]


def test_q5_1_by_hand():
    """From −1 to 30 in steps of 1: the fifth bits of 31, 0 and 17 are 1, 0 and 1."""
    x = torch.full((1, 32), -1.0)
    x[0, 0], x[0, 2], x[0, 17] = 30.0, 16.0, 2.0
    data = gguf.quantize_q5_1(x)[0].tolist()
    assert data[:4] == [0x00, 0x3C, 0x00, 0xBC]
    assert data[4:8] == [0b101, 0, 0, 0]
    assert data[8:11] == [0x0F, 0x30, 0x01]


def test_round_away_by_hand():
    """Halves, and the float32 just below a half, which is carried to 1 by adding ½."""
    below = torch.nextafter(torch.tensor(0.5), torch.tensor(0.0)).item()
    x = torch.tensor([0.5, -0.5, 2.5, -2.5, below, -below, 126.5, -126.5, 0.0])
    assert gguf._round_away(x).tolist() == [1, -1, 3, -3, 0, 0, 127, -127, 0]


@pytest.mark.parametrize("name", NAMES)
def test_bits_a_weight(name):
    data = ours(name)[0](torch.randn(4, 64))
    bits = {"q8_0": 8.5, "q4_0": 4.5, "q4_1": 5, "q5_0": 5.5, "q5_1": 6}
    assert 8 * data.numel() / 256 == bits[name]
    assert data.shape == (4, 8 * bits[name])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, 2.0, -2.0])
def test_a_constant_block_is_kept(name, value):
    quantize, dequantize = ours(name)
    x = torch.full((1, 32), value)
    torch.testing.assert_close(dequantize(quantize(x)), x, rtol=1e-3, atol=0)  # a float16 scale


@pytest.mark.parametrize("name", NAMES)
def test_what_is_refused_by_name(name):
    quantize, _ = ours(name)
    with pytest.raises(ValueError, match="rows have 40 numbers; this format has blocks of 32"):
        quantize(torch.zeros(2, 40))
    with pytest.raises(ValueError, match="1 of 32 weights are inf or NaN"):
        quantize(torch.tensor([float("nan")] + [0.0] * 31))
    with pytest.raises(ValueError, match="above float16's 65504"):
        quantize(torch.tensor([1e9] + [-1e9] * 31))
