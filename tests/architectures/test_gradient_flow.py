"""Jacobians, chains, clipping and the memory probe against autograd, torch, and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from recurrent_inputs import (
    D_HIDDEN,
    D_IN,
    KINDS,
    first_state,
)
from torch import nn

from course_utils.architectures import attention, cells, recurrent
from course_utils.architectures.gradient_flow import (
    chain_length,
    clip_gradients,
    gradient_flow,
    path_length,
    recall_batch,
    set_spectral_radius,
    spectral_radius,
)


def test_flow_by_hand():
    """One unit without input stays at 0, where tanh' = 1: ∂h_T/∂h_t = w^(T − t)."""
    weights = (torch.zeros(1, 1), torch.tensor([[0.5]]), torch.zeros(1), torch.zeros(1))
    flow = gradient_flow("rnn", torch.zeros(4, 1), weights)
    torch.testing.assert_close(flow, torch.tensor([1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]))


@pytest.mark.parametrize("radius", [0.9, 1.1])
def test_flow_follows_the_spectral_radius(radius):
    """Near h = 0 an RNN is linear: after many steps the flow shrinks or grows as radius^T."""
    layer = recurrent.Recurrent("rnn", 1, 16).double()
    set_spectral_radius(layer.weight_hh_l0, radius)
    assert spectral_radius(layer.weight_hh_l0) == pytest.approx(radius)
    weights = tuple(w.detach() for w in layer.weights())
    no_bias = (*weights[:2], torch.zeros_like(weights[2]), torch.zeros_like(weights[3]))
    flow = gradient_flow("rnn", torch.zeros(120, 1, dtype=torch.double), no_bias)
    slope = math.log(flow[0] / flow[60]) / 60
    assert slope == pytest.approx(math.log(radius), abs=0.01)  # transients of the other eigenvalues


@pytest.mark.parametrize("max_norm", [0.5, 1e3])
def test_clipping_is_torchs(max_norm):
    model = nn.Linear(3, 2)
    model(torch.randn(4, 3)).square().sum().backward()
    other = nn.Linear(3, 2)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        theirs.grad = ours.grad.clone()
    norm = clip_gradients(model.parameters(), max_norm)
    expected = nn.utils.clip_grad_norm_(other.parameters(), max_norm)
    assert norm == pytest.approx(expected.item())
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)  # torch adds 1e-6 to the norm
    with pytest.raises(ValueError, match="max_norm is 0"):
        clip_gradients([], 0)


def test_chain_by_hand():
    """tanh(w·x) twice over: two products and two tanh, and one sum beside them waits for all."""
    x, w = torch.ones(2), torch.ones(2, requires_grad=True)
    h = torch.tanh(w * torch.tanh(w * x))
    assert chain_length(h) == 4
    assert chain_length(h + w * x) == 5
    assert chain_length(w) == chain_length(x) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_chain_grows_by_as_much_with_every_step(kind):
    weights = recurrent.Recurrent(kind, 2, 3).weights()
    lengths = [
        chain_length(cells.run_plain(kind, torch.ones(n, 2), weights)[0]) for n in (2, 3, 4, 100)
    ]
    step = lengths[1] - lengths[0]
    assert step > 0
    assert lengths[2:] == [lengths[0] + 2 * step, lengths[0] + 98 * step]


def test_recall_batch():
    ids, target = recall_batch(50, 9, 4, torch.Generator().manual_seed(0))
    assert ids.shape == (50, 10)
    assert torch.equal(ids[:, 0], target)
    assert set(target.tolist()) == set(range(4))
    assert ids[:, 1:].min() == 4
    assert ids.max() == 7
    assert recall_batch(3, 0, 4)[0].shape == (3, 1)
    with pytest.raises(ValueError, match="delay is -1"):
        recall_batch(3, -1, 4)


def test_path_length_by_hand():
    """sin, exp, sum: three derivatives; of two ways the shorter one; the leaf itself is 0 away."""
    x, other = (torch.ones(3, requires_grad=True) for _ in range(2))
    assert path_length(x.sin().exp().sum(), x) == 3
    assert path_length((x.sin().exp() + x).sum(), x) == 2
    with pytest.raises(ValueError, match="no path leads back"):
        path_length(other.sum(), x)
    with pytest.raises(ValueError, match="no path leads back"):
        path_length(torch.ones(3), x)


@pytest.mark.parametrize("n_keys", [2, 50])
def test_path_length_of_attention_does_not_grow(n_keys):
    first = torch.randn(1, 8, requires_grad=True)
    keys = torch.cat([first, torch.randn(n_keys - 1, 8)])
    out = attention.attention_weights(torch.randn(1, 8), keys) @ keys
    assert path_length(out, first) == 2  # the product with the values, and cat


@pytest.mark.parametrize(
    ("kind", "part"), [("rnn", "h"), ("gru", "h"), ("lstm", "h"), ("lstm", "c")]
)
def test_flow_is_autograds(kind, part):
    """The product of Jacobians against autograd through the whole unrolled sequence."""
    layer = recurrent.Recurrent(kind, D_IN, D_HIDDEN).double()
    weights = tuple(w.detach() for w in layer.weights())
    x = torch.randn(5, D_IN, dtype=torch.double)
    state = first_state(kind, D_HIDDEN)
    state = tuple(s.double() for s in state) if kind == "lstm" else state.double()
    flow = gradient_flow(kind, x, weights, state, part)
    for t in (0, 3):
        before = cells.run_plain(kind, x[:t], weights, state)[1] if t else state

        def last_of(value, before=before, t=t):
            start = (
                value
                if kind != "lstm"
                else (value, before[1])
                if part == "h"
                else (before[0], value)
            )
            end = cells.run_plain(kind, x[t:], weights, start)[1]
            return end if kind != "lstm" else end[0 if part == "h" else 1]

        value = before if kind != "lstm" else before[0 if part == "h" else 1]
        jacobian = torch.autograd.functional.jacobian(last_of, value)
        torch.testing.assert_close(flow[t], torch.linalg.matrix_norm(jacobian, ord=2))
    assert flow[-1] == 1
