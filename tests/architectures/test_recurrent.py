"""Recurrent layers against torch's: values, gradients, padding, both directions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrent_inputs import D_HIDDEN, D_IN, KINDS, TOLERANCE, TORCH, first_state, joined, run_torch
from torch import nn

from course_utils.architectures import cells, recurrent
from course_utils.architectures.gradient_flow import gradient_flow

LENGTHS = torch.tensor([3, 6, 1, 5])


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["equal", "packed"])
@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("kind", KINDS)
def test_layer_is_torchs(kind, bidirectional, n_layers, lengths):
    """Outputs, last state, and the gradients of inputs, first state and every weight."""
    options = {"bidirectional": bidirectional}
    theirs = TORCH[kind](D_IN, D_HIDDEN, num_layers=n_layers, batch_first=True, **options)
    ours = recurrent.Recurrent(kind, D_IN, D_HIDDEN, n_layers=n_layers, **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 6, D_IN, requires_grad=True)
    state = first_state(kind, n_layers * (1 + bidirectional), 4, D_HIDDEN)
    parts = state if isinstance(state, tuple) else (state,)
    for part in parts:
        part.requires_grad_()
    out_grad = torch.randn(4, 6, D_HIDDEN * (1 + bidirectional))
    results = []
    for layer, run in (
        (ours, lambda: ours(x, lengths, state)),
        (theirs, lambda: run_torch(theirs, x, lengths, state)),
    ):
        outputs, last = run()
        loss = (outputs * out_grad).sum() + joined(last).square().sum()
        grads = torch.autograd.grad(loss, [x, *parts, *layer.parameters()])
        results.append([outputs, joined(last), *grads])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, **TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_backward_through_time_by_finite_differences(kind):
    """The hand-written backward pass in double precision, sequences of length 0, 2 and 3."""
    layer = recurrent.Recurrent(kind, 2, 3).double()
    lengths = torch.tensor([2, 0, 3])
    state = first_state(kind, 1, 3, 3)
    parts = state if isinstance(state, tuple) else (state,)
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *rest):
        split = len(rest) - len(names)
        first = rest[:split] if kind == "lstm" else rest[0]
        arguments = (x, lengths, first)
        parameters = dict(zip(names, rest[split:], strict=True))
        outputs, last = torch.func.functional_call(layer, parameters, arguments)
        return outputs, joined(last)

    leaves = [torch.randn(3, 3, 2), *parts, *layer.parameters()]
    leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_equals_one_by_one(kind):
    """A3: a batch of different lengths is each sequence alone, whatever stands in the padding."""
    layer = recurrent.Recurrent(kind, D_IN, D_HIDDEN)
    lengths = torch.tensor([3, 0, 6, 1])
    x = torch.randn(4, 6, D_IN)
    x[torch.arange(6) >= lengths.unsqueeze(1)] = float("nan")
    outputs, state = layer(x, lengths)
    last = state if isinstance(state, tuple) else (state,)
    for row, length in enumerate(lengths.tolist()):
        assert torch.equal(outputs[row, length:], torch.zeros(6 - length, D_HIDDEN))
        if length == 0:
            assert all(torch.equal(part[0, row], torch.zeros(D_HIDDEN)) for part in last)
            continue
        alone, end = cells.run_plain(kind, x[row, :length], layer.weights())
        torch.testing.assert_close(outputs[row, :length], alone, **TOLERANCE)
        end = end if isinstance(end, tuple) else (end,)
        for ours, theirs in zip(last, end, strict=True):
            torch.testing.assert_close(ours[0, row], theirs, **TOLERANCE)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=6), st.booleans())
def test_packing_visits_every_real_step_once(lengths, reverse):
    order, rows, sizes = recurrent.pack_order(torch.tensor(lengths), 7, reverse)
    real = [b * 7 + t for b, n in enumerate(lengths) for t in range(n)]
    assert sorted(rows.tolist()) == real
    assert sizes == sorted(sizes, reverse=True)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    for step, (visited, n) in enumerate(zip(rows.split(sizes), sizes, strict=True)):
        for sequence, row in zip(order[:n].tolist(), visited.tolist(), strict=True):
            t = lengths[sequence] - 1 - step if reverse else step
            assert row == sequence * 7 + t


def test_all_sequences_empty():
    """Defined: zero outputs, and the state stays as it was."""
    state = torch.randn(1, 2, D_HIDDEN)
    outputs, last = recurrent.Recurrent("gru", D_IN, D_HIDDEN)(
        torch.randn(2, 3, D_IN), torch.tensor([0, 0]), state
    )
    assert torch.equal(outputs, torch.zeros(2, 3, D_HIDDEN))
    assert torch.equal(last, state)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_gpu_computes_what_the_cpu_does(kind):
    layer = recurrent.Recurrent(kind, D_IN, D_HIDDEN, n_layers=2, bidirectional=True)
    results = []
    for device in ("cpu", "cuda"):
        layer = layer.to(device)
        x = torch.ones(4, 6, D_IN, device=device).cumsum(1).requires_grad_()
        outputs, _ = layer(x, LENGTHS)
        grads = torch.autograd.grad(outputs.square().sum(), [x, *layer.parameters()])
        results.append([tensor.cpu() for tensor in (outputs, *grads)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)  # fp32, other kernels


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("kind", KINDS)
def test_small_numbers_keep_their_digits(kind, size):
    """Relative, number by number, against 64 bits; nothing cancels, since nothing is negative."""
    layer = recurrent.Recurrent(kind, D_IN, D_HIDDEN)
    theirs = TORCH[kind](D_IN, D_HIDDEN, batch_first=True)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.abs_() if name.startswith("weight") else parameter.zero_()
        theirs.load_state_dict(layer.state_dict())
        x = size * (1 + torch.rand(1, 5, D_IN))
        exact, _ = cells.run_plain(kind, x[0].double(), [w.double() for w in layer.weights()])
        for outputs in (layer(x)[0][0], theirs(x)[0][0]):
            apart = ((outputs - exact) / exact).abs().max()
            assert apart <= 2e-6, apart  # 6e-8 a rounding, some ten a step, five steps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_loses_no_more_than_its_own_digits(kind, dtype):
    """The same in 16 bits, at 2⁻⁶: each of the steps may lose a few units in the last place."""
    layer = recurrent.Recurrent(kind, D_IN, D_HIDDEN).to(dtype)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.abs_() if name.startswith("weight") else parameter.zero_()
        x = (2**-6 * (1 + torch.rand(1, 5, D_IN))).to(dtype)
        exact, _ = cells.run_plain(kind, x[0].double(), [w.double() for w in layer.weights()])
        apart = ((layer(x)[0][0] - exact) / exact).abs().max()
    assert apart <= 10 * torch.finfo(dtype).eps, apart


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recurrent.Recurrent("lsmt", 2, 3), "kind is 'lsmt'"),
        (lambda: recurrent.Recurrent("gru", 2, 0), "d_hidden is 0"),
        (lambda: cells.run_plain("rnn", torch.zeros(0, 2), ()), "0 steps"),
        (lambda: layer_on(torch.zeros(2, 0, 3)), "0 steps"),
        (lambda: layer_on(torch.zeros(0, 4, 3)), "the batch is empty"),
        (lambda: layer_on(torch.zeros(4, 3)), r"\(4, 3\); this layer takes \(batch, steps, 3\)"),
        (lambda: layer_on(torch.zeros(2, 4, 5)), r"\(2, 4, 5\)"),
        (lambda: layer_on(torch.zeros(2, 4, 3, dtype=torch.long)), "int64.*embedding"),
        (lambda: layer_on(torch.zeros(2, 4, 3), [1, 2, 3]), "each of the 2 sequences"),
        (lambda: layer_on(torch.zeros(2, 4, 3), [1.0, 2.0]), "float32"),
        (lambda: layer_on(torch.zeros(2, 4, 3), [1, 5]), "from 1 to 5; the batch has 4 steps"),
        (lambda: layer_on(torch.zeros(2, 4, 3), [-1, 2]), "from -1 to 2"),
        (lambda: layer_on(torch.zeros(2, 4, 3), None, torch.zeros(1, 3, 2)), "first state"),
        (lambda: layer_on(torch.zeros(2, 4, 3), None, (torch.zeros(1, 2, 2),) * 2), "takes h "),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def layer_on(*arguments):
    return recurrent.Recurrent("gru", 3, 2)(*arguments)


def test_forget_bias():
    for layer in (recurrent.Recurrent("lstm", 2, 3, n_layers=2), nn.LSTM(2, 3)):
        recurrent.set_forget_bias(layer, 1.0)
        total = (layer.bias_ih_l0 + layer.bias_hh_l0).detach()
        assert torch.equal(total[3:6], torch.ones(3))
        assert (total[:3] != 1).all()
    with pytest.raises(ValueError, match="no forget gate"):
        recurrent.set_forget_bias(nn.GRU(2, 3), 1.0)


def test_a_higher_forget_bias_lets_more_through():
    x = torch.randn(30, 4)
    layer = recurrent.Recurrent("lstm", 4, 16)
    flows = []
    for bias in (0.0, 1.0):
        recurrent.set_forget_bias(layer, bias)
        weights = tuple(w.detach() for w in layer.weights())
        flows.append(gradient_flow("lstm", x, weights, part="c")[0])
    assert flows[1] > 100 * flows[0]  # σ(1)/σ(0) = 1.46 a step, over 30 steps


def test_flow_of_a_part_that_is_not_there():
    layer = recurrent.Recurrent("gru", 2, 3)
    with pytest.raises(ValueError, match="part is 'c'; a gru has h"):
        gradient_flow("gru", torch.zeros(3, 2), layer.weights(), part="c")


@pytest.mark.parametrize("kind", KINDS)
def test_language_model_is_torchs(kind):
    """Logits and every gradient, against torch's own embedding, layer and product."""
    model = recurrent.RecurrentLM(kind, 9, 6, n_layers=2)
    theirs = TORCH[kind](6, 6, num_layers=2, batch_first=True)
    theirs.load_state_dict(model.net.state_dict())
    ids, leaves = torch.tensor([[1, 8, 3], [0, 2, 2]]), list(model.parameters())
    others = [model.token_embedding.weight, *theirs.parameters(), model.out.weight, model.out.bias]
    h, _ = theirs(F.embedding(ids, model.token_embedding.weight))
    results = []
    for logits, wanted in (
        (model(ids), leaves),
        (F.linear(h, model.out.weight, model.out.bias), others),
    ):
        results.append([logits, *torch.autograd.grad(logits.square().sum(), wanted)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, **TOLERANCE)


def test_language_model_reads_what_is_there():
    """Nothing after a sequence's end, nor after a place in it, changes what was said before."""
    model = recurrent.RecurrentLM("gru", 9, 6)
    ids = torch.tensor([[1, 8, 3, 5], [4, 2, 0, 0]])
    other = torch.tensor([[1, 8, 7, 7], [4, 2, 7, 7]])
    both = [model(i, torch.tensor([4, 2]))[:, :2] for i in (ids, other)]
    torch.testing.assert_close(*both)
    with pytest.raises(ValueError, match="ids"):
        model(torch.tensor([[9]]))
