"""What layers get, what is kept of it, and what is refused."""

from __future__ import annotations

import pytest
import torch
from calibration_inputs import correlated_inputs, hashed, hessian_of
from torch import nn

from course_utils.compression import calibration
from course_utils.compression.calibration import Moments


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def net():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


# ── moments ───────────────────────────────────────────────────────────────────────────────────────


def test_moments_by_hand():
    moments = Moments(2)
    moments.add(torch.tensor([[1.0, -2.0]]))
    moments.add(torch.tensor([[3.0, 0.0]]))
    assert moments.hessian().tolist() == [[10, -2], [-2, 4]]  # 2/2 · (x₁x₁ᵀ + x₂x₂ᵀ)
    assert moments.mean_size().tolist() == [2, 1]
    torch.testing.assert_close(moments.norm(), torch.tensor([10.0, 4.0]).sqrt())


def test_moments_of_pieces_are_those_of_the_whole():
    x = correlated_inputs(50, 8)
    whole, pieces = Moments(8), Moments(8)
    whole.add(x)
    for piece in x.split([1, 20, 29]):
        pieces.add(piece)
    torch.testing.assert_close(pieces.hessian(), whole.hessian())
    torch.testing.assert_close(whole.hessian(), hessian_of(x))
    torch.testing.assert_close(pieces.norm(), x.norm(dim=0))
    torch.testing.assert_close(pieces.mean_size(), x.abs().mean(dim=0))


def test_moments_of_half_precision_are_summed_in_float32():
    moments = Moments(1)
    for _ in range(3):
        moments.add(torch.full((257, 1), 1.0, dtype=torch.bfloat16))
    assert moments.mean_size().item() == 1  # bfloat16 counts no further than 256


# ── calibrate ─────────────────────────────────────────────────────────────────────────────────────


def test_calibrate_shows_what_each_layer_gets():
    model, x = net(), torch.randn(5, 4)
    seen = {}
    names = calibration.calibrate(
        model, [x[:2], x[2:]], lambda n, r: seen.setdefault(n, []).append(r)
    )
    assert names == ["0", "2"]
    torch.testing.assert_close(torch.cat(seen["0"]), x)
    torch.testing.assert_close(torch.cat(seen["2"]), model[0](x).relu().detach())


def test_calibrate_leaves_padding_out():
    x, mask = torch.randn(2, 3, 4), torch.tensor([[1, 1, 0], [1, 0, 0]])
    batch = {"x": x, "mask": mask}
    moments = calibration.collect_moments(
        net(), [batch], mask_of=lambda b: b["mask"], call=lambda model, b: model(b["x"])
    )
    real = torch.stack([x[0, 0], x[0, 1], x[1, 0]])
    assert moments["0"].n == 3
    torch.testing.assert_close(moments["0"].hessian(), 2 * real.T @ real / 3)


def test_calibrate_leaves_no_hook_behind_even_after_an_error():
    model = net()
    calibration.collect_moments(model, [torch.randn(1, 4)])
    with pytest.raises(ValueError, match="0 gets inf or NaN"):
        calibration.collect_moments(model, [torch.full((1, 4), torch.nan)])
    assert not any(layer._forward_pre_hooks for layer in model)


def test_calibrate_skips_by_name():
    assert list(calibration.collect_moments(net(), [torch.randn(1, 4)], skip=["2"])) == ["0"]


def test_calibrate_looks_within_a_part():
    model = nn.Sequential(net(), net(), nn.Linear(2, 2))
    model[1][0] = nn.Linear(2, 3)
    found = calibration.collect_moments(model, [torch.randn(1, 4)], within="1.")
    assert list(found) == ["1.0", "1.2"]
    assert list(calibration.collect_moments(model, [torch.randn(1, 4)], within="2")) == ["2"]
    with pytest.raises(ValueError, match=r"within '3\.'; there are: 0\.0, 0\.2, 1\.0"):
        calibration.collect_moments(model, [torch.randn(1, 4)], within="3.")


def test_calibrate_asks_for_examples():
    with pytest.raises(ValueError, match="reached 0 of 2 layers, and not 0"):
        calibration.collect_moments(net(), [])
    model = net()
    with pytest.raises(ValueError, match="reached 1 of 2 layers, and not 2"):
        calibration.collect_moments(model, [torch.randn(1, 4)], call=lambda m, x: m[0](x))
    with pytest.raises(ValueError, match="n is 0"):
        Moments(2).hessian()


def test_calibrate_takes_the_tokens_own_mask_alone():
    options = {"mask_of": lambda x: torch.ones(2, 2)}
    with pytest.raises(ValueError, match=r"inputs are \(2, 3, 4\), the mask \(2, 2\)"):
        calibration.collect_moments(net(), [torch.randn(2, 3, 4)], **options)


# ── error ─────────────────────────────────────────────────────────────────────────────────────────


def test_output_error_is_that_of_the_outputs():
    x, weight = correlated_inputs(40, 8), hashed(5, 8)
    changed = weight.mul(3).round() / 3
    wanted = ((x @ (weight - changed).T).square().sum() / (x @ weight.T).square().sum()).item()
    assert calibration.output_error(weight, changed, hessian_of(x)) == pytest.approx(wanted)


def test_what_is_refused_by_name():
    W = torch.randn(3, 4)
    with pytest.raises(ValueError, match=r"the weight is \(3, 4\), the Hessian \(3, 3\).*Conv1D"):
        calibration.output_error(W, W, torch.eye(3))
    with pytest.raises(ValueError, match="inf or NaN"):
        calibration.output_error(W, W, torch.full((4, 4), torch.nan))
    with pytest.raises(ValueError, match="all inputs were 0"):
        calibration.output_error(W, W, torch.zeros(4, 4))
