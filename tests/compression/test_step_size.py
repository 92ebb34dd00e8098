"""Steps by squared error: by hand, against trying all, and against `rtn` and `gptq`."""

from __future__ import annotations

import pytest
import torch
from calibration_inputs import correlated_inputs, hashed, hessian_of
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.compression import gptq, rtn, step_size
from course_utils.compression.calibration import output_error


def lost(x, step, bits):
    return (step_size.on_grid(x, step, bits) - x).square().sum(dim=-1)


def test_on_grid_by_hand():
    found = step_size.on_grid(torch.tensor([0.2, 0.6, -3.0]), torch.tensor([1.0]), bits=2)
    assert found.tolist() == [0, 1, -1]


def test_best_step_by_hand():
    """Of 1.5, 3, 4.5 and 6: at 1.5 the row loses 4 · 0.5² + 4.5², at 3 4 · 1² + 3², at 6 16."""
    x = torch.tensor([[2.0, -2.0, 2.0, 2.0, 6.0]])
    assert lost(x, torch.tensor([[3.0]]), 2).item() == 13
    assert step_size.best_step(x, 2, candidates=4).item() == 3


def test_best_range_by_hand():
    """Of the whole and the half of −2 … 4: levels 2 apart, off by 0 and 1; or 1 apart, −1 … 2."""
    x = torch.tensor([[-2.0, 0.0, 1.0, 1.0, 4.0]])
    step, minimum = step_size.best_range(x, 2, candidates=2)
    assert (step.item(), minimum.item()) == (2, -2)  # 0 + 0 + 1 + 1 + 0; the half loses 1 + 4
    x = torch.tensor([[-2.0, *[1.0] * 9, 4.0]])
    step, minimum = step_size.best_range(x, 2, candidates=2)
    assert (step.item(), minimum.item()) == (1, -1)  # 1 + 4; the whole loses 9


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), bits=st.integers(1, 4))
def test_best_range_is_the_best_of_those_tried(seed, bits):
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(seed))
    low, high = x.amin(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)

    def lost_on(step, minimum):
        levels = minimum + step * torch.arange(2**bits)  # (6, 2^bits)
        return (x.unsqueeze(2) - levels.unsqueeze(1)).square().amin(dim=2).sum(dim=1)

    found = lost_on(*step_size.best_range(x, bits, candidates=10))
    tried = [lost_on((high - low) * i / 10 / (2**bits - 1), low * i / 10) for i in range(1, 11)]
    torch.testing.assert_close(found, torch.stack(tried).amin(dim=0))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), bits=st.integers(2, 5))
def test_best_step_is_the_best_of_those_tried(seed, bits):
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(seed))
    widest = x.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    found = lost(x, step_size.best_step(x, bits, candidates=10), bits)
    tried = torch.stack([lost(x, widest * i / 10, bits) for i in range(1, 11)])
    torch.testing.assert_close(found, tried.amin(dim=0))


def test_best_step_of_two_bits_cuts_a_bells_largest_off():
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    shares = step_size.best_step(x, 2) / x.abs().amax(dim=1, keepdim=True)
    assert shares.max() < 0.8
    assert 0.3 < shares.mean() < 0.6


def test_one_candidate_is_round_to_nearest(monkeypatch):
    weight, right = hashed(6, 128).float(), step_size.best_step
    monkeypatch.setattr(step_size, "best_step", lambda x, bits: right(x, bits, candidates=1))
    wanted = rtn.round_to_nearest(weight, 3, "symmetric", "group", 64)
    torch.testing.assert_close(step_size.round_with_best_step(weight, 3), wanted)


@pytest.mark.parametrize("act_order", [False, True])
def test_one_candidate_is_gptq(monkeypatch, act_order):
    weight, hessian = hashed(6, 32), hessian_of(correlated_inputs(90, 32))
    right = step_size.best_step
    monkeypatch.setattr(step_size, "best_step", lambda x, bits: right(x, bits, candidates=1))
    for block_size in (5, 128):
        options = dict(block_size=block_size, act_order=act_order)
        wanted = gptq.gptq(weight, hessian, 3, group_size=16, **options).weight
        found = step_size.gptq_with_best_step(weight, hessian, 3, 16, **options)
        torch.testing.assert_close(found.weight, wanted, rtol=0, atol=1e-9)  # float64, other order


@pytest.mark.parametrize("from_minimum", [False, True])
def test_numbers_before_gptq_rounds_them_are_rounded_to_its_weight(from_minimum):
    weight, hessian = hashed(6, 32), hessian_of(correlated_inputs(90, 32))
    options = dict(act_order=True, from_minimum=from_minimum)
    found = step_size.gptq_with_best_step(weight, hessian, 2, 16, **options)
    gaps = (found.before - found.weight).abs().reshape(-1, 16)
    assert 0 < gaps.median() < found.step.median()
    if not from_minimum:
        again = step_size.on_grid(found.before.reshape(-1, 16), found.step, 2)
        assert torch.equal(again.view_as(weight), found.weight)


@pytest.mark.parametrize("act_order", [False, True])
def test_from_minimum_one_candidate_is_gptq(monkeypatch, act_order):
    weight, hessian = hashed(6, 32), hessian_of(correlated_inputs(90, 32))
    right = step_size.best_range
    monkeypatch.setattr(step_size, "best_range", lambda x, bits: right(x, bits, candidates=1))
    wanted = gptq.gptq(weight, hessian, 3, "minimum", group_size=16, act_order=act_order).weight
    options = dict(act_order=act_order, from_minimum=True)
    found = step_size.gptq_with_best_step(weight, hessian, 3, 16, **options).weight
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_gptq_with_best_step_loses_less_than_rounding_with_it():
    weight, hessian = hashed(6, 64), hessian_of(correlated_inputs(200, 64))
    rounded = step_size.round_with_best_step(weight, 2, 32)
    swept = step_size.gptq_with_best_step(weight, hessian, 2, 32).weight
    errors = [output_error(weight, each, hessian) for each in (swept, rounded)]
    assert errors[0] < 0.9 * errors[1], errors


@pytest.mark.parametrize("bits", [2, 3])
def test_round_with_best_step_loses_less_of_the_squares_than_to_nearest(bits):
    weight = torch.randn(20, 128, generator=torch.Generator().manual_seed(0))
    found = step_size.round_with_best_step(weight, bits)
    nearest = rtn.round_to_nearest(weight, bits, "symmetric", "group", 64)
    errors = [(each - weight).square().sum().item() for each in (found, nearest)]
    assert errors[0] < 0.95 * errors[1], errors


def test_gptq_with_best_step_stands_on_three_levels_a_group():
    weight, hessian = hashed(4, 32), hessian_of(correlated_inputs(90, 32))
    found = step_size.gptq_with_best_step(weight, hessian, 2, 16).weight
    assert max(len(group.unique()) for group in found.reshape(-1, 16)) <= 3


def test_a_row_of_zeros_stays():
    zeros = torch.zeros(2, 4)
    assert step_size.best_step(zeros, 2).tolist() == [[1], [1]]
    assert torch.equal(step_size.round_with_best_step(zeros, 2, 4), zeros)
    assert torch.equal(step_size._from_minimum(zeros, *step_size.best_range(zeros, 2), 2), zeros)


def test_what_is_refused_by_name():
    with pytest.raises(ValueError, match="candidates is 0"):
        step_size.best_step(torch.ones(1, 2), 2, candidates=0)
    with pytest.raises(ValueError, match="candidates is 0"):
        step_size.best_range(torch.ones(1, 2), 2, candidates=0)
    with pytest.raises(ValueError, match="bits is 1"):
        step_size.best_step(torch.ones(1, 2), 1)
    with pytest.raises(ValueError, match="1 of 2 weights are inf or NaN"):
        step_size.best_step(torch.tensor([[1.0, torch.nan]]), 2)
    with pytest.raises(ValueError, match="group_size is 3, which does not divide rows of 4"):
        step_size.round_with_best_step(torch.ones(2, 4), 2, 3)
