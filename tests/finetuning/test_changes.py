"""Changes of weights: by hand, as properties, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from course_utils.finetuning import changes
from course_utils.finetuning.lora import inject_lora, lora_layers


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def change():
    """7 × 5, singular values 5, 4, 3, 2, 1."""
    u = torch.linalg.qr(torch.randn(7, 5, generator=generator())).Q
    v = torch.linalg.qr(torch.randn(5, 5, generator=generator(1))).Q
    return (u * torch.tensor([5.0, 4, 3, 2, 1])) @ v.T


def test_energy_shares_by_hand(change):
    expected = torch.tensor([25.0, 41, 50, 54, 55]) / 55
    torch.testing.assert_close(changes.energy_shares(change), expected)
    torch.testing.assert_close(changes.energy_shares(change.T), expected)


def test_energy_shares_of_nothing_are_refused():
    with pytest.raises(ValueError, match="the change is 0 everywhere"):
        changes.energy_shares(torch.zeros(3, 3))


@pytest.mark.parametrize("k", [1, 3, 5])
def test_cut_to_rank_keeps_the_first_directions(change, k):
    cut = changes.cut_to_rank(change, k)
    assert torch.linalg.matrix_rank(cut, rtol=1e-4) == k
    kept = cut.square().sum() / change.square().sum()
    torch.testing.assert_close(kept, changes.energy_shares(change)[k - 1])
    lost = (change - cut).square().sum()  # orthogonal to what is kept
    torch.testing.assert_close(lost, (1 - kept) * change.square().sum(), atol=1e-4, rtol=1e-4)


def test_random_cut_is_a_projection_that_others_beat(change):
    wide = torch.cat([change, torch.zeros(7, 45)], dim=1)  # 50 inputs
    cut = changes.random_cut(wide, 2, generator())
    assert torch.linalg.matrix_rank(cut, rtol=1e-4) == 2
    kept = (cut * wide).sum()  # of a projection: ‖cut‖²
    torch.testing.assert_close(kept, cut.square().sum(), atol=1e-4, rtol=1e-4)
    assert cut.square().sum() < 0.3 * changes.cut_to_rank(wide, 2).square().sum()
    assert not torch.equal(cut, changes.random_cut(wide, 2, generator(5)))


def test_noise_like_has_the_norm_and_no_direction(change):
    noise = changes.noise_like(change, generator())
    assert noise.shape == change.shape
    torch.testing.assert_close(noise.norm(), change.norm())
    assert abs(torch.cosine_similarity(noise.flatten(), change.flatten(), dim=0)) < 0.5


@pytest.mark.parametrize("function", [changes.cut_to_rank, changes.random_cut])
@pytest.mark.parametrize("k", [0, 6])
def test_directions_that_are_not_there_are_refused(change, function, k):
    more = () if function is changes.cut_to_rank else (generator(),)
    with pytest.raises(ValueError, match=f"k is {k}; a change of \\(7, 5\\) has 1 … 5"):
        function(change, k, *more)


def test_random_like_is_as_long_and_of_the_same_shapes():
    A, B = torch.randn(2, 6, generator=generator()), torch.randn(4, 2, generator=generator(1))
    A2, B2 = changes.random_like(A, B, generator(2))
    assert (A2.shape, B2.shape) == (A.shape, B.shape)
    torch.testing.assert_close((B2 @ A2).norm(), (B @ A).norm())
    cosine = torch.cosine_similarity((B2 @ A2).flatten(), (B @ A).flatten(), dim=0)
    assert abs(cosine) < 0.6
    again = changes.random_like(A, B, generator(3))
    assert not torch.equal(A2, again[0])


def test_randomize_adapters_keeps_every_norm(net):
    inject_lora(net, "0|2", rank=2, alpha=4)
    for layer in lora_layers(net).values():
        layer.adapters["default"].B.data.normal_()
    before = {n: m.adapters["default"].update().detach() for n, m in lora_layers(net).items()}
    whole = changes.update_norm(net)
    changes.randomize_adapters(net, generator())
    for name, layer in lora_layers(net).items():
        after = layer.adapters["default"].update().detach()
        torch.testing.assert_close(after.norm(), before[name].norm())
        assert not torch.allclose(after, before[name], atol=1e-3)
    assert changes.update_norm(net) == pytest.approx(whole, rel=1e-5)


def test_update_norm_by_hand(net):
    inject_lora(net, "0|2", rank=1, alpha=2)  # scale 2
    for layer in lora_layers(net).values():
        adapter = layer.adapters["default"]
        adapter.A.data.zero_()
        adapter.B.data.zero_()
        adapter.A.data[0, 0], adapter.B.data[0, 0] = 1.0, 1.5  # an update of one 3
    assert changes.update_norm(net) == pytest.approx(18**0.5)


def test_put_weights_takes_back_what_weights_of_copied(net):
    before = changes.weights_of(net, ["0", "2"])
    x = torch.randn(3, 6)
    y = net(x)
    nn.init.ones_(net[0].weight)
    assert not torch.allclose(net(x), y)
    changes.put_weights(net, before)
    assert torch.equal(net(x), y)
