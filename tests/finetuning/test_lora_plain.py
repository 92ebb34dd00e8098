"""The plain LoRA layer against the package's own, which is held against peft's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from course_utils.finetuning.lora import LoRALinear
from course_utils.finetuning.lora_plain import PlainLoRA

SIZES = [(6, 10, 3, 6.0), (10, 6, 2, 1.0), (4, 4, 1, 8.0)]


def pair(d_in, d_out, rank, alpha, bias=True):
    """The plain layer and the package's, of the same numbers, as after some training."""
    linear = nn.Linear(d_in, d_out, bias=bias)
    fast = LoRALinear(copy.deepcopy(linear))
    plain = PlainLoRA(linear, rank, alpha)
    fast.add("default", rank, alpha)
    with torch.no_grad():
        plain.B.normal_()
        fast.adapters["default"].A.copy_(plain.A)
        fast.adapters["default"].B.copy_(plain.B)
    return plain, fast


# fp32: the scale is multiplied in at another place
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
def test_plain_lora_is_the_packages(sizes, bias):
    plain, fast = pair(*sizes, bias=bias)
    x = torch.randn(2, 5, sizes[0])
    torch.testing.assert_close(plain(x), fast(x), **CLOSE)
    plain(x).square().mean().backward()
    fast(x).square().mean().backward()
    adapter = fast.adapters["default"]
    torch.testing.assert_close(plain.A.grad, adapter.A.grad, **CLOSE)
    torch.testing.assert_close(plain.B.grad, adapter.B.grad, **CLOSE)


@pytest.mark.parametrize("sizes", SIZES)
def test_plain_lora_merges_into_what_the_packages_does(sizes):
    plain, fast = pair(*sizes)
    before = plain.linear.weight.clone()
    merged = plain.merge()
    fast.merge()
    assert type(merged) is nn.Linear
    torch.testing.assert_close(merged.weight, fast.base.weight, **CLOSE)
    assert torch.equal(merged.bias, plain.linear.bias)
    assert torch.equal(plain.linear.weight, before)  # and may be merged again
    torch.testing.assert_close(plain.merge().weight, merged.weight, atol=0, rtol=0)


def test_plain_lora_starts_as_its_linear_and_b_alone_has_a_gradient():
    linear = nn.Linear(6, 10)
    layer, x = PlainLoRA(linear, 2, 4.0), torch.randn(3, 6)
    assert torch.equal(layer(x), linear(x))
    layer(x).square().sum().backward()
    assert layer.B.grad.abs().max() > 0
    assert (layer.A.grad == 0).all()
    assert layer.linear.weight.grad is None
    learning = {name for name, p in layer.named_parameters() if p.requires_grad}
    assert learning == {"A", "B"}
    assert layer.A.abs().max() <= 6**-0.5
    assert layer.A.abs().min() > 0


def test_plain_lora_by_hand():
    """W = 0, A = (1, 2), B = (3, 0)ᵀ, α/r = 2: x = (1, 1) gives 2·3·(1 + 2) = 18 and 0."""
    linear = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(linear.weight)
    layer = PlainLoRA(linear, rank=1, alpha=2.0)
    layer.A.data, layer.B.data = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [0.0]])
    assert layer(torch.ones(2)).tolist() == [18.0, 0.0]
    assert layer.merge().weight.tolist() == [[6.0, 12.0], [0.0, 0.0]]
