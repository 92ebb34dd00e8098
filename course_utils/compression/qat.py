"""Quantization-aware training: the forward pass rounds, the backward pass looks through it.

Notebook 14. Straight-through gradients (Bengio et al. 2013; Jacob et al. 2018) and a learned step
size (LSQ; Esser et al. 2020), on the symmetric grids of `rtn`, and the integers that are left when
training is done. Shapes: W (D_out, D_in), groups (G, N) with a scale each (G, 1).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.compression.int8 import int8_product
from course_utils.compression.rtn import (
    check_bits,
    check_weight,
    codes_on,
    dequantize_symmetric,
    into_groups,
    linear_layers,
    pack_bits,
    quantize_symmetric,
    unpack_bits,
)

# ── rounding that lets gradients through ──────────────────────────────────────────────────────────


class _Round(torch.autograd.Function):
    """round(x), with the gradient of x: the straight-through estimator.

    (`x + (x.round() − x).detach()` has that gradient too, but its value is off by a last bit.)
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def fake_quantize(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """x on the grid of −q … q times scale, q = 2^(bits−1) − 1: floats that a b-bit integer gives.

    Backward, x has a gradient of 1 where it is rounded and 0 where it is cut off at the grid's end;
    the scale has round(x/s) − x/s, and ±q at the ends: Esser et al. 2020, equations 2 and 3. What
    rounds to ±q counts as rounded, as in torch.

    >>> x = torch.tensor([0.3, 0.9, -9.0], requires_grad=True)
    >>> scale = torch.tensor([0.5], requires_grad=True)
    >>> y = fake_quantize(x, scale, bits=3)
    >>> y.tolist()
    [0.5, 1.0, -1.5]
    >>> y.sum().backward()
    >>> x.grad, scale.grad  # (1 − 0.6) + (2 − 1.8) − 3
    (tensor([1., 1., 0.]), tensor([-2.4000]))
    """
    check_bits(bits, least=2)
    largest = 2 ** (bits - 1) - 1
    steps = x / scale
    inside = steps.detach().round().abs() <= largest
    return torch.where(inside, _Round.apply(steps), steps.detach().sign() * largest) * scale


# ── a step size that learns ───────────────────────────────────────────────────────────────────────


def first_scale(x: Tensor, bits: int) -> Tensor:
    """2·mean|x|/√q of each row (…, N) -> (…, 1); 1 where a row is 0. Esser et al., section 2.1.

    >>> first_scale(torch.tensor([[1.0, -3.0], [0.0, 0.0]]), bits=3)  # 2 · 2 / √3
    tensor([[2.3094],
            [1.0000]])
    """
    check_weight(x)
    check_bits(bits, least=2)
    scale = 2 * x.abs().mean(dim=-1, keepdim=True) / math.sqrt(2 ** (bits - 1) - 1)
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def damp_gradient(scale: Tensor, n: int, bits: int) -> Tensor:
    """The scale itself, with 1/√(n·q) of its gradient, for n numbers that share it.

    It gets a sum over n numbers and would move faster than they do. Esser et al., section 2.2.

    >>> scale = torch.tensor([0.5], requires_grad=True)
    >>> damp_gradient(scale, n=12, bits=3).backward()
    >>> scale.grad  # 1/√(12 · 3)
    tensor([0.1667])
    """
    return _Damped.apply(scale, 1 / math.sqrt(n * (2 ** (bits - 1) - 1)))


class _Damped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


# ── layers ────────────────────────────────────────────────────────────────────────────────────────


class QATLinear(nn.Module):
    """A linear layer that computes with rounded weights and trains the floats behind them.

    With `learned` the scales are parameters (LSQ), else those of `quantize_symmetric` of the weight
    as it is. `activation_bits` rounds the inputs too, with one learned scale that the first batch
    sets; 0 leaves them floats.

    >>> layer = QATLinear(nn.Linear(8, 4), bits=3, group_size=4)
    >>> len(layer.quantized_weight().unique()) <= 7 * 8  # 7 levels in each of 4 · 8/4 groups
    True
    """

    def __init__(
        self,
        linear: nn.Linear,
        bits: int,
        granularity: str = "group",
        group_size: int = 64,
        *,
        learned: bool = True,
        activation_bits: int = 0,
    ) -> None:
        super().__init__()
        check_bits(bits, least=2)
        if activation_bits:
            check_bits(activation_bits, least=2)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bits, self.activation_bits, self.learned = bits, activation_bits, learned
        self.granularity, self.group_size = granularity, group_size
        self.weight, self.bias = linear.weight, linear.bias
        groups = self._groups()
        self.scale = nn.Parameter(first_scale(groups.detach(), bits), learned)
        self.x_scale = nn.Parameter(torch.ones(1), bool(activation_bits))
        self.register_buffer("x_seen", torch.tensor(not activation_bits))

    def _groups(self) -> Tensor:
        return into_groups(self.weight, self.granularity, self.group_size)  # (G, N)

    def positive_scale(self) -> Tensor:
        """The scales (G, 1) in use: a learned one that crossed 0 counts by its size."""
        if not self.learned:
            scale = quantize_symmetric(self._groups().detach(), self.bits)[1]
            return torch.where(scale > 0, scale, torch.ones_like(scale))
        return self.scale.abs().clamp(min=1e-12)

    def quantized_weight(self) -> Tensor:
        """The weight that acts (D_out, D_in)."""
        groups, scale = self._groups(), self.positive_scale()
        scale = damp_gradient(scale, groups.shape[1], self.bits)
        return fake_quantize(groups, scale, self.bits).view_as(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        if self.activation_bits:
            x = self._quantized_inputs(x)
        return F.linear(x, self.quantized_weight(), self.bias)

    def _quantized_inputs(self, x: Tensor) -> Tensor:
        if not self.x_seen:
            with torch.no_grad():
                self.x_scale.copy_(first_scale(x.detach().reshape(1, -1), self.activation_bits)[0])
                self.x_seen.fill_(True)
        n = x.numel() // x.shape[0]  # of one example, as the authors count
        scale = damp_gradient(self.x_scale.abs().clamp(min=1e-12), n, self.activation_bits)
        return fake_quantize(x, scale, self.activation_bits)


class IntegerLinear(nn.Module):
    """What is left of a `QATLinear`: packed integers and their scales. It answers the same.

    Without rounded inputs the weight is dequantized in every call, and the answers are equal to the
    bit. With them and a scale a row, the product is one of integers.

    >>> trained = QATLinear(nn.Linear(64, 4), bits=2)
    >>> layer, x = IntegerLinear(trained), torch.randn(3, 64)
    >>> bool((layer(x) == trained(x)).all()), layer.nbytes()  # 64 · 4 · 2/8, 4 scales, and a bias
    (True, 96)
    """

    def __init__(self, trained: QATLinear) -> None:
        super().__init__()
        if not trained.x_seen:
            raise ValueError("the layer has seen no input, so its inputs' scale is not set; run it")
        groups, scale = trained._groups().detach(), trained.positive_scale().detach()
        codes = codes_on(groups.float(), trained.bits, "symmetric", scale.float())
        self.bits, self.activation_bits = trained.bits, trained.activation_bits
        self.shape, self.width = trained.weight.shape, groups.shape[1]
        self.in_features, self.out_features = trained.in_features, trained.out_features
        self.register_buffer("packed", pack_bits(codes.int() + self._offset(), self.bits))
        self.register_buffer("scale", scale.float().clone())
        self.register_buffer("x_scale", trained.x_scale.detach().abs().clamp(min=1e-12).clone())
        bias = trained.bias
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def _offset(self) -> int:
        return 2 ** (self.bits - 1) - 1  # codes −q … q are packed as 0 … 2q

    def codes(self) -> Tensor:
        """The signed integers (G, N) in int8."""
        stream = unpack_bits(self.packed, self.bits, self.shape.numel())
        return (stream.to(torch.int16) - self._offset()).to(torch.int8).view(-1, self.width)

    def weight(self) -> Tensor:
        """The dequantized weight (D_out, D_in)."""
        return dequantize_symmetric(self.codes(), self.scale).view(self.shape)

    def nbytes(self) -> int:
        """Bytes of codes, scales and bias."""
        bias = 0 if self.bias is None else self.bias.nbytes
        return self.packed.nbytes + self.scale.nbytes + bias

    def forward(self, x: Tensor) -> Tensor:
        if not self.activation_bits:
            return F.linear(x, self.weight(), self.bias)
        codes = codes_on(x, self.activation_bits, "symmetric", self.x_scale)
        if self.width != self.in_features:  # groups: each has its own scale within a sum
            return F.linear(dequantize_symmetric(codes, self.x_scale), self.weight(), self.bias)
        product = int8_product(codes.reshape(-1, self.in_features), self.codes())
        y = (product * (self.x_scale * self.scale.T)).view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


# ── models ────────────────────────────────────────────────────────────────────────────────────────


def prepare_qat(
    model: nn.Module,
    bits: int,
    granularity: str = "group",
    group_size: int = 64,
    *,
    learned: bool = True,
    activation_bits: int = 0,
    skip: Collection[str] = (),
) -> list[str]:
    """Put a `QATLinear` in place of each of the model's `linear_layers`; return their names.

    Make the optimizer afterwards: scales are new parameters.

    >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> prepare_qat(net, bits=4, group_size=8)
    ['0', '2']
    """
    options = {"learned": learned, "activation_bits": activation_bits}
    new = {
        name: QATLinear(layer, bits, granularity, group_size, **options)
        for name, layer in linear_layers(model, skip).items()
    }
    if not new:
        raise ValueError(f"this {type(model).__name__} has no linear layer to quantize")
    for name, layer in new.items():  # all are made first: a refusal leaves the model as it was
        model.set_submodule(name, layer.train(model.training))
    return list(new)


def convert_qat(model: nn.Module) -> list[str]:
    """Put an `IntegerLinear` in place of each `QATLinear`; return their names.

    >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> _ = prepare_qat(net, bits=4, group_size=8)
    >>> y = net(torch.ones(1, 8))
    >>> convert_qat(net), bool((net(torch.ones(1, 8)) == y).all())
    (['0', '2'], True)
    """
    trained = {n: layer for n, layer in model.named_modules() if isinstance(layer, QATLinear)}
    if not trained:
        raise ValueError(f"this {type(model).__name__} has no QATLinear; call prepare_qat first")
    new = {name: IntegerLinear(layer) for name, layer in trained.items()}
    for name, layer in new.items():
        model.set_submodule(name, layer)
    return list(new)


def scales_and_others(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that learn: scales, which want a rate of their own and no decay, and others.

    >>> net = nn.Sequential(nn.Linear(8, 8))
    >>> _ = prepare_qat(net, bits=4, group_size=8)
    >>> [len(group) for group in scales_and_others(net)]
    [1, 2]
    """
    layers = [layer for layer in model.modules() if isinstance(layer, QATLinear)]
    scales = [p for layer in layers for p in (layer.scale, layer.x_scale) if p.requires_grad]
    known = {id(p) for p in scales}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    return scales, others
