"""What the transformer families share: norms, feed-forward layers, checks. Notebook 03.

Shapes: B sequences, T tokens, D = d_model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ── parts that the families share ─────────────────────────────────────────────────────────────────


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x/√(mean(x²) + eps)·weight over the last dimension. Zhang & Sennrich 2019, equation 4.

    >>> rms_norm(torch.tensor([3.0, 4.0]), torch.ones(2), eps=0.0)  # 3 and 4 over √12.5
    tensor([0.8485, 1.1314])
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))  # squares overflow 16 bits
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


class RMSNorm(nn.Module):
    """`rms_norm` with its learned weight (D,)."""

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(d_model)), eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class FeedForward(nn.Module):
    """Two layers, applied to each token alone: down(f(up(x))). Vaswani et al. 2017, equation 2."""

    def __init__(
        self, d_model: int, d_ff: int, activation: Callable[[Tensor], Tensor], bias: bool = True
    ) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class GatedFeedForward(nn.Module):
    """down(f(gate(x))·up(x)), f = SiLU or GELU. Shazeer 2020 ("GLU variants"), equation 6."""

    def __init__(
        self, d_model: int, d_ff: int, activation: Callable[[Tensor], Tensor] = F.silu
    ) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_ff, bias=False)
        self.up = nn.Linear(d_model, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.gate(x)) * self.up(x))


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in its tanh approximation, as T5 v1.1 was trained. Hendrycks & Gimpel 2016."""
    return F.gelu(x, approximate="tanh")


def check_mask(mask: Tensor | None, ids: Tensor, past: int = 0) -> None:
    wanted = (ids.shape[0], past + ids.shape[1])
    if mask is not None and tuple(mask.shape) != wanted:
        raise ValueError(f"the mask has shape {tuple(mask.shape)}; these ids need {wanted}")


def check_length(length: int, limit: int, remedy: str) -> None:
    if length > limit:
        raise ValueError(f"the text has {length} tokens, the model {limit} positions; {remedy}")


def init_weights(module: nn.Module, std: float) -> None:
    """Normal weights, zero biases, for every product and embedding inside."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
