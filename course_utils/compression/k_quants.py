"""llama.cpp's K-quants Q4_K, Q5_K and Q6_K, byte for byte. Notebook 13.

A super-block holds 256 numbers of a row. Its sub-blocks (8 of 32, or 16 of 16) have scales that are
themselves quantized, to 6 or 8 bits, by one float16 for all. And the scale of a sub-block is
searched: some twenty candidates are tried, and the one kept that leaves the least weighted squared
error. As `quantize_row_q4_K_ref`, `…_q5_K_ref` and `…_q6_K_ref` in llama.cpp's ggml-quants.c have
it, in float32 and in its order of additions, on which the last bit depends.

The plain forms fit one sub-block (n,); the fast ones fit N of them at once, as columns (n, N).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from course_utils.compression.gguf import (
    by_blocks,
    from_blocks,
    half_bytes,
    half_from_bytes,
)
from course_utils.compression.rtn import to_half

SUPER = 256  # numbers in a super-block
NOTHING = 1e-15  # a sub-block whose largest number is below this counts as zeros


def in_order(x: Tensor) -> Tensor:
    """The sum over the first dimension, one number after the other, as a loop in C adds them.

    >>> x = torch.tensor([1e8, 1.0, -1e8, 1.0])
    >>> in_order(x).item()  # 10⁸ + 1 is 10⁸ in float32
    1.0
    """
    total = x[0].clone()
    for row in x[1:]:
        total += row
    return total


# ── a scale for a sub-block: Q6_K ─────────────────────────────────────────────────────────────────


def scale_candidates(peak: Tensor, largest: int) -> list[Tensor]:
    """What to multiply by so that the peak becomes −largest, and 18 numbers some 3 % around it."""
    tenth = torch.tensor(0.1)
    steps = [0, *range(-9, 0), *range(1, 10)]
    return [-(largest + tenth * step) / peak for step in steps]


def fit_scale_plain(x: Tensor, largest: int = 32) -> tuple[Tensor, Tensor]:
    """One sub-block x (n,) -> its scale, and codes 0 … 2 · largest − 1 (n,).

    For codes l the best scale is Σ w x l / Σ w l², and leaves Σ w x² − (Σ w x l)² / Σ w l². The
    weights are w = x², so that large numbers count.

    >>> scale, codes = fit_scale_plain(torch.tensor([-3.2, 1.6, 0.1, 0.0]))
    >>> codes.tolist(), round(scale.item(), 4)  # (0 − 32) · 0.1, (48 − 32) · 0.1, …
    ([0.0, 48.0, 33.0, 32.0], 0.1)
    """
    peak = x[x.abs().argmax()]
    if peak.abs() < NOTHING:
        return torch.zeros(()), torch.zeros_like(x)
    weight, best = x * x, None
    for candidate in scale_candidates(peak, largest):
        codes = (candidate * x).round().clamp(-largest, largest - 1)
        xl, ll = in_order(weight * x * codes), in_order(weight * codes * codes)
        if best is None or xl * xl > best * ll:
            scale, best, kept = xl / ll, xl / ll * xl, codes
    return scale, kept + largest


def fit_scale(x: Tensor, largest: int = 32) -> tuple[Tensor, Tensor]:
    """`fit_scale_plain` for N sub-blocks, the columns of x (n, N) -> scales (N,), codes (n, N)."""
    absolute = x.abs()
    peak = x.gather(0, absolute.argmax(dim=0, keepdim=True)).squeeze(0)
    nothing = peak.abs() < NOTHING
    peak = torch.where(nothing, torch.ones_like(peak), peak)
    weight = x * x
    weighted = weight * x
    products = torch.empty(x.shape[0], 2, x.shape[1])
    chosen = scale = best = None
    for candidate in scale_candidates(peak, largest):
        codes = torch.mul(x, candidate).round_().clamp_(-largest, largest - 1)
        torch.mul(weighted, codes, out=products[:, 0])
        torch.mul(weight, codes, out=products[:, 1]).mul_(codes)
        xl, ll = in_order(products)
        if best is None:
            chosen, scale, best = candidate, xl / ll, xl / ll * xl
            continue
        better = xl * xl > best * ll
        found = xl / ll
        chosen = torch.where(better, candidate, chosen)
        scale = torch.where(better, found, scale)
        best = torch.where(better, found * xl, best)
    codes = (x * chosen).round_().clamp_(-largest, largest - 1) + largest
    return scale.masked_fill(nothing, 0), codes.masked_fill(nothing, 0)


# ── a scale and a minimum for a sub-block: Q4_K and Q5_K ──────────────────────────────────────────


def step_counts(largest: int, first: float, steps: int) -> list[Tensor]:
    """Into how many steps the range is divided: `largest`, then a little fewer to a little more.

    >>> [round(count.item(), 1) for count in step_counts(15, first=-1.0, steps=3)]
    [15.0, 14.0, 14.1, 14.2, 14.3]
    """
    tenth, first = torch.tensor(0.1), torch.tensor(first)
    return [torch.tensor(float(largest)), *(first + tenth * i + largest for i in range(steps + 1))]


def importance(x: Tensor) -> Tensor:
    """The weights of a sub-block's errors, x (n, …): the root mean square of all, plus |x|.

    The root is taken in float64, since PyTorch's in float32 may be off by a last bit.
    """
    return (in_order(x * x) / len(x)).double().sqrt().float() + x.abs()


def solve_line(
    w: Tensor, wx: Tensor, wll: Tensor, wl: Tensor, wxl: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and minimum that fit scale · l + minimum to x best, and the determinant.

    The arguments are sums over a sub-block, each named by what is summed. The minimum may not be
    above 0; where it would be, it is 0, and the scale that of a line through 0.
    """
    determinant = w * wll - wl * wl
    scale = (w * wxl - wx * wl) / determinant
    minimum = (wll * wx - wl * wxl) / determinant
    above = minimum > 0
    return torch.where(above, wxl / wll, scale), minimum.masked_fill(above, 0), determinant


def fit_line_plain(
    x: Tensor, largest: int, first: float, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One sub-block x (n,) -> scale, minus the minimum, and codes 0 … largest (n,).

    Each candidate grid gives codes; for these the best scale and minimum solve two linear
    equations, and are kept where the weighted error falls. The next candidate then starts from the
    minimum that was kept.

    >>> x = torch.tensor([-1.0, 0.0, 1.0, 14.1])
    >>> scale, minus, codes = fit_line_plain(x, largest=15, first=-1.0, steps=20)
    >>> codes.tolist(), round(scale.item(), 3), round(minus.item(), 3)
    ([0.0, 1.0, 2.0, 15.0], 1.007, 1.007)
    """
    minimum, high, weight = x.min().clamp(max=0), x.max(), importance(x)
    if minimum == high:
        return torch.zeros(()), -minimum, torch.zeros_like(x)
    w, wx = in_order(weight), in_order(weight * x)
    start, *others = step_counts(largest, first, steps)
    inverse = start / (high - minimum)
    kept, scale = (inverse * (x - minimum)).round().clamp(0, largest), 1 / inverse
    best = in_order(weight * (scale * kept + minimum - x).square())
    for count in others:
        codes = (count / (high - minimum) * (x - minimum)).round().clamp(0, largest)
        weighted = weight * codes
        sums = in_order(weighted * codes), in_order(weighted), in_order(weighted * x)
        slope, offset, determinant = solve_line(w, wx, *sums)
        error = in_order(weight * (slope * codes + offset - x).square())
        if determinant > 0 and error < best:
            best, scale, minimum, kept = error, slope, offset, codes
    return scale, -minimum, kept


def fit_line(x: Tensor, largest: int, first: float, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """`fit_line_plain` for N sub-blocks, the columns of x (n, N) -> (N,), (N,), (n, N)."""
    minimum, high, weight = x.amin(dim=0).clamp(max=0), x.amax(dim=0), importance(x)
    flat = minimum == high
    high = high.masked_fill(flat, 1)
    w, wx = in_order(weight), in_order(weight * x)
    start, *others = step_counts(largest, first, steps)
    inverse = start / (high - minimum)
    kept, scale = torch.sub(x, minimum).mul_(inverse).round_().clamp_(0, largest), 1 / inverse
    best = _error(x, weight, kept, scale, minimum)
    codes, products = torch.empty_like(x), torch.empty(x.shape[0], 3, x.shape[1])
    for count in others:
        torch.sub(x, minimum, out=codes).mul_(count / (high - minimum))
        codes.round_().clamp_(0, largest)
        weighted = torch.mul(weight, codes, out=products[:, 1])
        torch.mul(weighted, codes, out=products[:, 0])
        torch.mul(weighted, x, out=products[:, 2])
        slope, offset, determinant = solve_line(w, wx, *in_order(products))
        error = _error(x, weight, codes, slope, offset)
        better = (determinant > 0) & (error < best)
        best = torch.where(better, error, best)
        scale = torch.where(better, slope, scale)
        minimum = torch.where(better, offset, minimum)
        kept = torch.where(better, codes, kept)
    return scale.masked_fill(flat, 0), -minimum, kept.masked_fill(flat, 0)


def _error(x: Tensor, weight: Tensor, codes: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    """Σ w (scale · code + minimum − x)² of each column."""
    apart = (codes * scale).add_(minimum).sub_(x)
    return in_order(apart.square_().mul_(weight))


# ── Q6_K ──────────────────────────────────────────────────────────────────────────────────────────


def quantize_q6_k(x: Tensor) -> Tensor:
    """210 bytes a super-block: low 4 bits, high 2 bits, 16 scales, a float16. 6.5625 bits a weight.

    x (…, N) with N a multiple of 256.
    """
    return by_blocks(x, SUPER, _q6_k_blocks)


def _q6_k_blocks(blocks: Tensor) -> Tensor:
    """(B, 256) -> bytes (B, 210)."""
    sub = blocks.reshape(-1, 16)  # (B · 16, 16)
    scales, codes = fit_scale(sub.T.contiguous())
    scales, codes = scales.view(-1, 16), codes.T.reshape(-1, 16, 16)  # (B, 16), (B, 16, 16)
    farthest = scales.gather(1, scales.abs().argmax(dim=1, keepdim=True))  # (B, 1)
    nothing = farthest.abs() < NOTHING
    inverse = -128 / torch.where(nothing, torch.ones_like(farthest), farthest)
    d = to_half(1 / inverse)
    small = (inverse * scales).round().clamp(max=127)  # (B, 16)
    step = (d.float() * small).unsqueeze(2)
    anew = (sub.view(-1, 16, 16) / step).round().clamp(-32, 31) + 32
    codes = torch.where(step == 0, codes, anew).to(torch.uint8).reshape(-1, 256)
    low, high = _low_and_high(codes)
    found = torch.cat([low, high, small.to(torch.int8).view(torch.uint8), half_bytes(d)], dim=1)
    return found.masked_fill(nothing, 0)


def _low_and_high(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (B, 256) of 6 bits -> low halves (B, 128) and high quarters (B, 64) of bytes.

    In each half of 128, byte i holds codes i, i + 32, i + 64, i + 96: two low parts to a byte of
    64, the high parts of all four to a byte of 32.
    """
    a, b, c, d = codes.reshape(-1, 2, 4, 32).unbind(dim=2)  # (B, 2, 32)
    low = torch.cat([a & 0xF | c << 4, b & 0xF | d << 4], dim=2)  # (B, 2, 64)
    high = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6
    return low.flatten(1), high.flatten(1)


def dequantize_q6_k(data: Tensor) -> Tensor:
    """d · scale · (code − 32)."""
    low, high, scales, d = data.reshape(-1, 210).split([128, 64, 16, 2], dim=1)
    low, high = low.reshape(-1, 2, 2, 32), high.reshape(-1, 2, 1, 32)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8).view(1, 1, 4, 1)
    low = torch.cat([low & 0xF, low >> 4], dim=2)  # (B, 2, 4, 32)
    codes = (low | (high >> shifts & 3) << 4).to(torch.int8).reshape(-1, 16, 16) - 32
    step = half_from_bytes(d) * scales.contiguous().view(torch.int8)  # (B, 16)
    return from_blocks((step.unsqueeze(2) * codes).flatten(1), data.shape)


# ── Q4_K and Q5_K ─────────────────────────────────────────────────────────────────────────────────


def quantize_q4_k(x: Tensor) -> Tensor:
    """144 bytes a super-block: two float16, 12 bytes of scales and minima, codes. 4.5 bits."""
    return by_blocks(x, SUPER, partial(_line_blocks, largest=15, first=-1.0, steps=20))


def quantize_q5_k(x: Tensor) -> Tensor:
    """176 bytes a super-block: as Q4_K, with 32 bytes of top bits before the codes. 5.5 bits."""
    return by_blocks(x, SUPER, partial(_line_blocks, largest=31, first=-0.5, steps=15))


def _line_blocks(blocks: Tensor, largest: int, first: float, steps: int) -> Tensor:
    """(B, 256) -> bytes (B, 144 or 176)."""
    sub = blocks.reshape(-1, 32)  # (B · 8, 32)
    scales, minima, codes = fit_line(sub.T.contiguous(), largest, first, steps)
    d, small_scales = _six_bits(scales.view(-1, 8))
    d_min, small_minima = _six_bits(minima.view(-1, 8))
    step = (d.float() * small_scales).unsqueeze(2)  # (B, 8, 1)
    offset = (d_min.float() * small_minima).unsqueeze(2)
    anew = ((sub.view(-1, 8, 32) + offset) / step).round().clamp(0, largest)
    codes = torch.where(step == 0, codes.T.reshape(-1, 8, 32), anew).to(torch.uint8)
    pairs = (codes & 0xF).view(-1, 4, 2, 32)  # two sub-blocks share their bytes
    parts = [half_bytes(d), half_bytes(d_min), pack_scales(small_scales, small_minima)]
    if largest > 15:
        places = torch.arange(8, dtype=torch.uint8).view(1, 8, 1)
        parts.append((codes >> 4 << places).sum(dim=1, dtype=torch.uint8))  # (B, 32)
    return torch.cat([*parts, (pairs[:, :, 0] | pairs[:, :, 1] << 4).flatten(1)], dim=1)


def _six_bits(scales: Tensor) -> tuple[Tensor, Tensor]:
    """Scales (B, 8), none below 0 -> their float16 unit (B, 1) and codes 0 … 63 (B, 8)."""
    top = scales.amax(dim=1, keepdim=True).clamp(min=0) + 0.0  # −0 becomes 0
    # Not 63 / top, which PyTorch computes as 63 · (1 / top) and so rounds twice.
    inverse = torch.where(top > 0, torch.full_like(top, 63) / top, torch.zeros_like(top))
    return to_half(top / 63), (inverse * scales).round().clamp(max=63).to(torch.uint8)


def pack_scales(scales: Tensor, minima: Tensor) -> Tensor:
    """Eight scales and eight minima of 6 bits (B, 8) -> 12 bytes (B, 12).

    Bytes 0–3 hold scales 0–3 and bytes 4–7 minima 0–3, six bits each; bytes 8–11 the low halves of
    scales and minima 4–7, whose top two bits fill the first eight bytes up.

    >>> one, none = torch.full((1, 8), 0b110001, dtype=torch.uint8), torch.zeros(1, 8).byte()
    >>> [f"{byte:08b}" for byte in pack_scales(one, none)[0, [0, 4, 8]].tolist()]
    ['11110001', '00000000', '00000001']
    """
    first, second = scales.split(4, dim=1)
    first_min, second_min = minima.split(4, dim=1)
    return torch.cat(
        [
            first | second >> 4 << 6,
            first_min | second_min >> 4 << 6,
            second & 0xF | (second_min & 0xF) << 4,
        ],
        dim=1,
    )


def unpack_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """12 bytes (B, 12) -> scales and minima (B, 8)."""
    a, b, c = packed.split(4, dim=1)
    scales = torch.cat([a & 63, c & 0xF | a >> 6 << 4], dim=1)
    return scales, torch.cat([b & 63, c >> 4 | b >> 6 << 4], dim=1)


def _dequantize_lines(data: Tensor, codes: Tensor, head: Tensor) -> Tensor:
    """d · scale · code − d_min · minimum, from codes (B, 8, 32) and the first 16 bytes."""
    scales, minima = unpack_scales(head[:, 4:])
    step = (half_from_bytes(head[:, :2]) * scales).unsqueeze(2)  # (B, 8, 1)
    offset = (half_from_bytes(head[:, 2:4]) * minima).unsqueeze(2)
    return from_blocks((step * codes - offset).flatten(1), data.shape)


def _pairs(packed: Tensor) -> Tensor:
    """Bytes (B, 128) -> codes (B, 8, 32)."""
    packed = packed.reshape(-1, 4, 1, 32)
    return torch.cat([packed & 0xF, packed >> 4], dim=2).reshape(-1, 8, 32)


def dequantize_q4_k(data: Tensor) -> Tensor:
    """d · scale · code − d_min · minimum."""
    head, packed = data.reshape(-1, 144).split([16, 128], dim=1)
    return _dequantize_lines(data, _pairs(packed), head)


def dequantize_q5_k(data: Tensor) -> Tensor:
    """d · scale · code − d_min · minimum."""
    head, top, packed = data.reshape(-1, 176).split([16, 32, 128], dim=1)
    places = torch.arange(8, dtype=torch.uint8).view(1, 8, 1)
    codes = _pairs(packed) | (top.unsqueeze(1) >> places & 1) << 4
    return _dequantize_lines(data, codes, head)
