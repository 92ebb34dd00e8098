"""Many small nets side by side: each learns what it would learn alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from course_utils.architectures import cells, probes
from course_utils.architectures.attention import MultiHeadAttention
from course_utils.architectures.gradient_flow import (
    chain_length,
    clip_gradients,
    gradient_flow,
    recall_batch,
)
from course_utils.architectures.positions import sinusoidal_positions
from course_utils.architectures.probes import (
    LookingNet,
    ProbeNet,
    any_symbols_batch,
    train_probes,
)
from course_utils.architectures.recurrent import Recurrent


def fresh(count, kind="gru", **options):
    torch.manual_seed(0)
    return [ProbeNet(kind, 3, 6, **options) for _ in range(count)]


def alone(net, i, delay, steps, seed=0):
    """One net, trained by hand on the batches that `train_probes` gives the i-th."""
    generator = torch.Generator().manual_seed(1000 * seed + i)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(steps):
        ids, target = recall_batch(64, delay, 3, generator)
        optimizer.zero_grad()
        F.cross_entropy(net(ids), target).backward()
        clip_gradients(net.parameters(), 0.1)
        optimizer.step()


@pytest.mark.parametrize("kind", probes.KINDS)
def test_nets_side_by_side_learn_what_each_learns_alone(kind):
    together, apart = fresh(2, kind), fresh(2, kind)
    train_probes(together, 4, steps=6, seed=0, max_norm=0.1)
    for i, net in enumerate(apart):
        alone(net, i, 4, 6)
        for ours, theirs in zip(together[i].parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)  # Adam near gradient 0


def test_a_net_starts_as_torchs_layer_and_reads_the_last_state():
    torch.manual_seed(0)
    net = ProbeNet("lstm", 3, 6)
    layer = Recurrent("lstm", 6, 6)
    for name, weight in zip(("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"),
                            net.weights, strict=True):  # fmt: skip
        getattr(layer, name).data.copy_(weight)
    ids = torch.randint(6, (4, 5))
    expected = net.out(layer(net.embedding(ids))[0][:, -1])
    torch.testing.assert_close(net(ids), expected)
    assert max(weight.abs().max() for weight in net.weights) <= 6**-0.5


def test_a_short_delay_is_learned_and_counted():
    found = train_probes(fresh(2), 1, steps=150, seed=0, lr=2e-2)
    assert min(found.recalled) > 0.9
    assert found.watched == {}


def test_watching_looks_before_between_and_at_the_end():
    nets = fresh(2)
    first = nets[0].out.weight.detach().clone()
    seen = []

    def watch(net):
        seen.append(net.out.weight.detach().clone())
        return 0.5

    found = train_probes(nets, 2, steps=5, seed=0, watch=watch, every=2)
    assert found.watched == {step: [0.5, 0.5] for step in (0, 2, 4, 5)}
    assert torch.equal(seen[0], first)
    assert torch.equal(seen[-2], nets[0].out.weight)
    assert not torch.equal(seen[2], first)


@pytest.mark.parametrize(("kind", "part"), [("gru", "h"), ("lstm", "c")])
def test_flow_is_that_after_the_first_symbol(kind, part):
    (net,) = fresh(1, kind)
    ids, _ = recall_batch(1, 4, 3, torch.Generator().manual_seed(7))
    weights = tuple(weight.detach() for weight in net.weights)
    expected = gradient_flow(kind, net.embedding(ids)[0].detach(), weights, part=part)
    assert probes.flow(net, 4, seed=7) == pytest.approx(expected[1].item())


def test_a_forget_bias_is_the_sum_of_both_vectors():
    (net,) = fresh(1, "lstm", forget_bias=3.0)
    assert torch.equal((net.weights[2] + net.weights[3]).chunk(4)[1], torch.full((6,), 3.0))


@pytest.mark.parametrize("places", [True, False])
def test_a_looking_net_is_one_head_whose_last_token_looks(places):
    torch.manual_seed(0)
    net, layer = LookingNet(3, 6, places=places), MultiHeadAttention(6, n_heads=1)
    for name in ("query", "key", "value"):
        getattr(layer, name).load_state_dict(getattr(net, name).state_dict())
    layer.out.load_state_dict({"weight": torch.eye(6), "bias": torch.zeros(6)})
    ids = torch.randint(6, (4, 5))
    x = net.embedding(ids) + places * sinusoidal_positions(5, 6)
    expected = net.out(layer(x[:, -1:], layer.keys_values(x))[:, 0])
    torch.testing.assert_close(net(ids), expected)


def test_without_places_a_looking_net_cannot_tell_the_order_of_what_it_has_read():
    torch.manual_seed(0)
    ids = torch.tensor([[0, 4, 5, 3]])
    other = torch.tensor([[4, 0, 5, 3]])  # the last token, which asks, stays
    for places, alike in ((False, True), (True, False)):
        net = LookingNet(3, 6, places=places)
        assert torch.allclose(net(ids), net(other), atol=1e-6) == alike


def test_nets_that_look_are_trained_as_the_others_and_on_sequences_of_any_kind():
    torch.manual_seed(0)
    nets = [LookingNet(3, 8) for _ in range(2)]
    found = train_probes(nets, 3, steps=150, seed=0, lr=2e-2, make=any_symbols_batch)
    assert min(found.recalled) > 0.9


def test_any_symbols_are_of_one_kind_and_the_first_is_asked_for():
    ids, first = any_symbols_batch(50, 6, 4, torch.Generator().manual_seed(0))
    assert ids.shape == (50, 7)
    assert set(ids.flatten().tolist()) == {0, 1, 2, 3}
    assert torch.equal(ids[:, 0], first)


def test_bad_input():
    with pytest.raises(ValueError, match="kind is 'cnn'"):
        ProbeNet("cnn", 3)
    with pytest.raises(ValueError, match="no net to train"):
        train_probes([], 3, steps=1, seed=0)


# ── the cells that only the probe uses ──────────────────────────────────────────────────────────


def test_coupled_lstm_step_by_hand():
    """All weights 0: f = ½, g = 0, o = ½, so c' = ½ and h' = ½·tanh ½."""
    zero, bias = torch.zeros(4, 1), torch.zeros(4)
    h, c = cells.coupled_lstm_step(
        torch.ones(1), (torch.ones(1), torch.ones(1)), zero, zero, bias, bias
    )
    assert c.item() == pytest.approx(0.5)
    assert h.item() == pytest.approx(0.5 * torch.tanh(torch.tensor(0.5)).item())


def test_coupled_lstm_step_is_an_lstm_whose_input_gate_is_one_minus_forget():
    generator = torch.Generator().manual_seed(0)
    w_ih, w_hh, b_ih, b_hh = (torch.randn(*s, generator=generator)
                              for s in ((8, 3), (8, 2), (8,), (8,)))  # fmt: skip
    x, h, c = (torch.randn(n, generator=generator) for n in (3, 2, 2))
    # σ(−z) = 1 − σ(z): an LSTM with the forget gate's weights, negated, as its input gate's.
    tied = [torch.cat([-w.chunk(4)[1], *w.chunk(4)[1:]]) for w in (w_ih, w_hh, b_ih, b_hh)]
    expected = cells.lstm_step(x, (h, c), *tied)
    got = cells.coupled_lstm_step(x, (h, c), w_ih, w_hh, b_ih, b_hh)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("n_steps", [1, 2, 3, 8, 13])
def test_linear_scan_is_the_recurrence(n_steps):
    generator = torch.Generator().manual_seed(n_steps)
    a, b = (torch.randn(n_steps, 2, 3, generator=generator, dtype=torch.double) for _ in range(2))
    leaves = a.requires_grad_(), b.requires_grad_()
    loop, scan = cells.linear_recurrence(a, b), cells.linear_scan(a, b)
    torch.testing.assert_close(scan, loop)
    ways = [
        torch.autograd.grad(y.square().sum(), leaves, materialize_grads=True) for y in (loop, scan)
    ]
    torch.testing.assert_close(*ways)


def test_linear_scan_takes_log_many_rounds():
    chains = {}
    for n in (16, 256):
        a, b = torch.full((n, 1), 0.9, requires_grad=True), torch.ones(n, 1)
        ways = cells.linear_scan(a, b), cells.linear_recurrence(a, b)
        chains[n] = [chain_length(way) for way in ways]
    rounds, steps = (chains[256][i] / chains[16][i] for i in (0, 1))
    assert rounds < 2.5  # 8 rounds against 4
    assert steps > 12  # 256 steps against 16


def test_a_tied_nets_flow_is_automatic_differentiations():
    torch.manual_seed(0)
    net = ProbeNet("coupled", 4, d_hidden=5)
    ids, _ = recall_batch(1, 6, 4, torch.Generator().manual_seed(3))
    x = net.embedding(ids)[0].detach()

    def rest(c):
        state = (first[0], c)
        for x_t in x[1:]:
            state = cells.coupled_lstm_step(x_t, state, *net.weights)
        return state[1]

    first = cells.coupled_lstm_step(x[0], (torch.zeros(5), torch.zeros(5)), *net.weights)
    jacobian = torch.autograd.functional.jacobian(rest, first[1].detach())
    expected = torch.linalg.matrix_norm(jacobian, ord=2).item()
    assert probes.flow(net, 6, seed=3) == pytest.approx(expected, rel=1e-4)
