"""Ridge regression against scikit-learn's, by hand, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge, RidgeCV

from course_utils.finetuning import ratings


@pytest.fixture
def problem():
    """Twelve texts, five features, ratings with noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 5, generator=generator).double() + 3
    return x, x @ torch.arange(5.0).double() + torch.randn(12, generator=generator).double()


def test_ridge_is_scikit_learns(problem):
    """Penalty chosen, weights and predictions, in double precision."""
    x, y = problem
    unit = torch.linalg.svdvals(x - x.mean(dim=0)).square().mean().item()
    theirs = RidgeCV([unit * p for p in ratings.PENALTIES]).fit(x.numpy(), y.numpy())
    ours = ratings.ridge(x, y)
    assert ours.penalty == pytest.approx(theirs.alpha_)
    torch.testing.assert_close(ours.weights, torch.tensor(theirs.coef_))
    told = torch.tensor(theirs.predict(x.numpy())).float()
    torch.testing.assert_close(ours.predict(x), told)


def test_ridge_leaves_each_out_as_if_fitted_anew(problem):
    """The penalty is the one of the least error over twelve fits on eleven texts each."""
    x, y = problem
    unit = torch.linalg.svdvals(x - x.mean(dim=0)).square().mean().item()

    def error(penalty):
        wrong = 0.0
        for i in range(len(x)):
            rest = torch.arange(len(x)) != i
            fit = Ridge(penalty * unit).fit(x[rest].numpy(), y[rest].numpy())
            wrong += (fit.predict(x[i : i + 1].numpy())[0] - y[i].item()) ** 2
        return wrong

    assert ratings.ridge(x, y).penalty == pytest.approx(min(ratings.PENALTIES, key=error) * unit)


def test_ridge_with_more_features_than_texts():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(6, 40, generator=generator), torch.randn(6, generator=generator)
    assert ratings.ridge(x, y).predict(x).isfinite().all()


@given(factor=st.floats(0.01, 100))
@settings(max_examples=20, deadline=None)
def test_ridge_does_not_mind_the_unit(factor):
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(9, 3, generator=generator).double(), torch.randn(9, generator=generator)
    one, two = ratings.ridge(x, y), ratings.ridge(factor * x, y)
    torch.testing.assert_close(one.predict(x), two.predict(factor * x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (torch.zeros(2, 1), torch.zeros(2), "2 texts, 2 ratings"),
        (torch.zeros(4, 1), torch.zeros(3), "4 texts, 3 ratings"),
        (torch.ones(4, 2), torch.arange(4.0), "all texts have the same features"),
    ],
)
def test_ridge_refuses(x, y, said):
    with pytest.raises(ValueError, match=said):
        ratings.ridge(x, y)
