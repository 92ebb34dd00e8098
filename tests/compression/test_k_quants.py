"""K-quants against llama.cpp's own quantizer, byte for byte; the plain forms against the fast."""

from __future__ import annotations

import ggml
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from course_utils.compression import gguf, k_quants

NAMES = ["q4_K", "q5_K", "q6_K"]
BYTES = {"q4_K": 144, "q5_K": 176, "q6_K": 210}
LINES = [(15, -1.0, 20), (31, -0.5, 15)]  # of Q4_K and Q5_K


def ours(name):
    return (getattr(k_quants, f"{verb}_{name.lower()}") for verb in ("quantize", "dequantize"))


def weights():
    """Normal rows, rows of all sizes, zeros, constants, small whole numbers: (20, 512)."""
    torch.manual_seed(0)
    x = torch.randn(20, 512)
    x[1:7] *= torch.tensor([[1e-18], [1e-12], [1e-6], [1e-3], [1e2], [1e4]])
    x[7], x[8], x[9], x[10, :300] = 0, 1.5, -1.5, 0
    x[11], x[12], x[13] = x[11].round(), x[12].abs(), -x[13].abs()
    x[14] = torch.arange(512).remainder(15) - 7.0
    x[15] = x[15] ** 5  # some sub-blocks are so small beside others that their scale is 0
    x[16] *= torch.tensor([1e-8] * 256 + [1.0] * 256)
    return x


# Their squares, too, are normal numbers: below, compilers differ in what they keep.
SIZES = st.floats(2.0**-60, 6e4, width=32)
NUMBERS = st.one_of(st.just(0.0), SIZES, SIZES.map(lambda x: -x))


def same_bytes(name, x):
    quantize, _ = ours(name)
    data, reference = quantize(x), ggml.quantize(name, x)
    other = (data != reference).sum().item()
    assert other == 0, f"{other} of {data.numel()} bytes differ"


# ── parity ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_llama_cpps(name):
    """quantize_ of q4_k, q5_k, q6_k; fit_scale and fit_line; importance; solve_line."""
    same_bytes(name, weights())


@pytest.mark.parametrize("name", NAMES)
def test_bytes_of_more_than_a_chunk_are_llama_cpps(name):
    torch.manual_seed(1)
    n = gguf.CHUNK // 256 + 3
    same_bytes(name, torch.randn(n, 256) * torch.rand(n, 1))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(x=arrays.arrays(np.float32, (1, 256), elements=NUMBERS))
def test_bytes_of_any_super_block_are_llama_cpps(name, x):
    same_bytes(name, torch.from_numpy(x))


@pytest.mark.parametrize("name", NAMES)
def test_bytes_of_real_weights_are_llama_cpps(name, minilm):
    for parameter in list(minilm[0].parameters())[:12]:
        if parameter.numel() % 256 == 0:
            same_bytes(name, parameter.detach().reshape(-1, 256)[:512])


@pytest.mark.parametrize("name", NAMES)
def test_dequantize_is_the_gguf_packages(name):
    quantize, dequantize = ours(name)
    data = quantize(weights())
    back = quants.dequantize(data.numpy(), GGMLQuantizationType[name.upper()])
    assert torch.equal(dequantize(data), torch.from_numpy(back))


@pytest.mark.parametrize("name", NAMES)
def test_bits_a_weight(name):
    quantize, _ = ours(name)
    assert quantize(torch.randn(3, 512)).shape == (3, 2 * BYTES[name])


# ── the plain forms ───────────────────────────────────────────────────────────────────────────────


def test_fit_scale_plain_is_fit_scale():
    x = weights()[:, :16].T.contiguous()
    scales, codes = k_quants.fit_scale(x)
    for i, column in enumerate(x.T):
        scale, plain = k_quants.fit_scale_plain(column)
        assert scale == scales[i]
        assert torch.equal(plain, codes[:, i])


@pytest.mark.parametrize("line", LINES)
def test_fit_line_plain_is_fit_line(line):
    x = weights()[:, :32].T.contiguous()
    found = k_quants.fit_line(x, *line)
    for i, column in enumerate(x.T):
        scale, minus, codes = k_quants.fit_line_plain(column, *line)
        assert scale == found[0][i]
        assert minus == found[1][i]
        assert torch.equal(codes, found[2][:, i])


def test_fit_scale_errs_less_than_the_largest_numbers_scale():
    """Weighted as it is fitted, on each of 200 sub-blocks."""
    torch.manual_seed(0)
    x = torch.randn(16, 200)
    scales, codes = k_quants.fit_scale(x)
    fitted = (x * x * (scales * (codes - 32) - x).square()).sum(0)
    simple = x.gather(0, x.abs().argmax(0, keepdim=True)) / -32
    plain = (x / simple).round().clamp(-32, 31) * simple
    assert (fitted <= (x * x * (plain - x).square()).sum(0) * (1 + 1e-5)).all()


@pytest.mark.parametrize("line", LINES)
def test_fit_line_errs_less_than_the_range_does(line):
    torch.manual_seed(0)
    x = torch.randn(32, 200)
    scale, minus, codes = k_quants.fit_line(x, *line)
    weight = k_quants.importance(x)
    fitted = (weight * (scale * codes - minus - x).square()).sum(0)
    step = (x.amax(0) - x.amin(0)) / line[0]
    plain = ((x - x.amin(0)) / step).round() * step + x.amin(0)
    assert (fitted <= (weight * (plain - x).square()).sum(0) * (1 + 1e-5)).all()
    assert fitted.sum() < 0.85 * (weight * (plain - x).square()).sum()


def test_solve_line_by_hand():
    """x = 2 l − 1 at l = 0, 1, 2 with weights 1; and x = 2 l + 1, whose minimum must be 0."""
    codes = torch.tensor([0.0, 1.0, 2.0])

    def sums(x):
        return torch.tensor(3.0), x.sum(), (codes * codes).sum(), codes.sum(), (codes * x).sum()

    scale, minimum, determinant = k_quants.solve_line(*sums(2 * codes - 1))
    assert (scale.item(), minimum.item(), determinant.item()) == (2, -1, 6)
    scale, minimum, _ = k_quants.solve_line(*sums(2 * codes + 1))
    assert (scale.item(), minimum.item()) == (pytest.approx(13 / 5), 0)


def test_pack_scales_and_unpack_scales_undo_each_other():
    torch.manual_seed(0)
    scales, minima = torch.randint(0, 64, (2, 50, 8), dtype=torch.uint8)
    found = k_quants.unpack_scales(k_quants.pack_scales(scales, minima))
    assert torch.equal(found[0], scales)
    assert torch.equal(found[1], minima)


def test_in_order_adds_as_a_loop_does():
    torch.manual_seed(0)
    x = torch.randn(32, 1000)
    total = np.zeros(1000, dtype=np.float32)
    for row in x.numpy():
        total = total + row
    assert np.array_equal(k_quants.in_order(x).numpy(), total)
    assert k_quants.in_order(torch.tensor([1e8, 1.0, -1e8, 1.0])).item() == 1


@pytest.mark.parametrize("name", NAMES)
def test_what_is_refused_by_name(name):
    quantize, _ = ours(name)
    with pytest.raises(ValueError, match="rows have 128 numbers; this format has blocks of 256"):
        quantize(torch.zeros(2, 128))
    with pytest.raises(ValueError, match="256 of 256 weights are inf or NaN"):
        quantize(torch.full((1, 256), float("nan")))
