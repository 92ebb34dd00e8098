"""Fake quantization against torch's, values and gradients; integers against what was trained."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from course_utils.compression import int8, qat, rtn

GRANULARITIES = [("tensor", 64), ("channel", 64), ("group", 8)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def net():
    return nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 8, bias=False))


# ── against torch ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_fake_quantize_is_torchs_learnable_one(bits):
    """Values, and the gradients of x and of each row's scale, with many numbers cut off."""
    q = 2 ** (bits - 1) - 1
    x = torch.randn(6, 50)
    scale = torch.rand(6) / q + 0.5 / q
    upstream = torch.randn(6, 50)
    ours, theirs = ([x.clone().requires_grad_(), scale.clone().requires_grad_()] for _ in "12")
    y = qat.fake_quantize(ours[0], ours[1].unsqueeze(1), bits)
    z = torch._fake_quantize_learnable_per_channel_affine(
        *theirs, torch.zeros(6, requires_grad=True), 0, -q, q, 1.0
    )
    torch.testing.assert_close(y, z)
    (y * upstream).sum().backward()
    (z * upstream).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-5)  # fp32 sums
    assert ((x / scale.unsqueeze(1)).abs() > q + 0.5).any()


@pytest.mark.parametrize("bits", [2, 4])
def test_damped_gradients_are_torchs_with_its_factor(bits):
    q, x, scale = 2 ** (bits - 1) - 1, torch.randn(40), torch.tensor([0.4])
    ours, theirs = scale.clone().requires_grad_(), scale.clone().requires_grad_()
    qat.fake_quantize(x, qat.damp_gradient(ours, 40, bits), bits).square().sum().backward()
    factor = 1 / math.sqrt(40 * q)
    zero = torch.zeros(1, requires_grad=True)
    x = x.clone().requires_grad_()
    torch._fake_quantize_learnable_per_tensor_affine(
        x, theirs, zero, -q, q, factor
    ).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(("granularity", "group_size"), GRANULARITIES)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_without_learned_scales_it_is_round_to_nearest(granularity, group_size, bits):
    linear = nn.Linear(16, 24)
    layer = qat.QATLinear(linear, bits, granularity, group_size, learned=False)
    wanted = rtn.round_to_nearest(linear.weight, bits, "symmetric", granularity, group_size)
    assert torch.equal(layer.quantized_weight(), wanted)
    layer.quantized_weight().sum().backward()
    assert (layer.weight.grad == 1).all()  # nothing lies beyond a grid that spans the data
    assert not layer.scale.requires_grad


# ── by hand ───────────────────────────────────────────────────────────────────────────────────────


def test_fake_quantize_by_hand():
    """Steps 0.6, 1.8, −3.2, 3.6: the last lies beyond 3 + ½ and is cut off, −3.2 is rounded."""
    x = torch.tensor([0.3, 0.9, -1.6, 1.8], requires_grad=True)
    scale = torch.tensor([0.5], requires_grad=True)
    y = qat.fake_quantize(x, scale, bits=3)
    assert y.tolist() == [0.5, 1.0, -1.5, 1.5]
    y.sum().backward()
    assert x.grad.tolist() == [1, 1, 1, 0]
    torch.testing.assert_close(scale.grad, torch.tensor([0.4 + 0.2 + 0.2 + 3]))


def test_first_scale_by_hand():
    found = qat.first_scale(torch.tensor([[1.0, -2.0, 3.0]]), bits=4)
    assert found.item() == pytest.approx(2 * 2 / math.sqrt(7))


def test_damp_gradient_by_hand():
    scale = torch.tensor([0.25], requires_grad=True)
    damped = qat.damp_gradient(scale, n=14, bits=8)
    assert damped.item() == 0.25
    (3 * damped).backward()
    assert scale.grad.item() == pytest.approx(3 / math.sqrt(14 * 127))


def test_a_learned_scale_moves_to_less_error():
    """Weights of ±1 and one of 9: the first scale is too large for most, and shrinks."""
    linear = nn.Linear(16, 1, bias=False)
    linear.weight.data = torch.tensor([[1.0, -1] * 7 + [1.0, 9.0]])
    layer, target = qat.QATLinear(linear, 2, "channel"), linear.weight.detach().clone()
    optimizer = torch.optim.SGD([layer.scale], lr=0.3)
    before = layer.scale.item()
    errors = []
    for _ in range(40):
        error = (layer.quantized_weight() - target)[:, :15].square().sum()
        errors.append(error.item())
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert before > 1.5
    assert layer.scale.item() == pytest.approx(1, abs=0.1)
    assert errors[-1] < 0.1 * errors[0]


# ── properties ────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=60, deadline=None)
@given(
    numbers=st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=20),
    step=st.floats(0.01, 4),
    bits=st.integers(2, 8),
)
def test_fake_quantize_moves_by_half_a_step_or_to_the_end(numbers, step, bits):
    x, scale = torch.tensor(numbers), torch.tensor([step])
    y, end = qat.fake_quantize(x, scale, bits), (2 ** (bits - 1) - 1) * scale
    inside = x.abs() <= end
    assert ((y - x).abs() <= 0.5 * scale * (1 + 1e-5) + 1e-5)[inside].all()  # fp32
    assert torch.equal(y[~inside], (x.sign() * end)[~inside])
    torch.testing.assert_close(qat.fake_quantize(y, scale, bits), y)


# ── real integers ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("granularity", "group_size"), GRANULARITIES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("learned", [False, True])
def test_convert_qat_answers_the_same_to_the_bit(granularity, group_size, bits, learned):
    model, x = net(), torch.randn(5, 3, 16)
    qat.prepare_qat(model, bits, granularity, group_size, learned=learned)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    wanted = model(x)
    assert qat.convert_qat(model) == ["0", "2"]
    assert torch.equal(model(x), wanted)
    assert not list(model.parameters())
    assert not any(buffer.requires_grad for buffer in model.buffers())
    codes = model[0].codes()
    assert codes.dtype == torch.int8
    assert codes.abs().max() <= 2 ** (bits - 1) - 1
    assert model[0].packed.nbytes == 24 * 16 * bits // 8


@pytest.mark.parametrize(("granularity", "group_size"), GRANULARITIES)
@pytest.mark.parametrize("activation_bits", [4, 8])
def test_convert_qat_with_integer_inputs(granularity, group_size, activation_bits):
    model, x = net(), torch.randn(5, 3, 16)
    options = dict(activation_bits=activation_bits)
    qat.prepare_qat(model, 4, granularity, group_size, **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    assert all(layer.x_scale.grad != 0 for layer in (model[0], model[2]))
    wanted = model(x)
    qat.convert_qat(model)
    # fp32: a sum of products against an exact integer that is scaled once. At the second layer an
    # input may round the other way for that, which moves an output by one step.
    step = (model[2].x_scale * model[2].scale.max()).item() * 7
    assert (model(x) - wanted).abs().max() <= step * 1.01
    assert ((model(x) - wanted).abs() > 1e-5).float().mean() < 0.02


def test_integer_inputs_are_multiplied_as_integers(monkeypatch):
    layer, x = qat.QATLinear(nn.Linear(16, 4), 8, "channel", activation_bits=8), torch.randn(3, 16)
    wanted, seen = layer(x), []

    def product(a, b):
        seen.append((a.dtype, b.dtype))
        return int8.int8_product_plain(a, b)

    monkeypatch.setattr(qat, "int8_product", product)
    torch.testing.assert_close(qat.IntegerLinear(layer)(x), wanted, rtol=1e-5, atol=1e-5)  # fp32
    assert seen == [(torch.int8, torch.int8)]


def test_integers_are_saved_and_loaded():
    model, other = net(), net()
    for each in (model, other):
        qat.prepare_qat(each, 3, group_size=8)
        qat.convert_qat(each)
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 16)
    assert torch.equal(other(x), model(x))


def test_nbytes_counts_codes_scales_and_bias():
    layer = qat.IntegerLinear(qat.QATLinear(nn.Linear(64, 10), 3, group_size=32))
    assert layer.nbytes() == 64 * 10 * 3 // 8 + 20 * 4 + 10 * 4


# ── training ──────────────────────────────────────────────────────────────────────────────────────


def trained(model, x, y, steps):
    scales, others = qat.scales_and_others(model)
    groups = [{"params": others, "lr": 0.01}] + [{"params": scales, "lr": 0.003}] * bool(scales)
    optimizer = torch.optim.Adam(groups)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    return (model(x) - y).square().mean().item()


@pytest.mark.parametrize(("learned", "most"), [(False, 0.8), (True, 0.4)])
def test_training_with_rounding_beats_rounding_after_equal_training(learned, most):
    x, teacher = torch.randn(200, 16), net()
    with torch.no_grad():
        y = 2 * teacher(x)
    plain, aware = net(), net()
    aware.load_state_dict(plain.state_dict())
    trained(plain, x, y, 120)
    rtn.quantize_linears(plain, lambda W: rtn.round_to_nearest(W, 2, group_size=8))
    rounded = (plain(x) - y).square().mean().item()
    trained(aware, x, y, 60)
    qat.prepare_qat(aware, 2, group_size=8, learned=learned)
    assert trained(aware, x, y, 60) < most * rounded


def test_scales_and_others_hold_each_parameter_once():
    model = net()
    qat.prepare_qat(model, 4, group_size=8, activation_bits=8)
    scales, others = qat.scales_and_others(model)
    assert len(scales) == 4  # of weights and of inputs, in two layers
    assert len(others) == 3
    assert len({id(p) for p in scales + others}) == len(list(model.parameters()))
    frozen = net()
    qat.prepare_qat(frozen, 4, group_size=8, learned=False)
    assert [len(group) for group in qat.scales_and_others(frozen)] == [0, 3]


def test_the_first_batch_sets_the_inputs_scale_once():
    layer, x = qat.QATLinear(nn.Linear(16, 4), 8, "channel", activation_bits=8), torch.randn(3, 16)
    layer(x)
    wanted = qat.first_scale(x.reshape(1, -1), 8)[0]
    torch.testing.assert_close(layer.x_scale.detach(), wanted)
    layer(100 * x)
    torch.testing.assert_close(layer.x_scale.detach(), wanted)


def test_the_inputs_scale_has_a_gradient_by_the_numbers_of_one_example():
    layer = qat.QATLinear(nn.Linear(4, 1, bias=False), 8, "channel", activation_bits=3)
    x = torch.randn(6, 5, 4)
    layer(x).sum().backward()
    scale = layer.x_scale.detach().clone().requires_grad_()
    qat.fake_quantize(x, qat.damp_gradient(scale, 5 * 4, 3), 3).matmul(
        layer.quantized_weight().detach().T
    ).sum().backward()
    torch.testing.assert_close(layer.x_scale.grad, scale.grad)


def test_prepare_qat_leaves_tied_and_skipped_layers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.down = nn.Embedding(5, 8), nn.Linear(8, 8)
            self.up, self.out = nn.Linear(8, 8), nn.Linear(8, 5, bias=False)
            self.out.weight = self.embedding.weight

    model = Net()
    assert qat.prepare_qat(model, 4, group_size=8, skip=["up"]) == ["down"]
    assert type(model.up) is nn.Linear


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("learned", [False, True])
def test_a_row_of_zeros_stays_zero_and_learns(learned):
    linear = nn.Linear(8, 2, bias=False)
    linear.weight.data[0] = 0
    layer = qat.QATLinear(linear, 3, "channel", learned=learned)
    layer(torch.ones(1, 8)).sum().backward()
    assert (layer.quantized_weight()[0] == 0).all()
    assert (layer.weight.grad[0] == 1).all()
    assert layer.scale.isfinite().all()


def test_a_scale_that_crosses_zero_counts_by_its_size():
    layer = qat.QATLinear(nn.Linear(8, 2), 3, "channel")
    before = layer.quantized_weight()
    layer.scale.data.neg_()
    assert torch.equal(layer.quantized_weight(), before)
    layer.scale.data.zero_()
    assert layer(torch.ones(1, 8)).isfinite().all()


def test_what_is_refused_by_name():
    with pytest.raises(ValueError, match="bits is 1"):
        qat.fake_quantize(torch.ones(2), torch.ones(1), 1)
    with pytest.raises(ValueError, match="group_size is 5, which does not divide rows of 8"):
        qat.QATLinear(nn.Linear(8, 2), 4, group_size=5)
    broken = nn.Linear(2, 1)
    broken.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="1 of 2 weights are inf or NaN"):
        qat.QATLinear(broken, 4, "channel")
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 6), nn.Linear(6, 2))
    with pytest.raises(ValueError, match="does not divide rows of 6"):
        qat.prepare_qat(model, 4, group_size=4)
    assert type(model[0]) is nn.Linear  # nothing was changed
    with pytest.raises(ValueError, match="no linear layer to quantize"):
        qat.prepare_qat(nn.Tanh(), 4)
    with pytest.raises(ValueError, match="call prepare_qat first"):
        qat.convert_qat(model)
    qat.prepare_qat(model, 4, "channel", activation_bits=8)
    with pytest.raises(ValueError, match="has seen no input"):
        qat.convert_qat(model)
