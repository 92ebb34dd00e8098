"""Plausible wrong versions of course_utils.finetuning.qlora."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from planting import Bug, originals
from torch import nn

right = originals("finetuning.qlora")


class NF4LinearWithoutDouble(right["NF4Linear"]):
    def __init__(self, linear, *, group_size=64, double=True):
        super().__init__(linear, group_size=group_size, double=False)


class NF4LinearWithoutBias(right["NF4Linear"]):
    def forward(self, x):
        return right["_Product"].apply(x, self)


class NF4LinearThatKeepsItsWeight(right["NF4Linear"]):
    """Plain autograd: the dense weight is stored from forward to backward."""

    def forward(self, x):
        return F.linear(x, self.dequantized().to(x.dtype), self.bias)


class NF4LinearThatLearnsItsBias(right["NF4Linear"]):
    def __init__(self, linear, *, group_size=64, double=True):
        super().__init__(linear, group_size=group_size, double=double)
        if self.bias is not None:
            self.bias.requires_grad_(True)


class NF4LinearThatDoesNotTakeAWeight(right["NF4Linear"]):
    def requantize(self, weight):
        return None


class ProductWithoutTranspose(torch.autograd.Function):
    """The gradient of a square weight's product, by the weight and not by its transpose."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        return F.linear(x, layer.dequantized().to(x.dtype))

    @staticmethod
    def backward(ctx, gradient):
        weight = ctx.layer.dequantized().to(gradient.dtype)
        return gradient @ torch.flip(weight, [0]), None


def quantize_again_and_again(model, pattern, *, group_size=64, double=True):
    """Only the first layer that matches."""
    first = right["quantize_linears"](nn.Sequential(*[nn.Linear(2, 2)]), ".*")
    names = [n for n, m in model.named_modules() if type(m) is nn.Linear]
    return right["quantize_linears"](model, names[0].replace(".", r"\.")) if names else first


def float_layer_without_adapters(layer):
    right["float_layer"](layer)
    weight = right["dense_weight"](layer.base)
    linear = nn.Linear(layer.in_features, layer.out_features, layer.base.bias is not None)
    linear.weight.data.copy_(weight)
    if layer.base.bias is not None:
        linear.bias.data.copy_(layer.base.bias)
    return linear


def fold_into_four_bits(model):
    for layer in right["lora_layers"](model).values():
        if layer.merged:
            raise RuntimeError("adapters are merged into this layer; unmerge it first")
        layer.merge()


BUGS = [
    Bug("NF4Linear", "never quantizes scales", NF4LinearWithoutDouble, "linear4bit"),
    Bug("NF4Linear", "forgets the bias", NF4LinearWithoutBias, "linear4bit"),
    Bug("NF4Linear", "keeps the weight", NF4LinearThatKeepsItsWeight, "keeps_no_dense_weight"),
    Bug("NF4Linear", "learns its bias", NF4LinearThatLearnsItsBias, "nothing_in_the_base"),
    Bug("NF4Linear", "takes no weight", NF4LinearThatDoesNotTakeAWeight, "quantize_the_sum"),
    Bug("_Product", "mixes up the outputs", ProductWithoutTranspose, "linear4bit"),
    Bug("quantize_linears", "stops after one", quantize_again_and_again),
    Bug("float_layer", "forgets adapters", float_layer_without_adapters, "fold_into_floats_keeps"),
    Bug("fold_into_floats", "rounds to 4 bits", fold_into_four_bits),
]
