"""Faster products on a CPU, by an explicit call: `use_onednn(model)`. Notebooks 01, 02 and 03.

For 32-bit floats on a CPU torch calls MKL, which on some chips (AMD's with AVX-512) uses half of
the vector width. torch also has oneDNN, which uses all of it and serves `nn.LSTM` and convolutions,
but has no public name for a plain product. `linear` calls it by its internal name where that exists
and is `F.linear` everywhere else: the same numbers, to the rounding of another summation order.
`torch.backends.mkldnn.enabled = False` makes every product torch's default one again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def _find_onednn() -> Callable | None:
    """oneDNN's product in this build of torch, or None."""
    try:
        return torch.ops.mkldnn._linear_pointwise.default
    except (AttributeError, RuntimeError):  # an internal name: a build or a release may lack it
        return None


_onednn = _find_onednn()
_LARGE = 2**18  # numbers in a weight from which even a single row is quicker through oneDNN


def _onednn_serves(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN can do this product, and has enough to do to be worth its longer call."""
    return (
        _onednn is not None
        and torch.backends.mkldnn.enabled
        and x.numel() >= x.shape[-1] > 0
        and (x.numel() > x.shape[-1] or weight.numel() >= _LARGE)
        and weight.numel() > 0
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and type(x) is Tensor
        and type(weight) in (Tensor, nn.Parameter)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and not torch._C._functorch.is_functorch_wrapped_tensor(weight)
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b without a gradient: x (…, n_in), W (n_out, n_in), b (n_out)."""
    if _onednn_serves(x, weight):
        return _onednn(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def outer(grad: Tensor, x: Tensor) -> Tensor:
    """gradᵀ x, a weight's gradient, from rows grad (N, n_out) and x (N, n_in) -> (n_out, n_in).

    Written so that the smaller of the two is the one that is transposed in memory.
    """
    if grad.shape[1] > x.shape[1]:
        return product(x.t(), grad.t()).t().contiguous()
    return product(grad.t(), x.t())


class _Linear(torch.autograd.Function):
    """y = x Wᵀ + b, so ∂x = ∂y W, ∂W = ∂yᵀ x, ∂b = Σ ∂y over the rows."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])  # (…, n_out) -> (N, n_out)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            product(rows, weight.t()).view_as(x) if needs_x else None,
            outer(rows, x.reshape(-1, x.shape[-1])) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` with its gradient: x (…, n_in), weight (n_out, n_in) -> (…, n_out).

    Differentiable once; ask for `F.linear` where a gradient of a gradient is needed.
    """
    if torch.is_grad_enabled() and _onednn_serves(x, weight):
        return _Linear.apply(x, weight, bias)
    return product(x, weight, bias)


class OneDNNLinear(nn.Linear):
    """`nn.Linear` (same parameters, same names) over `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def use_onednn(model: nn.Module) -> int:
    """Let every plain `nn.Linear` inside any model compute through `linear`; return how many do.

    Only the class of those modules changes: weights, names and hooks stay, and so does whatever
    looks for `nn.Linear`.
    """
    found = [module for module in model.modules() if type(module) is nn.Linear]
    for module in found:
        module.__class__ = OneDNNLinear
    return len(found)
