"""Plausible wrong versions of course_utils.architectures.onednn."""

from __future__ import annotations

from planting import Bug, originals

right = originals("architectures.onednn")


def product_without_bias(x, weight, bias=None):
    return right["product"](x, weight)


def outer_transposed(grad, x):
    swapped = right["outer"](x, grad)
    return swapped.reshape(grad.shape[1], x.shape[1])


BUGS = [
    Bug("product", "forgets the bias", product_without_bias, tests="linear"),
    Bug("outer", "is transposed", outer_transposed, tests="weight_gradient"),
]
