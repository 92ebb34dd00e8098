"""Plausible wrong versions of course_utils.compression.qat."""

from __future__ import annotations

import math

import torch
from planting import Bug, originals, refusing

right = originals("compression.qat")


def without_a_gradient(x, scale, bits):
    """round() has a slope of 0 everywhere: nothing learns."""
    largest = 2 ** (bits - 1) - 1
    return (x / scale).round().clamp(-largest, largest) * scale


def gradient_beyond_the_end(x, scale, bits):
    """Straight through the clamp too."""
    value = right["fake_quantize"](x.detach(), scale, bits)
    return value + (x - x.detach())


def scale_without_a_gradient(x, scale, bits):
    return right["fake_quantize"](x, scale.detach(), bits) + 0 * scale.sum()


def scale_by_the_codes_alone(x, scale, bits):
    """∂/∂s = round(x/s): the −x/s of the division is forgotten."""
    largest = 2 ** (bits - 1) - 1
    codes = (x / scale).detach().round().clamp(-largest, largest)
    value = codes * scale
    inside = (x / scale).round().abs() <= largest
    return value + torch.where(inside, x - x.detach(), 0 * x)


def with_the_unused_code(x, scale, bits):
    """−2^(bits−1) … 2^(bits−1) − 1: the integers' own range."""
    steps = x / scale
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    inside = (steps.round() >= low) & (steps.round() <= high)
    ends = torch.where(steps > 0, float(high), float(low))
    return torch.where(inside, right["_Round"].apply(steps), ends) * scale


def value_off_by_a_bit(x, scale, bits):
    """x + (q − x): equal on paper."""
    y = right["fake_quantize"](x, scale, bits)
    return y * (1 + 2e-7)


def first_scale_of_the_largest(x, bits):
    return right["quantize_symmetric"](x, bits)[1].clamp(min=1e-12)


def first_scale_without_the_two(x, bits):
    return right["first_scale"](x, bits) / 2


def damped_forward_too(scale, n, bits):
    return scale / math.sqrt(n * (2 ** (bits - 1) - 1))


def damped_without_the_root(scale, n, bits):
    return right["_Damped"].apply(scale, 1 / (n * (2 ** (bits - 1) - 1)))


def damped_by_the_count(scale, n, bits):
    return right["_Damped"].apply(scale, 1 / math.sqrt(n))


class WithAScaleOfItsOwn(right["IntegerLinear"]):
    """Rounds the trained weight to nearest anew: what was learned of the scale is lost."""

    def __init__(self, trained):
        super().__init__(trained)
        groups = trained._groups().detach()
        codes, scale = right["quantize_symmetric"](groups, self.bits)
        self.packed = right["pack_bits"](codes.int() + self._offset(), self.bits)
        self.scale = scale


class WithBytesThatWrap(right["IntegerLinear"]):
    """A byte without a sign, minus the offset."""

    def codes(self):
        stream = right["unpack_bits"](self.packed, self.bits, self.shape.numel())
        return (stream - self._offset()).view(-1, self.width)


class WithFloatInputs(right["IntegerLinear"]):
    """Forgets that inputs were rounded."""

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight(), self.bias)


class WithOneScaleOfTheInputs(right["QATLinear"]):
    """Each batch sets the inputs' scale anew."""

    def _quantized_inputs(self, x):
        self.x_seen.fill_(False)
        return super()._quantized_inputs(x)


class WithTheWholeBatchsCount(right["QATLinear"]):
    """Damps the inputs' scale by all numbers of a batch: its rate would depend on the batch."""

    def _quantized_inputs(self, x):
        return super()._quantized_inputs(x.reshape(1, *x.shape)).view(x.shape)


class WithFrozenScales(right["QATLinear"]):
    def quantized_weight(self):
        groups, scale = self._groups(), self.positive_scale()
        return right["fake_quantize"](groups, scale.detach(), self.bits).view_as(self.weight)


def prepared_with_the_tied(model, bits, granularity="group", group_size=64, **options):
    options.pop("skip", None)
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    for name, layer in layers:
        model.set_submodule(
            name, right["QATLinear"](layer, bits, granularity, group_size, **options)
        )
    return [name for name, _ in layers]


def scales_twice(model):
    scales, _ = right["scales_and_others"](model)
    return scales, [p for p in model.parameters() if p.requires_grad]


def bug(function, description, wrong, tests=""):
    return Bug(function, description, refusing(right[function], wrong), tests)


BUGS = [
    bug("fake_quantize", "has no gradient", without_a_gradient, "torchs or by_hand"),
    bug("fake_quantize", "has one beyond the end", gradient_beyond_the_end, "torchs or by_hand"),
    bug("fake_quantize", "freezes the scale", scale_without_a_gradient, "torchs or by_hand"),
    bug("fake_quantize", "forgets −x/s", scale_by_the_codes_alone, "torchs or by_hand"),
    bug("fake_quantize", "uses one code more", with_the_unused_code, "torchs or by_hand"),
    bug("fake_quantize", "is off by a bit", value_off_by_a_bit, "to_the_bit or nearest"),
    bug("first_scale", "is the largest's", first_scale_of_the_largest),
    bug("first_scale", "forgets the 2", first_scale_without_the_two),
    bug("damp_gradient", "damps the value", damped_forward_too, "damp"),
    bug("damp_gradient", "takes no root", damped_without_the_root, "damp"),
    bug("damp_gradient", "forgets the range", damped_by_the_count, "damp"),
    Bug("IntegerLinear", "rounds anew", WithAScaleOfItsOwn, "to_the_bit"),
    Bug("IntegerLinear", "wraps around", WithBytesThatWrap, "to_the_bit"),
    Bug("IntegerLinear", "takes floats in", WithFloatInputs, "integer_inputs"),
    Bug("QATLinear", "sets the inputs' scale anew", WithOneScaleOfTheInputs, "first_batch"),
    Bug("QATLinear", "counts the whole batch", WithTheWholeBatchsCount, "one_example"),
    Bug("QATLinear", "learns no scale", WithFrozenScales, "learned_scale"),
    Bug("prepare_qat", "rounds the embedding", prepared_with_the_tied),
    Bug("scales_and_others", "hold scales twice", scales_twice),
]
