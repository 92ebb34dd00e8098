"""NF4: sixteen levels from the quantiles of the normal distribution. Notebook 13.

Dettmers et al. 2023 (QLoRA), section 3. A group of 64 numbers is divided by its largest absolute
value, and each quotient takes the nearest of 16 levels; two codes share a byte. Byte for byte what
bitsandbytes writes on a CPU. Shapes: n numbers, G = ⌈n / group_size⌉ groups, K levels.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from course_utils.compression.rtn import bits_per_weight, check_weight

OFFSET = 0.9677083  # the outermost quantile: (1 − 1/32 + 1 − 1/30) / 2, as in bitsandbytes
CHUNK = 2**15  # numbers at a time: what is worked on stays in the processor's cache

# ── levels ────────────────────────────────────────────────────────────────────────────────────────


def normal_levels(offset: float = OFFSET) -> Tensor:
    """The 16 levels, rising from −1 to 1: 7 quantiles below 0, then 0, and 8 above.

    Each half is spaced evenly in probability from `offset` to 1/2, where both would say 0 and one
    is dropped. So the halves differ, and 0 has a code.

    >>> normal_levels()[[0, 7, 8, 15]]
    tensor([-1.0000,  0.0000,  0.0796,  1.0000])
    """
    if not 0.5 < offset < 1:
        raise ValueError(f"offset is {offset}; it is a probability above 1/2 and below 1")
    # float32 steps, then float64 quantiles: bitsandbytes' published digits come out that way alone.
    below = torch.linspace(offset, 0.5, 8)[:-1].double()  # 7
    above = torch.linspace(offset, 0.5, 9)[:-1].double()  # 8
    quantile = torch.special.ndtri
    levels = torch.cat([-quantile(below), torch.zeros(1), quantile(above)]).float()
    return levels.sort().values / levels.abs().max()


def dynamic_levels() -> Tensor:
    """256 levels of 8 bits for the groups' scales: fine near 0, coarse near ±1.

    Dettmers 2016 (dynamic tree type): a power of ten from 10⁻⁶ to 1 and, in what bits are left, a
    fraction: the larger the power, the more fractions.

    >>> levels = dynamic_levels()
    >>> len(levels), levels[127].item(), round(levels[128].item(), 9)
    (256, 0.0, 5.5e-07)
    """
    positive = []
    for power in range(7):
        edges = torch.linspace(0.1, 1, 2**power + 1)
        positive.append(10.0 ** (power - 6) * ((edges[:-1] + edges[1:]) / 2))
    positive = torch.cat(positive)  # 127
    return torch.cat([-positive, torch.zeros(1), positive, torch.ones(1)]).sort().values


# ── groups and the nearest level ──────────────────────────────────────────────────────────────────


def scaled_groups(x: Tensor, group_size: int = 64) -> tuple[Tensor, Tensor]:
    """x (n numbers, any shape) -> quotients (G, group_size) in −1 … 1, largest values (G,).

    A last group that is short is filled with zeros. A group of zeros stays zeros.

    >>> scaled, largest = scaled_groups(torch.tensor([1.0, -4.0, 3.0]), group_size=2)
    >>> scaled.tolist(), largest.tolist()
    ([[0.25, -1.0], [1.0, 0.0]], [4.0, 3.0])
    """
    check_weight(x)
    groups = _in_rows(x, group_size)
    largest = groups.abs().amax(dim=1)
    divisor = largest.clamp(min=1e-38).unsqueeze(1)
    scaled = groups * (1 / divisor)  # not groups / divisor: the last bit decides some codes
    if x.numel() % group_size:
        scaled[-1] = groups[-1] / divisor[-1]  # as bitsandbytes does it for a short group alone
    return scaled.clamp(-1, 1), largest


def _in_rows(x: Tensor, group_size: int) -> Tensor:
    """x (n numbers) -> (G, group_size), the last row filled with zeros."""
    if group_size < 1:
        raise ValueError(f"group_size is {group_size}; it must be at least 1")
    flat = x.flatten().float()
    return torch.nn.functional.pad(flat, (0, -len(flat) % group_size)).view(-1, group_size)


def nearest_plain(scaled: Tensor, levels: Tensor) -> Tensor:
    """The index of the level that lies nearest to each number, by measuring every distance.

    >>> nearest_plain(torch.tensor([0.0, 0.03, 0.05, 1.0]), normal_levels())
    tensor([ 7,  7,  8, 15])
    """
    return (scaled.unsqueeze(-1) - levels).abs().argmin(dim=-1)


def nearest(scaled: Tensor, levels: Tensor) -> Tensor:
    """`nearest_plain` for rising levels: a number's index is how many midpoints lie below it.

    Few midpoints are compared with all numbers, one after the other; many are searched.
    """
    midpoints = ((levels[:-1] + levels[1:]) / 2).to(scaled.device)
    if len(midpoints) > 16:
        return torch.bucketize(scaled, midpoints, out_int32=True)
    codes = torch.zeros(scaled.shape, dtype=torch.uint8, device=scaled.device)
    below = torch.empty(scaled.shape, dtype=torch.bool, device=scaled.device)
    for midpoint in midpoints.tolist():
        codes += torch.gt(scaled, midpoint, out=below).view(torch.uint8)
    return codes.int()


def nearest_by_table(scaled: Tensor, levels: Tensor) -> Tensor:
    """`nearest`, asked once for each of 65,536 places from −1 to 1, and then only looked up.

    It is what bitsandbytes does with 8-bit levels on a CPU; about 1 number in 1,000 lies so near a
    midpoint that its place gets the other level.
    """
    last = 65_535
    table = nearest(torch.arange(last + 1).float() * 2 / last - 1, levels)
    # In float64 and then float32, which is how a fused multiply–add rounds.
    place = (((scaled + 1) * 0.5).double() * last + 0.5).float().long()
    return table[place]


# ── NF4 ───────────────────────────────────────────────────────────────────────────────────────────


def quantize_nf4(x: Tensor, group_size: int = 64) -> tuple[Tensor, Tensor]:
    """x (n numbers, any shape) -> bytes (⌈n / 2⌉,), and each group's largest value (G,).

    The first number of a pair has the high half of its byte.

    >>> packed, largest = quantize_nf4(torch.tensor([[3.0, 0.0, -3.0, 0.3]]))
    >>> [f"{byte:02x}" for byte in packed.tolist()], largest.item()  # 1, 0, −1, 0.1
    (['f7', '08'], 3.0)
    """
    scaled, largest = scaled_groups(x, group_size)
    parts = scaled.flatten().split(CHUNK)
    codes = torch.cat([nearest(part, normal_levels()).to(torch.uint8) for part in parts])
    codes = codes[: x.numel()]
    if len(codes) % 2:  # the spare half byte says 0
        codes = torch.nn.functional.pad(codes, (0, 1), value=7)
    return codes[::2] << 4 | codes[1::2], largest


@cache
def levels_of_bytes() -> Tensor:
    """The two levels (256, 2) that each byte stands for, that of its high half first.

    >>> levels_of_bytes()[0xF7]
    tensor([1., 0.])
    """
    byte, levels = torch.arange(256), normal_levels()
    return torch.stack([levels[byte >> 4], levels[byte & 0xF]], dim=1)


def dequantize_nf4(
    packed: Tensor, largest: Tensor, shape: torch.Size, group_size: int = 64
) -> Tensor:
    """Numbers of this shape from bytes: level · the group's largest value.

    >>> packed = torch.tensor([0xF7, 0x08], dtype=torch.uint8)
    >>> dequantize_nf4(packed, torch.tensor([3.0]), torch.Size([4]))
    tensor([ 3.0000,  0.0000, -3.0000,  0.2387])
    """
    n = torch.Size(shape).numel()
    if len(largest) != -(-n // group_size):
        raise ValueError(
            f"{n} numbers in groups of {group_size} have {-(-n // group_size)} scales; "
            f"{len(largest)} are given"
        )
    if n > 2 * len(packed):
        raise ValueError(f"{len(packed)} bytes hold {2 * len(packed)} numbers; {n} are asked for")
    # Two floats are looked up together, as one number of eight bytes.
    table = levels_of_bytes().view(torch.int64).flatten().to(packed.device)
    values = table.index_select(0, packed.int()).view(torch.float32)[:n]
    return _times_scale(values, largest, group_size).reshape(shape)


def _times_scale(values: Tensor, largest: Tensor, group_size: int) -> Tensor:
    """values (n,), of which every `group_size` share one of `largest` (G,)."""
    n = len(values)
    if n % group_size:
        return values * largest.repeat_interleave(group_size)[:n]
    return (values.view(-1, group_size) * largest.unsqueeze(1)).flatten()


# ── double quantization ───────────────────────────────────────────────────────────────────────────


def quantize_scales(largest: Tensor, group_size: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    """Scales (G,) -> a byte each (G,), one float a `group_size` of them, and their mean.

    QLoRA, section 3, "double quantization": scales are all positive, so that their mean is taken
    off first.

    >>> codes, second, mean = quantize_scales(torch.tensor([1.0, 2.0, 3.0]))
    >>> codes.tolist(), second.item(), mean.item()  # the table's place next to 0 is level 131
    ([0, 131, 255], 1.0, 2.0)
    """
    check_weight(largest)
    mean = largest.mean()
    rows = _in_rows(largest - mean, group_size)
    second = rows.abs().amax(dim=1)
    inverse = 1 / torch.where(second > 0, second, torch.ones_like(second))
    codes = nearest_by_table((rows * inverse.unsqueeze(1)).clamp(-1, 1), dynamic_levels())
    codes[second == 0] = 0  # any code would do
    return codes.flatten()[: len(largest)].to(torch.uint8), second, mean


def dequantize_scales(codes: Tensor, second: Tensor, mean: Tensor, group_size: int = 256) -> Tensor:
    """The scales (G,) from what `quantize_scales` kept.

    >>> codes = torch.tensor([0, 127, 255], dtype=torch.uint8)
    >>> dequantize_scales(codes, torch.tensor([1.0]), torch.tensor(2.0))  # −1 has no level: −0.993
    tensor([1.0070, 2.0000, 3.0000])
    """
    return _times_scale(dynamic_levels()[codes.int()], second, group_size) + mean


def nf4_bits(group_size: int = 64, scales_group_size: int | None = None) -> float:
    """Bits a weight takes: 4, and its share of the scales, in float32 or in bytes.

    >>> nf4_bits(), round(nf4_bits(64, 256), 3)  # 4 + 32/64; 4 + 8/64 + 32/(64 · 256)
    (4.5, 4.127)
    """
    scale = 32 if scales_group_size is None else bits_per_weight(8, scales_group_size, 32)
    return bits_per_weight(4, group_size, scale)


# ── how often each level is used ──────────────────────────────────────────────────────────────────


def level_shares(x: Tensor, levels: Tensor, group_size: int = 64) -> Tensor:
    """The share of numbers (K,) that take each level, when groups are divided by their largest.

    An optimal code by information would use all equally. Yoshida 2023 (arXiv 2306.06965): the
    levels are quantiles of normal numbers, but what is quantized is their quotient by the largest.

    >>> x = torch.tensor([1.0, -4.0, 0.1, 4.0])
    >>> level_shares(x, torch.tensor([-1.0, 0.0, 1.0]), group_size=4)
    tensor([0.2500, 0.5000, 0.2500])
    """
    scaled, _ = scaled_groups(x, group_size)
    codes = nearest(scaled, levels).flatten()[: x.numel()]
    return torch.bincount(codes, minlength=len(levels)) / x.numel()


def level_entropy(shares: Tensor) -> float:
    """Bits of information that a code carries if its levels have these shares (K,).

    >>> level_entropy(torch.tensor([0.5, 0.25, 0.25, 0.0]))
    1.5
    """
    used = shares[shares > 0].double()
    return -(used * used.log2()).sum().item()


def fitted_levels(x: Tensor, levels: Tensor, group_size: int = 64, steps: int = 20) -> Tensor:
    """Better levels for numbers like x: each moves to the mean of what takes it, `steps` times.

    Lloyd 1982, weighted by the groups' squared scales, so that the error falls that the weights
    have, and not their quotients. −1, 0 and 1 stay. The squared error on x never rises.

    >>> x = torch.tensor([1.0, 0.4, 0.6, -1.0])
    >>> fitted_levels(x, torch.tensor([-1.0, 0.0, 0.8, 1.0]), group_size=4).tolist()
    [-1.0, 0.0, 0.5, 1.0]
    """
    scaled, largest = scaled_groups(x, group_size)
    weight = largest.square().double().repeat_interleave(group_size)[: x.numel()]
    flat = scaled.flatten()[: x.numel()]
    levels = levels.clone()
    fixed = (levels == 0) | (levels.abs() == 1)
    for _ in range(steps):
        codes = nearest(flat, levels)
        total = torch.zeros(len(levels), dtype=torch.float64).index_add(0, codes, weight)
        moment = torch.zeros_like(total).index_add(0, codes, weight * flat)
        stays = fixed | (total == 0)
        levels = torch.where(stays, levels, (moment / total).float())
    return levels
