"""The memory probe: many small recurrent nets, trained side by side. Notebooks 01 and 02.

One of some symbols comes first, then distractors; which symbol was it? A sentence about networks
needs many of them, so all nets of a kind learn at once, each with weights and batches of its own.
Shapes: N nets, B sequences, T steps, H hidden units, V symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from course_utils.architectures.cells import GATES, STEPS, coupled_lstm_step, hidden_of
from course_utils.architectures.gradient_flow import recall_batch
from course_utils.architectures.recurrent import Recurrent

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
        from course_utils.architectures.recurrent import set_forget_bias

        self.kind = kind
        layer = Recurrent("lstm" if kind == "coupled" else kind, d_hidden, d_hidden)
        if forget_bias is not None:
            set_forget_bias(layer, forget_bias)
        self.embedding = nn.Embedding(2 * n_symbols, d_hidden)
        self.weights = nn.ParameterList(layer.weights())
        self.out = nn.Linear(d_hidden, n_symbols)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> logits of the first symbol (B, n_symbols), read off the last state."""
        x = self.embedding(ids)
        h = x.new_zeros(len(ids), self.weights[1].shape[1])
        state = h if GATES.get(self.kind, 4) < 4 else (h, h)
        for x_t in x.unbind(dim=1):
            state = KINDS[self.kind](x_t, state, *self.weights)
        return self.out(hidden_of(state))


def train_probes(
    nets: Sequence[ProbeNet],
    delay: int,
    *,
    steps: int,
    seed: int,
    batch: int = 64,
    lr: float = 5e-3,
    max_norm: float = 1.0,
    watch: Callable[[int], None] | None = None,
) -> list[float]:
    """Teach every net the probe over `delay` distractors -> the share each recalls afterwards.

    Adam; each net has batches of its own and its own gradient clipped. `watch(step)` is called
    before every step and at the end, when the nets hold their weights of that moment.
    """
    symbols = nets[0].out.out_features
    generators = [torch.Generator().manual_seed(1000 * seed + i) for i in range(len(nets))]
    weights, _ = stack_module_state(list(nets))  # {name: (N, …)}
    optimizer = torch.optim.Adam(weights.values(), lr=lr)
    run = vmap(lambda own, ids: functional_call(nets[0], own, (ids,)))

    def draw(size: int) -> tuple[Tensor, Tensor]:
        batches = [recall_batch(size, delay, symbols, generator) for generator in generators]
        return torch.stack([ids for ids, _ in batches]), torch.stack([t for _, t in batches])

    def put_back() -> None:
        for i, net in enumerate(nets):
            for name, parameter in net.named_parameters():
                parameter.data.copy_(weights[name][i])

    for step in range(steps):
        if watch:
            put_back()
            watch(step)
        ids, targets = draw(batch)
        losses = F.cross_entropy(run(weights, ids).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        (losses * len(nets)).backward()  # the mean over nets, times nets: each has its own loss
        _clip_each(weights.values(), max_norm)
        optimizer.step()
    put_back()
    if watch:
        watch(steps)
    ids, targets = draw(512)
    with torch.no_grad():
        right = run(weights, ids).argmax(dim=-1) == targets  # (N, 512)
    return right.float().mean(dim=1).tolist()


def _clip_each(stacked: Sequence[Tensor], max_norm: float) -> None:
    """Clip the gradient of each net (the first dimension) by its own norm."""
    grads = [weight.grad.flatten(1) for weight in stacked]
    norms = torch.cat(grads, dim=1).norm(dim=1)  # (N,)
    factors = (max_norm / norms.clamp(min=1e-12)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(factors.unsqueeze(1))
