"""How far apart the levels of a grid should be: steps by squared error. Notebook 14.

`quantize_symmetric` of `rtn` puts its last level at the largest weight. With few levels that is
wasteful: a smaller step cuts the largest off and serves the many. Shapes: W (D_out, D_in), groups
(G, N) with a step each (G, 1).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from course_utils.compression.gptq import damped, inverse_factor, prepared, spread_errors
from course_utils.compression.rtn import (
    check_bits,
    check_weight,
    codes_on,
    dequantize_minimum,
    dequantize_symmetric,
    into_groups,
)


def on_grid(x: Tensor, step: Tensor, bits: int) -> Tensor:
    """x (…, N) at the nearest of −q … q times step (…, 1); what lies beyond goes to the end.

    >>> on_grid(torch.tensor([0.3, 0.9, -9.0]), torch.tensor([0.5]), bits=3)
    tensor([ 0.5000,  1.0000, -1.5000])
    """
    check_bits(bits, least=2)
    return dequantize_symmetric(codes_on(x, bits, "symmetric", step), step)


def best_step(x: Tensor, bits: int, candidates: int = 20) -> Tensor:
    """The step of each row (…, N) -> (…, 1) that loses the least of its squares.

    Tried are `candidates` steps, evenly from a part of the one that reaches the largest number up
    to that one itself; of equal ones the smallest is taken; 1 where a row is 0.

    >>> best_step(torch.tensor([[1.0, -1.0, 1.0, 2.0]]), bits=2, candidates=2)  # of 1 and 2
    tensor([[1.]])
    """
    check_weight(x)
    check_bits(bits, least=2)
    if candidates < 1:
        raise ValueError(f"candidates is {candidates}; at least one step must be tried")
    widest = x.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)
    best, least = widest, torch.full_like(widest, torch.inf)
    for i in range(1, candidates + 1):
        step = widest * (i / candidates)
        lost = (on_grid(x, step, bits) - x).square().sum(dim=-1, keepdim=True)
        best = torch.where(lost < least, step, best)
        least = torch.minimum(lost, least)
    return torch.where(widest > 0, best, torch.ones_like(best))


def best_range(x: Tensor, bits: int, candidates: int = 20) -> tuple[Tensor, Tensor]:
    """Step and minimum of each row (…, N) -> 2 × (…, 1), for 2^bits levels from the minimum up.

    Tried are ranges that keep a part, the same of both ends, of what the row spans, `candidates` of
    them up to the whole; the one that loses the least squares is taken. 0 need not be on the grid.

    >>> best_range(torch.tensor([[-1.0, 2.0]]), bits=2, candidates=2)  # four levels, −1 … 2
    (tensor([[1.]]), tensor([[-1.]]))
    """
    check_weight(x)
    check_bits(bits, least=1)
    if candidates < 1:
        raise ValueError(f"candidates is {candidates}; at least one range must be tried")
    low, high = x.amin(dim=-1, keepdim=True), x.amax(dim=-1, keepdim=True)
    best, at, least = (high - low) / (2**bits - 1), low, torch.full_like(low, torch.inf)
    for i in range(1, candidates + 1):
        step, minimum = (high - low) * (i / candidates) / (2**bits - 1), low * (i / candidates)
        lost = (_from_minimum(x, step, minimum, bits) - x).square().sum(dim=-1, keepdim=True)
        best, at = torch.where(lost < least, step, best), torch.where(lost < least, minimum, at)
        least = torch.minimum(lost, least)
    return best, at


def _from_minimum(x: Tensor, step: Tensor, minimum: Tensor, bits: int) -> Tensor:
    return dequantize_minimum(codes_on(x, bits, "minimum", step, minimum), step, minimum)


def round_with_best_step(weight: Tensor, bits: int, group_size: int = 64) -> Tensor:
    """`round_to_nearest` on symmetric groups, with `best_step` in place of the largest number's.

    >>> round_with_best_step(torch.tensor([[1.0, -1.0, 1.0, 2.0]]), bits=2, group_size=4)
    tensor([[ 1.2000, -1.2000,  1.2000,  1.2000]])
    """
    groups = into_groups(weight.detach().float(), "group", group_size)
    rounded = on_grid(groups, best_step(groups, bits), bits)
    return rounded.view_as(weight).to(weight.dtype)


class Swept(NamedTuple):
    """What GPTQ leaves: the weight, each number just before it was rounded, and the steps.

    The numbers before (D_out, D_in) are rounded to the weight by these very steps (G, 1), so that
    training while rounded can begin where GPTQ ended.
    """

    weight: Tensor
    before: Tensor
    step: Tensor


def gptq_with_best_step(
    weight: Tensor,
    hessian: Tensor,
    bits: int,
    group_size: int = 64,
    *,
    from_minimum: bool = False,
    act_order: bool = False,
    damping: float = 0.01,
    block_size: int = 128,
) -> Swept:
    """`gptq` on groups with the best steps of the weight as it came.

    The grid is the symmetric one; with `from_minimum` it has a level more and a minimum for each
    group, `best_range`. `act_order` takes the columns with the largest inputs first, as there.

    >>> W = torch.tensor([[1.0, -1.0, 1.0, 2.0]])
    >>> gptq_with_best_step(W, torch.eye(4), bits=2, group_size=4).weight  # nothing makes up for it
    tensor([[ 1.2000, -1.2000,  1.2000,  1.2000]])
    """
    work, hessian = prepared(weight, hessian)
    groups = into_groups(work, "group", group_size)
    found = best_range(groups, bits) if from_minimum else (best_step(groups, bits),)
    grid = [part.view(len(work), -1) for part in found]  # (D_out, D_in / group_size) each
    order = torch.arange(work.shape[1], device=work.device)
    if act_order:
        order = hessian.diagonal().argsort(descending=True, stable=True)
    group_of = (order // group_size).tolist()
    columns = work[:, order].T.contiguous()  # (D_in, D_out)
    factor = inverse_factor(damped(hessian[order][:, order], damping))
    before = torch.empty_like(columns)

    def snap(i: int) -> Tensor:
        before[i] = columns[i]
        own = [part[:, group_of[i]] for part in grid]
        return (_from_minimum if from_minimum else on_grid)(columns[i], *own, bits)

    spread_errors(columns, factor, snap, block_size)
    back = order.argsort()
    done, floats = (each[back].T.to(weight.dtype).contiguous() for each in (columns, before))
    return Swept(done, floats, found[0].to(weight.dtype))
