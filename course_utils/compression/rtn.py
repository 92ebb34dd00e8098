"""Round to nearest: the grids of k-bit integers, their packing, and LLM.int8. Notebook 13.

A grid is shared by the last dimension of what comes in; whether that is a tensor, a channel or a
group is a reshape (`into_groups`). Shapes: W a weight (D_out, D_in), x inputs (…, D_in).
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

GRANULARITIES = ("tensor", "channel", "group")


# ── checks ────────────────────────────────────────────────────────────────────────────────────────


def check_weight(weight: Tensor) -> None:
    """Raise for what has no grid: integers, nothing at all, inf and NaN."""
    if not weight.is_floating_point():
        raise TypeError(f"the weight is {weight.dtype}; give floating-point numbers")
    if weight.numel() == 0:
        raise ValueError(f"the weight has shape {tuple(weight.shape)}; it holds no number")
    low, high = weight.aminmax()  # one pass; NaN comes out too
    if not (low.isfinite() and high.isfinite()):
        bad = weight.numel() - int(weight.isfinite().sum())
        raise ValueError(f"{bad} of {weight.numel()} weights are inf or NaN; repair them first")


def check_bits(bits: int, least: int, most: int = 8) -> None:
    if not least <= bits <= most:
        raise ValueError(f"bits is {bits}; this grid has {least} to {most}")


def to_half(scale: Tensor) -> Tensor:
    """A scale or minimum as the float16 it is stored in; ValueError where that overflows."""
    half = scale.half()
    if not half.isfinite().all():
        raise ValueError(
            f"a scale or minimum of {scale.abs().max():.3g} is above float16's 65504; such weights "
            "must stay in float32"
        )
    return half


# ── what shares a grid ────────────────────────────────────────────────────────────────────────────


def into_groups(weight: Tensor, granularity: str, group_size: int = 64) -> Tensor:
    """Reshape a weight (D_out, D_in) to rows (G, N), each of which will have a grid of its own.

    >>> [tuple(into_groups(torch.zeros(2, 6), each, 3).shape) for each in GRANULARITIES]
    [(1, 12), (2, 6), (4, 3)]
    """
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity is {granularity!r}; it must be one of {GRANULARITIES}")
    if granularity == "tensor":
        return weight.reshape(1, -1)  # (1, D_out · D_in)
    if granularity == "channel":
        return weight.reshape(-1, weight.shape[-1])  # (D_out, D_in)
    if group_size < 1 or weight.shape[-1] % group_size:
        raise ValueError(
            f"group_size is {group_size}, which does not divide rows of {weight.shape[-1]}; take a "
            "divisor, or granularity='channel'"
        )
    return weight.reshape(-1, group_size)  # (D_out · D_in / group_size, group_size)


# ── grids ─────────────────────────────────────────────────────────────────────────────────────────


def _divided(x: Tensor, scale: Tensor) -> Tensor:
    """x / scale, and 0 where all numbers of a row are one, so that the scale is 0."""
    return x / torch.where(scale > 0, scale, torch.ones_like(scale))


def codes_on(
    x: Tensor, bits: int, scheme: str, scale: Tensor, offset: Tensor | None = None
) -> Tensor:
    """Codes of x on a grid that stands already; what lies beyond its ends gets the last code.

    `offset` is the minimum or the zero point of `scheme`, None for "symmetric".

    >>> codes_on(torch.tensor([-9.0, 0.6, 1.4]), 3, "symmetric", torch.tensor([1.0])).tolist()
    [-3, 1, 1]
    """
    if scheme == "symmetric":
        largest = 2 ** (bits - 1) - 1
        return _divided(x, scale).round().clamp(-largest, largest).to(torch.int8)
    if scheme == "minimum":
        steps = _divided(x - offset, scale).round()
    else:
        steps = _divided(x, scale).round() + offset
    return steps.clamp(0, 2**bits - 1).to(torch.uint8)


def quantize_symmetric(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """x (…, N) -> signed codes (…, N) and scale (…, 1): the largest number gets the largest code.

    Codes go from −q to q with q = 2^(bits−1) − 1, so that 0 stays 0 and one code is left unused.

    >>> codes, scale = quantize_symmetric(torch.tensor([-1.0, 0.2, 0.5, 0.7]), bits=3)
    >>> codes.tolist(), round(scale.item(), 3)  # x / (1/3) = −3, 0.6, 1.5, 2.1
    ([-3, 1, 2, 2], 0.333)
    """
    check_weight(x)
    check_bits(bits, least=2)
    scale = x.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)
    return codes_on(x, bits, "symmetric", scale), scale


def dequantize_symmetric(codes: Tensor, scale: Tensor) -> Tensor:
    """code · scale.

    >>> dequantize_symmetric(torch.tensor([-3, 1], dtype=torch.int8), torch.tensor([0.5]))
    tensor([-1.5000,  0.5000])
    """
    return codes * scale


def quantize_minimum(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """x (…, N) -> codes 0 … 2^bits − 1, scale and minimum (…, 1): the grid spans just the data.

    The minimum is a float of its own, as in llama.cpp's Q4_1; 0 need not lie on the grid.

    >>> codes, scale, minimum = quantize_minimum(torch.tensor([-1.0, 0.2, 0.5, 2.0]), bits=2)
    >>> codes.tolist(), scale.item(), minimum.item()  # (x + 1) / 1 = 0, 1.2, 1.5, 3
    ([0, 1, 2, 3], 1.0, -1.0)
    """
    check_weight(x)
    check_bits(bits, least=1)
    minimum, maximum = x.amin(dim=-1, keepdim=True), x.amax(dim=-1, keepdim=True)
    scale = (maximum - minimum) / (2**bits - 1)
    return codes_on(x, bits, "minimum", scale, minimum), scale, minimum


def dequantize_minimum(codes: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    """code · scale + minimum.

    >>> dequantize_minimum(torch.tensor([0, 3]), torch.tensor([0.5]), torch.tensor([-1.0]))
    tensor([-1.0000,  0.5000])
    """
    return codes * scale + minimum


def quantize_zero_point(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """x (…, N) -> codes 0 … 2^bits − 1, scale and the integer code of 0 (…, 1).

    The range is widened to hold 0, which is then on the grid: Jacob et al. 2018, equation 1.

    >>> codes, scale, zero = quantize_zero_point(torch.tensor([-1.0, 0.0, 0.4, 2.0]), bits=2)
    >>> codes.tolist(), scale.item(), zero.item()  # 0 has code 1
    ([0, 1, 1, 3], 1.0, 1)
    """
    check_weight(x)
    check_bits(bits, least=1)
    largest = 2**bits - 1
    minimum = x.amin(dim=-1, keepdim=True).clamp(max=0)
    maximum = x.amax(dim=-1, keepdim=True).clamp(min=0)
    scale = (maximum - minimum) / largest
    zero = _divided(-minimum, scale).round().clamp(0, largest)
    return codes_on(x, bits, "zero_point", scale, zero), scale, zero.to(torch.int16)


def dequantize_zero_point(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """(code − zero) · scale.

    >>> codes, zero = torch.tensor([0, 3], dtype=torch.uint8), torch.tensor([1])
    >>> dequantize_zero_point(codes, torch.tensor([0.5]), zero)
    tensor([-0.5000,  1.0000])
    """
    return (codes.to(torch.int16) - zero) * scale  # bytes without a sign would wrap around


SCHEMES = {
    "symmetric": (quantize_symmetric, dequantize_symmetric),
    "minimum": (quantize_minimum, dequantize_minimum),
    "zero_point": (quantize_zero_point, dequantize_zero_point),
}


def check_scheme(scheme: str) -> None:
    if scheme not in SCHEMES:
        raise ValueError(f"scheme is {scheme!r}; it must be one of {', '.join(SCHEMES)}")


def round_to_nearest(
    weight: Tensor,
    bits: int,
    scheme: str = "symmetric",
    granularity: str = "group",
    group_size: int = 64,
) -> Tensor:
    """What a weight is after quantizing and dequantizing it: same shape, same type.

    >>> W = torch.tensor([[0.9, -0.4], [0.1, 0.05]])
    >>> round_to_nearest(W, 2, granularity="tensor").tolist()  # the small row vanishes
    [[0.8999999761581421, 0.0], [0.0, 0.0]]
    >>> round_to_nearest(W, 2, granularity="channel")
    tensor([[0.9000, 0.0000],
            [0.1000, 0.0000]])
    """
    check_scheme(scheme)
    quantize, dequantize = SCHEMES[scheme]
    groups = into_groups(weight.float(), granularity, group_size)
    return dequantize(*quantize(groups, bits)).reshape(weight.shape).to(weight.dtype)


def bits_per_weight(
    bits: int, group_size: int, scale_bits: float = 16, offset_bits: float = 0
) -> float:
    """What a weight takes with its share of the group's scale and minimum (or zero point).

    >>> bits_per_weight(4, 32, offset_bits=16)  # Q4_1: 4 + (16 + 16) / 32
    5.0
    """
    if group_size < 1:
        raise ValueError(f"group_size is {group_size}; it must be at least 1")
    return bits + (scale_bits + offset_bits) / group_size


# ── packing ───────────────────────────────────────────────────────────────────────────────────────


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Codes 0 … 2^bits − 1, any shape -> a stream of bits in bytes, lowest bit first.

    >>> pack_bits(torch.tensor([1, 2, 3]), bits=3)  # 100 010 110 is 10001011 0…: 209, 0
    tensor([209,   0], dtype=torch.uint8)
    """
    check_bits(bits, least=1)
    if codes.numel():
        low, high = (end.item() for end in codes.aminmax())
        if low < 0 or high >= 2**bits:
            raise ValueError(
                f"codes go from {low} to {high}; {bits} bits hold 0 … {2**bits - 1}: add an offset "
                "to signed codes first"
            )
    places = torch.arange(bits, dtype=torch.uint8, device=codes.device)
    stream = (codes.flatten().to(torch.uint8).unsqueeze(1) >> places & 1).flatten()  # (n · bits,)
    stream = nn.functional.pad(stream, (0, -len(stream) % 8)).reshape(-1, 8)  # (bytes, 8)
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=codes.device)
    return (stream * powers).sum(dim=1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, bits: int, n: int) -> Tensor:
    """The first n codes of a stream that `pack_bits` wrote.

    >>> unpack_bits(torch.tensor([209, 0], dtype=torch.uint8), bits=3, n=3)
    tensor([1, 2, 3], dtype=torch.uint8)
    """
    check_bits(bits, least=1)
    if n * bits > 8 * len(packed):
        raise ValueError(
            f"{n} codes of {bits} bits need {-(-n * bits // 8)} bytes; there are {len(packed)}"
        )
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    stream = (packed.unsqueeze(1) >> places & 1).flatten()[: n * bits].reshape(n, bits)
    powers = 1 << torch.arange(bits, dtype=torch.uint8, device=packed.device)
    return (stream * powers).sum(dim=1, dtype=torch.uint8)


# ── layers ────────────────────────────────────────────────────────────────────────────────────────


class PackedLinear(nn.Module):
    """A linear layer whose weight lies in packed codes, a scale and a minimum a group (float16).

    The answer is that of `nn.Linear` on the dequantized weight, which is made anew in every call:
    memory is saved, arithmetic is not.
    """

    def __init__(self, linear: nn.Linear, bits: int, group_size: int = 64) -> None:
        super().__init__()
        groups = into_groups(linear.weight.detach().float(), "group", group_size)
        codes, scale, minimum = quantize_minimum(groups, bits)
        self.bits, self.group_size, self.shape = bits, group_size, linear.weight.shape
        self.register_buffer("packed", pack_bits(codes, bits))
        self.register_buffer("scale", to_half(scale))
        self.register_buffer("minimum", to_half(minimum))
        self.bias = linear.bias

    def weight(self) -> Tensor:
        """The dequantized weight (D_out, D_in)."""
        codes = unpack_bits(self.packed, self.bits, self.shape.numel())
        groups = codes.reshape(-1, self.group_size)
        return dequantize_minimum(groups, self.scale.float(), self.minimum.float()).view(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight(), self.bias)


def linear_layers(model: nn.Module, skip: Collection[str] = ()) -> dict[str, nn.Linear]:
    """Name → `nn.Linear`, of those whose weight may be changed alone.

    A layer is left out whose name ends in one of `skip`; so is one that shares its weight with an
    embedding, as the last layer of many decoders does.

    >>> list(linear_layers(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)), skip=["2"]))
    ['0']
    """
    tied = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and id(layer.weight) not in tied
        if not name.endswith(tuple(skip))
    }


def quantize_linears(
    model: nn.Module, quantize: Callable[[Tensor], Tensor], skip: Collection[str] = ()
) -> list[str]:
    """Put `quantize(weight)` in place of the weight of `linear_layers`; return their names.

    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> quantize_linears(model, lambda W: round_to_nearest(W, 4, granularity="channel"))
    ['0', '2']
    """
    layers = linear_layers(model, skip)
    for layer in layers.values():
        with torch.no_grad():
            layer.weight.copy_(quantize(layer.weight))
    return list(layers)
