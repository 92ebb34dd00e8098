"""The memory probe: many small nets, trained side by side. Notebooks 01 and 02.

One of some symbols comes first, then distractors; which symbol was it? A sentence about networks
needs many of them, so all nets of a kind learn at once, each with weights and batches of its own.
Shapes: N nets, B sequences, T steps, H hidden units, V symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from course_utils.architectures.attention import attention_weights
from course_utils.architectures.cells import GATES, STEPS, coupled_lstm_step, hidden_of
from course_utils.architectures.gradient_flow import gradient_flow, recall_batch
from course_utils.architectures.positions import sinusoidal_positions
from course_utils.architectures.recurrent import Recurrent, set_forget_bias

KINDS = {**STEPS, "coupled": coupled_lstm_step}


class ProbeNet(nn.Module):
    """An embedding, a recurrent cell walked in plain steps, and a linear layer, as small as can be.

    `kind` is "rnn", "gru", "lstm" or "coupled" (an LSTM with i = 1 − f); it starts as torch's layer
    does, and `forget_bias` sets the LSTM's to another value.
    """

    def __init__(
        self, kind: str, n_symbols: int, d_hidden: int = 32, forget_bias: float | None = None
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}")
        self.kind = kind
        layer = Recurrent("lstm" if kind == "coupled" else kind, d_hidden, d_hidden)
        if forget_bias is not None:
            set_forget_bias(layer, forget_bias)
        self.embedding = nn.Embedding(2 * n_symbols, d_hidden)
        self.weights = nn.ParameterList(layer.weights())
        self.out = nn.Linear(d_hidden, n_symbols)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> logits of the first symbol (B, n_symbols), read off the last state."""
        return self.read(self.embedding(ids))

    def read(self, x: Tensor) -> Tensor:
        """Tokens as vectors x (B, T, D) -> logits (B, n_symbols)."""
        h = x.new_zeros(len(x), self.weights[1].shape[1])
        state = h if GATES.get(self.kind, 4) < 4 else (h, h)
        for x_t in x.unbind(dim=1):
            state = KINDS[self.kind](x_t, state, *self.weights)
        return self.out(hidden_of(state))


class LookingNet(nn.Module):
    """An embedding, one head of attention and a linear layer: the last token looks at all, once.

    With `places`, sinusoidal positions are added to the tokens; without them it cannot tell where
    a token stands.
    """

    def __init__(self, n_symbols: int, d_model: int = 32, places: bool = True) -> None:
        super().__init__()
        self.places = places
        self.embedding = nn.Embedding(2 * n_symbols, d_model)
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model)
        self.value = nn.Linear(d_model, d_model)
        self.out = nn.Linear(d_model, n_symbols)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> logits of the first symbol (B, n_symbols)."""
        return self.read(self.embedding(ids))

    def read(self, x: Tensor) -> Tensor:
        """Tokens as vectors x (B, T, D) -> logits (B, n_symbols)."""
        if self.places:
            x = x + sinusoidal_positions(*x.shape[-2:]).to(x)
        weights = attention_weights(self.query(x[:, -1:]), self.key(x))  # (B, 1, T)
        return self.out((weights @ self.value(x))[:, 0])


class Trained(NamedTuple):
    """What came of probes: the share each net recalls, and what was watched, by step, of each."""

    recalled: list[float]
    watched: dict[int, list[float]]


def train_probes(
    nets: Sequence[ProbeNet | LookingNet],
    delay: int,
    *,
    steps: int,
    seed: int,
    batch: int = 64,
    lr: float = 5e-3,
    max_norm: float = 1.0,
    watch: Callable[[ProbeNet], float] | None = None,
    every: int = 50,
    make: Callable[..., tuple[Tensor, Tensor]] = recall_batch,
) -> Trained:
    """Teach every net the probe over `delay` distractors, and ask each for 512 fresh symbols.

    Adam; each net has batches of its own and its own gradient clipped. `watch` is asked of each net
    before the first step, after every `every` steps and at the end. `make` draws the sequences, as
    `recall_batch` does. Raises ValueError without nets.
    """
    if not nets:
        raise ValueError("there is no net to train; give at least one")
    symbols = nets[0].out.out_features
    generators = [torch.Generator().manual_seed(1000 * seed + i) for i in range(len(nets))]
    weights, _ = stack_module_state(list(nets))  # {name: (N, …)}
    optimizer = torch.optim.Adam(weights.values(), lr=lr)
    run = vmap(lambda own, ids: functional_call(nets[0], own, (ids,)))
    watched: dict[int, list[float]] = {}

    def look(step: int) -> None:
        if watch and (step % every == 0 or step == steps):
            _put_back(weights, nets)
            watched[step] = [watch(net) for net in nets]

    for step in range(steps):
        look(step)
        ids, targets = _draw(batch, delay, symbols, generators, make)
        loss = F.cross_entropy(run(weights, ids).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        (loss * len(nets)).backward()  # the mean over nets, times nets: each has its own loss
        _clip_each(weights.values(), max_norm)
        optimizer.step()
    _put_back(weights, nets)
    look(steps)
    ids, targets = _draw(512, delay, symbols, generators, make)
    with torch.no_grad():
        right = run(weights, ids).argmax(dim=-1) == targets  # (N, 512)
    return Trained(right.float().mean(dim=1).tolist(), watched)


def any_symbols_batch(
    batch: int, delay: int, n_symbols: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """The probe of place: the first of `delay` + 1 symbols, which all look alike.

    Returns ids (batch, delay + 1) from 0 … n − 1, and the first ids (batch,).

    >>> any_symbols_batch(1, 3, 4, torch.Generator().manual_seed(0))
    (tensor([[0, 3, 1, 0]]), tensor([0]))
    """
    ids = torch.randint(n_symbols, (batch, delay + 1), generator=generator)
    return ids, ids[:, 0].clone()


def _draw(
    batch: int,
    delay: int,
    symbols: int,
    generators: Sequence[torch.Generator],
    make: Callable[..., tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """Ids (N, B, T) and first symbols (N, B), each net's from its own generator."""
    batches = [make(batch, delay, symbols, generator) for generator in generators]
    return torch.stack([ids for ids, _ in batches]), torch.stack([t for _, t in batches])


def _put_back(weights: Mapping[str, Tensor], nets: Sequence[ProbeNet]) -> None:
    with torch.no_grad():
        for i, net in enumerate(nets):
            for name, parameter in net.named_parameters():
                parameter.copy_(weights[name][i])


def flow(net: ProbeNet, delay: int, seed: int = 0) -> float:
    """Factor by which a change of the state after the first symbol arrives at the last step.

    Of the LSTM's cell, or of the hidden state (`gradient_flow`), on one drawn sequence.
    """
    ids, _ = recall_batch(1, delay, net.out.out_features, torch.Generator().manual_seed(seed))
    x, weights = net.embedding(ids)[0].detach(), tuple(w.detach() for w in net.weights)
    if net.kind == "coupled":  # 1 − σ(z) is σ(−z): an LSTM whose i is computed from −z of f
        weights = tuple(torch.cat([-w.chunk(4)[1], *w.chunk(4)[1:]]) for w in weights)
    has_cell = net.kind in ("lstm", "coupled")
    kind, part = ("lstm", "c") if has_cell else (net.kind, "h")
    return gradient_flow(kind, x, weights, part=part)[1].item()


def _clip_each(stacked: Collection[Tensor], max_norm: float) -> None:
    """Clip the gradient of each net (the first dimension) by its own norm."""
    grads = [weight.grad.flatten(1) for weight in stacked]
    norms = torch.cat(grads, dim=1).norm(dim=1)  # (N,)
    factors = (max_norm / norms.clamp(min=1e-12)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(factors.unsqueeze(1))
