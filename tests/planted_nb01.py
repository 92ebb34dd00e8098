"""Wrong versions for the exercises and helpers of notebook 01."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from planting import Bug

from course_utils import recurrent

right_lstm, right_chain = recurrent.lstm_step, recurrent.chain_length


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
    return right_lstm(x, state, *swap)


def lstm_step_without_forgetting(x, state, w_ih, w_hh, b_ih, b_hh):
    """The LSTM of 1997: the cell keeps everything."""
    h, c = state
    i, _, g, o = (F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)).chunk(4, -1)
    c = c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def lstm_step_bare_cell(x, state, w_ih, w_hh, b_ih, b_hh):
    _, c = right_lstm(x, state, w_ih, w_hh, b_ih, b_hh)
    o = (F.linear(x, w_ih, b_ih) + F.linear(state[0], w_hh, b_hh)).chunk(4, -1)[3]
    return torch.sigmoid(o) * c, c


def lstm_step_old_cell(x, state, w_ih, w_hh, b_ih, b_hh):
    """h' looks at the cell before the step."""
    _, c = right_lstm(x, state, w_ih, w_hh, b_ih, b_hh)
    o = (F.linear(x, w_ih, b_ih) + F.linear(state[0], w_hh, b_hh)).chunk(4, -1)[3]
    return torch.sigmoid(o) * torch.tanh(state[1]), c


def parameter_count_one_bias(kind, d_in, d_hidden):
    return recurrent.GATES[kind] * (d_hidden * d_in + d_hidden**2 + d_hidden)


def parameter_count_without_bias(kind, d_in, d_hidden):
    return recurrent.GATES[kind] * (d_hidden * d_in + d_hidden**2)


def parameter_count_square(kind, d_in, d_hidden):
    return recurrent.GATES[kind] * (2 * d_hidden**2 + 2 * d_hidden)


def parameter_count_ungated(kind, d_in, d_hidden):
    return d_hidden * d_in + d_hidden**2 + 2 * d_hidden


def chain_counts_leaves(output):
    return right_chain(output) + 1


def chain_is_the_shortest(output):
    front, length = {output.grad_fn} - {None}, 0
    while front and not any(hasattr(node, "variable") for node in front):
        front, length = {n for node in front for n, _ in node.next_functions} - {None}, length + 1
    return length


class RecurrentLMSeesTheFuture(recurrent.RecurrentLM):
    def forward(self, ids, lengths=None):
        return super().forward(ids.flip(1), lengths).flip(1)


class RecurrentLMReadsPadding(recurrent.RecurrentLM):
    def forward(self, ids, lengths=None):
        return super().forward(ids) + super().forward(ids)[:, -1:] * (lengths is not None)


RECURRENT = [
    Bug("rnn_step", "leaves the tanh out", rnn_step_without_tanh, exercise="01.rnn_step"),
    Bug("rnn_step", "ignores the state", rnn_step_without_state, exercise="01.rnn_step"),
    Bug("rnn_step", "multiplies from the left", rnn_step_transposed,
        tests="torchs_cells", exercise="01.rnn_step"),
    Bug("rnn_step", "adds one bias", rnn_step_one_bias, exercise="01.rnn_step"),
    Bug("lstm_step", "reads the gates as i, f, o, g", lstm_step_gates_as_ifog,
        exercise="01.lstm_step"),
    Bug("lstm_step", "never forgets", lstm_step_without_forgetting, exercise="01.lstm_step"),
    Bug("lstm_step", "shows the bare cell", lstm_step_bare_cell, exercise="01.lstm_step"),
    Bug("lstm_step", "shows the old cell", lstm_step_old_cell, exercise="01.lstm_step"),
    Bug("parameter_count", "counts one bias", parameter_count_one_bias,
        tests="one_three_four", exercise="01.parameter_count"),
    Bug("parameter_count", "counts no bias", parameter_count_without_bias,
        tests="one_three_four", exercise="01.parameter_count"),
    Bug("parameter_count", "takes inputs for as wide as the state", parameter_count_square,
        tests="one_three_four", exercise="01.parameter_count"),
    Bug("parameter_count", "counts one gate", parameter_count_ungated,
        tests="one_three_four", exercise="01.parameter_count"),
    Bug("chain_length", "counts the leaves", chain_counts_leaves, tests="chain"),
    Bug("chain_length", "takes the shortest way", chain_is_the_shortest, tests="chain"),
    Bug("RecurrentLM", "sees the future", RecurrentLMSeesTheFuture, tests="language_model"),
    Bug("RecurrentLM", "reads padding", RecurrentLMReadsPadding, tests="language_model"),
]  # fmt: skip
