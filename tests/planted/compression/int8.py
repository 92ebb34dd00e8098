"""Plausible wrong versions of course_utils.compression.int8."""

from __future__ import annotations

import torch
from planting import Bug, originals

right = originals("compression.int8")


def rows_by_128(x):
    largest = x.abs().amax(dim=1)
    return (x * (128 / largest.clamp(min=1e-30)).unsqueeze(1)).round().clamp(-128, 127).to(
        torch.int8
    ), largest


def one_scale_for_all_rows(x):
    largest = x.abs().amax().expand(len(x))
    return (x * 127 / largest.unsqueeze(1)).round().to(torch.int8), largest


def product_in_float(a, b):
    """Float32 skips whole numbers above 2^24."""
    return (a.float() @ b.float().T).int()


def product_in_int8(a, b):
    """Products of int8 numbers wrap around."""
    return (a.unsqueeze(1) * b.unsqueeze(0)).sum(-1, dtype=torch.int32)


def linear_by_127_once(x, codes, largest):
    return right["int8_linear"](x, codes, largest) * 127


def outliers_of_rows(x, threshold=6.0):
    return (x.abs() >= threshold).any(dim=1).nonzero().flatten()


def outliers_above_only(x, threshold=6.0):
    return (x.abs() > threshold).any(dim=0).nonzero().flatten()


def outliers_without_their_sign(x, threshold=6.0):
    return (x >= threshold).any(dim=0).nonzero().flatten()


def mixed_with_outliers_twice(x, codes, largest, threshold=6.0):
    """The int8 part keeps the columns that are added as floats."""
    columns = right["outlier_columns"](x, threshold)
    weight = codes[:, columns] * (largest.unsqueeze(1) / 127)
    return right["int8_linear"](x, codes, largest) + x[:, columns] @ weight.T


def mixed_with_the_outliers_scale(x, codes, largest, threshold=6.0):
    """The rows' scales are taken with the outliers in, which the split is there to avoid."""
    columns = right["outlier_columns"](x, threshold)
    x_codes, x_largest = right["quantize_rows"](x)
    x_codes[:, columns] = 0
    product = right["_rescaled"](x_codes.int() @ codes.int().T, x_largest, largest)
    weight = codes[:, columns] * (largest.unsqueeze(1) / 127)
    return product + x[:, columns] @ weight.T


BUGS = [
    Bug("quantize_rows", "multiplies by 128", rows_by_128),
    Bug("quantize_rows", "has one scale for all rows", one_scale_for_all_rows),
    Bug("int8_product_plain", "multiplies floats", product_in_float, "int8_product_is_exact"),
    Bug("int8_product", "multiplies floats", product_in_float),
    Bug("int8_product", "wraps around", product_in_int8),
    Bug("int8_linear", "divides by 127 once", linear_by_127_once),
    Bug("outlier_columns", "looks along the rows", outliers_of_rows),
    Bug("outlier_columns", "leaves the threshold out", outliers_above_only),
    Bug("outlier_columns", "forgets negative ones", outliers_without_their_sign),
    Bug("mixed_int8_linear", "counts outliers twice", mixed_with_outliers_twice),
    Bug("mixed_int8_linear", "scales by the outliers", mixed_with_the_outliers_scale),
]
