"""Plausible wrong versions of course_utils.architectures.blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from planting import Bug, originals

right = originals("architectures.blocks")


def rms_norm_narrow(x, weight, eps):
    return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def gelu_exact(x):
    return F.gelu(x)


class GatedFeedForwardSwapped(right["GatedFeedForward"]):
    def forward(self, x):
        return self.down(self.gate(x) * self.activation(self.up(x)))


BUGS = [
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
]
