"""SparseGPT against llm-compressor, against least squares, and by hand."""

from __future__ import annotations

import pytest
import torch
from calibration_inputs import correlated_inputs, hashed, hessian_of
from least_squares import by_least_squares
from made_elsewhere import SHAPE, SPARSE_CASES, stored, weight_and_hessian

from course_utils.compression import pruning
from course_utils.compression.calibration import output_error
from course_utils.compression.gptq import damped, inverse_factor
from course_utils.compression.sparsegpt import saliencies, sparsegpt, sparsegpt_n_of_m

EXACT = dict(rtol=0, atol=1e-9)  # float64, other order of sums


@pytest.fixture
def problem():
    return hashed(5, 24), hessian_of(correlated_inputs(90, 24, salt=1.1))


@pytest.mark.parametrize(("case", "theirs"), zip(SPARSE_CASES, stored()["sparsegpt"], strict=True))
def test_sparsegpt_is_llm_compressors(case, theirs):
    """Theirs removes one weight more in each block than the share says: so do we, told to."""
    share, n, m = case
    weight, hessian = weight_and_hessian()
    block = SHAPE[0] * 16
    if m:
        ours = sparsegpt_n_of_m(weight, hessian, m - n, m, block_size=16)
    else:
        ours = sparsegpt(weight, hessian, (int(block * share) + 1) / block, block_size=16)
    torch.testing.assert_close(ours, torch.tensor(theirs), rtol=0, atol=1e-5)  # fp32 sums


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("block_size", [5, 24, 99])
def test_what_stays_is_least_squares(problem, sparsity, block_size):
    weight, hessian = problem
    ours = sparsegpt(weight, hessian, sparsity, block_size=block_size)
    gone = ours == 0
    wanted = by_least_squares(weight, hessian, lambda i, W: W[:, i].masked_fill(gone[:, i], 0))
    torch.testing.assert_close(ours, wanted, **EXACT)
    blocks = ours.split(block_size, dim=1)
    assert [int((b == 0).sum()) for b in blocks] == [round(sparsity * b.numel()) for b in blocks]


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8)])
def test_sparsegpt_n_of_m_is_least_squares_whatever_the_block(problem, n, m):
    weight, hessian = problem
    ours = sparsegpt_n_of_m(weight, hessian, n, m)
    assert ours.ne(0).reshape(-1, m).sum(dim=1).eq(n).all()
    wanted = by_least_squares(weight, hessian, lambda i, W: W[:, i].masked_fill(ours[:, i] == 0, 0))
    torch.testing.assert_close(ours, wanted, **EXACT)
    for block_size in (1, 6, 12):
        other = sparsegpt_n_of_m(weight, hessian, n, m, block_size=block_size)
        torch.testing.assert_close(other, ours, **EXACT)


def test_saliencies_are_what_a_removal_costs(problem):
    """δ H δᵀ of a removal for which the columns after it make up as well as they can."""
    weight, hessian = problem
    found = saliencies(weight, inverse_factor(hessian))
    for i in (0, 7, 23):
        gone = weight.clone()
        free = list(range(i + 1, 24))
        if free:
            share = torch.linalg.solve(hessian[free][:, free], hessian[free, i])
            gone[:, free] += torch.outer(weight[:, i], share)
        gone[:, i] = 0
        delta = gone - weight
        torch.testing.assert_close(((delta @ hessian) * delta).sum(dim=1), found[:, i])


def test_sparsegpt_by_hand():
    """0.5 is cheaper; half of it goes into the next weight, since H₁₂/H₂₂ = ½."""
    H = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    done = sparsegpt(torch.tensor([[0.5, 1.0], [3.0, 9.0]]), H, 0.25, damping=0)
    torch.testing.assert_close(done, torch.tensor([[0, 1.25], [3, 9]]))


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_sparsegpt_loses_less_than_masks_alone(problem, sparsity):
    weight, hessian = problem
    norms = hessian.diagonal().sqrt()
    error = [
        output_error(weight, each, hessian)
        for each in (
            sparsegpt(weight, hessian, sparsity),
            weight * pruning.row_mask(pruning.wanda_scores(weight, norms), sparsity),
            weight * pruning.row_mask(weight.abs(), sparsity),
        )
    ]
    assert error[0] < error[1] < error[2], error
    assert error[0] < 0.4 * error[2], error


def test_the_ends(problem):
    weight, hessian = problem
    assert torch.equal(sparsegpt(weight, hessian, 0), weight)
    assert (sparsegpt(weight, hessian, 1) == 0).all()
    assert torch.equal(sparsegpt_n_of_m(weight, hessian, 4, 4), weight)


def test_an_input_that_was_always_zero_goes_first(problem):
    weight, hessian = problem
    hessian[3], hessian[:, 3] = 0, 0
    done = sparsegpt(weight, hessian, 1 / 24)
    assert (done == 0).nonzero()[:, 1].unique().tolist() == [3]


def test_sparsegpt_keeps_the_type_and_the_arguments(problem):
    weight, hessian = problem[0].bfloat16(), problem[1].float()
    before = weight.clone(), hessian.clone()
    assert sparsegpt(weight, hessian, 0.5).dtype == torch.bfloat16
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


def test_what_is_refused_by_name(problem):
    weight, hessian = problem
    with pytest.raises(ValueError, match=r"sparsity is 1\.5"):
        sparsegpt(weight, hessian, 1.5)
    with pytest.raises(ValueError, match="m is 5, which does not divide rows of 24"):
        sparsegpt_n_of_m(weight, hessian, 2, 5)
    with pytest.raises(ValueError, match=r"the Hessian \(3, 3\)"):
        sparsegpt(weight, torch.eye(3), 0.5)
    with pytest.raises(ValueError, match="5 of 120 weights are inf or NaN"):
        sparsegpt(weight.index_fill(1, torch.tensor([2]), torch.inf), hessian, 0.5)
    with pytest.raises(ValueError, match="block_size is 0"):
        sparsegpt(weight, hessian, 0.5, block_size=0)
    with pytest.raises(ValueError, match="singular"):
        inverse_factor(damped(hessian_of(correlated_inputs(4, 24)), 0))
