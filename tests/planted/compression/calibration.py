"""Plausible wrong versions of course_utils.compression.calibration."""

from __future__ import annotations

import torch
from planting import Bug, originals

right = originals("compression.calibration")


class MomentsOfTheLast(right["Moments"]):
    """Keeps what came last."""

    def add(self, x):
        self.n, self.products = 0, self.products * 0
        super().add(x)


class MomentsOfBatches(right["Moments"]):
    """Counts batches, so that a small one weighs as much as a large one."""

    def add(self, x):
        n = self.n
        super().add(x)
        self.n = n + 1


class MomentsInHalf(right["Moments"]):
    def add(self, x):
        self.n += len(x)
        self.products = self.products.to(x) + x.T @ x
        self.sizes = self.sizes.to(x) + x.abs().sum(dim=0)


class MomentsWithSigns(right["Moments"]):
    """Positive and negative numbers cancel."""

    def add(self, x):
        before = self.sizes
        super().add(x)
        self.sizes = before.to(self.sizes) + x.sum(dim=0)


class MomentsAroundTheMean(right["Moments"]):
    """A covariance: the layer's error depends on where the inputs are, not on their spread."""

    def add(self, x):
        super().add(x)
        self.products = self.products - x.T.sum(1).outer(x.sum(0)) / len(x)


def padding_too(x, mask):
    return x.reshape(-1, x.shape[-1])


def first_tokens(x, mask):
    """As many as are real, but from the front."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if mask is None else rows[: int(mask.sum())]


def outputs_instead_of_inputs(layers, see):
    from contextlib import contextmanager

    @contextmanager
    def watching():
        handles = [
            layer.register_forward_hook(lambda m, a, out, name=name: see(name, out.detach()))
            for name, layer in layers.items()
        ]
        yield
        for handle in handles:
            handle.remove()

    return watching()


def all_parts(model, skip, within):
    return right["linear_layers"](model, skip)


def parts_anywhere(model, skip, within):
    """The name holds it, instead of starting with it."""
    right["_chosen"](model, skip, within)
    layers = right["linear_layers"](model, skip)
    return {name: layer for name, layer in layers.items() if within in name}


def error_of_the_weight(weight, changed, hessian):
    """Says nothing of the inputs."""
    return ((weight - changed).square().sum() / weight.square().sum()).item()


def error_of_the_diagonal(weight, changed, hessian):
    return right["output_error"](weight, changed, torch.diag(hessian.diagonal()))


BUGS = [
    Bug("Moments", "keep the last batch", MomentsOfTheLast, "pieces or by_hand"),
    Bug("Moments", "count batches", MomentsOfBatches, "by_hand or calibrate"),
    Bug("Moments", "are summed in bfloat16", MomentsInHalf, "half_precision"),
    Bug("Moments", "add signs", MomentsWithSigns, "by_hand"),
    Bug("Moments", "are a covariance", MomentsAroundTheMean, "whole"),
    Bug("real_tokens", "counts padding", padding_too, "padding"),
    Bug("real_tokens", "takes the first", first_tokens, "padding"),
    Bug("watching", "shows what comes out", outputs_instead_of_inputs, "each_layer_gets"),
    Bug("_chosen", "takes all parts", all_parts, "within"),
    Bug("_chosen", "looks anywhere", parts_anywhere, "within"),
    Bug("output_error", "is the weight's", error_of_the_weight),
    Bug("output_error", "has uncorrelated inputs", error_of_the_diagonal),
]
