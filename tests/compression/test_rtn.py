"""Grids against torch's fake quantization, by hand, and within half a step; packing; layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from course_utils.compression import rtn

W = torch.tensor([[0.9, -0.4], [0.1, 0.05]])
FINITE = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
GROUPS = arrays.arrays(np.float32, (2, 8), elements=FINITE)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# ── by hand ───────────────────────────────────────────────────────────────────────────────────────


def test_quantize_symmetric_by_hand():
    """Two bits: codes −1, 0, 1; the step is the largest number itself."""
    codes, scale = rtn.quantize_symmetric(W, bits=2)
    torch.testing.assert_close(scale, torch.tensor([[0.9], [0.1]]))
    assert codes.tolist() == [[1, 0], [1, 0]]  # −0.44 and 0.5 round to 0: halves go to even
    assert codes.dtype == torch.int8


def test_quantize_symmetric_uses_as_many_codes_below_zero_as_above():
    x = torch.tensor([[-1.0, 1.0, 0.3, 0.0]])
    codes, scale = rtn.quantize_symmetric(x, bits=4)
    assert codes.tolist() == [[-7, 7, 2, 0]]
    assert scale.item() == pytest.approx(1 / 7)


def test_quantize_minimum_by_hand():
    """Two bits over −0.4 … 0.9: steps of 1.3 / 3; 0.1 is 1.15 steps up."""
    codes, scale, minimum = rtn.quantize_minimum(torch.tensor([[-0.4, 0.9, 0.1, 0.3]]), bits=2)
    assert codes.tolist() == [[0, 3, 1, 2]]
    assert scale.item() == pytest.approx(1.3 / 3)
    assert minimum.item() == pytest.approx(-0.4)


def test_quantize_zero_point_by_hand():
    """0 is 0.4 / (1.3 / 3) = 0.92 steps above the minimum: code 1, and exactly 0 again."""
    x = torch.tensor([[-0.4, 0.9, 0.0, 0.3]])
    codes, scale, zero = rtn.quantize_zero_point(x, bits=2)
    assert (codes.tolist(), zero.item()) == ([[0, 3, 1, 2]], 1)
    assert rtn.dequantize_zero_point(codes, scale, zero)[0, 2] == 0


def test_quantize_zero_point_widens_a_range_without_zero():
    codes, scale, zero = rtn.quantize_zero_point(torch.tensor([[2.0, 3.0]]), bits=2)
    assert (scale.item(), zero.item(), codes.tolist()) == (1.0, 0, [[2, 3]])


def test_round_to_nearest_has_a_grid_each_tensor_channel_or_group():
    one = torch.tensor([[8.0, 0.0, 1.0, 0.4], [0.5, 0.25, 0.0, 0.1]])
    by_tensor, by_channel, by_group = (
        rtn.round_to_nearest(one, 2, granularity=each, group_size=2) for each in rtn.GRANULARITIES
    )
    assert by_tensor.tolist() == [[8, 0, 0, 0], [0, 0, 0, 0]]
    assert by_channel.tolist() == [[8, 0, 0, 0], [0.5, 0, 0, 0]]
    wanted = torch.tensor([[8, 0, 1, 0], [0.5, 0, 0, 0.1]])
    torch.testing.assert_close(by_group, wanted)


# ── against torch ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_quantize_zero_point_is_torchs(bits):
    """torch takes our scale and zero; and its own observer finds the same."""
    x = torch.randn(16, 96) + torch.linspace(-2, 2, 16).unsqueeze(1)
    codes, scale, zero = rtn.quantize_zero_point(x, bits)
    ours = rtn.dequantize_zero_point(codes, scale, zero)
    theirs = torch.fake_quantize_per_channel_affine(
        x, scale.flatten(), zero.flatten().int(), 0, 0, 2**bits - 1
    )
    apart = (ours - theirs).abs()
    # Both round x / s, ours by a division and torch by a product with 1/s: at an exact half the
    # last bit decides, which none of these numbers meets.
    assert apart.max() <= 1e-6, apart.max()


def test_quantize_zero_point_finds_the_observers_grid():
    x = torch.randn(4, 64)
    observer = torch.ao.quantization.PerChannelMinMaxObserver(
        ch_axis=0, dtype=torch.quint8, qscheme=torch.per_channel_affine, quant_min=0, quant_max=15
    )
    scale, zero = observer(x) is not None and observer.calculate_qparams()
    _, ours, our_zero = rtn.quantize_zero_point(x, bits=4)
    torch.testing.assert_close(ours.flatten(), scale)
    assert torch.equal(our_zero.flatten().int(), zero.int())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantize_symmetric_is_torchs(bits):
    x = torch.randn(16, 96)
    codes, scale = rtn.quantize_symmetric(x, bits)
    q = 2 ** (bits - 1) - 1
    zero = torch.zeros(16, dtype=torch.int32)
    theirs = torch.fake_quantize_per_channel_affine(x, scale.flatten(), zero, 0, -q, q)
    torch.testing.assert_close(rtn.dequantize_symmetric(codes, scale), theirs)


# ── properties ────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=60, deadline=None)
@given(x=GROUPS, bits=st.integers(2, 8), scheme=st.sampled_from(sorted(rtn.SCHEMES)))
def test_no_number_moves_by_more_than_half_a_step(x, bits, scheme):
    x = torch.from_numpy(x)
    quantize, dequantize = rtn.SCHEMES[scheme]
    codes, scale, *rest = quantize(x, bits)
    error = (dequantize(codes, scale, *rest) - x).abs()
    rounding = 1e-5 * x.abs().amax(dim=-1, keepdim=True)  # fp32: of the step, and of the sum
    assert (error <= scale / 2 + rounding).all(), (error - scale / 2).max()


@settings(max_examples=40, deadline=None)
@given(x=GROUPS, bits=st.integers(2, 8), scheme=st.sampled_from(sorted(rtn.SCHEMES)))
def test_quantizing_twice_changes_nothing_more(x, bits, scheme):
    once = rtn.round_to_nearest(torch.from_numpy(x), bits, scheme, "channel")
    twice = rtn.round_to_nearest(once, bits, scheme, "channel")
    largest = once.abs().amax(dim=-1, keepdim=True)
    assert ((twice - once).abs() <= 1e-5 * largest).all()  # fp32: the step is computed anew


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 8).flatmap(lambda b: st.tuples(st.just(b), st.lists(st.integers(0, 2**b - 1))))
)
def test_pack_bits_and_unpack_bits_undo_each_other(drawn):
    bits, codes = drawn
    packed = rtn.pack_bits(torch.tensor(codes, dtype=torch.uint8), bits)
    assert len(packed) == -(-len(codes) * bits // 8)  # no byte more than needed
    assert rtn.unpack_bits(packed, bits, len(codes)).tolist() == codes


@pytest.mark.parametrize("bits", range(1, 9))
def test_pack_bits_is_numpys(bits):
    codes = torch.randint(0, 2**bits, (37,), dtype=torch.uint8)
    each = np.unpackbits(codes.numpy()[:, None], axis=1, bitorder="little")[:, :bits]
    theirs = np.packbits(each.flatten(), bitorder="little")
    assert rtn.pack_bits(codes, bits).tolist() == theirs.tolist()
    assert rtn.unpack_bits(torch.from_numpy(theirs), bits, 37).equal(codes)


def test_bits_per_weight():
    assert rtn.bits_per_weight(4, 32, offset_bits=16) == 5
    assert rtn.bits_per_weight(8, 32) == 8.5  # Q8_0
    assert rtn.bits_per_weight(4, 128, 16, 4) == 4 + 20 / 128


# ── what the model is made of ─────────────────────────────────────────────────────────────────────


def test_a_float_minimum_gives_a_q4_1_grid_back():
    """Data that lies on a grid with a float minimum is kept; an integer zero point moves it."""
    codes = torch.cat([torch.tensor([[0, 15]]), torch.randint(0, 16, (1, 30))], dim=1)
    grid = codes * torch.tensor(0.03125) + torch.tensor(-0.171875)
    assert torch.equal(rtn.round_to_nearest(grid, 4, "minimum", "channel"), grid)
    moved = rtn.round_to_nearest(grid, 4, "zero_point", "channel")
    assert (moved - grid).abs().max() > 0.005


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packed_linear_answers_as_its_dequantized_weight(bits):
    linear = nn.Linear(64, 6)
    packed = rtn.PackedLinear(linear, bits, group_size=32)
    x = torch.randn(3, 64)
    torch.testing.assert_close(
        packed(x), nn.functional.linear(x, packed.weight(), linear.bias), rtol=0, atol=0
    )
    step = packed.scale.float().max()
    assert (packed.weight() - linear.weight).abs().max() <= 0.6 * step  # the scale is a float16
    nbytes = sum(t.numel() * t.element_size() for t in packed.buffers())
    assert nbytes * 8 == 6 * 64 * rtn.bits_per_weight(bits, 32, 16, 16)


def test_quantize_linears_leaves_out_what_it_should():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.down = nn.Embedding(5, 8), nn.Linear(8, 8)
            self.up, self.out = nn.Linear(8, 8), nn.Linear(8, 5, bias=False)
            self.out.weight = self.embedding.weight

    net = Net()
    before = {name: p.clone() for name, p in net.named_parameters()}
    assert rtn.quantize_linears(net, torch.zeros_like, skip=["up"]) == ["down"]
    after = dict(net.named_parameters())
    assert (after["down.weight"] == 0).all()
    assert all(torch.equal(after[n], before[n]) for n in before if n != "down.weight")


def test_round_to_nearest_keeps_shape_and_type():
    weight = torch.randn(4, 6).to(torch.bfloat16)
    rounded = rtn.round_to_nearest(weight, 4, granularity="channel")
    assert (rounded.shape, rounded.dtype) == (weight.shape, weight.dtype)


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scheme", sorted(rtn.SCHEMES))
@pytest.mark.parametrize("value", [0.0, 0.7, -0.7])
def test_a_constant_group_keeps_its_value(scheme, value):
    x = torch.full((1, 4), value)
    torch.testing.assert_close(rtn.round_to_nearest(x, 2, scheme, "channel"), x)


@pytest.mark.parametrize("scheme", sorted(rtn.SCHEMES))
def test_inf_and_nan_are_refused(scheme):
    x = torch.tensor([[1.0, float("nan"), float("inf")]])
    with pytest.raises(ValueError, match="2 of 3 weights are inf or NaN"):
        rtn.round_to_nearest(x, 4, scheme, "channel")


def test_what_is_refused_by_name():
    with pytest.raises(TypeError, match="int64"):
        rtn.quantize_minimum(torch.ones(1, 2, dtype=torch.int64), 4)
    with pytest.raises(ValueError, match="holds no number"):
        rtn.quantize_minimum(torch.ones(0, 2), 4)
    with pytest.raises(ValueError, match="group_size is 4, which does not divide rows of 6"):
        rtn.into_groups(torch.zeros(2, 6), "group", 4)
    with pytest.raises(ValueError, match="granularity is 'row'"):
        rtn.into_groups(torch.zeros(2, 6), "row")
    with pytest.raises(ValueError, match="scheme is 'affine'"):
        rtn.round_to_nearest(W, 4, "affine")
    with pytest.raises(ValueError, match=r"codes go from -1 to 3; 2 bits hold 0 … 3"):
        rtn.pack_bits(torch.tensor([-1, 3]), 2)
    with pytest.raises(ValueError, match="3 codes of 3 bits need 2 bytes; there are 1"):
        rtn.unpack_bits(torch.zeros(1, dtype=torch.uint8), 3, 3)
    with pytest.raises(ValueError, match="above float16's 65504"):
        rtn.PackedLinear(nn.Linear(2, 1, bias=False).requires_grad_(False).apply(_huge), 4, 2)


def _huge(layer):
    layer.weight.copy_(torch.tensor([[1e6, 0.0]]))
