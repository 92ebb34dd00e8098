"""Plausible wrong versions of course_utils.compression.gptq, those among them that are taught."""

from __future__ import annotations

import torch
from planting import Bug, originals

right = originals("compression.gptq")
CHOLESKY = "least_squares or llm or inverse_factor"


def without_damping(hessian, damping=0.01):
    return hessian


def damped_by_an_absolute(hessian, damping=0.01):
    """Not a share of the mean, so that the number of tokens counts."""
    return right["damped"](hessian, 0) + damping * torch.eye(len(hessian), dtype=hessian.dtype)


def damped_in_place(hessian, damping=0.01):
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    return hessian


def lower_factor(hessian):
    """H⁻¹ = L Lᵀ: its columns stand for the columns that are done, not for those to come."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse).T.contiguous()[:, :].flip(0, 1).triu()


def factor_of_the_hessian(hessian):
    """Forgets the inverse."""
    return torch.linalg.cholesky(hessian, upper=True)


def rows_of_the_inverse(hessian):
    """The inverse of all columns, also where some are done."""
    inverse = torch.linalg.inv(hessian)
    return inverse.triu() / inverse.diagonal().sqrt().unsqueeze(1)


def groups_of_columns_across(weight, bits, scheme, granularity, group_size=64):
    """The wrong axis: scales of the inputs, shared by outputs."""
    grid = right["grids"](weight, bits, scheme, granularity, group_size)
    if granularity != "group":
        return grid
    return [part.flip(1) for part in grid]


def grids_of_the_whole(weight, bits, scheme, granularity, group_size=64):
    """The scale of a group is that of its row: what a wrong group size does."""
    grid = right["grids"](weight, bits, scheme, granularity, group_size)
    row = right["grids"](weight, bits, scheme, "channel")
    return [one.expand_as(part) for one, part in zip(row, grid, strict=True)]


def errors_within_the_block_only(columns, factor, snap, block_size):
    for start in range(0, len(columns), block_size):
        end = min(start + block_size, len(columns))
        part = factor[start:end, start:end]
        for i in range(start, end):
            changed = snap(i)
            error = (columns[i] - changed) / factor[i, i]
            columns[i] = changed
            columns[i + 1 : end] -= torch.outer(part[i - start, i + 1 - start :], error)


def errors_added(columns, factor, snap, block_size):
    """The wrong sign."""
    for i in range(len(columns)):
        changed = snap(i)
        error = (columns[i] - changed) / factor[i, i]
        columns[i] = changed
        columns[i + 1 :] += torch.outer(factor[i, i + 1 :], error)


def errors_not_divided(columns, factor, snap, block_size):
    for i in range(len(columns)):
        changed = snap(i)
        error = columns[i] - changed
        columns[i] = changed
        columns[i + 1 :] -= torch.outer(factor[i, i + 1 :], error)


def errors_thrown_away(columns, factor, snap, block_size):
    """Round to nearest by another name."""
    for i in range(len(columns)):
        columns[i] = snap(i)


def plain_with_a_fixed_inverse(weight, hessian, bits, damping=0.01):
    weight, inverse = weight.clone(), torch.linalg.inv(right["damped"](hessian, damping))
    _, scale = right["quantize_symmetric"](weight, bits)
    for i in range(weight.shape[1]):
        column = weight[:, i : i + 1]
        rounded = right["codes_on"](column, bits, "symmetric", scale) * scale
        error = (column - rounded) / inverse[i, i]
        weight[:, i + 1 :] -= error * inverse[i, i + 1 :]
        weight[:, i : i + 1] = rounded
    return weight


def gptq_that_leaves_the_order(weight, hessian, bits, *args, act_order=False, **options):
    """Quantizes in another order and forgets to put the columns back."""
    done = right["gptq"](weight, hessian, bits, *args, act_order=act_order, **options)
    if not act_order:
        return done
    order = hessian.diagonal().argsort(descending=True)
    return done._replace(weight=done.weight[:, order], codes=done.codes[:, order])


def gptq_smallest_first(weight, hessian, bits, *args, act_order=False, **options):
    if not act_order:
        return right["gptq"](weight, hessian, bits, *args, **options)
    order = hessian.diagonal().argsort()
    done = right["gptq"](weight[:, order], hessian[order][:, order], bits, *args, **options)
    return done._replace(weight=done.weight[:, order.argsort()])


def columns_of_permuted_groups(quantized, scheme):
    """Takes neighbours for a group, also where they are none."""
    width = len(quantized.group_of) // quantized.scale.shape[1]
    group_of = torch.arange(len(quantized.group_of)) // width
    return right["dequantize_columns"](quantized._replace(group_of=group_of), scheme)


def packed_anew(linear, quantized, bits):
    """Rounds the weight again: the grids of what is rounded are others."""
    right["packed_layer"](linear, quantized, bits)
    with torch.no_grad():
        linear.weight.copy_(quantized.weight)
    width = len(quantized.group_of) // quantized.scale.shape[1]
    return right["PackedLinear"](linear, bits, width)


def packed_in_another_order(linear, quantized, bits):
    """Grids written group by group, where they are read row by row."""
    layer = right["packed_layer"](linear, quantized, bits)
    layer.scale = right["to_half"](quantized.scale.T.reshape(-1, 1))
    return layer


def linears_by_one_hessian(model, moments, bits, *args, **options):
    first = {name: each for name, each in moments.items() if each.products.shape[0] == 16}
    one = next(iter(first.values()), next(iter(moments.values())))
    pairs = {n: one if one.products.shape == m.products.shape else m for n, m in moments.items()}
    return dict.fromkeys(right["gptq_linears"](model, pairs, bits, *args, **options), 0.0)


def dead_inputs_kept(weight, hessian):
    work, changed = right["prepared"](weight, hessian)
    return weight.detach().to(work).clone(), changed


def worked_in_place(weight, hessian):
    work, changed = right["prepared"](weight, hessian)
    return (weight.detach().copy_(work) if weight.dtype == work.dtype else work), changed


BUGS = [
    Bug("prepared", "keeps what nothing depends on", dead_inputs_kept, "always_zero"),
    Bug("prepared", "works in place", worked_in_place, "always_zero"),
    Bug("damped", "damps nothing", without_damping, "singular or by_hand or least"),
    Bug("damped", "adds an absolute number", damped_by_an_absolute, "damped_by_hand"),
    Bug("damped", "changes its argument", damped_in_place),
    Bug("inverse_factor", "is lower triangular", lower_factor, CHOLESKY),
    Bug("inverse_factor", "forgets to invert", factor_of_the_hessian, CHOLESKY),
    Bug("inverse_factor", "never shrinks the inverse", rows_of_the_inverse, CHOLESKY),
    Bug("grids", "mixes the groups up", groups_of_columns_across, "llm or nearest"),
    Bug("grids", "has a row for a group", grids_of_the_whole, "llm or nearest"),
    Bug("spread_errors", "stops at the block", errors_within_the_block_only, "least or block_size"),
    Bug("spread_errors", "adds", errors_added, "least or less_error"),
    Bug("spread_errors", "does not divide", errors_not_divided, "least or llm"),
    Bug("spread_errors", "rounds to nearest", errors_thrown_away, "least or less_error"),
    Bug("gptq_plain", "keeps one inverse", plain_with_a_fixed_inverse, "plain"),
    Bug("gptq", "forgets the order", gptq_that_leaves_the_order, "least or llm"),
    Bug("gptq", "takes the smallest first", gptq_smallest_first, "least or llm"),
    Bug(
        "dequantize_columns",
        "takes neighbours for a group",
        columns_of_permuted_groups,
        "on_the_way",
    ),
    Bug("packed_layer", "rounds again", packed_anew),
    Bug("packed_layer", "orders grids by groups", packed_in_another_order),
    Bug("gptq_linears", "tells no errors", linears_by_one_hessian),
]
