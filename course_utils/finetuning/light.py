"""Two rivals of LoRA that train even fewer numbers: BitFit and IA³. Notebook 07.

BitFit (Ben Zaken et al. 2022) trains the biases. IA³ (Liu et al. 2022, section 3.3) multiplies
keys, values, and what enters a feed-forward's second layer, by learned vectors that start at 1.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from course_utils.finetuning.lora import linear_names
from course_utils.finetuning.transfer import freeze, train_only, trainable


def train_biases(model: nn.Module, pattern: str = ".*") -> int:
    """Freeze all but the biases whose whole names match; returns how many numbers learn.

    ValueError where there are none.

    >>> train_biases(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4)))
    6
    """
    chosen = [
        name
        for name, _ in model.named_parameters()
        if name.rpartition(".")[2] == "bias" and re.fullmatch(pattern, name)
    ]
    if not chosen:
        raise ValueError(f"no bias's whole name matches {pattern!r}: nothing would learn")
    return train_only(model, chosen)


class ScaledLinear(nn.Module):
    """A frozen linear layer whose output, or input, is multiplied by a vector that learns.

    >>> layer = ScaledLinear(nn.Linear(3, 2), before=False)
    >>> layer.vector
    Parameter containing:
    tensor([1., 1.], requires_grad=True)
    """

    def __init__(self, base: nn.Linear, *, before: bool) -> None:
        super().__init__()
        self.base, self.before = base.requires_grad_(False), before
        self.in_features, self.out_features = base.in_features, base.out_features
        size = base.in_features if before else base.out_features
        self.vector = nn.Parameter(torch.ones(size, device=base.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """x (…, D_in) -> (…, D_out)."""
        return self.base(x * self.vector) if self.before else self.base(x) * self.vector


def inject_ia3(model: nn.Module, outputs: str, inputs: str) -> int:
    """Scale the outputs of the layers that match `outputs`, and the inputs of those of `inputs`.

    Everything else is frozen. Returns how many numbers learn; ValueError where nothing matches.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    >>> inject_ia3(net, outputs="none", inputs="2")
    8
    """
    before = dict.fromkeys(linear_names(model, inputs), True)
    chosen = before | dict.fromkeys(linear_names(model, outputs), False)
    if not chosen:
        raise ValueError(f"no linear layer's whole name matches {outputs!r} or {inputs!r}")
    freeze(model)
    for name, at_the_input in chosen.items():
        layer = ScaledLinear(model.get_submodule(name), before=at_the_input)
        model.set_submodule(name, layer)
    return trainable(model)
