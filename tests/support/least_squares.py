"""What a layer's weights become when its columns are changed one by one, from first principles."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def by_least_squares(
    weight: Tensor,
    hessian: Tensor,
    snap: Callable[[int, Tensor], Tensor],
    damping: float = 0.01,
    order: Sequence[int] | None = None,
) -> Tensor:
    """After each column, the rest is the best there is, solved anew.

    ‖W x − Ŵ x‖² is least over the columns R that are still free if they move by
    H[R, R]⁻¹ H[R, i]·(w_i − q_i). No inverse is updated, nothing is factored. `snap(i, W)` says
    what column i becomes.
    """
    weight, hessian = weight.clone(), hessian.clone()
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    free = list(range(len(hessian))) if order is None else list(order)
    while free:
        i = free.pop(0)
        changed = snap(i, weight)
        if free:
            share = torch.linalg.solve(hessian[free][:, free], hessian[free, i])  # (R,)
            weight[:, free] += torch.outer(weight[:, i] - changed, share)
        weight[:, i] = changed
    return weight
