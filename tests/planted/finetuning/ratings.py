"""Plausible wrong versions of course_utils.finetuning.ratings."""

from __future__ import annotations

import torch
from planting import Bug, originals, refusing

right = originals("finetuning.ratings")


def ridge_without_leverage(features, targets, penalties=right["PENALTIES"]):
    """The training error chooses, so that the least penalty always wins."""
    return right["ridge"](features, targets, penalties[:1])


def ridge_without_a_mean(features, targets, penalties=right["PENALTIES"]):
    fit = right["ridge"](features, targets, penalties)
    return fit._replace(offset=0.0)


def ridge_in_fixed_units(features, targets, penalties=right["PENALTIES"]):
    x = features.double()
    unit = torch.linalg.svdvals(x - x.mean(dim=0)).square().mean().item()
    return right["ridge"](features, targets, [p / unit for p in penalties])


BUGS = [
    Bug("ridge", "chooses by the training error", refusing(right["ridge"], ridge_without_leverage)),
    Bug("ridge", "has no intercept", refusing(right["ridge"], ridge_without_a_mean)),
    Bug("ridge", "minds the features' unit", refusing(right["ridge"], ridge_in_fixed_units)),
]
