"""Plausible wrong versions of course_utils.architectures.cells."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from planting import Bug, originals

from course_utils.architectures import cells

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


def rnn_step_without_tanh(x, h, w_ih, w_hh, b_ih, b_hh):
    return F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)


def rnn_step_without_state(x, h, w_ih, w_hh, b_ih, b_hh):
    return torch.tanh(F.linear(x, w_ih, b_ih) + b_hh)


def rnn_step_transposed(x, h, w_ih, w_hh, b_ih, b_hh):
    return torch.tanh(F.linear(x, w_ih, b_ih) + h @ w_hh + b_hh)


def rnn_step_one_bias(x, h, w_ih, w_hh, b_ih, b_hh):
    return torch.tanh(F.linear(x, w_ih, b_ih) + F.linear(h, w_hh))


def lstm_step_gates_as_ifog(x, state, *weights):
    swap = [torch.cat([w.chunk(4)[i] for i in (0, 1, 3, 2)]) for w in weights]
    return right["lstm_step"](x, state, *swap)


def lstm_step_without_forgetting(x, state, w_ih, w_hh, b_ih, b_hh):
    """The LSTM of 1997: the cell keeps everything."""
    h, c = state
    i, _, g, o = (F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)).chunk(4, -1)
    c = c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def lstm_step_bare_cell(x, state, w_ih, w_hh, b_ih, b_hh):
    _, c = right["lstm_step"](x, state, w_ih, w_hh, b_ih, b_hh)
    o = (F.linear(x, w_ih, b_ih) + F.linear(state[0], w_hh, b_hh)).chunk(4, -1)[3]
    return torch.sigmoid(o) * c, c


def lstm_step_old_cell(x, state, w_ih, w_hh, b_ih, b_hh):
    """h' looks at the cell before the step."""
    _, c = right["lstm_step"](x, state, w_ih, w_hh, b_ih, b_hh)
    o = (F.linear(x, w_ih, b_ih) + F.linear(state[0], w_hh, b_hh)).chunk(4, -1)[3]
    return torch.sigmoid(o) * torch.tanh(state[1]), c


def parameter_count_one_bias(kind, d_in, d_hidden):
    return cells.GATES[kind] * (d_hidden * d_in + d_hidden**2 + d_hidden)


def parameter_count_without_bias(kind, d_in, d_hidden):
    return cells.GATES[kind] * (d_hidden * d_in + d_hidden**2)


def parameter_count_square(kind, d_in, d_hidden):
    return cells.GATES[kind] * (2 * d_hidden**2 + 2 * d_hidden)


def parameter_count_ungated(kind, d_in, d_hidden):
    return d_hidden * d_in + d_hidden**2 + 2 * d_hidden


BUGS = [
    Bug("rnn_step", "uses ReLU", rnn_step_relu),
    Bug("lstm_step", "reads the gates in another order", lstm_step_other_order),
    Bug("gru_step", "resets before the product", gru_step_reset_before, tests="steps_are_torchs"),
    Bug("gru_step", "swaps the update gate", gru_step_swapped_update),
    Bug("rnn_step", "leaves the tanh out", rnn_step_without_tanh, exercise="01.rnn_step"),
    Bug("rnn_step", "ignores the state", rnn_step_without_state, exercise="01.rnn_step"),
    Bug(
        "rnn_step",
        "multiplies from the left",
        rnn_step_transposed,
        tests="torchs_cells",
        exercise="01.rnn_step",
    ),
    Bug("rnn_step", "adds one bias", rnn_step_one_bias, exercise="01.rnn_step"),
    Bug(
        "lstm_step",
        "reads the gates as i, f, o, g",
        lstm_step_gates_as_ifog,
        exercise="01.lstm_step",
    ),
    Bug("lstm_step", "never forgets", lstm_step_without_forgetting, exercise="01.lstm_step"),
    Bug("lstm_step", "shows the bare cell", lstm_step_bare_cell, exercise="01.lstm_step"),
    Bug("lstm_step", "shows the old cell", lstm_step_old_cell, exercise="01.lstm_step"),
    Bug(
        "parameter_count",
        "counts one bias",
        parameter_count_one_bias,
        tests="one_three_four",
        exercise="01.parameter_count",
    ),
    Bug(
        "parameter_count",
        "counts no bias",
        parameter_count_without_bias,
        tests="one_three_four",
        exercise="01.parameter_count",
    ),
    Bug(
        "parameter_count",
        "takes inputs for as wide as the state",
        parameter_count_square,
        tests="one_three_four",
        exercise="01.parameter_count",
    ),
    Bug(
        "parameter_count",
        "counts one gate",
        parameter_count_ungated,
        tests="one_three_four",
        exercise="01.parameter_count",
    ),
]
