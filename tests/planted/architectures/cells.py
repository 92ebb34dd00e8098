"""Plausible wrong versions of course_utils.architectures.cells."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from planting import Bug, originals

right = originals("architectures.cells")


def rnn_step_relu(x, h, w_ih, w_hh, b_ih, b_hh):
    return torch.relu(F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh))


def lstm_step_other_order(x, state, *weights):
    """Gates read as i, g, f, o."""
    swap = [torch.cat([w.chunk(4)[i] for i in (0, 2, 1, 3)]) for w in weights]
    return right["lstm_step"](x, state, *swap)


def gru_step_reset_before(x, h, w_ih, w_hh, b_ih, b_hh):
    """The paper's form: r scales h before the product, not after."""
    x_r, x_z, x_n = F.linear(x, w_ih, b_ih).chunk(3, -1)
    h_r, h_z, _ = F.linear(h, w_hh, b_hh).chunk(3, -1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + F.linear(r * h, w_hh.chunk(3)[2], b_hh.chunk(3)[2]))
    return (1 - z) * n + z * h


def gru_step_swapped_update(x, h, *weights):
    n_and_h = right["gru_step"](x, h, *weights)
    w_ih, w_hh, b_ih, b_hh = weights
    z = torch.sigmoid((F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)).chunk(3, -1)[1])
    n = (n_and_h - z * h) / (1 - z)
    return z * n + (1 - z) * h


def coupled_lstm_step_uncoupled(x, state, *weights):
    return right["lstm_step"](x, state, *weights)


def coupled_lstm_step_by_the_input_gate(x, state, w_ih, w_hh, b_ih, b_hh):
    h, c = state
    i, _, g, o = (F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)).chunk(4, -1)
    i = torch.sigmoid(i)
    c = (1 - i) * c + i * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def linear_scan_with_old_factors(a, b):
    distance = 1
    while distance < len(b):
        before = torch.cat([torch.zeros_like(b[:distance]), b[:-distance]])
        b = a * before + b
        distance *= 2
    return b


def linear_scan_one_round_short(a, b):
    return right["linear_scan"](a[: len(b) // 2 + 1], b[: len(b) // 2 + 1])


BUGS = [
    Bug(
        "coupled_lstm_step",
        "is a plain LSTM",
        coupled_lstm_step_uncoupled,
        where="architectures.probes",
    ),
    Bug(
        "coupled_lstm_step",
        "ties by the input gate",
        coupled_lstm_step_by_the_input_gate,
        where="architectures.probes",
    ),
    Bug(
        "linear_scan",
        "does not multiply the factors",
        linear_scan_with_old_factors,
        where="architectures.probes",
    ),
    Bug("linear_scan", "stops half way", linear_scan_one_round_short, where="architectures.probes"),
    Bug("rnn_step", "uses ReLU", rnn_step_relu),
    Bug("lstm_step", "reads the gates in another order", lstm_step_other_order),
    Bug("gru_step", "resets before the product", gru_step_reset_before, tests="steps_are_torchs"),
    Bug("gru_step", "swaps the update gate", gru_step_swapped_update),
]
