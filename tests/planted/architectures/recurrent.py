"""Plausible wrong versions of course_utils.architectures.recurrent."""

from __future__ import annotations

from unittest import mock

import torch
from planting import Bug, originals

from course_utils.architectures import recurrent

right = originals("architectures.recurrent")


def pack_order_reads_padding(lengths, n_steps, reverse=False):
    """Going back, it starts at the end of the padding."""
    order, rows, sizes = right["pack_order"](lengths, n_steps)
    if reverse:
        rows = rows // n_steps * n_steps + n_steps - 1 - rows % n_steps
    return order, rows, sizes


def pack_order_unsorted(lengths, n_steps, reverse=False):
    _, rows, sizes = right["pack_order"](lengths, n_steps, reverse)
    return torch.arange(len(lengths)), rows, sizes


def previous_is_own(states, first, sizes):
    return states


def keep_finished_nothing(last, state, n, n_next):
    if n_next == 0:
        last[:n] = state


def add_finished_zeros(grad, d_last, n):
    """The gradients of the last states are forgotten."""
    return torch.cat([grad, torch.zeros_like(d_last[len(grad) : n])])


def lstm_slopes_squareless(gates, c_before, tanh_cs):
    slopes = right["_lstm_slopes"](gates, c_before, tanh_cs)
    i, _, g, _ = gates.chunk(4, dim=1)
    slopes.chunk(4, dim=1)[2].copy_(i * (1 - g))
    return slopes


def lstm_slopes_wrong_cell(gates, c_before, tanh_cs):
    """The forget gate meets the cell after the step, not before."""
    return right["_lstm_slopes"](gates, tanh_cs, tanh_cs)


def gru_slopes_without_reset(gates, before, h_ns):
    d_new, d_hidden = right["_gru_slopes"](gates, before, h_ns)
    d_hidden.chunk(3, dim=1)[2].copy_(d_new)
    return d_new, d_hidden


def set_forget_bias_of_the_input_gate(layer, value):
    right["set_forget_bias"](layer, value)
    with torch.no_grad():
        for name, bias in layer.named_parameters():
            if name.startswith("bias_"):
                i, f, *_ = bias.chunk(4)
                i.copy_(f)


def set_forget_bias_twice(layer, value):
    """Both bias vectors get the value, so that their sum is double."""
    right["set_forget_bias"](layer, value)
    with torch.no_grad():
        for name, bias in layer.named_parameters():
            if name.startswith("bias_"):
                bias.chunk(4)[1].fill_(value)


class RecurrentLMSeesTheFuture(recurrent.RecurrentLM):
    def forward(self, ids, lengths=None):
        return super().forward(ids.flip(1), lengths).flip(1)


class RecurrentLMReadsPadding(recurrent.RecurrentLM):
    def forward(self, ids, lengths=None):
        return super().forward(ids) + super().forward(ids)[:, -1:] * (lengths is not None)


class ScanRNNThroughSigmoid(right["_ScanRNN"]):
    """tanh x = 2σ(2x) − 1: quicker on some processors, and near 0 no digit is left."""

    @staticmethod
    def forward(ctx, *arguments):
        def tanh(x, out):
            return torch.add(x, x, out=out).sigmoid_().mul_(2.0).sub_(1.0)

        with mock.patch.object(torch, "tanh", tanh):
            return right["_ScanRNN"].forward(ctx, *arguments)


BUGS = [
    Bug("_ScanRNN", "loses small numbers", ScanRNNThroughSigmoid, tests="digits"),
    Bug("pack_order", "starts in the padding", pack_order_reads_padding, tests="packing or layer"),
    Bug("pack_order", "does not sort", pack_order_unsorted, tests="packing or packed"),
    Bug("_previous", "takes the state after", previous_is_own, tests="layer_is_torchs"),
    Bug("_keep_finished", "keeps the longest alone", keep_finished_nothing, tests="packed"),
    Bug("_add_finished", "forgets last states", add_finished_zeros, tests="backward_through"),
    Bug("_lstm_slopes", "forgets a square", lstm_slopes_squareless, tests="backward_through"),
    Bug("_lstm_slopes", "takes the wrong cell", lstm_slopes_wrong_cell, tests="backward_through"),
    Bug("_gru_slopes", "forgets the reset", gru_slopes_without_reset, tests="backward_through"),
    Bug(
        "set_forget_bias",
        "sets the input gate",
        set_forget_bias_of_the_input_gate,
        tests="forget_bias",
    ),
    Bug("set_forget_bias", "counts the bias twice", set_forget_bias_twice, tests="forget_bias"),
    Bug("RecurrentLM", "sees the future", RecurrentLMSeesTheFuture, tests="language_model"),
    Bug("RecurrentLM", "reads padding", RecurrentLMReadsPadding, tests="language_model"),
]
