"""LoRA in a dozen lines: what the layer of `lora` does without its options. Notebook 07.

Hu et al. 2021, section 4. Shapes: W (D_out, D_in), A (r, D_in), B (D_out, r).
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn


class PlainLoRA(nn.Module):
    """W x + (α/r)·B A x: a frozen linear layer, and beside it two narrow matrices that learn.

    >>> linear = nn.Linear(3, 2)
    >>> layer, x = PlainLoRA(linear, rank=1, alpha=2), torch.randn(4, 3)
    >>> bool((layer(x) == linear(x)).all())  # B is 0 at the start
    True
    >>> sum(p.numel() for p in layer.parameters() if p.requires_grad)  # 1·(3 + 2)
    5
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        wide = math.sqrt(linear.in_features)
        self.A = nn.Parameter(torch.empty(rank, linear.in_features).uniform_(-1, 1) / wide)
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank))
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        """x (…, D_in) -> (…, D_out)."""
        return self.linear(x) + self.scale * (x @ self.A.T) @ self.B.T

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """One plain layer that does the same; this one stays as it is."""
        merged = copy.deepcopy(self.linear)
        merged.weight += self.scale * self.B @ self.A
        return merged
