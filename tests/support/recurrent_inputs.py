"""What the tests of recurrent share."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from course_utils.architectures.seq2seq import RecurrentSeq2Seq

KINDS = ("rnn", "gru", "lstm")


TORCH = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


D_IN, D_HIDDEN = 5, 7


# fp32, two libraries, sums in another order: differences of a few units in the last place of
# values near 1, which the steps through time neither shrink nor grow at these weights.
TOLERANCE = {"atol": 2e-6, "rtol": 2e-5}


def joined(state):
    """h and c as one tensor, so that both kinds of state are compared alike."""
    return torch.cat(state) if isinstance(state, tuple) else state


def first_state(kind, *shape):
    h, c = torch.randn(*shape), torch.randn(*shape)
    return (h, c) if kind == "lstm" else h


def run_torch(layer, x, lengths, state):
    if lengths is None:
        return layer(x, state)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    outputs, state = layer(packed, state)
    return pad_packed_sequence(outputs, batch_first=True, total_length=x.shape[1])[0], state


SOURCE = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [7, 0, 0, 0]])


TARGET = torch.tensor([[1, 2, 3], [1, 4, 5], [1, 6, 7]])


def seq2seq(**options):
    options = {"d_model": 6, "d_hidden": 8} | options
    return RecurrentSeq2Seq(9, 11, **options).eval()
