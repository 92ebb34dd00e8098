"""Counted words, ridge regression against scikit-learn's, and recall by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV

from course_utils.finetuning import ratings

TEXTS = [["a", "good", "film"], ["a", "bad", "film"], ["good", "good", "fun"], ["bad"]]


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


# ── counted words ───────────────────────────────────────────────────────────────────────────────


def test_common_words_by_hand():
    assert ratings.common_words(TEXTS) == ["a", "bad", "film", "good"]
    assert ratings.common_words(TEXTS, least=1) == ["a", "bad", "film", "fun", "good"]
    with pytest.raises(ValueError, match="no word occurs in 3 of 1 texts"):
        ratings.common_words([["a", "a", "a"]], least=3)  # three times, but in one text


def test_count_words_by_hand():
    counts = ratings.count_words(TEXTS, ["bad", "good"])
    assert counts.tolist() == [[0, 1], [1, 0], [0, 2], [1, 0]]


def test_balance_by_hand():
    assert ratings.balance(TEXTS, {"good", "fun"}, {"bad"}).tolist() == [1, -1, 3, -1]


# ── scores ──────────────────────────────────────────────────────────────────────────────────────


def test_correlation_is_scipys(problem):
    x, y = problem
    assert ratings.correlation(x[:, 0], y) == pytest.approx(pearsonr(x[:, 0], y).statistic)
    assert ratings.correlation(torch.ones(3), torch.arange(3.0)) == 0
    assert ratings.correlation(torch.ones(2), torch.arange(2.0)) == 0
    for a, b in ((3, 2), (1, 1)):
        with pytest.raises(ValueError, match=f"{a} and {b} numbers"):
            ratings.correlation(torch.ones(a), torch.ones(b))


def test_recall_nats_by_hand():
    """Cosines 1 and 0 at scale 2: ln(1 + e⁻²); lengths do not count."""
    questions = torch.tensor([[3.0, 0.0], [0.0, 0.5]])
    nats = ratings.recall_nats(questions, torch.eye(2), scale=2.0)
    assert nats.tolist() == pytest.approx([math.log(1 + math.exp(-2))] * 2)
    turned = ratings.recall_nats(questions, torch.eye(2).flip(0), scale=2.0)
    assert turned.tolist() == pytest.approx([math.log(1 + math.exp(2))] * 2)
    with pytest.raises(ValueError, match="one answer each"):
        ratings.recall_nats(questions, torch.eye(3))


def test_logistic_is_scikit_learns():
    torch.manual_seed(0)
    x, draw = torch.randn(80, 5), torch.randn(5)
    y = (x @ draw + 0.5 * torch.randn(80) > 0).long()
    ours = ratings.logistic(x, y, penalty=2.0)(x).softmax(1)[:, 1]
    # Two columns of weights share the work: ‖w/2‖² + ‖−w/2‖² is half of ‖w‖², so C doubles.
    theirs = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000).fit(x.numpy(), y.numpy())
    wanted = torch.tensor(theirs.predict_proba(x.numpy())[:, 1]).float()
    torch.testing.assert_close(ours, wanted, atol=2e-3, rtol=0)  # two solvers
