"""Masks against torch's and llm-compressor's, by hand, and training that keeps them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from calibration_inputs import correlated_inputs, hashed, hessian_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from made_elsewhere import SPARSE_CASES, stored, weight_and_hessian
from torch import nn
from torch.nn.utils import prune

from course_utils.compression import pruning
from course_utils.compression.calibration import collect_moments, output_error

SCORES = torch.tensor([[4.0, 1.0, 3.0, 2.0], [8.0, 7.0, 6.0, 5.0]])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def net():
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))


def masks_of(model, sparsity):
    """Each layer's largest weights."""
    scores = pruning.linear_scores(model)
    return {name: pruning.layer_mask(each, sparsity) for name, each in scores.items()}


# ── against others ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("sparsity", [0, 0.1, 0.5, 0.77, 1])
def test_layer_mask_is_torchs(sparsity):
    layer = nn.Linear(12, 7)
    ours = pruning.layer_mask(pruning.magnitude_scores(layer.weight), sparsity)
    prune.l1_unstructured(layer, "weight", amount=float(sparsity))
    assert torch.equal(ours, layer.weight_mask.bool())


@pytest.mark.parametrize("sparsity", [0, 0.3, 0.5, 0.9, 1])
def test_global_masks_are_torchs(sparsity):
    model = net()
    model[2].weight.data *= 3
    ours = pruning.global_masks(pruning.linear_scores(model), sparsity)
    pairs = [(model[0], "weight"), (model[2], "weight")]
    prune.global_unstructured(pairs, prune.L1Unstructured, amount=float(sparsity))
    for name, mask in ours.items():
        assert torch.equal(mask, model[int(name)].weight_mask.bool())


@pytest.mark.parametrize(("case", "theirs"), zip(SPARSE_CASES, stored()["wanda"], strict=True))
def test_wanda_is_llm_compressors(case, theirs):
    share, n, m = case
    weight, hessian = weight_and_hessian()
    scores = pruning.wanda_scores(weight, hessian.diagonal().sqrt())
    mask = pruning.n_of_m_mask(scores, m - n, m) if m else pruning.row_mask(scores, share)
    assert torch.equal(weight * mask, torch.tensor(theirs))


# ── by hand ───────────────────────────────────────────────────────────────────────────────────────


def test_masks_by_hand():
    assert pruning.row_mask(SCORES, 0.5).int().tolist() == [[1, 0, 1, 0], [1, 1, 0, 0]]
    assert pruning.layer_mask(SCORES, 0.5).int().tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]
    assert pruning.n_of_m_mask(SCORES, 1, 2).int().tolist() == [[1, 0, 1, 0], [1, 0, 1, 0]]
    assert pruning.n_of_m_mask(SCORES, 1, 4).int().tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]
    masks = pruning.global_masks({"a": SCORES[:1], "b": SCORES[1:]}, 0.75)
    assert {n: m.int().tolist() for n, m in masks.items()} == {"a": [[0] * 4], "b": [[1, 1, 0, 0]]}


def test_equal_scores_go_in_order():
    assert pruning.row_mask(torch.ones(2, 4), 0.5).int().tolist() == [[0, 0, 1, 1]] * 2
    assert pruning.n_of_m_mask(torch.zeros(1, 4)).int().tolist() == [[0, 0, 1, 1]]


def test_wanda_scores_by_hand():
    """The small weight on a large input stays: 1 · 10 > |−3| · 2."""
    W, x = torch.tensor([[-3.0, 1.0]]), torch.tensor([[2.0, 6.0], [0.0, -8.0]])
    scores = pruning.wanda_scores(W, x.norm(dim=0))
    assert scores.tolist() == [[6, 10]]
    assert pruning.row_mask(scores, 0.5).int().tolist() == [[0, 1]]
    assert pruning.row_mask(pruning.magnitude_scores(W), 0.5).int().tolist() == [[1, 0]]


def test_linear_scores_are_wandas_where_there_are_moments():
    model, x = net(), torch.randn(20, 8)
    moments = collect_moments(model, [x])
    scores = pruning.linear_scores(model, moments)
    torch.testing.assert_close(scores["0"], model[0].weight.abs() * x.norm(dim=0))
    assert torch.equal(pruning.linear_scores(model)["2"], model[2].weight.abs())
    assert list(pruning.linear_scores(model, moments, skip=["2"])) == ["0"]
    with pytest.raises(ValueError, match="no moments of 2"):
        pruning.linear_scores(model, {"0": moments["0"]})


def test_wanda_loses_less_of_the_outputs_than_magnitude_per_row():
    x, weight = correlated_inputs(200, 32), hashed(8, 32)
    hessian = hessian_of(x)
    kept = [
        weight * pruning.row_mask(scores, 0.5)
        for scores in (pruning.wanda_scores(weight, x.norm(dim=0)), weight.abs())
    ]
    wanda, magnitude = (output_error(weight, each, hessian) for each in kept)
    assert wanda < 0.8 * magnitude, (wanda, magnitude)


# ── properties ────────────────────────────────────────────────────────────────────────────────────

FINITE = arrays.arrays(np.float32, (3, 8), elements=st.floats(0, 1e4, width=32))


@settings(max_examples=60, deadline=None)
@given(scores=FINITE, sparsity=st.floats(0, 1))
def test_masks_are_exact_and_keep_the_largest(scores, sparsity):
    scores = torch.from_numpy(scores)
    for mask, rows in (
        (pruning.row_mask(scores, sparsity), scores),
        (pruning.layer_mask(scores, sparsity).reshape(1, -1), scores.reshape(1, -1)),
    ):
        for kept, row in zip(mask, rows, strict=True):
            assert int((~kept).sum()) == round(sparsity * len(row))
            if kept.any() and not kept.all():
                assert row[kept].min() >= row[~kept].max()


@settings(max_examples=40, deadline=None)
@given(scores=FINITE, n=st.integers(1, 4))
def test_n_of_m_mask_keeps_n_of_each_m(scores, n):
    mask = pruning.n_of_m_mask(torch.from_numpy(scores), n, 4)
    assert mask.reshape(-1, 4).sum(dim=1).eq(n).all()


@settings(max_examples=40, deadline=None)
@given(step=st.integers(0, 150), final=st.floats(0, 1), initial=st.floats(0, 1))
def test_gradual_sparsity_stays_between_and_is_monotone(step, final, initial):
    now, later = (
        pruning.gradual_sparsity(i, final, start=10, end=100, initial=initial)
        for i in (step, step + 1)
    )
    low, high = sorted((initial, final))
    assert low - 1e-9 <= now <= high + 1e-9
    assert (later - now) * (final - initial) >= -1e-9


def test_gradual_sparsity_by_hand():
    at = [pruning.gradual_sparsity(i, 0.9, 100, 300, initial=0.1) for i in (0, 100, 200, 300, 999)]
    assert at == pytest.approx([0.1, 0.1, 0.8, 0.9, 0.9])  # 0.9 − 0.8/8


def test_iterative_sparsities_take_an_equal_share_each_time():
    found = pruning.iterative_sparsities(0.875, 3)
    assert found == pytest.approx([0.5, 0.75, 0.875])
    assert pruning.iterative_sparsities(0, 2) == [0, 0]


# ── models ────────────────────────────────────────────────────────────────────────────────────────


def test_apply_masks_and_sparsity_of():
    model = net()
    bias = model[0].bias.detach().clone()
    masks = masks_of(model, 0.5)
    pruning.apply_masks(model, masks)
    assert pruning.sparsity_of(model) == 0.5
    assert torch.equal(model[0].weight != 0, masks["0"])
    assert torch.equal(model[0].bias, bias)


def test_zeros_of_counts_weights_that_are_exactly_zero():
    model = net()
    model[0].bias.data.zero_()
    assert pruning.zeros_of(model) == 0
    pruning.apply_masks(model, masks_of(model, 0.5))
    model[0].weight.data[model[0].weight != 0] = 1e-20
    assert pruning.zeros_of(model) == 36  # half of 48 and of 24


@pytest.mark.parametrize("sparsity", [0, 1])
def test_the_ends_are_the_model_itself_and_its_biases(sparsity):
    model, x = net(), torch.randn(3, 8)
    before = model(x)
    scores = pruning.linear_scores(model)
    pruning.apply_masks(
        model, {name: pruning.layer_mask(s, sparsity) for name, s in scores.items()}
    )
    wanted = before if sparsity == 0 else model[2].bias.expand(3, 4)
    assert torch.equal(model(x), wanted)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, lr=0.05),
        lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    ],
)
def test_mask_keeper_holds_zeros_that_momentum_would_move(make):
    model, x, y = net(), torch.randn(40, 8), torch.randn(40, 4)
    optimizer = make(model.parameters())

    def step():
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()

    for _ in range(3):
        step()  # momentum from before the pruning
    masks = masks_of(model, 0.5)
    with pruning.MaskKeeper(model, optimizer) as keeper:
        keeper.keep(masks)
        before = model[0].weight.detach().clone()
        assert torch.equal(before != 0, masks["0"])  # at once
        for _ in range(3):
            step()
            assert all(torch.equal(model[int(n)].weight != 0, mask) for n, mask in masks.items())
            assert (model[0].weight.grad[~masks["0"]] == 0).all()
        assert (model[0].weight != before)[masks["0"]].all()  # and the others learn
    step()
    step()
    assert pruning.sparsity_of(model) < 0.1  # released


def test_mask_keeper_takes_new_masks():
    model, x = net(), torch.randn(40, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pruning.MaskKeeper(model, optimizer) as keeper:
        for sparsity in (0.25, 0.5, 0.75):
            keeper.keep(masks_of(model, sparsity))
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            zeros = {n: model.get_submodule(n).weight == 0 for n in ("0", "2")}
            assert pruning.sparsity_of(model) == pytest.approx(sparsity)
        keeper.keep({"2": ~zeros["2"]})
        optimizer.zero_grad()
        model(x).square().mean().backward()
        assert (model[0].weight.grad[zeros["0"]] != 0).any()  # its old mask is gone
        optimizer.step()
        assert (model[0].weight[zeros["0"]] != 0).any()
        keeper.keep({"2": zeros["2"]})  # the others of the same layer, which may learn again
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        assert torch.equal(model[2].weight != 0, zeros["2"])


def test_retraining_under_the_mask_recovers_some_of_the_loss():
    x = torch.randn(300, 8)
    teacher, model = net(), net()
    model.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        y = teacher(x)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with pruning.MaskKeeper(model, optimizer) as keeper:
        keeper.keep(masks_of(model, 0.5))
        losses = []
        for _ in range(60):
            loss = (model(x) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert pruning.sparsity_of(model) == 0.5


def test_rewind_gives_the_first_weights_back_under_the_mask():
    model = net()
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.data += 1
    masks = masks_of(model, 0.5)
    pruning.rewind(model, first, masks)
    assert torch.equal(model[0].weight, first["0.weight"] * masks["0"])
    assert torch.equal(model[0].bias, first["0.bias"])


def test_shuffled_masks_keep_as_many_elsewhere():
    masks = {"a": torch.rand(6, 10) > 0.7, "b": torch.rand(4, 4) > 0.5}
    shuffled = pruning.shuffled_masks(masks, seed=3)
    for name, mask in masks.items():
        assert shuffled[name].sum() == mask.sum()
        assert shuffled[name].shape == mask.shape
        assert not torch.equal(shuffled[name], mask)
    assert torch.equal(pruning.shuffled_masks(masks, seed=3)["a"], shuffled["a"])
    assert not torch.equal(pruning.shuffled_masks(masks, seed=4)["a"], shuffled["a"])


@pytest.mark.parametrize(("within", "dim"), [("inputs", 0), ("outputs", 1)])
def test_shuffled_masks_keep_as_many_on_each_input_or_output(within, dim):
    masks = {"a": torch.rand(6, 10) > 0.7, "b": torch.rand(40, 3) > 0.5}
    shuffled = pruning.shuffled_masks(masks, seed=3, within=within)
    for name, mask in masks.items():
        assert torch.equal(shuffled[name].sum(dim=dim), mask.sum(dim=dim))
        assert not torch.equal(shuffled[name].sum(dim=1 - dim), mask.sum(dim=1 - dim))
    again = pruning.shuffled_masks(masks, seed=3, within=within)
    assert torch.equal(again["a"], shuffled["a"])
    another = pruning.shuffled_masks(masks, seed=4, within=within)
    assert not torch.equal(another["a"], shuffled["a"])
    alike = {"a": (torch.arange(20) < 10).unsqueeze(1 - dim).expand(20, 20)}
    lines = pruning.shuffled_masks(alike, within=within)["a"].unbind(1 - dim)
    assert not torch.equal(lines[0], lines[1])  # each is dealt out by itself


def test_shuffled_within_inputs_reaches_every_place_equally_often():
    mask = {"a": torch.tensor([[True, True], [False, True], [False, False], [False, False]])}
    total = sum(pruning.shuffled_masks(mask, i, "inputs")["a"].float() for i in range(2000))
    wanted = torch.tensor([0.25, 0.5]).expand(4, 2)
    torch.testing.assert_close(total / 2000, wanted, atol=0.05, rtol=0)  # 4.5 standard errors


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────


def test_what_is_refused_by_name():
    for sparsity in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"sparsity is {sparsity}"):
            pruning.layer_mask(SCORES, sparsity)
    with pytest.raises(ValueError, match="1 of 8 scores are NaN"):
        pruning.row_mask(SCORES.masked_fill(SCORES == 4, torch.nan), 0.5)
    with pytest.raises(ValueError, match="m is 3, which does not divide rows of 4"):
        pruning.n_of_m_mask(SCORES, 2, 3)
    with pytest.raises(ValueError, match="n is 5 of m = 4"):
        pruning.n_of_m_mask(SCORES, 5, 4)
    with pytest.raises(ValueError, match=r"the weight is \(2, 4\), the norms \(2,\)"):
        pruning.wanda_scores(SCORES, torch.ones(2))
    with pytest.raises(ValueError, match=r"the mask of 0 is \(6, 4\), its weight \(6, 8\)"):
        pruning.apply_masks(net(), {"0": torch.ones(6, 4, dtype=torch.bool)})
    with pytest.raises(ValueError, match="no scores"):
        pruning.global_masks({}, 0.5)
    with pytest.raises(ValueError, match="no linear layer"):
        pruning.sparsity_of(nn.Tanh())
    with pytest.raises(ValueError, match="within is 'rows'"):
        pruning.shuffled_masks({}, within="rows")
    with pytest.raises(ValueError, match="start is 5, end 5"):
        pruning.gradual_sparsity(1, 0.5, 5, 5)
    with pytest.raises(ValueError, match="final is 1 in 3 rounds"):
        pruning.iterative_sparsities(1, 3)
