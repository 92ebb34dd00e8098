"""QLoRA's base: a linear layer whose frozen weight is kept in NF4. Notebook 07.

Dettmers et al. 2023, equation 5: the weight is dequantized where it is used, forward and backward,
and never kept. Adapters stand beside it as beside any layer (`lora`). Shapes: W (D_out, D_in).
"""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.compression.nf4 import (
    dequantize_nf4,
    dequantize_scales,
    quantize_nf4,
    quantize_scales,
)
from course_utils.finetuning.lora import LoRALinear, dense_weight, lora_layers


class _Product(torch.autograd.Function):
    """x Wᵀ with W from its bytes; the backward pass dequantizes again instead of keeping W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: NF4Linear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dequantized().to(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.dequantized().to(gradient.dtype), None


class NF4Linear(nn.Module):
    """A frozen linear layer in 4 bits a weight, and its scales in float32 or in bytes.

    `double` quantizes the scales too (QLoRA, section 3): 4.127 bits a weight instead of 4.5.

    >>> layer = NF4Linear(nn.Linear(128, 64, bias=False))
    >>> layer.nbytes(), 64 * 128 // 2 + 64 * 128 // 64 + 4 + 4  # codes, scales, their own two
    (4232, 4232)
    """

    def __init__(self, linear: nn.Linear, *, group_size: int = 64, double: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.group_size, self.double = group_size, double
        bias = linear.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), False)
        for name, tensor in self._quantized(linear.weight.detach()).items():
            self.register_buffer(name, tensor)

    def _quantized(self, weight: Tensor) -> dict[str, Tensor]:
        packed, largest = quantize_nf4(weight, self.group_size)
        if not self.double:
            return {"packed": packed, "largest": largest}
        codes, second, mean = quantize_scales(largest)
        return {"packed": packed, "scale_codes": codes, "scale_largest": second, "scale_mean": mean}

    def dequantized(self) -> Tensor:
        """W (D_out, D_in) in float32."""
        if self.double:
            largest = dequantize_scales(self.scale_codes, self.scale_largest, self.scale_mean)
        else:
            largest = self.largest
        shape = torch.Size((self.out_features, self.in_features))
        return dequantize_nf4(self.packed, largest, shape, self.group_size)

    @torch.no_grad()
    def requantize(self, weight: Tensor) -> None:
        """Take another weight (D_out, D_in), rounded to NF4 anew."""
        for name, tensor in self._quantized(weight).items():
            getattr(self, name).copy_(tensor)

    def nbytes(self) -> int:
        """Bytes of the codes and scales."""
        return sum(tensor.nbytes for tensor in self.buffers())

    def forward(self, x: Tensor) -> Tensor:
        """x (…, D_in) -> (…, D_out); the gradient goes to x alone."""
        product = _Product.apply(x, self)
        return product if self.bias is None else product + self.bias.to(product.dtype)


def quantize_linears(
    model: nn.Module, pattern: str, *, group_size: int = 64, double: bool = True
) -> list[str]:
    """Replace every `nn.Linear` whose whole name matches by its NF4 form; returns the names.

    Before the adapters come, since those stay in floats. ValueError where nothing matches.

    >>> quantize_linears(nn.Sequential(nn.Linear(64, 8), nn.ReLU()), ".*")
    ['0']
    """
    names = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and re.fullmatch(pattern, name)
    ]
    if not names:
        raise ValueError(f"no nn.Linear's whole name matches {pattern!r}: nothing to quantize")
    for name in names:
        linear = model.get_submodule(name)
        model.set_submodule(name, NF4Linear(linear, group_size=group_size, double=double))
    return names


def fold_into_floats(model: nn.Module) -> None:
    """Merge for good, each layer into an `nn.Linear` of floats.

    Rounding the sum to 4 bits would lose the adapter: an update is often smaller than half a step.
    """
    for name, layer in lora_layers(model).items():
        model.set_submodule(name, float_layer(layer))


@torch.no_grad()
def float_layer(layer: LoRALinear) -> nn.Linear:
    """One layer with its active adapters, as an `nn.Linear`; what it was made of stays."""
    if layer.merged:
        raise RuntimeError("adapters are merged into this layer; unmerge it first")
    weight = dense_weight(layer.base)
    for name in layer.active:
        weight = weight + layer.adapters[name].delta(dense_weight(layer.base))
    bias = getattr(layer.base, "bias", None)
    linear = nn.Linear(layer.in_features, layer.out_features, bias is not None, weight.device)
    linear.weight.copy_(weight)
    if bias is not None:
        linear.bias.copy_(bias)
    return linear.requires_grad_(False)
