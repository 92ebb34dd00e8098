"""One step of each cell against torch's cells, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from recurrent_inputs import (
    D_HIDDEN,
    D_IN,
    KINDS,
    SOURCE,
    TARGET,
    TOLERANCE,
    TORCH,
    first_state,
    joined,
    seq2seq,
)
from torch import nn
from writing import greedy_ids

from course_utils import models
from course_utils.architectures import cells, recurrent
from course_utils.architectures.seq2seq import RecurrentSeq2Seq, load_g2p_weights

CELLS = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}


def weights_of(cell):
    return cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh


def test_rnn_step_by_hand():
    """tanh(2·0.5 + 1·0.25 + 0.1 + 0.05) with one input and one unit."""
    one = [torch.tensor(v) for v in ([[2.0]], [[1.0]], [0.1], [0.05])]
    h = cells.rnn_step(torch.tensor([0.5]), torch.tensor([0.25]), *one)
    assert h.item() == pytest.approx(math.tanh(1.4), abs=1e-6)


def test_lstm_step_by_hand():
    """Gates forced by their biases: i = f = o = ½, g = tanh(1); c = 1, so c' = ½ + ½·tanh(1)."""
    zero = torch.zeros(4, 1)
    biases = torch.tensor([0.0, 0.0, 1.0, 0.0]), torch.zeros(4)
    state = torch.zeros(1), torch.ones(1)
    h, c = cells.lstm_step(torch.ones(1), state, zero, zero, *biases)
    assert c.item() == pytest.approx(0.5 + 0.5 * math.tanh(1), abs=1e-6)
    assert h.item() == pytest.approx(0.5 * math.tanh(c.item()), abs=1e-6)


def test_lstm_step_by_hand_with_a_shut_input_gate():
    """i = 0 lets nothing in, f = 1 keeps all, o = ½ shows half: c' = c = 1, h' = ½·tanh(1)."""
    zero = torch.zeros(4, 1)
    biases = torch.tensor([-50.0, 50.0, 1.0, 0.0]), torch.zeros(4)
    h, c = cells.lstm_step(torch.ones(1), (torch.zeros(1), torch.ones(1)), zero, zero, *biases)
    assert c.item() == pytest.approx(1, abs=1e-6)
    assert h.item() == pytest.approx(0.5 * math.tanh(1), abs=1e-6)


def test_gru_step_by_hand():
    """r = ½ halves U h = 2: n = tanh(0.3 + ½·2); z = σ(1) keeps that share of h = 1."""
    w_ih, w_hh = torch.zeros(3, 1), torch.tensor([[0.0], [0.0], [2.0]])
    b_ih, b_hh = torch.tensor([0.0, 1.0, 0.3]), torch.zeros(3)
    h = cells.gru_step(torch.zeros(1), torch.ones(1), w_ih, w_hh, b_ih, b_hh)
    z = 1 / (1 + math.exp(-1))
    assert h.item() == pytest.approx((1 - z) * math.tanh(1.3) + z, abs=1e-6)


def test_combine_linear_steps_does_both_steps():
    torch.manual_seed(0)
    a1, b1, a2, b2, h = torch.randn(5, 7)
    a, b = cells.combine_linear_steps(a1, b1, a2, b2)
    torch.testing.assert_close(a * h + b, a2 * (a1 * h + b1) + b2)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_torchs_cells(kind):
    cell = CELLS[kind](D_IN, D_HIDDEN)
    x, state = torch.randn(3, D_IN), first_state(kind, 3, D_HIDDEN)
    step = getattr(cells, f"{kind}_step")
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
        (lambda: cells.run_plain(kind, x, tuple(weights)), weights),
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
    assert cells.parameter_count(kind, D_IN, D_HIDDEN) == count
    ratio = {"rnn": 1, "gru": 3, "lstm": 4}[kind]
    assert count == ratio * cells.parameter_count("rnn", D_IN, D_HIDDEN)


def test_autocast_keeps_the_states_precision():
    layer = recurrent.Recurrent("lstm", D_IN, D_HIDDEN)
    x = torch.randn(2, 3, D_IN)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, _ = layer(x.bfloat16())
    torch.testing.assert_close(outputs, layer(x.bfloat16().float())[0])


def test_attention_weights():
    """They sum to 1 over what is real, are exactly 0 elsewhere, and all 0 for an empty source."""
    model = seq2seq(attention=True)
    memory, real, _ = model.encode(SOURCE, torch.tensor([4, 2, 0]))
    weights = model.attend(torch.randn(3, 5, 8), memory, real)
    sums = weights.sum(-1)
    torch.testing.assert_close(sums, torch.tensor([1.0, 1.0, 0.0]).unsqueeze(1).expand(3, 5))
    assert (weights[1, :, 2:] == 0).all()
    assert model(SOURCE, TARGET, torch.tensor([4, 2, 0])).isfinite().all()


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
    arrays = models.load_g2p()
    model = RecurrentSeq2Seq(29, 74, kind="gru").eval()
    load_g2p_weights(model, arrays)
    words = ["cat", "transformer", "gradients", "a", "llamas"]
    ids = [[models.G2P_GRAPHEMES.index(letter) for letter in [*word, "</s>"]] for word in words]
    longest = max(map(len, ids))
    source = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
    lengths = torch.tensor([len(row) for row in ids])
    start = torch.full((len(words), 1), 2)
    written = greedy_ids(model.read_and_reorder(source, lengths), start, 20, stop=[3])
    assert written == [numpy_greedy(arrays, row) for row in ids]
    assert [models.G2P_PHONEMES[i] for i in written[0]] == ["K", "AE1", "T"]


def test_g2p_weights_that_do_not_fit():
    arrays = models.load_g2p()
    with pytest.raises(ValueError, match=r"fc_w is \(74, 256\), our out.weight is \(70, 256\)"):
        load_g2p_weights(RecurrentSeq2Seq(29, 70), arrays)
    with pytest.raises(ValueError, match=r"g2p_en has nothing for our score\.weight"):
        load_g2p_weights(RecurrentSeq2Seq(29, 74, attention=True), arrays)
