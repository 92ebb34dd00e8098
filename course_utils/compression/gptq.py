"""GPTQ: round a column of a weight, and let the columns after it make up for that. Notebook 13.

Frantar et al. 2023. `gptq_plain` goes a column at a time and keeps the whole inverse Hessian;
`gptq` takes its Cholesky factor once and updates in blocks (their algorithm 1), tested equal.
Shapes: W (D_out, D_in), H (D_in, D_in) from `calibration`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from course_utils.compression.calibration import (
    Moments,
    check_hessian,
    layers_of,
    output_error,
)
from course_utils.compression.rtn import (
    SCHEMES,
    PackedLinear,
    check_scheme,
    check_weight,
    codes_on,
    dequantize_symmetric,
    into_groups,
    pack_bits,
    quantize_symmetric,
    to_half,
)

# ── the Hessian ───────────────────────────────────────────────────────────────────────────────────


def damped(hessian: Tensor, damping: float = 0.01) -> Tensor:
    """H with `damping` times its mean diagonal added to the diagonal, so that it can be inverted.

    An input that was always 0 has a diagonal of 0, which becomes 1: nothing depends on it.

    >>> damped(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), damping=0.1)  # mean of 2 and 1 is 1.5
    tensor([[2.1500, 0.0000],
            [0.0000, 1.1500]])
    """
    if damping < 0:
        raise ValueError(f"damping is {damping}; it must be at least 0")
    hessian = hessian.clone()
    diagonal = hessian.diagonal()  # a view
    diagonal[diagonal == 0] = 1
    diagonal += damping * diagonal.mean()
    return hessian


def inverse_factor(hessian: Tensor) -> Tensor:
    """U, upper triangular, with H⁻¹ = Uᵀ U.

    Row i from the diagonal on is row i of the inverse that is left once the first i columns are
    done, over the root of its first number: all that the loop needs. Frantar et al., section 3.3.

    >>> inverse_factor(torch.tensor([[2.0, 1.0], [1.0, 2.0]])).square()  # H⁻¹ = [2 −1; −1 2]/3
    tensor([[0.6667, 0.1667],
            [0.0000, 0.5000]])
    """
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        return torch.linalg.cholesky(inverse, upper=True)
    except torch.linalg.LinAlgError as error:
        raise ValueError(
            f"the Hessian of {len(hessian)} inputs is singular; give more examples than inputs, or "
            "more damping"
        ) from error


# ── plain ─────────────────────────────────────────────────────────────────────────────────────────


def gptq_plain(weight: Tensor, hessian: Tensor, bits: int, damping: float = 0.01) -> Tensor:
    """W (D_out, D_in) on a symmetric grid a row, a column at a time: the weight it becomes.

    Rounding column i by −e costs least if all later columns move by −e·H⁻¹[i, j]/H⁻¹[i, i]; then
    column i leaves the inverse. Hassibi & Stork 1993, equation 5.

    >>> W, H = torch.tensor([[0.6, 1.0]]), torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> gptq_plain(W, H, bits=2, damping=0)  # 0.6 → 1, and 1.0 − 0.4/2 = 0.8 → 1
    tensor([[1., 1.]])
    """
    weight, inverse = weight.clone(), torch.linalg.inv(damped(hessian, damping))
    _, scale = quantize_symmetric(weight, bits)
    for i in range(weight.shape[1]):
        column = weight[:, i : i + 1]  # (D_out, 1)
        rounded = dequantize_symmetric(codes_on(column, bits, "symmetric", scale), scale)
        error = (column - rounded) / inverse[i, i]
        weight[:, i + 1 :] -= error * inverse[i, i + 1 :]
        weight[:, i : i + 1] = rounded
        inverse = inverse - torch.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return weight


# ── fast ──────────────────────────────────────────────────────────────────────────────────────────


class Quantized(NamedTuple):
    """A weight, the integers it is made of, and their grids.

    `group_of` (D_in,) says which of the G grids a column has; `offset` is the minimum or the zero
    point of the scheme, None for "symmetric".
    """

    weight: Tensor  # (D_out, D_in)
    codes: Tensor  # (D_out, D_in)
    scale: Tensor  # (D_out, G)
    offset: Tensor | None  # (D_out, G)
    group_of: Tensor  # (D_in,)


def grids(
    weight: Tensor, bits: int, scheme: str, granularity: str, group_size: int = 64
) -> list[Tensor]:
    """Scale and, but for "symmetric", offset (D_out, G) that `round_to_nearest` would take.

    >>> grids(torch.tensor([[1.0, -2.0, 0.5, 4.0]]), 2, "symmetric", "group", group_size=2)
    [tensor([[2., 4.]])]
    """
    check_scheme(scheme)
    _, *grid = SCHEMES[scheme][0](into_groups(weight, granularity, group_size), bits)
    if granularity == "tensor":
        return [part.expand(len(weight), 1) for part in grid]
    return [part.reshape(len(weight), -1) for part in grid]  # (D_out · G, 1) -> (D_out, G)


def gptq(
    weight: Tensor,
    hessian: Tensor,
    bits: int,
    scheme: str = "symmetric",
    granularity: str = "group",
    group_size: int = 64,
    *,
    damping: float = 0.01,
    block_size: int = 128,
    act_order: bool = False,
    static_groups: bool = True,
) -> Quantized:
    """Round W to the grids of `rtn`, each column's error spread over those after it.

    `act_order` takes the columns with the largest inputs first, while most can still make up for
    them. With `static_groups` the grids are those of the weight as it came; else each group's is
    found when its turn comes, from what the columns are by then, and with `act_order` a group then
    holds columns that are no neighbours. `block_size` changes the time and not the result.

    An input that was always 0 gets a weight of 0, as in the authors' code. Raises ValueError for a
    Hessian of another shape, all 0, or singular without damping. Frantar et al. 2023, algorithm 1.

    >>> W, H = torch.tensor([[0.6, 1.0]]), torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> done = gptq(W, H, bits=3, granularity="channel", damping=0)
    >>> done.codes.tolist(), round(done.scale.item(), 3)  # 0.6 = 1.8 steps; 1.0 − 0.03 = 2.9 steps
    ([[2, 3]], 0.333)
    """
    check_block_size(block_size)
    work, hessian = prepared(weight, hessian)
    grid = grids(work, bits, scheme, granularity, group_size)
    order = torch.arange(work.shape[1], device=work.device)
    if act_order:
        order = hessian.diagonal().argsort(descending=True, stable=True)
    width = work.shape[1] // grid[0].shape[1]  # columns that share a grid
    group_of = (order if static_groups else order.sort().values) // width
    refit = 0 if static_groups or granularity != "group" else width
    columns = work[:, order].T.contiguous()  # (D_in, D_out): a row each, which is faster
    factor = inverse_factor(damped(hessian[order][:, order], damping))
    snap, codes = _rounding(columns, bits, scheme, grid, group_of.tolist(), refit)
    if refit:
        block_size = max(width, block_size // width * width)  # blocks end where groups end
    spread_errors(columns, factor, snap, block_size)
    back = order.argsort()
    offset = grid[1] if len(grid) > 1 else None
    rounded = columns[back].T.to(weight.dtype)
    return Quantized(rounded, torch.stack(codes)[back].T, grid[0], offset, group_of[back])


def _rounding(
    columns: Tensor, bits: int, scheme: str, grid: list[Tensor], group_of: list[int], refit: int
) -> tuple[Callable[[int], Tensor], list[Tensor]]:
    """What rounds column i as it is by then, and the list that its codes go to.

    With `refit` the grid of each `refit` columns is found anew when the first of them is met.
    """
    dequantize, codes = SCHEMES[scheme][1], []

    def snap(i: int) -> Tensor:
        if refit and i % refit == 0:
            fresh = grids(columns[i : i + refit].T, bits, scheme, "channel")
            for part, new in zip(grid, fresh, strict=True):
                part[:, group_of[i]] = new[:, 0]
        own = [part[:, group_of[i]] for part in grid]
        codes.append(codes_on(columns[i], bits, scheme, *own))
        return dequantize(codes[-1], *own)

    return snap, codes


def prepared(weight: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Copies to work on, in float32 or better, after checks; a weight of what was always 0 is 0.

    >>> prepared(torch.ones(1, 2), torch.tensor([[2.0, 0.0], [0.0, 0.0]]))[0]
    tensor([[1., 0.]])
    """
    check_weight(weight)
    check_hessian(weight, hessian)
    work = weight.detach().to(torch.promote_types(weight.dtype, torch.float32)).clone()
    hessian = hessian.to(work)
    work[:, hessian.diagonal() == 0] = 0
    return work, hessian


def spread_errors(
    columns: Tensor, factor: Tensor, snap: Callable[[int], Tensor], block_size: int
) -> None:
    """Put `snap(i)` in place of each column, and its error into the columns after it, in place.

    Columns are rows here: (D_in, D_out), in the order of `factor` (D_in, D_in). Those of a block
    are brought up to date at once, those after it when the block is done, by one product.
    """
    check_block_size(block_size)
    for start in range(0, len(columns), block_size):
        end = min(start + block_size, len(columns))
        errors = torch.empty_like(columns[start:end])
        for i in range(start, end):
            changed = snap(i)
            errors[i - start] = (columns[i] - changed) / factor[i, i]
            columns[i] = changed
            columns[i + 1 : end].addr_(factor[i, i + 1 : end], errors[i - start], alpha=-1)
        columns[end:] -= factor[start:end, end:].T @ errors


def check_block_size(block_size: int) -> None:
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}; it must be at least 1")


def dequantize_columns(quantized: Quantized, scheme: str) -> Tensor:
    """The weight (D_out, D_in) from the integers alone, as an inference library makes it.

    >>> done = gptq(torch.randn(3, 8), torch.eye(8), 4, "minimum", group_size=4)
    >>> bool((dequantize_columns(done, "minimum") == done.weight).all())
    True
    """
    check_scheme(scheme)
    grid = [quantized.scale] if quantized.offset is None else [quantized.scale, quantized.offset]
    return SCHEMES[scheme][1](quantized.codes, *(part[:, quantized.group_of] for part in grid))


def packed_layer(linear: nn.Linear, quantized: Quantized, bits: int) -> PackedLinear:
    """The layer with these integers, packed, and their grids in float16: what a file would hold.

    For the scheme "minimum" and groups of neighbours, as `static_groups` gives them.

    >>> linear = nn.Linear(8, 4)
    >>> done = gptq(linear.weight, torch.eye(8), 4, "minimum", group_size=8)
    >>> layer = packed_layer(linear, done, bits=4)
    >>> len(layer.packed), bool((layer.weight() - done.weight).abs().max() < 1e-3)
    (16, True)
    """
    if quantized.offset is None or not quantized.offset.is_floating_point():
        raise ValueError("the grids have no float minimum; quantize with scheme='minimum'")
    width = len(quantized.group_of) // quantized.scale.shape[1]
    if (quantized.group_of.diff() < 0).any():
        raise ValueError("columns of a group are no neighbours; quantize with static_groups=True")
    layer = PackedLinear(linear, bits, width)
    layer.packed = pack_bits(quantized.codes, bits)
    layer.scale, layer.minimum = (
        to_half(part.reshape(-1, 1)) for part in (quantized.scale, quantized.offset)
    )
    return layer


def gptq_linears(
    model: nn.Module,
    moments: Mapping[str, Moments],
    bits: int,
    scheme: str = "symmetric",
    granularity: str = "group",
    group_size: int = 64,
    **options: Any,
) -> dict[str, float]:
    """`gptq` on each layer that `moments` names, in the model; layer → its `output_error`.

    The moments are those of the model as it was: to let a block answer for the rounding of those
    before it, collect and quantize a block at a time. `options` are the further ones of `gptq`.

    >>> from course_utils.compression.calibration import collect_moments
    >>> net, x = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)), [torch.randn(32, 8)]
    >>> errors = gptq_linears(net, collect_moments(net, x), bits=8, group_size=4)
    >>> max(errors.values()) < 1e-3
    True
    """
    layers, errors = layers_of(model, moments), {}
    for name, seen in moments.items():
        weight, hessian = layers[name].weight.detach(), seen.hessian()
        done = gptq(weight, hessian, bits, scheme, granularity, group_size, **options)
        errors[name] = output_error(weight, done.weight, hessian)
        weight.copy_(done.weight)
    return errors
