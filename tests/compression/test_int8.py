"""LLM.int8 against bitsandbytes, against exact products, and by hand."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes import functional as bnb

from course_utils.compression import int8


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def with_outliers():
    x = torch.randn(5, 48)
    x[1, 7], x[3, 7], x[4, 30] = 40.0, -25.0, 6.5
    return x, torch.randn(16, 48)


def test_quantize_rows_by_hand():
    codes, largest = int8.quantize_rows(torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]]))
    assert codes.tolist() == [[64, -127, 32], [0, 0, 0]]  # 63.5 and 31.75: halves go to even
    assert largest.tolist() == [2.0, 0.0]


def test_quantize_rows_is_bitsandbytes():
    x = torch.randn(64, 200)
    codes, largest = int8.quantize_rows(x)
    theirs, their_largest, _ = bnb.int8_vectorwise_quant(x.clone())
    assert torch.equal(codes, theirs)
    assert torch.equal(largest, their_largest)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 100, 7), (5, 3000, 4)])
def test_int8_product_is_exact(shape):
    """Also where the sum is above 2^24, beyond which float32 skips whole numbers."""
    rows, inner, out = shape
    a = torch.randint(100, 128, (rows, inner), dtype=torch.int8)
    b = torch.randint(-127, 128, (out, inner), dtype=torch.int8)
    b[0] = 127
    wanted = (a.double() @ b.double().T).int()
    assert torch.equal(int8.int8_product_plain(a, b), wanted)
    assert torch.equal(int8.int8_product(a, b), wanted)


def test_int8_linear_is_bitsandbytes():
    x, weight = torch.randn(5, 48), torch.randn(16, 48)
    codes, largest = int8.quantize_rows(weight)
    theirs_x, their_largest, _ = bnb.int8_vectorwise_quant(x.clone())
    theirs = torch.ops.bitsandbytes.int8_scaled_mm.default(
        theirs_x, codes, their_largest, largest, None, torch.float32
    )
    # bitsandbytes has 1/127² as 6.200124e-05, which is 1.8e-5 of itself above it.
    torch.testing.assert_close(int8.int8_linear(x, codes, largest), theirs, rtol=3e-5, atol=1e-6)


def test_mixed_int8_linear_is_bitsandbytes():
    x, weight = with_outliers()
    codes, largest = int8.quantize_rows(weight)
    theirs_x, their_largest, columns = bnb.int8_vectorwise_quant(x.clone(), threshold=6.0)
    assert columns.tolist() == int8.outlier_columns(x).tolist() == [7, 30]
    theirs, _ = torch.ops.bitsandbytes.int8_mixed_scaled_mm.default(
        x, theirs_x, codes, their_largest, largest, columns, None
    )
    ours = int8.mixed_int8_linear(x, codes, largest)
    torch.testing.assert_close(ours, theirs, rtol=3e-5, atol=1e-4)  # as above; other order


def test_mixed_int8_linear_saves_the_rows_with_outliers():
    """The error that rounding x makes, with the columns apart and without."""
    x, weight = with_outliers()
    codes, largest = int8.quantize_rows(weight)
    exact = x @ (codes * largest.unsqueeze(1) / 127).T
    plain = (int8.int8_linear(x, codes, largest) - exact)[1].norm()
    mixed = (int8.mixed_int8_linear(x, codes, largest) - exact)[1].norm()
    assert mixed < plain / 3


def test_mixed_int8_linear_without_outliers_is_int8_linear():
    x, weight = torch.randn(5, 48), torch.randn(16, 48)
    rows = int8.quantize_rows(weight)
    assert torch.equal(int8.mixed_int8_linear(x, *rows, threshold=100), int8.int8_linear(x, *rows))


def test_mixed_int8_linear_where_all_are_outliers():
    """All columns are floats: what is left is the rounding of the weight."""
    x, weight = torch.randn(5, 48), torch.randn(16, 48)
    codes, largest = int8.quantize_rows(weight)
    wanted = x @ (codes * largest.unsqueeze(1) / 127).T
    ours = int8.mixed_int8_linear(x, codes, largest, threshold=1e-9)
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)  # fp32, other order


def test_outlier_columns_counts_the_threshold_in():
    x = torch.tensor([[6.0, 5.999, -6.0]])
    assert int8.outlier_columns(x).tolist() == [0, 2]


def test_what_is_refused_by_name():
    rows = int8.quantize_rows(torch.randn(4, 8))
    with pytest.raises(ValueError, match=r"inputs are \(2, 7\), the weight \(4, 8\)"):
        int8.int8_linear(torch.randn(2, 7), *rows)
    with pytest.raises(ValueError, match=r"inputs are \(8,\)"):
        int8.mixed_int8_linear(torch.randn(8), *rows)
    with pytest.raises(ValueError, match="threshold is 0"):
        int8.outlier_columns(torch.randn(2, 8), 0)
    with pytest.raises(ValueError, match="1 of 8 weights are inf or NaN"):
        int8.quantize_rows(torch.tensor([[1.0] * 7 + [float("nan")]]))
