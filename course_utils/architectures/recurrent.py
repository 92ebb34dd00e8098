"""Layers of RNN, LSTM and GRU over padded batches, fast. Notebook 01.

`Recurrent` projects all inputs in one product, computes all gates of a step in one more, skips the
padding of shorter sequences, and has its backward pass through time written out. It equals
`cells.run_plain`. Weights have the layout and the names of `torch.nn.LSTM`: `load_state_dict` moves
them either way.

Shapes: B sequences, T steps, D inputs, H hidden units, G gates, N = sum of the lengths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from course_utils.architectures.cells import GATES, State, Weights, check_kind, check_steps
from course_utils.architectures.layers import check_ids, check_positive
from course_utils.architectures.onednn import linear, outer, product

# ── sequences of different length ─────────────────────────────────────────────────────────────────


def pack_order(lengths: Tensor, n_steps: int, reverse: bool = False) -> tuple:
    """In which order to visit the steps of padded sequences so that no padding is computed.

    Sequences are sorted from long to short, so that those alive at step t are the first ones.
    Returns `order` (B,) of the sequences, `rows` (N,) into the padded batch flattened to (B·T),
    and the number of sequences alive at each step. `reverse` walks each sequence from its own end.

    >>> pack_order(torch.tensor([1, 3]), n_steps=3)  # the longer one's rows are 3, 4 and 5
    (tensor([1, 0]), tensor([3, 0, 4, 5]), [2, 1, 1])
    """
    order = lengths.argsort(descending=True, stable=True)
    lengths = lengths[order]
    t = torch.arange(int(lengths.max())).unsqueeze(1)  # (T, 1)
    alive = t < lengths  # (T, B)
    step = lengths - 1 - t if reverse else t.expand_as(alive)
    rows = (order * n_steps + step)[alive]  # (T, B) -> (N,)
    return order, rows, alive.sum(dim=1).tolist()


def _previous(states: Tensor, first: Tensor, sizes: Sequence[int]) -> Tensor:
    """The state each packed row started from: `first` (B, H), then `states` (N, H) one step on."""
    ends = states.split(sizes)
    return torch.cat([first[: sizes[0]], *(e[:n] for e, n in zip(ends, sizes[1:], strict=False))])


def _keep_finished(last: Tensor, state: Tensor, n: int, n_next: int) -> None:
    """Store in `last` (B, H) the states (n, H) of the sequences that do not go on."""
    if n_next < n:
        last[n_next:n] = state[n_next:]


def _add_finished(grad: Tensor, d_last: Tensor, n: int) -> Tensor:
    """Going back: the gradient (m, H) grown to n rows by those of sequences that ended here."""
    return grad if len(grad) == n else torch.cat([grad, d_last[len(grad) : n]])


# ── the fast form: forward and backward through time, written out ─────────────────────────────────


class _ScanRNN(torch.autograd.Function):
    """h_t = tanh(a_t + W h_{t−1}) over packed projected inputs a (N, H)."""

    @staticmethod
    def forward(ctx, inputs: Tensor, w_hh: Tensor, h_0: Tensor, sizes: list[int]) -> tuple:
        hs, last, h = torch.empty_like(inputs), h_0.clone(), h_0
        steps = zip(inputs.split(sizes), hs.split(sizes), sizes, [*sizes[1:], 0], strict=True)
        for a_t, h_t, n, n_next in steps:
            h = torch.tanh(product(h[:n], w_hh).add_(a_t), out=h_t)
            _keep_finished(last, h, n, n_next)
        ctx.save_for_backward(w_hh, h_0, hs)
        ctx.sizes = sizes
        return hs, last

    @staticmethod
    @once_differentiable
    def backward(ctx, d_hs: Tensor, d_last: Tensor) -> tuple:
        w_hh, h_0, hs = ctx.saved_tensors
        grads, dh = 1 - hs * hs, d_last[:0]  # tanh' = 1 − tanh²
        steps = zip(grads.split(ctx.sizes), d_hs.split(ctx.sizes), ctx.sizes, strict=True)
        for d_a, d_h, n in reversed(list(steps)):
            dh = _add_finished(dh, d_last, n)
            d_a.mul_(dh + d_h)
            dh = product(d_a, w_hh.t())
        d_w = outer(grads, _previous(hs, h_0, ctx.sizes))
        return grads, d_w, _add_finished(dh, d_last, len(h_0)), None


class _ScanLSTM(torch.autograd.Function):
    """`lstm_step` over packed projected inputs (N, 4H), the two biases already in them."""

    @staticmethod
    def forward(
        ctx, inputs: Tensor, w_hh: Tensor, h_0: Tensor, c_0: Tensor, sizes: list[int]
    ) -> tuple:
        gates = torch.empty_like(inputs)
        hs, cs, tanh_cs = (inputs.new_empty(len(inputs), h_0.shape[1]) for _ in range(3))
        h, c, last_h, last_c = h_0, c_0, h_0.clone(), c_0.clone()
        two = 2 * h_0.shape[1]
        packed = (tensor.split(sizes) for tensor in (inputs, gates, hs, cs, tanh_cs))
        for a_t, gates_t, h_t, c_t, tanh_c, n, n_next in zip(
            *packed, sizes, [*sizes[1:], 0], strict=True
        ):
            torch.add(a_t, product(h[:n], w_hh), out=gates_t)
            i, f, g, o = gates_t.chunk(4, dim=1)
            gates_t[:, :two].sigmoid_()  # i and f at once
            g.tanh_()
            o.sigmoid_()
            torch.mul(f, c[:n], out=c_t).addcmul_(i, g)
            torch.mul(o, torch.tanh(c_t, out=tanh_c), out=h_t)
            h, c = h_t, c_t
            _keep_finished(last_h, h, n, n_next)
            _keep_finished(last_c, c, n, n_next)
        ctx.save_for_backward(w_hh, h_0, c_0, gates, hs, cs, tanh_cs)
        ctx.sizes = sizes
        return hs, last_h, last_c

    @staticmethod
    @once_differentiable
    def backward(ctx, d_hs: Tensor, d_last_h: Tensor, d_last_c: Tensor) -> tuple:
        w_hh, h_0, c_0, gates, hs, cs, tanh_cs = ctx.saved_tensors
        sizes, batch, three = ctx.sizes, len(h_0), 3 * h_0.shape[1]
        grads = _lstm_slopes(gates, _previous(cs, c_0, sizes), tanh_cs)
        _, forget, _, output = gates.chunk(4, dim=1)
        through = torch.addcmul(output, output * tanh_cs, tanh_cs, value=-1)  # o·(1 − tanh²c)
        dh, dc = d_last_h[:0], d_last_c[:0]
        packed = (tensor.split(sizes) for tensor in (grads, d_hs, through, forget))
        for d_a, d_h, dh_dc, f, n in reversed(list(zip(*packed, sizes, strict=True))):
            dh = _add_finished(dh, d_last_h, n) + d_h
            dc = torch.addcmul(_add_finished(dc, d_last_c, n), dh, dh_dc)
            d_a[:, :three].unflatten(1, (3, -1)).mul_(dc.unsqueeze(1))  # (n, 3, H) · (n, 1, H)
            d_a[:, three:].mul_(dh)
            dc.mul_(f)
            dh = product(d_a, w_hh.t())
        d_w = outer(grads, _previous(hs, h_0, sizes))
        dh, dc = _add_finished(dh, d_last_h, batch), _add_finished(dc, d_last_c, batch)
        return grads, d_w, dh, dc, None


def _lstm_slopes(gates: Tensor, c_before: Tensor, tanh_cs: Tensor) -> Tensor:
    """∂c/∂(i, f, g), ∂h/∂o before the activations (N, 4H): σ' = σ(1 − σ), tanh' = 1 − tanh²."""
    slopes = torch.empty_like(gates)
    i, f, g, o = gates.chunk(4, dim=1)
    d_i, d_f, d_g, d_o = slopes.chunk(4, dim=1)
    torch.mul(i, g, out=d_i).addcmul_(d_i, i, value=-1)  # g · i(1 − i)
    torch.mul(f, c_before, out=d_f).addcmul_(d_f, f, value=-1)  # c · f(1 − f)
    torch.mul(o, tanh_cs, out=d_o).addcmul_(d_o, o, value=-1)  # tanh c · o(1 − o)
    torch.addcmul(i, i * g, g, value=-1, out=d_g)  # i · (1 − g²)
    return slopes


class _ScanGRU(torch.autograd.Function):
    """`gru_step` over packed projected inputs (N, 3H)."""

    @staticmethod
    def forward(
        ctx, inputs: Tensor, w_hh: Tensor, b_hh: Tensor, h_0: Tensor, sizes: list[int]
    ) -> tuple:
        gates = torch.empty_like(inputs)
        hs, h_ns = (inputs.new_empty(len(inputs), h_0.shape[1]) for _ in range(2))
        h, last, two = h_0, h_0.clone(), 2 * h_0.shape[1]
        packed = (tensor.split(sizes) for tensor in (inputs, gates, hs, h_ns))
        for a_t, gates_t, h_t, h_n, n, n_next in zip(*packed, sizes, [*sizes[1:], 0], strict=True):
            u = product(h[:n], w_hh, b_hh)
            h_n.copy_(u[:, two:])
            torch.add(a_t[:, :two], u[:, :two], out=gates_t[:, :two]).sigmoid_()
            r, z, new = gates_t.chunk(3, dim=1)
            torch.tanh(torch.addcmul(a_t[:, two:], r, h_n), out=new)
            h = torch.lerp(new, h[:n], z, out=h_t)  # n + z·(h − n)
            _keep_finished(last, h, n, n_next)
        ctx.save_for_backward(w_hh, h_0, gates, hs, h_ns)
        ctx.sizes = sizes
        return hs, last

    @staticmethod
    @once_differentiable
    def backward(ctx, d_hs: Tensor, d_last: Tensor) -> tuple:
        w_hh, h_0, gates, hs, h_ns = ctx.saved_tensors
        sizes, before = ctx.sizes, _previous(hs, h_0, ctx.sizes)
        d_new, d_hidden = _gru_slopes(gates, before, h_ns)
        dh, update = d_last[:0], gates.chunk(3, dim=1)[1]
        packed = (tensor.split(sizes) for tensor in (d_new, d_hidden, d_hs, update))
        for d_n, d_u, d_h, z, n in reversed(list(zip(*packed, sizes, strict=True))):
            dh = _add_finished(dh, d_last, n) + d_h
            d_n.mul_(dh)
            d_u.unflatten(1, (3, -1)).mul_(dh.unsqueeze(1))  # (n, 3, H) · (n, 1, H)
            dh = product(d_u, w_hh.t()).addcmul_(dh, z)
        d_inputs = torch.cat([d_hidden[:, : -h_0.shape[1]], d_new], dim=1)
        d_w, d_b = outer(d_hidden, before), d_hidden.sum(0)
        return d_inputs, d_w, d_b, _add_finished(dh, d_last, len(h_0)), None


def _gru_slopes(gates: Tensor, before: Tensor, h_ns: Tensor) -> tuple[Tensor, Tensor]:
    """∂h'/∂(W x)_n (N, H) and ∂h'/∂(U h) (N, 3H), gates before their activations."""
    r, z, n = gates.chunk(3, dim=1)
    d_hidden = torch.empty_like(gates)
    d_r, d_z, d_hn = d_hidden.chunk(3, dim=1)
    d_new = (1 - z) * (1 - n * n)
    torch.mul(d_new, r, out=d_hn)
    torch.mul(d_hn, h_ns, out=d_r).addcmul_(d_r, r, value=-1)  # ∂n · h_n · r(1 − r)
    torch.mul(before - n, z, out=d_z).addcmul_(d_z, z, value=-1)  # (h − n) · z(1 − z)
    return d_new, d_hidden


# ── layers ────────────────────────────────────────────────────────────────────────────────────────


class Recurrent(nn.Module):
    """Layers of RNN, GRU or LSTM over padded batches: the fast form of `run_plain`.

    `kind` is "rnn", "gru" or "lstm". Parameters are named, shaped and initialised as in
    `torch.nn.LSTM`: uniform in ±1/√H, biases too, so the LSTM's forget gate starts half open
    (see `set_forget_bias`).
    """

    def __init__(
        self,
        kind: str,
        d_in: int,
        d_hidden: int,
        *,
        n_layers: int = 1,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        check_kind(kind)
        check_positive(d_in=d_in, d_hidden=d_hidden, n_layers=n_layers)
        self.kind, self.d_in, self.d_hidden = kind, d_in, d_hidden
        self.n_layers, self.directions = n_layers, 2 if bidirectional else 1
        rows = GATES[kind] * d_hidden
        for layer in range(n_layers):
            width = d_in if layer == 0 else d_hidden * self.directions
            shapes = {"weight_ih": (rows, width), "weight_hh": (rows, d_hidden)}
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
            for suffix in ("", "_reverse")[: self.directions]:
                for name, shape in shapes.items():
                    parameter = nn.Parameter(torch.empty(shape))
                    self.register_parameter(f"{name}_l{layer}{suffix}", parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every weight and bias from ±1/√H."""
        bound = 1 / math.sqrt(self.d_hidden)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def weights(self, layer: int = 0, reverse: bool = False) -> Weights:
        """w_ih, w_hh, b_ih, b_hh of one layer and direction, as the plain steps take them."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return tuple(getattr(self, f"{n}_l{layer}{'_reverse' * reverse}") for n in names)

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, state: State | None = None
    ) -> tuple[Tensor, State]:
        """x (B, T, D), lengths (B,) -> outputs (B, T, H·directions), zero past each length; state.

        A state is h, or (h, c) for the LSTM, each (n_layers·directions, B, H), taken where each
        sequence ends; a sequence of length 0 keeps its first state. Raises ValueError on sizes that
        do not fit.
        """
        device = x.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):  # the scans stay in the weights' precision
                return self.forward(x.to(self.weight_ih_l0.dtype), lengths, state)
        self._check_inputs(x)
        lengths = check_lengths(lengths, x)
        firsts = self._first_states(x, state)
        orders = [pack_order(lengths, x.shape[1], bool(d)) for d in range(self.directions)]
        lasts = []
        for layer in range(self.n_layers):
            outputs = []
            for reverse in range(self.directions):
                first = tuple(part[layer * self.directions + reverse] for part in firsts)
                weights = self.weights(layer, bool(reverse))
                out, last = _scan(self.kind, x, weights, first, orders[reverse])
                outputs.append(out)
                lasts.append(last)
            x = torch.cat(outputs, dim=-1) if self.directions == 2 else outputs[0]
        parts = tuple(torch.stack(part) for part in zip(*lasts, strict=True))
        if self.kind == "lstm":
            return x, parts
        return x, parts[0]

    def _first_states(self, x: Tensor, state: State | None) -> tuple[Tensor, ...]:
        shape = (self.n_layers * self.directions, x.shape[0], self.d_hidden)
        if state is None:
            return (x.new_zeros(shape),) * (2 if self.kind == "lstm" else 1)
        parts = state if isinstance(state, tuple) else (state,)
        wanted = "h and c" if self.kind == "lstm" else "h"
        if len(parts) != len(wanted.split(" and ")) or any(part.shape != shape for part in parts):
            shapes = ", ".join(str(tuple(part.shape)) for part in parts)
            raise ValueError(
                f"the first state has {shapes}; this {self.kind} takes {wanted} {shape}"
            )
        return parts

    def _check_inputs(self, x: Tensor) -> None:
        if x.ndim != 3 or x.shape[2] != self.d_in:
            raise ValueError(
                f"inputs have shape {tuple(x.shape)}; this layer takes (batch, steps, {self.d_in})"
            )
        if x.dtype != self.weight_ih_l0.dtype:
            raise ValueError(
                f"inputs are {x.dtype}, the weights {self.weight_ih_l0.dtype}; convert one of them "
                "(token ids go through an embedding first)"
            )
        check_steps(x.shape[1])


def _scan(
    kind: str, x: Tensor, weights: Weights, first: tuple[Tensor, ...], packed: tuple
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer, one direction: pack, project all inputs at once, scan, and put back in place."""
    order, rows, sizes = packed
    w_ih, w_hh, b_ih, b_hh = weights
    if not sizes:  # every sequence has length 0
        return x.new_zeros(*x.shape[:2], w_hh.shape[1]), first
    order, rows = order.to(x.device), rows.to(x.device)
    first = tuple(part.index_select(0, order) for part in first)
    inputs = x.flatten(0, 1).index_select(0, rows)  # (B·T, D) -> (N, D)
    if kind == "gru":
        hs, *lasts = _ScanGRU.apply(linear(inputs, w_ih, b_ih), w_hh, b_hh, *first, sizes)
    else:
        scan = _ScanLSTM if kind == "lstm" else _ScanRNN
        hs, *lasts = scan.apply(linear(inputs, w_ih, b_ih + b_hh), w_hh, *first, sizes)
    outputs = hs.new_zeros(x.shape[0] * x.shape[1], hs.shape[1]).index_copy(0, rows, hs)
    lasts = tuple(torch.zeros_like(last).index_copy(0, order, last) for last in lasts)
    return outputs.unflatten(0, x.shape[:2]), lasts  # (B·T, H) -> (B, T, H)


def check_lengths(lengths: Tensor | Sequence[int] | None, x: Tensor) -> Tensor:
    """Lengths as a CPU tensor (B,), the full number of steps where none are given."""
    batch, n_steps = x.shape[:2]
    if batch == 0:
        raise ValueError("the batch is empty; give at least one sequence")
    if lengths is None:
        return torch.full((batch,), n_steps)
    lengths = torch.as_tensor(lengths).cpu()
    if lengths.is_floating_point() or lengths.shape != (batch,):
        raise ValueError(
            f"lengths have shape {tuple(lengths.shape)} and dtype {lengths.dtype}; "
            f"give one integer for each of the {batch} sequences"
        )
    if lengths.min() < 0 or lengths.max() > n_steps:
        raise ValueError(
            f"lengths go from {lengths.min()} to {lengths.max()}; the batch has {n_steps} steps"
        )
    return lengths


@torch.no_grad()
def set_forget_bias(layer: nn.Module, value: float) -> None:
    """Set the LSTM's forget-gate bias (the sum of its two vectors) to `value`, in place.

    Works on `Recurrent` and `nn.LSTM`; neither starts at 1. Gers et al. 2000;
    Jozefowicz, Zaremba & Sutskever 2015 recommend 1.
    """
    biases = {n: p for n, p in layer.named_parameters() if n.startswith("bias_")}
    if not biases or len(layer.weight_hh_l0) != 4 * layer.weight_hh_l0.shape[1]:
        raise ValueError(f"{type(layer).__name__} has no forget gate; give an LSTM")
    for name, bias in biases.items():
        bias.chunk(4)[1].fill_(value if name.startswith("bias_ih") else 0.0)


# ── a language model ──────────────────────────────────────────────────────────────────────────────


class RecurrentLM(nn.Module):
    """Ids in, logits of the next id out: an embedding, a recurrent net and a linear layer.

    >>> RecurrentLM("gru", vocab_size=9, d_model=4)(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 9])
    """

    def __init__(self, kind: str, vocab_size: int, d_model: int, *, n_layers: int = 1) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.net = Recurrent(kind, d_model, d_model, n_layers=n_layers)
        self.out = nn.Linear(d_model, vocab_size)

    def forward(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """ids (B, T), lengths (B,) -> logits (B, T, V)."""
        check_ids(ids, self.token_embedding.num_embeddings)
        hidden, _ = self.net(self.token_embedding(ids), lengths)  # (B, T, D)
        return self.out(hidden)
