"""Recurrent cells from their equations: one step of an RNN, an LSTM and a GRU. Notebook 01.

Plain form: one equation a line, one sequence; `recurrent.Recurrent` is the fast form, tested equal.
Weights have the layout of `torch.nn.LSTM`. Shapes: T steps, D inputs, H hidden units, G gates.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
Weights = tuple[Tensor, Tensor, Tensor, Tensor]  # w_ih (G·H, D), w_hh (G·H, H), b_ih, b_hh (G·H,)
State = Tensor | tuple[Tensor, Tensor]  # h, or (h, c) for the LSTM


# ── cells: one step, as in the papers ─────────────────────────────────────────────────────────────


def rnn_step(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> Tensor:
    """h' = tanh(W_ih x + b_ih + W_hh h + b_hh): x (…, D), h (…, H). Elman 1990.

    >>> one, zero = torch.ones(1), torch.zeros(1)
    >>> rnn_step(one, zero, torch.eye(1), 0.9 * torch.eye(1), zero, zero)  # tanh(1·1 + 0.9·0)
    tensor([0.7616])
    """
    return torch.tanh(F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh))


def lstm_step(
    x: Tensor,
    state: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor,
    b_hh: Tensor,
) -> tuple[Tensor, Tensor]:
    """c' = f·c + i·g and h' = o·tanh(c'): x (…, D), state h and c (…, H).

    Gates in torch's order i, f, g, o. Hochreiter & Schmidhuber 1997, with the forget gate of
    Gers, Schmidhuber & Cummins 2000.

    >>> nothing, bias, cell = torch.zeros(4, 1), torch.zeros(4), torch.ones(1)
    >>> h, c = lstm_step(torch.zeros(1), (torch.zeros(1), cell), nothing, nothing, bias, bias)
    >>> c, h  # half the cell is kept, σ(0)·1; half of it is shown, σ(0)·tanh(0.5)
    (tensor([0.5000]), tensor([0.2311]))
    """
    h, c = state
    i, f, g, o = (F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)).chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return h, c


def gru_step(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> Tensor:
    """h' = (1 − z)·n + z·h with n = tanh(W x + r·(U h)): x (…, D), h (…, H).

    Gates in torch's order r, z, n. Cho et al. 2014, equations 5–8, with the reset gate r applied
    after the product as in torch and cuDNN (the paper applies it to h before).

    >>> nothing, bias = torch.zeros(3, 1), torch.zeros(3)
    >>> gru_step(torch.zeros(1), torch.ones(1), nothing, nothing, bias, bias)  # n/2 + h/2
    tensor([0.5000])
    """
    x_r, x_z, x_n = F.linear(x, w_ih, b_ih).chunk(3, dim=-1)
    h_r, h_z, h_n = F.linear(h, w_hh, b_hh).chunk(3, dim=-1)
    r = torch.sigmoid(x_r + h_r)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return (1 - z) * n + z * h


STEPS = {"rnn": rnn_step, "gru": gru_step, "lstm": lstm_step}


def hidden_of(state: State) -> Tensor:
    """The part of a state that the next layer sees: h."""
    return state[0] if isinstance(state, tuple) else state


def run_plain(kind: str, x: Tensor, weights: Weights, state: State | None = None) -> tuple:
    """Walk one sequence x (T, D) a step at a time -> outputs (T, H) and the last state.

    >>> weights = torch.eye(1), 0.9 * torch.eye(1), torch.zeros(1), torch.zeros(1)
    >>> outputs, last = run_plain("rnn", torch.tensor([[1.0], [0.0], [0.0]]), weights)
    >>> outputs[:, 0]  # the 1 fades
    tensor([0.7616, 0.5950, 0.4896])
    """
    check_kind(kind)
    check_steps(x.shape[0])
    if state is None:
        zero = x.new_zeros(weights[1].shape[1])  # (H,)
        state = (zero, zero) if kind == "lstm" else zero
    outputs = []
    for x_t in x:
        state = STEPS[kind](x_t, state, *weights)
        outputs.append(hidden_of(state))
    return torch.stack(outputs), state


def parameter_count(kind: str, d_in: int, d_hidden: int) -> int:
    """G·(H·D + H² + 2H): an RNN, a GRU and an LSTM of one size are exactly 1 : 3 : 4.

    >>> [parameter_count(kind, 2, 3) for kind in ("rnn", "gru", "lstm")]  # 2·3 + 3² + 2·3 = 21
    [21, 63, 84]
    """
    check_kind(kind)
    return GATES[kind] * (d_hidden * d_in + d_hidden**2 + 2 * d_hidden)


def check_kind(kind: str) -> None:
    if kind not in GATES:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(GATES)}")


def check_steps(n_steps: int) -> None:
    if n_steps == 0:
        raise ValueError("the sequence has 0 steps; give at least one")


def coupled_lstm_step(
    x: Tensor,
    state: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor,
    b_hh: Tensor,
) -> tuple[Tensor, Tensor]:
    """`lstm_step` with i = 1 − f: the cell takes in only as much as it gives up.

    Weights as in `lstm_step`; those of the input gate are not used. Greff et al. 2017 (CIFG).
    """
    h, c = state
    _, f, g, o = (F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)).chunk(4, dim=-1)
    f = torch.sigmoid(f)
    c = f * c + (1 - f) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


# ── a recurrence without a nonlinearity on the state ──────────────────────────────────────────────


def linear_recurrence(a: Tensor, b: Tensor) -> Tensor:
    """h_t = a_t·h_{t−1} + b_t from h_0 = 0, a step at a time: a and b (T, …) -> (T, …).

    >>> linear_recurrence(torch.tensor([0.5, 0.5, 0.5]), torch.tensor([1.0, 0.0, 0.0])).tolist()
    [1.0, 0.5, 0.25]
    """
    h, states = torch.zeros_like(b[0]), []
    for a_t, b_t in zip(a, b, strict=True):
        h = a_t * h + b_t
        states.append(h)
    return torch.stack(states)


def combine_linear_steps(a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
    """The one step h → a·h + b that does what h → a₁·h + b₁ and then h → a₂·h + b₂ do.

    >>> combine_linear_steps(2, 1, 3, 5)  # 3·(2·h + 1) + 5
    (6, 8)
    """
    return a2 * a1, a2 * b1 + b2


def linear_scan(a: Tensor, b: Tensor) -> Tensor:
    """`linear_recurrence` in log₂ T rounds, each of which does all steps at once.

    After round k every state knows the last 2^k inputs: two steps in a row are one step of the same
    form (`combine_linear_steps`). Blelloch 1990; in this doubling form, Hillis &
    Steele 1986. Martin & Cundy 2018 train recurrent nets with it.
    """
    distance = 1
    while distance < len(b):
        before_a = torch.cat([torch.ones_like(a[:distance]), a[:-distance]])
        before_b = torch.cat([torch.zeros_like(b[:distance]), b[:-distance]])
        a, b = combine_linear_steps(before_a, before_b, a, b)
        distance *= 2
    return b
