"""AWQ: the few inputs that are large decide which weights need care. Notebook 13.

Lin et al. 2024. A ladder: keep the salient columns as floats (and as many others, as the control),
then scale them up before rounding and down again after it, then search for the scales. `quantize`
is any function of a weight, such as a `round_to_nearest` with its settings. Shapes: W (D_out,
D_in), sizes (D_in,) the mean |x| of each input, H (D_in, D_in), both from `calibration`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from course_utils.compression.calibration import (
    Moments,
    check_hessian,
    layers_of,
    output_error,
)

Quantize = Callable[[Tensor], Tensor]

# ── some columns kept ─────────────────────────────────────────────────────────────────────────────


def salient_columns(sizes: Tensor, share: float = 0.01) -> Tensor:
    """The columns whose inputs are largest on average, in order: `share` of them, one at least.

    >>> salient_columns(torch.tensor([0.1, 7.0, 0.2, 0.4]), share=0.5).tolist()
    [1, 3]
    """
    return sizes.topk(_count(len(sizes), share)).indices.sort().values


def random_columns(d_in: int, share: float = 0.01, seed: int = 0) -> Tensor:
    """As many columns as `salient_columns` takes, drawn by lot, in order: the control.

    >>> len(random_columns(200, share=0.01))
    2
    """
    drawn = torch.randperm(d_in, generator=torch.Generator().manual_seed(seed))
    return drawn[: _count(d_in, share)].sort().values


def _count(d_in: int, share: float) -> int:
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it lies above 0, up to 1")
    return max(1, round(share * d_in))


def keep_columns(weight: Tensor, columns: Tensor, quantize: Quantize) -> Tensor:
    """`quantize(W)`, but with these columns as they are. Lin et al., table 1.

    Quality for little memory, and a layer of two kinds of numbers, which hardware dislikes.

    >>> W = torch.tensor([[0.3, 0.6, 1.2]])
    >>> keep_columns(W, torch.tensor([0]), torch.round)
    tensor([[0.3000, 1.0000, 1.0000]])
    """
    rounded = quantize(weight).clone()
    rounded[:, columns] = weight[:, columns]
    return rounded


# ── columns scaled ────────────────────────────────────────────────────────────────────────────────


def scaled_rounding(weight: Tensor, scales: Tensor, quantize: Quantize) -> Tensor:
    """quantize(W·s)/s, with a scale for each input (D_in,). Lin et al., equation 2.

    A column times s is rounded in steps that are 1/s of its group's, while the group's step grows
    only if the column holds the largest number.

    >>> W = torch.tensor([[0.3, 0.6, 1.2]])
    >>> scaled_rounding(W, torch.tensor([2.0, 1.0, 1.0]), torch.round)  # 0.3 · 2 → 1, over 2
    tensor([[0.5000, 1.0000, 1.0000]])
    """
    check_scales(scales, weight.shape[1])
    return quantize(weight * scales) / scales


def check_scales(scales: Tensor, d_in: int) -> None:
    if tuple(scales.shape) != (d_in,):
        raise ValueError(f"scales are {tuple(scales.shape)}; there are {d_in} inputs")
    if not ((scales > 0) & scales.isfinite()).all():
        raise ValueError(f"scales go from {scales.min()} to {scales.max()}; each is above 0")


def scales_of_columns(d_in: int, columns: Tensor, factor: float) -> Tensor:
    """`factor` for these columns and 1 for the others (D_in,).

    >>> scales_of_columns(4, torch.tensor([1, 3]), 2.0)
    tensor([1., 2., 1., 2.])
    """
    return torch.ones(d_in).index_fill(0, columns, factor)


def scales_by_size(sizes: Tensor, ratio: float) -> Tensor:
    """sizes^ratio (D_in,), over the root of their largest times their smallest.

    0 scales nothing, 1 as much as the inputs differ. Lin et al., equation 5, and the authors' code:
    an input that was always 0 counts as 10⁻⁴.

    >>> scales_by_size(torch.tensor([1.0, 4.0, 16.0]), ratio=0.5)  # 1, 2, 4 over √(4 · 1)
    tensor([0.5000, 1.0000, 2.0000])
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio is {ratio}; it lies between 0 and 1")
    scales = sizes.pow(ratio).clamp(min=1e-4)
    return scales / (scales.max() * scales.min()).sqrt()


class Search(NamedTuple):
    """What a search for scales found, and the error at each ratio that it tried."""

    scales: Tensor  # (D_in,)
    ratio: float
    errors: dict[float, float]  # ratio -> `output_error`


def search_scales(
    weight: Tensor, hessian: Tensor, sizes: Tensor, quantize: Quantize, steps: int = 20
) -> Search:
    """The best ratio of 0, 1/steps, … by the layer's error in its outputs. Lin et al., equation 4.

    Layers that read the same inputs share their scales: give their weights on top of one another.
    On equal errors the least scaling is kept; ratio 0 is plain rounding, which is thus never lost.

    >>> W, sizes = torch.tensor([[0.3, 0.6, 1.2]]), torch.tensor([9.0, 1.0, 1.0])
    >>> search_scales(W, torch.diag(sizes**2), sizes, torch.round, steps=4).ratio  # 0.3 · 2.28 → 1
    0.75
    """
    check_hessian(weight, hessian)
    if steps < 1:
        raise ValueError(f"steps is {steps}; the search needs at least one")
    errors, best = {}, None
    for ratio in (i / steps for i in range(steps)):
        scales = scales_by_size(sizes.to(weight.device, torch.float32), ratio)
        rounded = scaled_rounding(weight.float(), scales, quantize)
        errors[ratio] = output_error(weight, rounded, hessian)
        if not math.isfinite(errors[ratio]):
            raise ValueError(
                f"the error at ratio {ratio} is {errors[ratio]}; W x is 0, or not finite"
            )
        if best is None or errors[ratio] < errors[best[1]]:
            best = scales, ratio
    return Search(*best, errors)


# ── models ────────────────────────────────────────────────────────────────────────────────────────


def awq_linears(
    model: nn.Module, moments: Mapping[str, Moments], quantize: Quantize, steps: int = 20
) -> dict[str, Search]:
    """Put the searched, scaled and rounded weight in place of each that `moments` names.

    Each layer has scales of its own, and its weight is what the layer does in effect: to store
    integers, the division by s is moved into what comes before (`fold_scales`).

    >>> from course_utils.compression.calibration import collect_moments
    >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    >>> moments = collect_moments(net, [torch.randn(8, 4)])
    >>> sorted(awq_linears(net, moments, lambda W: (8 * W).round() / 8))
    ['0', '1']
    """
    layers, found = layers_of(model, moments), {}
    for name, seen in moments.items():
        weight = layers[name].weight.detach()
        found[name] = search_scales(weight, seen.hessian(), seen.mean_size(), quantize, steps)
        weight.copy_(scaled_rounding(weight.float(), found[name].scales, quantize))
    return found


@torch.no_grad()
def fold_scales(before: nn.Module, layers: Sequence[nn.Linear], scales: Tensor) -> None:
    """Divide what `before` gives by s, and multiply the columns of the layers that read it by s.

    `before` is a norm with a weight (D,) or a linear layer; nothing but these layers may read it,
    and nothing that bends may stand between. The outputs stay what they were.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> x = torch.randn(5, 2)
    >>> y = net(x)
    >>> fold_scales(net[0], [net[1]], torch.tensor([2.0, 4.0, 0.5]))
    >>> bool((net(x) - y).abs().max() < 1e-6)
    True
    """
    d = before.weight.shape[0]
    check_scales(scales, d)
    for layer in layers:
        if layer.in_features != d:
            raise ValueError(f"a layer reads {layer.in_features} inputs; {d} come out before it")
    scales = scales.to(before.weight)
    before.weight.div_(scales if before.weight.ndim == 1 else scales.unsqueeze(1))
    if getattr(before, "bias", None) is not None:
        before.bias.div_(scales)
    for layer in layers:
        layer.weight.mul_(scales)
