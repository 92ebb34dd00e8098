"""AWQ against torchao's search, rung by rung, and by hand."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from calibration_inputs import correlated_inputs, hashed, hessian_of
from hypothesis import given, settings
from hypothesis import strategies as st
from made_elsewhere import AWQ_CASES, GROUP_SIZE, SHAPE, stored, weight_and_hessian
from torch import nn

from course_utils.architectures.blocks import RMSNorm
from course_utils.compression import awq
from course_utils.compression.calibration import collect_moments, output_error
from course_utils.compression.rtn import round_to_nearest

ROUND = partial(round_to_nearest, bits=3, scheme="minimum", group_size=16)


@pytest.fixture
def problem():
    """A weight, the Hessian and the sizes of inputs of which two are 30 times the others."""
    x = hashed(300, 64, salt=1.4)
    x[:, [5, 40]] *= 30
    return hashed(8, 64).float(), hessian_of(x).float(), x.abs().mean(dim=0).float()


# ── against torchao ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("bits", "theirs"), zip(AWQ_CASES, stored()["awq"], strict=True))
def test_search_scales_is_torchaos(bits, theirs):
    weight, hessian = weight_and_hessian()
    sizes = correlated_inputs(100, SHAPE[1]).float().abs().mean(dim=0)
    quantize = partial(round_to_nearest, bits=bits, scheme="minimum", group_size=GROUP_SIZE)
    ours = awq.search_scales(weight, hessian, sizes, quantize)
    torch.testing.assert_close(ours.scales, torch.tensor(theirs))  # fp32, the mean's order of sums
    assert 0 < ours.ratio < 1


# ── by hand ───────────────────────────────────────────────────────────────────────────────────────


def test_salient_columns_by_hand():
    sizes = torch.tensor([0.1, 7.0, 0.2, 9.0, 0.4])
    assert awq.salient_columns(sizes, 0.4).tolist() == [1, 3]
    assert awq.salient_columns(sizes).tolist() == [3]  # 1 % of 5, one at least
    assert awq.salient_columns(sizes, 1).tolist() == [0, 1, 2, 3, 4]


def test_random_columns_are_as_many_and_others_with_another_seed():
    drawn = [awq.random_columns(300, 0.02, seed) for seed in range(20)]
    assert {len(set(columns.tolist())) for columns in drawn} == {6}
    assert all((columns.diff() > 0).all() for columns in drawn)
    assert len(set(torch.cat(drawn).tolist())) > 60
    assert torch.equal(awq.random_columns(300, 0.02, 7), drawn[7])


def test_keep_columns_by_hand():
    W = torch.tensor([[0.3, 0.6], [1.2, -0.2]])
    kept = awq.keep_columns(W, torch.tensor([1]), torch.round)
    torch.testing.assert_close(kept, torch.tensor([[0, 0.6], [1, -0.2]]))
    same = awq.keep_columns(W, torch.tensor([0, 1]), lambda weight: weight)
    assert same is not W  # nor is what quantize returns written into
    assert torch.equal(W, torch.tensor([[0.3, 0.6], [1.2, -0.2]]))


def test_scaled_rounding_by_hand():
    W = torch.tensor([[0.3, 0.6, 1.2]])
    scaled = awq.scaled_rounding(W, torch.tensor([4.0, 0.5, 1.0]), torch.round)
    torch.testing.assert_close(scaled, torch.tensor([[0.25, 0.0, 1.0]]))  # 1.2 → 1; 0.3 → 0


def test_scales_by_size_by_hand():
    sizes = torch.tensor([1.0, 9.0, 0.0])
    assert awq.scales_by_size(sizes, 0).tolist() == [1, 1, 1]
    found = awq.scales_by_size(sizes, 0.5)  # 1, 3 and 10⁻⁴ over √(3 · 10⁻⁴)
    torch.testing.assert_close(found, torch.tensor([1, 3, 1e-4]) / (3e-4) ** 0.5)


def test_scales_of_columns_by_hand():
    assert awq.scales_of_columns(3, torch.tensor([1]), 4.0).tolist() == [1, 4, 1]


# ── the ladder ────────────────────────────────────────────────────────────────────────────────────


def test_the_ladder_in_order(problem):
    """Plain rounding and random columns at the foot; kept or scaled salient columns far above."""
    weight, hessian, sizes = problem
    error = partial(output_error, weight, hessian=hessian)
    salient = awq.salient_columns(sizes, 2 / 64)
    assert salient.tolist() == [5, 40]
    scales = awq.scales_of_columns(64, salient, 2.0)
    rungs = {
        "rtn": error(ROUND(weight)),
        "salient": error(awq.keep_columns(weight, salient, ROUND)),
        "scaled": error(awq.scaled_rounding(weight, scales, ROUND)),
        "searched": min(awq.search_scales(weight, hessian, sizes, ROUND).errors.values()),
    }
    random = [awq.random_columns(64, 2 / 64, seed) for seed in range(10)]
    rungs["random"] = sorted(error(awq.keep_columns(weight, each, ROUND)) for each in random)[5]
    assert rungs["random"] > 0.8 * rungs["rtn"], rungs
    assert rungs["scaled"] < 0.6 * rungs["rtn"], rungs
    assert rungs["searched"] < 0.3 * rungs["rtn"], rungs
    assert rungs["salient"] < 0.1 * rungs["rtn"], rungs


def test_search_scales_tells_the_error_of_each_ratio(problem):
    weight, hessian, sizes = problem
    found = awq.search_scales(weight, hessian, sizes, ROUND, steps=5)
    assert list(found.errors) == [0, 0.2, 0.4, 0.6, 0.8]
    for ratio, error in found.errors.items():
        rounded = awq.scaled_rounding(weight, awq.scales_by_size(sizes, ratio), ROUND)
        assert output_error(weight, rounded, hessian) == pytest.approx(error)
    assert found.errors[found.ratio] == min(found.errors.values())
    assert torch.equal(found.scales, awq.scales_by_size(sizes, found.ratio))


def test_search_scales_keeps_plain_rounding_where_nothing_is_better(problem):
    weight, hessian, sizes = problem
    assert awq.search_scales(weight, hessian, sizes, lambda W: W + 0).ratio == 0
    flat = torch.full_like(sizes, 2.0)
    assert awq.search_scales(weight, hessian, flat, ROUND).ratio == 0


@settings(max_examples=30, deadline=None)
@given(salt=st.floats(1, 9), steps=st.integers(1, 6))
def test_search_scales_never_loses_to_plain_rounding(salt, steps):
    x = correlated_inputs(40, 16, salt=salt)
    weight, hessian = hashed(3, 16, salt=salt).float(), hessian_of(x).float()
    found = awq.search_scales(weight, hessian, x.abs().mean(0).float(), ROUND, steps)
    plain = output_error(weight, ROUND(weight), hessian)
    assert found.errors[found.ratio] <= plain * (1 + 1e-5)  # fp32: scales of 1 are a root's


# ── models ────────────────────────────────────────────────────────────────────────────────────────


def test_awq_linears_is_the_search_layer_by_layer():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 4)), torch.randn(200, 32)
    x[:, 3] *= 20
    before = {name: net[int(name)].weight.detach().clone() for name in ("0", "2")}
    moments = collect_moments(net, [x])
    found = awq.awq_linears(net, moments, ROUND, steps=10)
    for name, weight in before.items():
        seen = moments[name]
        wanted = awq.search_scales(weight, seen.hessian(), seen.mean_size(), ROUND, steps=10)
        assert found[name].ratio == wanted.ratio
        rounded = awq.scaled_rounding(weight, wanted.scales, ROUND)
        assert torch.equal(net[int(name)].weight, rounded)
    assert found["0"].errors[found["0"].ratio] < 0.5 * found["0"].errors[0]


def test_awq_linears_asks_for_the_models_own_moments():
    net = nn.Sequential(nn.Linear(4, 4))
    moments = collect_moments(nn.Sequential(nn.Tanh(), nn.Linear(4, 4)), [torch.randn(9, 4)])
    with pytest.raises(ValueError, match="no linear layer 1"):
        awq.awq_linears(net, moments, ROUND)


@pytest.mark.parametrize("before", [nn.Linear(6, 8), nn.LayerNorm(8), RMSNorm(8, 1e-6)])
def test_fold_scales_changes_no_output(before):
    """And what is rounded then is W·s: the integers can be stored as they are."""
    torch.manual_seed(0)
    readers = [nn.Linear(8, 16, bias=False), nn.Linear(8, 5)]
    for part in before.parameters():
        nn.init.normal_(part)
    x = torch.randn(4, 6 if isinstance(before, nn.Linear) else 8)
    scales = torch.rand(8) + 0.5
    weights = [reader.weight.detach().clone() for reader in readers]
    wanted = [reader(before(x)) for reader in readers]
    awq.fold_scales(before, readers, scales)
    for reader, weight, outputs in zip(readers, weights, wanted, strict=True):
        torch.testing.assert_close(reader.weight, weight * scales)
        torch.testing.assert_close(reader(before(x)), outputs, rtol=1e-5, atol=1e-5)  # fp32


def test_fold_scales_and_rounding_are_scaled_rounding():
    torch.manual_seed(0)
    norm, reader, x = nn.LayerNorm(16), nn.Linear(16, 4, bias=False), torch.randn(5, 16)
    scales = torch.rand(16) + 0.5
    effective = awq.scaled_rounding(reader.weight, scales, ROUND)
    wanted = norm(x) @ effective.T
    awq.fold_scales(norm, [reader], scales)
    reader.weight.data = ROUND(reader.weight)
    torch.testing.assert_close(reader(norm(x)), wanted, rtol=1e-5, atol=1e-5)  # fp32, other order


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────


def test_what_is_refused_by_name(problem):
    weight, hessian, sizes = problem
    for share in (0, 1.5):
        with pytest.raises(ValueError, match=f"share is {share}"):
            awq.salient_columns(sizes, share)
    with pytest.raises(ValueError, match=r"scales are \(3,\); there are 64 inputs"):
        awq.scaled_rounding(weight, torch.ones(3), ROUND)
    with pytest.raises(ValueError, match=r"scales go from 0\.0 to 1\.0"):
        awq.scaled_rounding(weight, torch.ones(64).index_fill(0, torch.tensor([2]), 0), ROUND)
    with pytest.raises(ValueError, match=r"ratio is 1\.5"):
        awq.scales_by_size(sizes, 1.5)
    with pytest.raises(ValueError, match=r"the Hessian \(4, 4\)"):
        awq.search_scales(weight, torch.eye(4), sizes, ROUND)
    with pytest.raises(ValueError, match="8 of 512 weights are inf or NaN"):
        awq.search_scales(weight.index_fill(1, torch.tensor([2]), torch.nan), hessian, sizes, ROUND)
    with pytest.raises(ValueError, match="scales go from nan to nan"):
        awq.search_scales(weight, hessian, sizes.index_fill(0, torch.tensor([1]), torch.nan), ROUND)
    with pytest.raises(ValueError, match="W x is 0"):
        awq.search_scales(torch.zeros(2, 64), hessian, sizes, ROUND)
    with pytest.raises(ValueError, match="a layer reads 5 inputs; 3 come out before it"):
        awq.fold_scales(nn.Linear(2, 3), [nn.Linear(5, 1)], torch.ones(3))
