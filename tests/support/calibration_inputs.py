"""Weights and inputs for the tests of calibrated compression, the same on every machine."""

from __future__ import annotations

import torch
from torch import Tensor


def hashed(*shape: int, salt: float = 1.0) -> Tensor:
    """Numbers in −1 … 1 that look random and need no generator, in float64."""
    n = torch.Size(shape).numel()
    waves = (torch.arange(1, n + 1, dtype=torch.float64) * 12.9898 * salt).sin() * 43758.5453
    return (2 * waves.frac().abs() - 1).reshape(shape)


def correlated_inputs(n: int, d: int, salt: float = 1.0) -> Tensor:
    """Rows x (n, d) whose columns share causes and differ in size by a factor of about 10."""
    causes = hashed(n, d, salt=salt) @ hashed(d, d, salt=salt + 0.37)
    return causes * torch.logspace(-0.5, 0.5, d, dtype=torch.float64)[_shuffled(d)]


def _shuffled(d: int) -> Tensor:
    return hashed(d, salt=2.3).argsort()


def hessian_of(x: Tensor) -> Tensor:
    """2/N·Σ x xᵀ, written in another way than the package's."""
    return 2 * torch.einsum("ni,nj->ij", x, x) / len(x)
