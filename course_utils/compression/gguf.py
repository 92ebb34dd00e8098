"""llama.cpp's block formats Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1, byte for byte. Notebook 13.

Each 32 numbers of a row become one block of bytes: a float16 scale (and a minimum), then codes. The
names say bits a code; "_0" has a scale alone, "_1" a scale and a minimum. As `quantize_row_*_ref`
in llama.cpp's ggml-quants.c and `gguf.quants` write them; `k_quants` has the larger blocks, and
`gguf_file` the file around them. Shapes: x (…, N) with N a multiple of 32, B blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from course_utils.compression.rtn import check_weight, to_half

BLOCK = 32
CHUNK = 2**16  # numbers at a time: what is worked on stays in the processor's cache

# ── blocks and bytes ──────────────────────────────────────────────────────────────────────────────


def into_blocks(x: Tensor, size: int) -> Tensor:
    """x (…, N) -> blocks (B, size) in float32; ValueError where blocks do not fill the rows."""
    check_weight(x)
    if x.shape[-1] % size:
        raise ValueError(
            f"rows have {x.shape[-1]} numbers; this format has blocks of {size}: choose sizes that "
            f"are multiples of {size}, or a format with smaller blocks"
        )
    return x.float().reshape(-1, size)


def by_blocks(x: Tensor, size: int, quantize: Callable[[Tensor], Tensor]) -> Tensor:
    """Bytes of rows of x (…, N), by what makes bytes (B, …) of blocks (B, size)."""
    parts = into_blocks(x, size).split(CHUNK // size)
    return from_blocks(torch.cat([quantize(part) for part in parts]), x.shape)


def from_blocks(blocks: Tensor, shape: torch.Size) -> Tensor:
    """Bytes of blocks (B, bytes) -> bytes of rows (…, bytes a row), for x of this shape."""
    return blocks.reshape(*shape[:-1], -1)


def half_bytes(scale: Tensor) -> Tensor:
    """(B, 1) -> its float16's bytes (B, 2), low byte first."""
    return to_half(scale).contiguous().view(torch.uint8)


def half_from_bytes(two: Tensor) -> Tensor:
    """(B, 2) bytes -> (B, 1) in float32."""
    return two.contiguous().view(torch.float16).float()


def inverse(scale: Tensor) -> Tensor:
    """1 / scale, and 0 where that is no number: a block of zeros, or of numbers near 0."""
    found = 1 / scale
    return torch.where(found.isfinite(), found, torch.zeros_like(found))


def in_halves(codes: Tensor) -> Tensor:
    """Codes (B, 32) of 4 bits -> bytes (B, 16): the first 16 in the low halves, then the others.

    >>> in_halves(torch.arange(32).remainder(16).to(torch.uint8))[0, :3].tolist()  # 00, 11, 22
    [0, 17, 34]
    """
    first, second = codes.reshape(-1, 2, BLOCK // 2).unbind(dim=1)
    return first | second << 4


def from_halves(packed: Tensor) -> Tensor:
    """Bytes (B, 16) -> codes (B, 32)."""
    return torch.cat([packed & 0xF, packed >> 4], dim=1)


def fifth_bits(codes: Tensor) -> Tensor:
    """Codes (B, 32) of 5 bits -> their top bits in bytes (B, 4), the first code lowest.

    >>> fifth_bits(torch.tensor([[16, 0, 31] + [0] * 29], dtype=torch.uint8)).tolist()
    [[5, 0, 0, 0]]
    """
    places = torch.arange(8, dtype=torch.uint8)
    return ((codes >> 4).reshape(-1, 4, 8) << places).sum(dim=-1, dtype=torch.uint8)


def from_fifth_bits(packed: Tensor) -> Tensor:
    """Bytes (B, 4) -> 0 or 16 for each code (B, 32)."""
    places = torch.arange(8, dtype=torch.uint8)
    return (packed.unsqueeze(-1) >> places & 1).reshape(-1, BLOCK) << 4


# ── Q8_0 ──────────────────────────────────────────────────────────────────────────────────────────


def quantize_q8_0(x: Tensor) -> Tensor:
    """34 bytes a block: scale = largest / 127, then 32 signed bytes. 8.5 bits a weight.

    >>> quantize_q8_0(torch.tensor([[127.0, -1.5] + [0.0] * 30]))[0, :4].tolist()  # 1.0 is 3c00
    [0, 60, 127, 254]
    """
    return by_blocks(x, BLOCK, _q8_0_blocks)


def _q8_0_blocks(blocks: Tensor) -> Tensor:
    """(B, 32) -> bytes (B, 34)."""
    scale = blocks.abs().amax(dim=1, keepdim=True) / 127
    codes = _round_away(blocks * inverse(scale))
    return torch.cat([half_bytes(scale), codes.view(torch.uint8)], dim=1)


def _round_away(x: Tensor) -> Tensor:
    """To int8; halves go away from 0, as in C's roundf: `torch.round` takes them to the even one.

    With ½ itself, 0.49999997 would be carried to 1; what is added is the float32 just below ½, and
    ½ plus that is rounded to 1.
    """
    almost_half = torch.tensor(0.5 - 2**-25)
    return torch.copysign(almost_half, x).add_(x).to(torch.int8)  # which cuts off what is left


def dequantize_q8_0(data: Tensor) -> Tensor:
    """code · scale.

    >>> dequantize_q8_0(torch.tensor([[0, 60, 127, 254] + [0] * 30], dtype=torch.uint8))[0, :2]
    tensor([127.,  -2.])
    """
    scale, codes = data.reshape(-1, 34).split([2, 32], dim=1)
    numbers = codes.contiguous().view(torch.int8) * half_from_bytes(scale)
    return from_blocks(numbers, data.shape)


# ── Q4_0 and Q5_0: a scale ────────────────────────────────────────────────────────────────────────


def _signed_codes(blocks: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Codes 0 … levels − 1 (B, 32), scale (B, 1) of blocks: the number farthest from 0 has code 0.

    So the scale takes the opposite of that number's sign, and the grid has one more level on its
    side: −8 … 7 times the scale for 16 levels.
    """
    scale = _farthest(blocks) / -(levels // 2)
    codes = (blocks * inverse(scale)).add_(levels // 2 + 0.5)
    return codes.to(torch.uint8).clamp_(max=levels - 1), scale


def _farthest(blocks: Tensor) -> Tensor:
    """The number (B, 1) of each block (B, N) that lies farthest from 0, the first where two do."""
    low, high = blocks.amin(dim=1, keepdim=True), blocks.amax(dim=1, keepdim=True)
    tied = (high == -low).squeeze(1)
    found = torch.where(high > -low, high, low)
    first = blocks[tied].abs().argmax(dim=1, keepdim=True)
    found[tied] = blocks[tied].gather(1, first)
    return found


def quantize_q4_0(x: Tensor) -> Tensor:
    """18 bytes a block: scale = −farthest / 8, then 16 bytes of codes. 4.5 bits a weight.

    >>> quantize_q4_0(torch.tensor([[-8.0, 7.0] + [0.0] * 30]))[0, :4].tolist()  # 0, 15: 80, 8f
    [0, 60, 128, 143]
    """
    return by_blocks(x, BLOCK, _q4_0_blocks)


def _q4_0_blocks(blocks: Tensor) -> Tensor:
    codes, scale = _signed_codes(blocks, 16)
    return torch.cat([half_bytes(scale), in_halves(codes)], dim=1)


def dequantize_q4_0(data: Tensor) -> Tensor:
    """(code − 8) · scale."""
    scale, codes = data.reshape(-1, 18).split([2, 16], dim=1)
    numbers = (from_halves(codes).to(torch.int8) - 8) * half_from_bytes(scale)
    return from_blocks(numbers, data.shape)


def quantize_q5_0(x: Tensor) -> Tensor:
    """22 bytes a block: scale = −farthest / 16, the codes' top bits, their other four."""
    return by_blocks(x, BLOCK, _q5_0_blocks)


def _q5_0_blocks(blocks: Tensor) -> Tensor:
    codes, scale = _signed_codes(blocks, 32)
    return torch.cat([half_bytes(scale), fifth_bits(codes), in_halves(codes & 0xF)], dim=1)


def dequantize_q5_0(data: Tensor) -> Tensor:
    """(code − 16) · scale."""
    scale, high, low = data.reshape(-1, 22).split([2, 4, 16], dim=1)
    codes = (from_halves(low) | from_fifth_bits(high)).to(torch.int8)
    return from_blocks((codes - 16) * half_from_bytes(scale), data.shape)


# ── Q4_1 and Q5_1: a scale and a minimum ──────────────────────────────────────────────────────────


def _codes_above_minimum(blocks: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes 0 … levels − 1 (B, 32), scale and minimum (B, 1) of blocks (B, 32)."""
    minimum = blocks.amin(dim=1, keepdim=True)
    scale = (blocks.amax(dim=1, keepdim=True) - minimum) / (levels - 1)
    codes = (blocks - minimum).mul_(inverse(scale)).add_(0.5)
    return codes.to(torch.uint8).clamp_(max=levels - 1), scale, minimum


def quantize_q4_1(x: Tensor) -> Tensor:
    """20 bytes a block: scale = (maximum − minimum) / 15, minimum, codes. 5 bits a weight.

    >>> quantize_q4_1(torch.tensor([[1.0, 16.0] + [3.0] * 30]))[0, :6].tolist()  # 0, 15, 2, …
    [0, 60, 0, 60, 32, 47]
    """
    return by_blocks(x, BLOCK, _q4_1_blocks)


def _q4_1_blocks(blocks: Tensor) -> Tensor:
    codes, scale, minimum = _codes_above_minimum(blocks, 16)
    return torch.cat([half_bytes(scale), half_bytes(minimum), in_halves(codes)], dim=1)


def dequantize_q4_1(data: Tensor) -> Tensor:
    """code · scale + minimum."""
    scale, minimum, codes = data.reshape(-1, 20).split([2, 2, 16], dim=1)
    numbers = from_halves(codes) * half_from_bytes(scale) + half_from_bytes(minimum)
    return from_blocks(numbers, data.shape)


def quantize_q5_1(x: Tensor) -> Tensor:
    """24 bytes a block: scale = (maximum − minimum) / 31, minimum, top bits, other bits."""
    return by_blocks(x, BLOCK, _q5_1_blocks)


def _q5_1_blocks(blocks: Tensor) -> Tensor:
    codes, scale, minimum = _codes_above_minimum(blocks, 32)
    parts = [half_bytes(scale), half_bytes(minimum), fifth_bits(codes), in_halves(codes & 0xF)]
    return torch.cat(parts, dim=1)


def dequantize_q5_1(data: Tensor) -> Tensor:
    """code · scale + minimum."""
    scale, minimum, high, low = data.reshape(-1, 24).split([2, 2, 4, 16], dim=1)
    codes = from_halves(low) | from_fifth_bits(high)
    numbers = codes * half_from_bytes(scale) + half_from_bytes(minimum)
    return from_blocks(numbers, data.shape)
