"""Recurrent nets against torch's, against their own plain form, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from course_utils import assets, recurrent

KINDS = ("rnn", "gru", "lstm")
TORCH = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
CELLS = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}
LENGTHS = torch.tensor([3, 6, 1, 5])
D_IN, D_HIDDEN = 5, 7

# fp32, two libraries, sums in another order: differences of a few units in the last place of
# values near 1, which the steps through time neither shrink nor grow at these weights.
TOLERANCE = {"atol": 2e-6, "rtol": 2e-5}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def joined(state):
    """h and c as one tensor, so that both kinds of state are compared alike."""
    return torch.cat(state) if isinstance(state, tuple) else state


def first_state(kind, *shape):
    h, c = torch.randn(*shape), torch.randn(*shape)
    return (h, c) if kind == "lstm" else h


def weights_of(cell):
    return cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh


# ── one step ──────────────────────────────────────────────────────────────────────────────────────


def test_rnn_step_by_hand():
    """tanh(2·0.5 + 1·0.25 + 0.1 + 0.05) with one input and one unit."""
    one = [torch.tensor(v) for v in ([[2.0]], [[1.0]], [0.1], [0.05])]
    h = recurrent.rnn_step(torch.tensor([0.5]), torch.tensor([0.25]), *one)
    assert h.item() == pytest.approx(math.tanh(1.4), abs=1e-6)


def test_lstm_step_by_hand():
    """Gates forced by their biases: i = f = o = ½, g = tanh(1); c = 1, so c' = ½ + ½·tanh(1)."""
    zero = torch.zeros(4, 1)
    biases = torch.tensor([0.0, 0.0, 1.0, 0.0]), torch.zeros(4)
    state = torch.zeros(1), torch.ones(1)
    h, c = recurrent.lstm_step(torch.ones(1), state, zero, zero, *biases)
    assert c.item() == pytest.approx(0.5 + 0.5 * math.tanh(1), abs=1e-6)
    assert h.item() == pytest.approx(0.5 * math.tanh(c.item()), abs=1e-6)


def test_gru_step_by_hand():
    """r = ½ halves U h = 2: n = tanh(0.3 + ½·2); z = σ(1) keeps that share of h = 1."""
    w_ih, w_hh = torch.zeros(3, 1), torch.tensor([[0.0], [0.0], [2.0]])
    b_ih, b_hh = torch.tensor([0.0, 1.0, 0.3]), torch.zeros(3)
    h = recurrent.gru_step(torch.zeros(1), torch.ones(1), w_ih, w_hh, b_ih, b_hh)
    z = 1 / (1 + math.exp(-1))
    assert h.item() == pytest.approx((1 - z) * math.tanh(1.3) + z, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_torchs_cells(kind):
    cell = CELLS[kind](D_IN, D_HIDDEN)
    x, state = torch.randn(3, D_IN), first_state(kind, 3, D_HIDDEN)
    step = getattr(recurrent, f"{kind}_step")
    ours, theirs = step(x, state, *weights_of(cell)), cell(x, state)
    torch.testing.assert_close(joined(ours), joined(theirs), **TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_plain_loop_is_torchs_layer(kind):
    """Outputs, last state and every weight's gradient."""
    theirs = TORCH[kind](D_IN, D_HIDDEN)
    weights = [w.detach().clone().requires_grad_() for w in theirs.parameters()]
    x = torch.randn(6, D_IN)
    results = []
    for run, leaves in (
        (lambda: recurrent.run_plain(kind, x, tuple(weights)), weights),
        (lambda: theirs(x), list(theirs.parameters())),
    ):
        outputs, state = run()
        loss = outputs.square().sum() + joined(state).sum()
        results.append([outputs, *torch.autograd.grad(loss, leaves)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, **TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_one_three_four(kind):
    layer = TORCH[kind](D_IN, D_HIDDEN)
    count = sum(p.numel() for p in layer.parameters())
    assert recurrent.parameter_count(kind, D_IN, D_HIDDEN) == count
    ratio = {"rnn": 1, "gru": 3, "lstm": 4}[kind]
    assert count == ratio * recurrent.parameter_count("rnn", D_IN, D_HIDDEN)


# ── layers ────────────────────────────────────────────────────────────────────────────────────────


def run_torch(layer, x, lengths, state):
    if lengths is None:
        return layer(x, state)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    outputs, state = layer(packed, state)
    return pad_packed_sequence(outputs, batch_first=True, total_length=x.shape[1])[0], state


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
        alone, end = recurrent.run_plain(kind, x[row, :length], layer.weights())
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


def test_autocast_keeps_the_states_precision():
    layer = recurrent.Recurrent("lstm", D_IN, D_HIDDEN)
    x = torch.randn(2, 3, D_IN)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, _ = layer(x.bfloat16())
    torch.testing.assert_close(outputs, layer(x.bfloat16().float())[0])


@pytest.mark.parametrize("kind", KINDS)
def test_other_devices(kind):
    """On torch's "meta" device, which computes nothing but refuses a tensor made elsewhere."""
    model = seq2seq(kind=kind, n_layers=2, bidirectional=True, attention=True).to("meta")
    logits = model(SOURCE.to("meta"), TARGET.to("meta"), SOURCE_LENGTHS)
    logits.sum().backward()
    assert logits.device.type == model.out.weight.grad.device.type == "meta"


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


def test_fast_tanh():
    """2σ(2x) − 1 over the whole range, saturated ends included."""
    x = torch.linspace(-100, 100, 20_001)
    difference = (recurrent._tanh(x, torch.empty_like(x)) - torch.tanh(x)).abs().max()
    assert difference <= 2e-7, difference  # σ near ½ is rounded to 6e-8, and doubled


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recurrent.Recurrent("lsmt", 2, 3), "kind is 'lsmt'"),
        (lambda: recurrent.Recurrent("gru", 2, 0), "d_hidden is 0"),
        (lambda: recurrent.run_plain("rnn", torch.zeros(0, 2), ()), "0 steps"),
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


# ── gradients through time ────────────────────────────────────────────────────────────────────────


def test_flow_by_hand():
    """One unit without input stays at 0, where tanh' = 1: ∂h_T/∂h_t = w^(T − t)."""
    weights = (torch.zeros(1, 1), torch.tensor([[0.5]]), torch.zeros(1), torch.zeros(1))
    flow = recurrent.gradient_flow("rnn", torch.zeros(4, 1), weights)
    torch.testing.assert_close(flow, torch.tensor([1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]))


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
    flow = recurrent.gradient_flow(kind, x, weights, state, part)
    for t in (0, 3):
        before = recurrent.run_plain(kind, x[:t], weights, state)[1] if t else state

        def last_of(value, before=before, t=t):
            start = (
                value
                if kind != "lstm"
                else (value, before[1])
                if part == "h"
                else (before[0], value)
            )
            end = recurrent.run_plain(kind, x[t:], weights, start)[1]
            return end if kind != "lstm" else end[0 if part == "h" else 1]

        value = before if kind != "lstm" else before[0 if part == "h" else 1]
        jacobian = torch.autograd.functional.jacobian(last_of, value)
        torch.testing.assert_close(flow[t], torch.linalg.matrix_norm(jacobian, ord=2))
    assert flow[-1] == 1


@pytest.mark.parametrize("radius", [0.9, 1.1])
def test_flow_follows_the_spectral_radius(radius):
    """Near h = 0 an RNN is linear: after many steps the flow shrinks or grows as radius^T."""
    layer = recurrent.Recurrent("rnn", 1, 16).double()
    recurrent.set_spectral_radius(layer.weight_hh_l0, radius)
    assert recurrent.spectral_radius(layer.weight_hh_l0) == pytest.approx(radius)
    weights = tuple(w.detach() for w in layer.weights())
    no_bias = (*weights[:2], torch.zeros_like(weights[2]), torch.zeros_like(weights[3]))
    flow = recurrent.gradient_flow("rnn", torch.zeros(120, 1, dtype=torch.double), no_bias)
    slope = math.log(flow[0] / flow[60]) / 60
    assert slope == pytest.approx(math.log(radius), abs=0.01)  # transients of the other eigenvalues


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
        flows.append(recurrent.gradient_flow("lstm", x, weights, part="c")[0])
    assert flows[1] > 100 * flows[0]  # σ(1)/σ(0) = 1.46 a step, over 30 steps


@pytest.mark.parametrize("max_norm", [0.5, 1e3])
def test_clipping_is_torchs(max_norm):
    model = nn.Linear(3, 2)
    model(torch.randn(4, 3)).square().sum().backward()
    other = nn.Linear(3, 2)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        theirs.grad = ours.grad.clone()
    norm = recurrent.clip_gradients(model.parameters(), max_norm)
    expected = nn.utils.clip_grad_norm_(other.parameters(), max_norm)
    assert norm == pytest.approx(expected.item())
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)  # torch adds 1e-6 to the norm
    with pytest.raises(ValueError, match="max_norm is 0"):
        recurrent.clip_gradients([], 0)


def test_flow_of_a_part_that_is_not_there():
    layer = recurrent.Recurrent("gru", 2, 3)
    with pytest.raises(ValueError, match="part is 'c'; a gru has h"):
        recurrent.gradient_flow("gru", torch.zeros(3, 2), layer.weights(), part="c")


def test_chain_by_hand():
    """tanh(w·x) twice over: two products and two tanh, and one sum beside them waits for all."""
    x, w = torch.ones(2), torch.ones(2, requires_grad=True)
    h = torch.tanh(w * torch.tanh(w * x))
    assert recurrent.chain_length(h) == 4
    assert recurrent.chain_length(h + w * x) == 5
    assert recurrent.chain_length(w) == recurrent.chain_length(x) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_chain_grows_by_as_much_with_every_step(kind):
    weights = recurrent.Recurrent(kind, 2, 3).weights()
    lengths = [
        recurrent.chain_length(recurrent.run_plain(kind, torch.ones(n, 2), weights)[0])
        for n in (2, 3, 4, 100)
    ]
    step = lengths[1] - lengths[0]
    assert step > 0
    assert lengths[2:] == [lengths[0] + 2 * step, lengths[0] + 98 * step]


def test_recall_batch():
    ids, target = recurrent.recall_batch(50, 9, 4, torch.Generator().manual_seed(0))
    assert ids.shape == (50, 10)
    assert torch.equal(ids[:, 0], target)
    assert set(target.tolist()) == set(range(4))
    assert ids[:, 1:].min() == 4
    assert ids.max() == 7
    assert recurrent.recall_batch(3, 0, 4)[0].shape == (3, 1)
    with pytest.raises(ValueError, match="delay is -1"):
        recurrent.recall_batch(3, -1, 4)


# ── a language model ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_language_model_is_torchs(kind):
    """Logits and every gradient, against torch's own embedding, layer and product."""
    model = recurrent.RecurrentLM(kind, 9, 6, n_layers=2)
    theirs = TORCH[kind](6, 6, num_layers=2, batch_first=True)
    theirs.load_state_dict(model.net.state_dict())
    ids, leaves = torch.tensor([[1, 8, 3], [0, 2, 2]]), list(model.parameters())
    others = [model.tokens.weight, *theirs.parameters(), model.out.weight, model.out.bias]
    h, _ = theirs(F.embedding(ids, model.tokens.weight))
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


# ── encoder–decoder ───────────────────────────────────────────────────────────────────────────────

SOURCE = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [7, 0, 0, 0]])
SOURCE_LENGTHS = torch.tensor([4, 2, 1])
TARGET = torch.tensor([[1, 2, 3], [1, 4, 5], [1, 6, 7]])


def seq2seq(**options):
    options = {"d_model": 6, "d_hidden": 8} | options
    return recurrent.RecurrentSeq2Seq(9, 11, **options).eval()


def rebuilt_in_torch(model, source, lengths, target):
    """The same network from torch's own layers, with its own attention kernel."""
    options = {"num_layers": model.encoder.n_layers, "batch_first": True}
    encoder = TORCH[model.kind](
        6, model.encoder.d_hidden, bidirectional=model.directions == 2, **options
    )
    decoder = TORCH[model.kind](6, model.decoder.d_hidden, **options)
    encoder.load_state_dict(model.encoder.state_dict())
    decoder.load_state_dict(model.decoder.state_dict())
    memory, state = run_torch(encoder, model.source_embedding(source), lengths, None)
    if model.directions == 2:  # (L·2, B, H/2): the two directions of one layer stand side by side
        parts = state if isinstance(state, tuple) else (state,)
        parts = [
            torch.stack([torch.cat([p[2 * i], p[2 * i + 1]], -1) for i in range(len(p) // 2)])
            for p in parts
        ]
        state = tuple(parts) if isinstance(state, tuple) else parts[0]
    h, _ = decoder(model.target_embedding(target), state)
    if model.score is not None:
        real = (torch.arange(source.shape[1]) < lengths.unsqueeze(1)).unsqueeze(1)
        query = F.linear(h, model.score.weight)
        context = F.scaled_dot_product_attention(query, memory, memory, attn_mask=real, scale=1.0)
        h = torch.tanh(F.linear(torch.cat([context, h], -1), model.combine.weight))
    return F.linear(h, model.out.weight, model.out.bias)


@pytest.mark.parametrize("attention", [False, True], ids=["plain", "attention"])
@pytest.mark.parametrize(
    ("kind", "n_layers", "bidirectional"), [("gru", 1, False), ("lstm", 2, True), ("rnn", 2, False)]
)
def test_seq2seq_is_torchs(kind, n_layers, bidirectional, attention):
    """Logits, and the gradients of everything outside torch's own recurrent layers."""
    model = seq2seq(kind=kind, n_layers=n_layers, bidirectional=bidirectional, attention=attention)
    leaves = [p for n, p in model.named_parameters() if not n.startswith(("encoder", "decoder"))]
    results = []
    for logits in (
        model(SOURCE, TARGET, SOURCE_LENGTHS),
        rebuilt_in_torch(model, SOURCE, SOURCE_LENGTHS, TARGET),
    ):
        results.append([logits, *torch.autograd.grad(logits.square().sum(), leaves)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, **TOLERANCE)


@pytest.mark.parametrize("attention", [False, True])
def test_seq2seq_batch_equals_one_by_one(attention):
    model = seq2seq(kind="lstm", bidirectional=True, attention=attention)
    together = model(SOURCE, TARGET, SOURCE_LENGTHS)
    for row, length in enumerate(SOURCE_LENGTHS.tolist()):
        alone = model(SOURCE[row : row + 1, :length], TARGET[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, **TOLERANCE)


def test_attention_weights():
    """They sum to 1 over what is real, are exactly 0 elsewhere, and all 0 for an empty source."""
    model = seq2seq(attention=True)
    memory, real, _ = model.encode(SOURCE, torch.tensor([4, 2, 0]))
    weights = model.attend(torch.randn(3, 5, 8), memory, real)
    sums = weights.sum(-1)
    torch.testing.assert_close(sums, torch.tensor([1.0, 1.0, 0.0]).unsqueeze(1).expand(3, 5))
    assert (weights[1, :, 2:] == 0).all()
    assert model(SOURCE, TARGET, torch.tensor([4, 2, 0])).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_the_argmax_of_whole_prefixes(kind):
    """Carrying the state gives what recomputing every prefix gives."""
    model = seq2seq(kind=kind, attention=True)
    with torch.no_grad():
        model.out.weight.mul_(20)  # decided logits, so that the ids vary
    written = model.greedy(SOURCE, SOURCE_LENGTHS, start=1, stop=2, max_new=6)
    for row, length in enumerate(SOURCE_LENGTHS.tolist()):
        logits_after = model.next_logits(SOURCE[row : row + 1, :length])
        ids = [1]
        while len(ids) <= 6 and ids[-1] != 2:
            ids.append(logits_after(torch.tensor([ids])).argmax().item())
        assert written[row] == [i for i in ids[1:] if i != 2]


def test_greedy_of_nothing():
    assert seq2seq().greedy(SOURCE, start=1, stop=2, max_new=0) == [[], [], []]


def test_seq2seq_bad_input():
    model = seq2seq()
    with pytest.raises(ValueError, match="source ids go from 1 to 9"):
        model(torch.tensor([[1, 9]]), TARGET[:1])
    with pytest.raises(TypeError, match=r"target ids are torch\.float32"):
        model(SOURCE, TARGET.float())
    with pytest.raises(ValueError, match="source ids have shape"):
        model(torch.zeros(3, 0, dtype=torch.long), TARGET)
    with pytest.raises(ValueError, match="make it even"):
        seq2seq(d_hidden=7, bidirectional=True)


# ── g2p_en's weights ──────────────────────────────────────────────────────────────────────────────


def numpy_greedy(arrays, ids):
    """An independent reading of the network, in numpy, one word, one step at a time."""

    def gru(x, h, side):
        part = {n: arrays[f"{side}_{n}"] for n in ("w_ih", "w_hh", "b_ih", "b_hh")}
        a, u = part["w_ih"] @ x + part["b_ih"], part["w_hh"] @ h + part["b_hh"]
        r, z = (1 / (1 + np.exp(-(a[i : i + 256] + u[i : i + 256]))) for i in (0, 256))
        n = np.tanh(a[512:] + r * u[512:])
        return (1 - z) * n + z * h

    h = np.zeros(256, dtype=np.float32)
    for i in ids:
        h = gru(arrays["enc_emb"][i], h, "enc")
    last, written = 2, []
    while len(written) < 20:
        h = gru(arrays["dec_emb"][last], h, "dec")
        last = int((arrays["fc_w"] @ h + arrays["fc_b"]).argmax())
        if last == 3:
            break
        written.append(last)
    return written


def test_g2p_weights_pronounce():
    """g2p_en's real checkpoint in our modules, a padded batch, against numpy one by one."""
    arrays = assets.load_g2p()
    model = recurrent.RecurrentSeq2Seq(29, 74, kind="gru").eval()
    recurrent.load_g2p_weights(model, arrays)
    words = ["cat", "transformer", "gradients", "a", "llamas"]
    ids = [[assets.G2P_GRAPHEMES.index(letter) for letter in [*word, "</s>"]] for word in words]
    longest = max(map(len, ids))
    source = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
    lengths = torch.tensor([len(row) for row in ids])
    written = model.greedy(source, lengths, start=2, stop=3, max_new=20)
    assert written == [numpy_greedy(arrays, row) for row in ids]
    assert [assets.G2P_PHONEMES[i] for i in written[0]] == ["K", "AE1", "T"]


def test_g2p_weights_that_do_not_fit():
    arrays = assets.load_g2p()
    with pytest.raises(ValueError, match=r"fc_w is \(74, 256\), our out.weight is \(70, 256\)"):
        recurrent.load_g2p_weights(recurrent.RecurrentSeq2Seq(29, 70), arrays)
    with pytest.raises(ValueError, match=r"g2p_en has nothing for our score\.weight"):
        recurrent.load_g2p_weights(recurrent.RecurrentSeq2Seq(29, 74, attention=True), arrays)
