"""NF4 against bitsandbytes, byte for byte, by hand, and its use of the levels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bitsandbytes import functional as bnb
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from course_utils.compression import nf4

SHAPES = [(64, 64), (300, 768), (3, 7), (5, 13), (1, 65), (2, 128), (1, 1)]
LEVELS = nf4.normal_levels()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# ── levels ────────────────────────────────────────────────────────────────────────────────────────


def test_normal_levels_are_bitsandbytes():
    assert torch.equal(nf4.normal_levels(), bnb.get_4bit_type("nf4", device="cpu"))


def test_dynamic_levels_are_bitsandbytes():
    assert torch.equal(nf4.dynamic_levels(), bnb.create_dynamic_map())


def test_normal_levels_by_hand():
    """The topmost step: Φ⁻¹(0.9677) = 1.848; one step below it Φ⁻¹(0.9092) = 1.336; 0.723."""
    from statistics import NormalDist

    quantile = NormalDist().inv_cdf
    one_below = nf4.OFFSET - (nf4.OFFSET - 0.5) / 8
    assert LEVELS[14].item() == pytest.approx(quantile(one_below) / quantile(nf4.OFFSET), abs=1e-6)
    assert (LEVELS < 0).sum() == 7
    assert (LEVELS > 0).sum() == 8


# ── parity ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("group_size", [32, 64, 256])
@pytest.mark.parametrize("shape", SHAPES)
def test_quantize_nf4_is_bitsandbytes(shape, group_size):
    x = torch.randn(shape)
    packed, largest = nf4.quantize_nf4(x, group_size)
    theirs, state = bnb.quantize_4bit(x, quant_type="nf4", blocksize=group_size)
    assert torch.equal(packed, theirs.flatten())
    assert torch.equal(largest, state.absmax)
    if group_size <= shape[-1] or shape[-1] % 16:
        # For rows of 16, 32 … that are shorter than a group, the AVX-512 kernel of bitsandbytes
        # 0.50 gives every row the scale of the first group.
        ours = nf4.dequantize_nf4(packed, largest, x.shape, group_size)
        assert torch.equal(ours, bnb.dequantize_4bit(theirs, state))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_quantize_nf4_of_half_precision_is_bitsandbytes(dtype):
    x = torch.randn(40, 64).to(dtype)
    theirs, _ = bnb.quantize_4bit(x, quant_type="nf4", blocksize=64)
    assert torch.equal(nf4.quantize_nf4(x)[0], theirs.flatten())


@pytest.mark.parametrize("shape", SHAPES)
def test_double_quantization_is_bitsandbytes(shape):
    """quantize_scales and dequantize_scales."""
    x = torch.randn(shape) * torch.rand(shape[0], 1)
    packed, largest = nf4.quantize_nf4(x)
    codes, second, mean = nf4.quantize_scales(largest)
    theirs, state = bnb.quantize_4bit(x, quant_type="nf4", blocksize=64, compress_statistics=True)
    assert torch.equal(codes, state.absmax)
    assert torch.equal(second, state.state2.absmax)
    assert mean == state.offset
    scales = nf4.dequantize_scales(codes, second, mean)
    ours = nf4.dequantize_nf4(packed, scales, x.shape)
    assert torch.equal(ours, bnb.dequantize_4bit(theirs, state))


def test_double_quantization_of_many_scales_is_bitsandbytes():
    scales = torch.rand(256 * 200) * 3
    codes, second, _ = nf4.quantize_scales(scales)
    theirs, state = bnb.quantize_blockwise(scales - scales.mean(), blocksize=256)
    assert torch.equal(codes, theirs)
    assert torch.equal(second, state.absmax)


def test_nearest_plain_is_nearest():
    """The plain form and the fast one agree, up to numbers that lie on a midpoint."""
    scaled, _ = nf4.scaled_groups(torch.randn(200, 64))
    plain, fast = nf4.nearest_plain(scaled, LEVELS), nf4.nearest(scaled, LEVELS)
    other = plain != fast
    midpoints = (LEVELS[:-1] + LEVELS[1:]) / 2
    on_midpoint = (scaled[other].unsqueeze(-1) - midpoints).abs().amin(-1) < 1e-7  # fp32
    assert on_midpoint.all()
    assert other.float().mean() < 1e-3


def test_nearest_by_table_is_nearest_but_for_the_midpoints():
    levels = nf4.dynamic_levels()
    scaled = torch.rand(100_000) * 2 - 1
    other = nf4.nearest_by_table(scaled, levels) != nf4.nearest(scaled, levels)
    midpoints = (levels[:-1] + levels[1:]) / 2
    assert 0 < other.sum() < 300
    apart = (scaled[other].unsqueeze(-1) - midpoints).abs().amin(-1)
    assert apart.max() <= 1.01 / 65_535  # half a place of the table


# ── by hand, and properties ───────────────────────────────────────────────────────────────────────


def test_quantize_nf4_by_hand():
    """Two groups of two: 1 and −1 times 2; 0.5/4 = .125 is nearer to .161 than to .080."""
    packed, largest = nf4.quantize_nf4(torch.tensor([2.0, -2.0, 0.5, 4.0]), group_size=2)
    assert [f"{byte:02x}" for byte in packed.tolist()] == ["f0", "9f"]
    assert largest.tolist() == [2.0, 4.0]


def test_dequantize_nf4_reads_the_high_half_first():
    packed = torch.tensor([0x1F, 0x80], dtype=torch.uint8)
    ours = nf4.dequantize_nf4(packed, torch.tensor([2.0]), torch.Size([3]))
    assert torch.equal(ours, 2 * LEVELS[[1, 15, 8]])


def test_nf4_bits():
    assert nf4.nf4_bits() == 4.5
    assert nf4.nf4_bits(64, 256) == pytest.approx(4.127, abs=5e-4)


def test_nf4_bits_are_what_is_stored():
    x = torch.randn(512, 256)
    packed, largest = nf4.quantize_nf4(x)
    codes, second, _ = nf4.quantize_scales(largest)
    nbytes = packed.nbytes + codes.nbytes + second.nbytes
    assert 8 * nbytes / x.numel() == pytest.approx(nf4.nf4_bits(64, 256))


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(
        np.float32,
        st.integers(1, 150),
        elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
    )
)
def test_no_number_of_quantize_nf4_moves_by_more_than_half_the_widest_gap(x):
    x = torch.from_numpy(x)
    packed, largest = nf4.quantize_nf4(x)
    error = (nf4.dequantize_nf4(packed, largest, x.shape) - x).abs()
    gap = (LEVELS[1:] - LEVELS[:-1]).max()
    scale = largest.repeat_interleave(64)[: len(x)]
    assert (error <= scale * (gap / 2 + 1e-6)).all()


def test_zeros_stay_zeros():
    x = torch.zeros(130)
    assert nf4.dequantize_nf4(*nf4.quantize_nf4(x), x.shape).abs().max() == 0
    scales = nf4.quantize_scales(torch.full((5,), 2.0))
    assert nf4.dequantize_scales(*scales).tolist() == [2.0] * 5


# ── how often each level is used ──────────────────────────────────────────────────────────────────


def test_level_shares_by_hand():
    x = torch.tensor([1.0, -2.0, 2.0, 0.1, 2.8, -0.8, 0.0, 4.0])
    assert nf4.level_shares(x, torch.tensor([-1.0, 0.0, 1.0]), 4).tolist() == [0.125, 0.5, 0.375]


def test_level_shares_are_not_equal_on_normal_numbers():
    """Half-open tails and an exact ±1 a group: the outermost levels are rarely used."""
    shares = nf4.level_shares(torch.randn(2000, 64), LEVELS)
    assert shares.sum().item() == pytest.approx(1, abs=1e-5)
    assert shares[0] < shares[7] / 4
    assert shares.max() > 1.4 / 16
    assert nf4.level_entropy(shares) < 3.9


def test_level_entropy():
    assert nf4.level_entropy(torch.full((16,), 1 / 16)) == pytest.approx(4)
    assert nf4.level_entropy(torch.tensor([1.0, 0.0])) == 0


def test_fitted_levels_err_less_than_nf4_on_numbers_not_seen():
    x, unseen = torch.randn(2, 500, 64)
    levels = nf4.fitted_levels(x, LEVELS)
    errors = []
    for each in (LEVELS, levels):
        scaled, largest = nf4.scaled_groups(unseen)
        error = (each[nf4.nearest(scaled, each)] - scaled) * largest.unsqueeze(1)
        errors.append(error.square().mean().item())
    assert errors[1] < 0.97 * errors[0]
    assert levels[[0, 7, 15]].tolist() == [-1, 0, 1]


def test_fitted_levels_moves_to_the_mean_weighted_by_squared_scale():
    """0.4 in a group of scale 1, 0.6 in one of scale 2: (0.4 + 4 · 0.6) / 5."""
    x = torch.tensor([1.0, 0.4, -1.0, 2.0, 1.2, -2.0])
    start = torch.tensor([-1.0, 0.0, 0.5, 1.0])
    levels = nf4.fitted_levels(x, start, group_size=3, steps=1)
    torch.testing.assert_close(levels, torch.tensor([-1.0, 0.0, 0.56, 1.0]))


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────


def test_what_is_refused_by_name():
    with pytest.raises(ValueError, match="1 of 2 weights are inf or NaN"):
        nf4.quantize_nf4(torch.tensor([1.0, float("inf")]))
    with pytest.raises(ValueError, match="holds no number"):
        nf4.quantize_nf4(torch.zeros(0))
    with pytest.raises(ValueError, match="group_size is 0"):
        nf4.quantize_nf4(torch.ones(2), 0)
    with pytest.raises(ValueError, match="offset is 1"):
        nf4.normal_levels(1)
    with pytest.raises(ValueError, match="2 bytes hold 4 numbers; 5 are asked for"):
        nf4.dequantize_nf4(torch.zeros(2, dtype=torch.uint8), torch.ones(1), torch.Size([5]))
    with pytest.raises(ValueError, match="128 numbers in groups of 64 have 2 scales; 1 are given"):
        nf4.dequantize_nf4(torch.zeros(64, dtype=torch.uint8), torch.ones(1), torch.Size([128]))
