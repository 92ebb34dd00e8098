"""Activations: counted by hand, and computed again to the same gradients."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from parallel_inputs import on_ranks
from torch import nn
from torch.utils.checkpoint import checkpoint

from course_utils.architectures.decoder import Decoder, DecoderConfig
from course_utils.parallel import activations
from course_utils.parallel.collectives import Wire
from course_utils.parallel.sharding import Sharded


def decoder():
    torch.manual_seed(0)
    return Decoder(DecoderConfig(13, 8, n_heads=2, n_layers=3, d_ff=12))


IDS = torch.arange(10).view(2, 5)


def gradients(model):
    model(IDS).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters()}


def test_recompute_gives_the_gradients_of_torchs_checkpoint():
    plain = decoder()
    theirs, ours = copy.deepcopy(plain), copy.deepcopy(plain)
    for block in theirs.blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    activations.recompute(ours.blocks)
    expected, got, once = (gradients(model) for model in (theirs, ours, plain))
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert all(torch.equal(got[name], once[name]) for name in once)


def test_recompute_drops_what_was_dropped_before():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 50), nn.Dropout(0.5), nn.Linear(50, 1))
    again, x = copy.deepcopy(net), torch.ones(4, 6, requires_grad=True)
    torch.manual_seed(2)
    net(x).sum().backward()
    activations.recompute([again])
    torch.manual_seed(2)
    y = again(x)
    torch.rand(3)  # other numbers are drawn meanwhile
    state = torch.get_rng_state()
    y.sum().backward()
    assert torch.equal(net[0].weight.grad, again[0].weight.grad)
    assert torch.equal(torch.get_rng_state(), state)


def test_recompute_keeps_the_inputs_of_blocks_alone():
    net = nn.Sequential(
        *(nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)) for _ in "123")
    )
    x = torch.ones(10, 8, requires_grad=True)
    before = activations.activation_bytes(net, lambda: net(x))
    activations.recompute(net)
    assert before == 3 * 10 * (8 + 2 * 32) * 4  # each block's input, and the GELU's in and out
    assert activations.activation_bytes(net, lambda: net(x)) == 3 * 10 * 8 * 4


def test_activation_bytes_by_hand():
    """A linear layer keeps its input; a parameter that is kept too is no activation."""
    net = nn.Linear(3, 5)
    x = torch.ones(7, 3, requires_grad=True)
    assert activations.activation_bytes(net, lambda: net(x)) == 7 * 3 * 4
    assert activations.activation_bytes(net, lambda: net(x) + net(x)) == 7 * 3 * 4
    with torch.no_grad():
        assert activations.activation_bytes(net, lambda: net(x)) == 0


def kept_on_ranks(stage):
    model = decoder()
    if stage == 3:
        make = functools.partial(torch.optim.SGD, lr=0.1)
        model = Sharded(model, list(model.blocks), make, wire=Wire())
    return activations.activation_bytes(model, lambda: model(IDS))


def test_sharding_leaves_activations_as_they_are():
    alone = kept_on_ranks(0)
    assert on_ranks(kept_on_ranks, 3, world_size=2) == [alone] * 2


def trained(again):
    module = decoder()
    if again:
        activations.recompute(module.blocks)
    make = functools.partial(torch.optim.SGD, lr=0.1)
    model = Sharded(module, list(module.blocks), make)
    for _ in range(3):
        model(IDS + 0).square().sum().backward()
        model.step()
    return model.full_state()


def test_recompute_under_sharding_changes_nothing():
    for plain, again in zip(*(on_ranks(trained, a, world_size=2) for a in (0, 1)), strict=True):
        assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_published_activation_bytes_by_hand():
    """Two layers, eight tokens in sequences of four, width 3, one head: 2·8·3·(34 + 5·4/3)."""
    found = activations.published_activation_bytes(3, 2, 1, tokens=8, sequence=4)
    assert found == pytest.approx(2 * 8 * (34 * 3 + 5 * 4))
    for again, each in (("attention", 34), ("blocks", 2)):
        kept = activations.published_activation_bytes(3, 2, 1, tokens=8, sequence=4, again=again)
        assert kept == 2 * 8 * 3 * each
    with pytest.raises(ValueError, match="again is 'all'; it must be one of nothing, attention"):
        activations.published_activation_bytes(3, 2, 1, tokens=8, sequence=4, again="all")
    with pytest.raises(ValueError, match="at least 1"):
        activations.published_activation_bytes(3, 2, 1, tokens=0, sequence=4)


def test_recompute_refuses():
    model = decoder()
    activations.recompute(model.blocks)
    with pytest.raises(ValueError, match="has another forward already"):
        activations.recompute(model.blocks)
    net = nn.Linear(2, 2)
    activations.recompute([net])
    with pytest.raises(RuntimeError, match="carries no gradient"):
        net(torch.ones(1, 2))
    with torch.no_grad():
        assert net(torch.ones(1, 2)).shape == (1, 2)
