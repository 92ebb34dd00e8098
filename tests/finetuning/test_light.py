"""BitFit by its names, IA³ against peft's: outputs and gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import IA3Config, inject_adapter_in_model
from torch import nn

from course_utils.finetuning import light
from course_utils.finetuning.light import ScaledLinear


@pytest.fixture
def net():
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8), nn.Linear(8, 3, bias=False))


def learning(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_train_biases_counts_and_frees_them(net):
    assert light.train_biases(net) == 18
    assert learning(net) == {"0.bias", "2.bias"}
    assert light.train_biases(net, r"2\..*") == 8
    assert learning(net) == {"2.bias"}


def test_train_biases_refuses_a_net_without():
    with pytest.raises(ValueError, match="no bias's whole name matches"):
        light.train_biases(nn.Sequential(nn.Linear(3, 3, bias=False)))


def test_inject_ia3_is_pefts(net):
    twin = copy.deepcopy(net)
    config = IA3Config(target_modules="0|2|3", feedforward_modules="3")
    twin = inject_adapter_in_model(config, twin)
    assert light.inject_ia3(net, outputs="0|2", inputs="3") == 10 + 8 + 8
    with torch.no_grad():
        for name in "023":
            drawn = torch.rand_like(net.get_submodule(name).vector) + 0.5
            net.get_submodule(name).vector.copy_(drawn)
            theirs = twin.get_submodule(name).ia3_l["default"]
            theirs.copy_(drawn.view_as(theirs))
    x = torch.randn(4, 6)
    ours, others = net(x), twin(x)
    torch.testing.assert_close(ours, others, atol=1e-6, rtol=1e-5)  # fp32
    ours.square().mean().backward()
    others.square().mean().backward()
    for name in "023":
        got = net.get_submodule(name).vector.grad
        wanted = twin.get_submodule(name).ia3_l["default"].grad.flatten()
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)


def test_inject_ia3_starts_where_the_net_was_and_learns_vectors_alone(net):
    x = torch.randn(4, 6)
    before = net(x)
    light.inject_ia3(net, outputs="0", inputs="2")
    assert torch.equal(net(x), before)
    assert learning(net) == {"0.vector", "2.vector"}


def test_inject_ia3_refuses_a_pattern_without_layers(net):
    with pytest.raises(ValueError, match="no linear layer's whole name matches 'a' or 'b'"):
        light.inject_ia3(net, outputs="a", inputs="b")


def test_scaledlinear_by_hand():
    """W = (1, 2): scaled at the input by (3, 0), or at the output by 5."""
    linear = nn.Linear(2, 1)
    linear.weight.data, linear.bias.data = torch.tensor([[1.0, 2.0]]), torch.tensor([1.0])
    before, after = ScaledLinear(linear, before=True), ScaledLinear(linear, before=False)
    before.vector.data, after.vector.data = torch.tensor([3.0, 0.0]), torch.tensor([5.0])
    x = torch.ones(2)
    assert (before(x).item(), after(x).item()) == (4.0, 20.0)
