"""Plausible wrong versions of course_utils.architectures.families."""

from __future__ import annotations

import torch
from planting import Bug, originals
from torch import nn

right = originals("architectures.families")


class StacksForgetPadding(right["Stacks"]):
    def forward(self, ids, n_prefix, real=None):
        return super().forward(ids, n_prefix)


class StacksAlwaysCausal(right["Stacks"]):
    """The prefix is read from left to right."""

    def forward(self, ids, n_prefix, real=None):
        return super().forward(ids, n_prefix if self.two else 0, real)


class StacksLetTheSourceGoOn(right["Stacks"]):
    """The second half works on the source too, so that it reads itself there again."""

    def _in_two(self, x, n_prefix, visible, rotary):
        for block in self.net.blocks:
            x = block(x, mask=visible, causal=False, rotary=rotary)
        return x


class StacksSeeTheTarget(right["Stacks"]):
    """The source sees the target."""

    def _in_two(self, x, n_prefix, visible, rotary):
        everything = torch.ones_like(visible)
        return super()._in_two(x, n_prefix, everything, rotary)


def spread_weights_alike(net):
    """Nothing is made smaller where blocks add up."""
    nn.init.normal_(net.token_embedding.weight, std=net.config.d_model**-0.5)
    for layer in net.blocks.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)


def reach_summed(embedding, run):
    """All outputs at once: who sees whom is lost."""
    return [table.sum(0).expand_as(table) for table in right["reach"](embedding, run)]


BUGS = [
    Bug("Stacks", "sees padding", StacksForgetPadding, tests="padding"),
    Bug("Stacks", "reads the prefix forwards only", StacksAlwaysCausal, tests="ends or gradients"),
    Bug("Stacks", "is one stack after all", StacksLetTheSourceGoOn, tests="first_half"),
    Bug("Stacks", "lets the past see the future", StacksSeeTheTarget, tests="gradients"),
    Bug("spread_weights", "makes nothing smaller", spread_weights_alike),
    Bug("reach", "adds all outputs up", reach_summed, tests="gradients"),
]
