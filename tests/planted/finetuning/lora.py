"""Plausible wrong versions of course_utils.finetuning.lora."""

from __future__ import annotations

import math
import re

import torch
from planting import Bug, originals

right = originals("finetuning.lora")


def scale_by_alpha(rank, alpha, rank_stabilised=False):
    """Shipped by a well-known course for years: α, whatever the rank."""
    right["lora_scale"](rank, alpha)
    return alpha


def scale_upside_down(rank, alpha, rank_stabilised=False):
    right["lora_scale"](rank, alpha)
    return rank / alpha


def scale_stabilised_by_the_rank(rank, alpha, rank_stabilised=False):
    return right["lora_scale"](rank, alpha)


def scale_always_stabilised(rank, alpha, rank_stabilised=False):
    return right["lora_scale"](rank, alpha, True)


def delta_transposed(A, B, scale):
    """A and B in the wrong order, which works for square weights alone."""
    product = A.T @ B.T
    return scale * (product if product.shape == (B.shape[0], A.shape[1]) else product.T * 0)


def delta_unscaled(A, B, scale):
    return B @ A


def ratio_by_column(weight, delta, magnitude):
    """The paper's columns, in the layout of the paper and not in that of torch."""
    norm = (weight + delta).detach().norm(dim=0).mean()
    return magnitude / norm


def ratio_without_the_update(weight, delta, magnitude):
    return magnitude / weight.norm(dim=1)


def ratio_with_a_gradient(weight, delta, magnitude):
    return magnitude / (weight + delta).norm(dim=1)


def ratio_of_a_zero_row(weight, delta, magnitude):
    return magnitude / (weight + delta).detach().norm(dim=1)


def parameters_of_the_product(d_in, d_out, rank):
    return rank * d_in * d_out


def parameters_of_a_alone(d_in, d_out, rank):
    return 2 * rank * d_in


class AdapterOfTwoRandoms(right["Adapter"]):
    """B is drawn too, so that the model is another one at the start."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.B.data.normal_(std=0.02)


class AdapterOfTwoZeros(right["Adapter"]):
    """A is 0 as well: no gradient ever comes."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.A.data.zero_()


class AdapterWideAtTheStart(right["Adapter"]):
    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.A.data.mul_(math.sqrt(3))


class AdapterThatDropsWhatComesOut(right["Adapter"]):
    def forward(self, x, base, product):
        kept = self.dropout.p
        self.dropout.p = 0.0
        out = super().forward(x, base, product)
        self.dropout.p = kept
        return self.dropout(out)


class AdapterScaledTwice(right["Adapter"]):
    def forward(self, x, base, product):
        return self.scale * super().forward(x, base, product)


class AdapterWithoutMagnitudeInDelta(right["Adapter"]):
    def delta(self, weight):
        return self.update()


class LayerThatMergesTwice(right["LoRALinear"]):
    """Merging again adds again."""

    @torch.no_grad()
    def merge(self):
        before = self._before
        self._before = None
        super().merge()
        self._before = before or self._before


class LayerThatAddsWhileMerged(right["LoRALinear"]):
    """The merged base, and its adapters once more."""

    def forward(self, x):
        y = self.base(x)
        for name in self.active:
            y = y + self.adapters[name](x, self.base, y)
        return y


class LayerThatSubtracts(right["LoRALinear"]):
    """Unmerging takes away what was added, with its rounding."""

    @torch.no_grad()
    def unmerge(self):
        if self.merged:
            weight = self._before["weight"]
            added = sum(self.adapters[name].delta(weight) for name in self.active)
            self.base.weight.sub_(added)
            self._before = None


class LayerWithAllAdapters(right["LoRALinear"]):
    """Every adapter acts, chosen or not."""

    def forward(self, x):
        y = self.base(x)
        if self.merged:
            return y
        for adapter in self.adapters.values():
            y = y + adapter(x, self.base, y)
        return y


class LayerWhoseBaseLearns(right["LoRALinear"]):
    def __init__(self, base):
        super().__init__(base)
        base.requires_grad_(True)


class LayerWithTheBiasInTheProduct(right["LoRALinear"]):
    """DoRA's ratio multiplies the bias too."""

    def forward(self, x):
        y = self.base(x)
        if self.merged:
            return y
        product = y
        for name in self.active:
            y = y + self.adapters[name](x, self.base, product).to(y.dtype)
        return y


def dense_weight_transposed(base):
    weight = right["dense_weight"](base)
    return weight.T if weight.shape[0] == weight.shape[1] else torch.flip(weight, [1])


def inject_by_a_part_of_the_name(model, pattern, rank, alpha, **options):
    return right["inject_lora"](model, f".*({pattern}).*", rank, alpha, **options)


def inject_without_freezing(model, pattern, rank, alpha, **options):
    names = right["inject_lora"](model, pattern, rank, alpha, **options)
    for name, parameter in model.named_parameters():
        if "adapters" not in name:
            parameter.requires_grad_(True)
    return names


def use_without_switching_off(model, names):
    right["use_adapters"](model, names)
    for layer in right["lora_layers"](model).values():
        layer.active = [*names, *(n for n in layer.adapters if n not in names)]


def use_without_gradients(model, names):
    right["use_adapters"](model, names)
    for layer in right["lora_layers"](model).values():
        layer.adapters.requires_grad_(True)


def remove_all(model, name):
    for layer in right["lora_layers"](model).values():
        for held in list(layer.adapters):
            del layer.adapters[held]
        layer.active = []


def linear_names_with_bases(model, pattern=".*"):
    names = [n for n, module in model.named_modules() if n and hasattr(module, "in_features")]
    return [n for n in names if re.fullmatch(pattern, n)]


def fold_without_merging(model):
    for name, layer in right["lora_layers"](model).items():
        model.set_submodule(name, layer.base)


def merge_shared_too(model):
    for layer in right["lora_layers"](model).values():
        layer.merge()


def check_rank_off_by_one(rank, d_in, d_out):
    if rank > min(d_in, d_out):
        raise ValueError("rank")


def check_rank_by_the_larger(rank, d_in, d_out):
    right["check_rank"](rank, max(d_in, d_out), max(d_in, d_out))


BUGS = [
    Bug("lora_scale", "is α without r", scale_by_alpha, "lora_scale or pefts"),
    Bug("lora_scale", "is r / α", scale_upside_down, "lora_scale or pefts"),
    Bug("lora_scale", "never takes the root", scale_stabilised_by_the_rank),
    Bug("lora_scale", "always takes the root", scale_always_stabilised),
    Bug("lora_delta", "transposes A and B", delta_transposed, "lora_delta or by_hand"),
    Bug("lora_delta", "has no scale", delta_unscaled),
    Bug("lora_delta", "has no scale when merged", delta_unscaled, "merge_and_unmerge"),
    Bug("dora_ratio", "takes columns for rows", ratio_by_column, "dora"),
    Bug("dora_ratio", "leaves out ΔW", ratio_without_the_update, "dora"),
    Bug("dora_ratio", "lets gradients through", ratio_with_a_gradient, "with_adapters_is_pefts"),
    Bug("dora_ratio", "divides by zero", ratio_of_a_zero_row, "dora_ratio"),
    Bug("lora_parameters", "counts the product", parameters_of_the_product),
    Bug("lora_parameters", "counts A twice", parameters_of_a_alone),
    Bug("Adapter", "starts B at random", AdapterOfTwoRandoms, "at_the_start"),
    Bug("Adapter", "starts A at zero", AdapterOfTwoZeros, "at_the_start or start_of_a"),
    Bug("Adapter", "starts A too wide", AdapterWideAtTheStart, "start_of_a"),
    Bug("Adapter", "drops outputs", AdapterThatDropsWhatComesOut, "net_with_adapters_is_pefts"),
    Bug("Adapter", "scales twice", AdapterScaledTwice, "pefts or merge"),
    Bug("Adapter", "merges no magnitude", AdapterWithoutMagnitudeInDelta, "merge"),
    Bug("LoRALinear", "merges twice", LayerThatMergesTwice, "merge_and_unmerge"),
    Bug("LoRALinear", "adds while merged", LayerThatAddsWhileMerged, "merge_and_unmerge"),
    Bug("LoRALinear", "unmerges by subtracting", LayerThatSubtracts, "unmerge or leave_no_trace"),
    Bug("LoRALinear", "lets every adapter act", LayerWithAllAdapters, "use_adapters"),
    Bug("LoRALinear", "lets the base learn", LayerWhoseBaseLearns, "layer_alone"),
    Bug("LoRALinear", "scales the bias", LayerWithTheBiasInTheProduct, "pefts or merge"),
    Bug("dense_weight", "is turned round", dense_weight_transposed, "dora or merge"),
    Bug("inject_lora", "searches in the name", inject_by_a_part_of_the_name, "refuses"),
    Bug("inject_lora", "freezes nothing", inject_without_freezing, "counts"),
    Bug("use_adapters", "switches nothing off", use_without_switching_off),
    Bug("use_adapters", "lets all of them learn", use_without_gradients),
    Bug("remove_adapter", "removes all", remove_all),
    Bug("linear_names", "goes into the layers", linear_names_with_bases),
    Bug("fold_lora", "forgets the adapters", fold_without_merging, "fold"),
    Bug("merge_lora", "changes shared weights", merge_shared_too, "shared"),
    Bug("check_rank", "is off by one", check_rank_off_by_one, "rank_is_the_smaller"),
    Bug("check_rank", "looks at the larger side", check_rank_by_the_larger, "refuses"),
]
