"""LLM.int8: products of whole numbers, and outlier columns apart. Notebook 13.

Dettmers et al. 2022: a row of inputs and a row of the weight each have one scale, so that a product
of int8 numbers needs one multiplication a result to become a float again; the few input columns
with very large numbers would waste those scales, and are multiplied as floats. Shapes: x inputs
(T, D_in), weight codes (D_out, D_in).
"""

from __future__ import annotations

import torch
from torch import Tensor

from course_utils.compression.rtn import check_weight

LARGEST = 127  # of an int8 code, on both sides


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (T, D) -> int8 codes (T, D), and the largest absolute value of each row (T,).

    The scale is that value / 127. A row of zeros has codes 0.

    >>> codes, largest = quantize_rows(torch.tensor([[0.5, -1.0], [0.0, 254.0]]))
    >>> codes.tolist(), largest.tolist()
    ([[64, -127], [0, 127]], [1.0, 254.0])
    """
    check_weight(x)
    largest = x.abs().amax(dim=1)
    factor = LARGEST / torch.where(largest > 0, largest, torch.ones_like(largest))
    return (x * factor.unsqueeze(1)).round().to(torch.int8), largest


def int8_product_plain(a: Tensor, b: Tensor) -> Tensor:
    """int8 a (T, D) and b (D_out, D) -> a bᵀ (T, D_out) in int32, exactly.

    >>> int8_product_plain(torch.tensor([[127, 127]]), torch.tensor([[127, -1]])).item()
    16002
    """
    return a.int() @ b.int().T


def int8_product(a: Tensor, b: Tensor) -> Tensor:
    """`int8_product_plain` by the kernel that PyTorch has for it on the CPU, if there is one."""
    if a.device.type != "cpu" or not hasattr(torch, "_int_mm"):
        return int8_product_plain(a, b)
    return torch._int_mm(a, b.T)


def int8_linear(x: Tensor, codes: Tensor, largest: Tensor) -> Tensor:
    """x Wᵀ (T, D_out) of inputs x (T, D_in) and a weight given by `quantize_rows`.

    >>> W = torch.tensor([[1.0, 0.0]])
    >>> int8_linear(torch.tensor([[3.0, 1.0]]), *quantize_rows(W))  # 127 · 127 · (3 · 1) / 127²
    tensor([[3.]])
    """
    _check_sizes(x, codes)
    x_codes, x_largest = quantize_rows(x)
    return _rescaled(int8_product(x_codes, codes), x_largest, largest)


def _rescaled(product: Tensor, x_largest: Tensor, largest: Tensor) -> Tensor:
    return product * (x_largest.unsqueeze(1) * largest.unsqueeze(0)) / LARGEST**2


def _check_sizes(x: Tensor, codes: Tensor) -> None:
    if x.ndim != 2 or x.shape[1] != codes.shape[1]:
        raise ValueError(
            f"inputs are {tuple(x.shape)}, the weight {tuple(codes.shape)}; give inputs "
            f"(rows, {codes.shape[1]})"
        )


def outlier_columns(x: Tensor, threshold: float = 6.0) -> Tensor:
    """The columns of x (T, D) that hold a number of at least `threshold`, in order.

    >>> outlier_columns(torch.tensor([[0.5, -7.0, 1.0], [0.1, 0.2, 6.0]])).tolist()
    [1, 2]
    """
    if not threshold > 0:
        raise ValueError(f"threshold is {threshold}; it must be above 0")
    return (x.abs() >= threshold).any(dim=0).nonzero().flatten()


def mixed_int8_linear(x: Tensor, codes: Tensor, largest: Tensor, threshold: float = 6.0) -> Tensor:
    """`int8_linear`, but outlier columns of x are multiplied as floats: Dettmers et al., eq. 8.

    The weight has its columns in int8 alone, so that those are dequantized. As in bitsandbytes, a
    row's scale comes from all of its numbers below the threshold, those in outlier columns too.

    >>> x, W = torch.tensor([[0.5, 127.0]]), torch.tensor([[1.0, 1.0]])
    >>> int8_linear(x, *quantize_rows(W))  # 0.5 rounds to 0 beside 127, or to 1
    tensor([[127.]])
    >>> mixed_int8_linear(x, *quantize_rows(W))
    tensor([[127.5000]])
    """
    _check_sizes(x, codes)
    columns = outlier_columns(x, threshold)
    x_codes, x_largest = quantize_rows(x.masked_fill(x.abs() >= threshold, 0))
    x_codes[:, columns] = 0
    regular = _rescaled(int8_product(x_codes, codes), x_largest, largest)
    weight = codes[:, columns] * (largest.unsqueeze(1) / LARGEST)  # (D_out, outliers)
    return regular + x[:, columns] @ weight.T
