"""Ratings told from vectors of texts, by a linear fit with a penalty. Notebook 07.

Ridge regression (Hoerl & Kennard 1970), the comparator that a tuned model must beat, and the head
that a model can start from. Shapes: N texts, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

PENALTIES = tuple(10.0**k for k in range(-3, 4))  # times the mean squared singular value


class Ridge(NamedTuple):
    """A linear predictor: weights (D,), features' means (D,), targets' mean, and the penalty."""

    weights: Tensor
    center: Tensor
    offset: float
    penalty: float

    def predict(self, features: Tensor) -> Tensor:
        """features (N, D) -> (N,)."""
        return ((features.double() - self.center) @ self.weights + self.offset).float()


def ridge(features: Tensor, targets: Tensor, penalties: Sequence[float] = PENALTIES) -> Ridge:
    """Least squares with a penalty on the weights' squares, chosen by leaving out one at a time.

    features (N, D), targets (N,). `penalties` count in mean squared singular values, so that the
    features' unit does not matter. What each text would be told without itself needs no second fit:
    its residual is divided by 1 − h, its leverage (Golub, Heath & Wahba 1979). ValueError for fewer
    than three texts, or features that do not differ.

    >>> fit = ridge(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([1.0, 3.0, 5.0, 7.0]))
    >>> fit.predict(torch.tensor([[10.0]])).round(decimals=1)  # 1 + 2·10, shrunk a little
    tensor([21.])
    """
    if len(features) < 3 or len(features) != len(targets):
        raise ValueError(f"{len(features)} texts, {len(targets)} ratings; give as many, 3 or more")
    x, y = features.double(), targets.double()
    center, offset = x.mean(dim=0), y.mean()
    u, s, vt = torch.linalg.svd(x - center, full_matrices=False)
    if not s.max() > 0:
        raise ValueError("all texts have the same features; there is nothing to tell them apart")
    inside = u.T @ (y - offset)  # targets along each direction
    chosen, least = 0.0, torch.inf
    for penalty in penalties:
        kept = s**2 / (s**2 + penalty * s.square().mean())
        leverage = u.square() @ kept + 1 / len(x)  # the mean is fitted too
        left_out = (y - offset - u @ (kept * inside)) / (1 - leverage).clamp(min=1e-9)
        if (error := left_out.square().mean()) < least:
            chosen, least = penalty * s.square().mean().item(), error
    return Ridge(vt.T @ (s / (s**2 + chosen) * inside), center, offset.item(), chosen)
