"""Plausible wrong versions of course_utils.architectures.blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from planting import Bug, originals

right = originals("architectures.blocks")


def rms_norm_eps_outside(x, weight, eps):
    return weight * x / (x.square().mean(-1, keepdim=True).sqrt() + eps)


def rms_norm_centred(x, weight, eps):
    return right["rms_norm"](x - x.mean(-1, keepdim=True), weight, eps)


def rms_norm_narrow(x, weight, eps):
    return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def gelu_exact(x):
    return F.gelu(x)


class GatedFeedForwardSwapped(right["GatedFeedForward"]):
    def forward(self, x):
        return self.down(self.gate(x) * self.activation(self.up(x)))


def rms_norm_by_sum(x, weight, eps):
    return weight * x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


def rms_norm_of_everything(x, weight, eps):
    return weight * x * torch.rsqrt(x.square().mean() + eps)


def rms_norm_as_layer_norm(x, weight, eps):
    return F.layer_norm(x, x.shape[-1:], weight, None, eps)


def rms_norm_eps_after_the_root(x, weight, eps):
    return weight * x / (x.square().mean(-1, keepdim=True).sqrt() + eps)


BUGS = [
    Bug("rms_norm", "puts eps outside the root", rms_norm_eps_outside),
    Bug("rms_norm", "subtracts the mean", rms_norm_centred),
    Bug("rms_norm", "squares in 16 bits", rms_norm_narrow),
    Bug(
        "gelu_tanh",
        "is exact",
        gelu_exact,
        tests="t5s and gated",
        where="architectures.encoder_decoder",
    ),
    Bug(
        "GatedFeedForward",
        "swaps gate and up",
        GatedFeedForwardSwapped,
        tests="llamas and plain",
        where="architectures.decoder",
    ),
    Bug("rms_norm", "takes the sum", rms_norm_by_sum, exercise="03.rms_norm"),
    Bug(
        "rms_norm", "takes the mean over tokens too", rms_norm_of_everything, exercise="03.rms_norm"
    ),
    Bug("rms_norm", "is a layer norm", rms_norm_as_layer_norm, exercise="03.rms_norm"),
    Bug("rms_norm", "adds eps after the root", rms_norm_eps_after_the_root, exercise="03.rms_norm"),
]
