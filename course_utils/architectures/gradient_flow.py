"""How far a gradient travels: Jacobians, chains of operations, clipping. Notebooks 01 and 02.

Shapes: T steps, D inputs, H hidden units, S numbers of the state (H, or 2H for the LSTM).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from course_utils.architectures.cells import STEPS, State, Weights, check_kind, check_steps
from course_utils.architectures.layers import check_positive

# ── gradients through time ────────────────────────────────────────────────────────────────────────


def state_jacobians(kind: str, x: Tensor, weights: Weights, state: State | None = None) -> Tensor:
    """∂s_t/∂s_{t−1} at every step of one sequence x (T, D) -> (T, S, S).

    The state s is h, or h and c one after the other for the LSTM: S is H or 2H.

    >>> weights = torch.eye(1), 0.5 * torch.eye(1), torch.zeros(1), torch.zeros(1)
    >>> state_jacobians("rnn", torch.zeros(2, 1), weights)[:, 0, 0]  # tanh'(0)·0.5
    tensor([0.5000, 0.5000])
    """
    n_hidden = weights[1].shape[1]
    size = 2 * n_hidden if kind == "lstm" else n_hidden
    if state is None:
        state = x.new_zeros(size)
    elif isinstance(state, tuple):
        state = torch.cat(state)

    def step(x_t: Tensor, s: Tensor) -> Tensor:  # the state as one vector in and out
        parts = STEPS[kind](x_t, s.split(n_hidden) if kind == "lstm" else s, *weights)
        return torch.cat(parts) if kind == "lstm" else parts

    with torch.no_grad():
        before = []
        for x_t in x:
            before.append(state)
            state = step(x_t, state)
        return torch.vmap(torch.func.jacrev(step, argnums=1))(x, torch.stack(before))


def gradient_flow(
    kind: str, x: Tensor, weights: Weights, state: State | None = None, part: str = "h"
) -> Tensor:
    """‖∂s_T/∂s_t‖₂ for t = 0 … T over one sequence x (T, D) -> (T + 1,), the last one being 1.

    The largest factor by which a small change of the state at step t arrives at the last step:
    a product of T − t Jacobians. `part` is "h", or "c" for the LSTM's cell (every path counts, also
    those that leave the part and come back). Pascanu, Mikolov & Bengio 2013, equation 5.

    >>> weights = torch.eye(1), 0.5 * torch.eye(1), torch.zeros(1), torch.zeros(1)
    >>> gradient_flow("rnn", torch.zeros(3, 1), weights)  # 0.5³, 0.5², 0.5, 1
    tensor([0.1250, 0.2500, 0.5000, 1.0000])
    """
    check_kind(kind)
    check_steps(x.shape[0])
    parts = ("h", "c") if kind == "lstm" else ("h",)
    if part not in parts:
        raise ValueError(f"part is {part!r}; a {kind} has {' and '.join(parts)}")
    n_hidden = weights[1].shape[1]
    rows = slice(n_hidden, None) if part == "c" else slice(n_hidden)
    jacobians = state_jacobians(kind, x, weights, state)
    path = torch.eye(jacobians.shape[1], dtype=x.dtype, device=x.device)
    norms = [torch.linalg.matrix_norm(path[rows, rows], ord=2)]
    for jacobian in jacobians.flip(0):
        path = path @ jacobian
        norms.append(torch.linalg.matrix_norm(path[rows, rows], ord=2))
    return torch.stack(norms[::-1])


def spectral_radius(weight: Tensor) -> float:
    """Largest |eigenvalue| of a square matrix.

    >>> round(spectral_radius(torch.tensor([[0.0, 2.0], [2.0, 0.0]])), 6)  # ±2
    2.0
    """
    return torch.linalg.eigvals(weight.detach().double()).abs().max().item()


@torch.no_grad()
def set_spectral_radius(weight: Tensor, radius: float) -> None:
    """Scale a recurrent weight (H, H) in place so that its largest |eigenvalue| is `radius`."""
    if weight.ndim != 2 or weight.shape[0] != weight.shape[1]:
        raise ValueError(f"the weight is {tuple(weight.shape)}; a spectral radius needs it square")
    weight.mul_(radius / spectral_radius(weight))


def chain_length(output: Tensor) -> int:
    """Operations of torch's graph that wait for one another on the longest way to a result.

    However many processors there are, so many steps must follow each other. Leaves do not count.

    >>> x = torch.ones(3, requires_grad=True)
    >>> chain_length(x.exp().sum()), chain_length((x.exp() + x.cos()).sum())
    (2, 3)
    """
    chain: dict = {}
    waiting = [output.grad_fn] if output.grad_fn else []
    while waiting:
        node = waiting[-1]
        inputs = [before for before, _ in node.next_functions if before is not None]
        if missing := [before for before in inputs if before not in chain]:
            waiting += missing
            continue
        waiting.pop()
        is_leaf = hasattr(node, "variable")
        chain[node] = 0 if is_leaf else 1 + max((chain[before] for before in inputs), default=0)
    return chain[output.grad_fn] if output.grad_fn else 0


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Shrink all gradients by one factor so that their joint 2-norm is at most `max_norm`.

    Returns the norm before. Pascanu, Mikolov & Bengio 2013, algorithm 1.

    >>> weight = torch.zeros(2, requires_grad=True)
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> clip_gradients([weight], max_norm=1.0), weight.grad
    (5.0, tensor([0.6000, 0.8000]))
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm is {max_norm}; it must be above 0")
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = math.sqrt(sum(grad.double().square().sum().item() for grad in grads))
    if norm > max_norm:
        for grad in grads:
            grad.mul_(max_norm / norm)
    return norm


def recall_batch(
    batch: int, delay: int, n_symbols: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """The memory probe: a symbol, then `delay` distractors; which symbol was first?

    Returns ids (batch, delay + 1) and targets (batch,), the first id. Symbols are 0 … n − 1 and
    distractors n … 2n − 1 for n = n_symbols, so that guessing scores 1/n.

    >>> ids, targets = recall_batch(1, 3, 4, torch.Generator().manual_seed(0))
    >>> ids.tolist(), targets.tolist()  # symbols are 0 … 3, distractors 4 … 7
    ([[3, 7, 5, 4]], [3])
    """
    check_positive(batch=batch, n_symbols=n_symbols)
    if delay < 0:
        raise ValueError(f"delay is {delay}; it must be 0 or more")
    ids = torch.randint(n_symbols, 2 * n_symbols, (batch, delay + 1), generator=generator)
    ids[:, 0] = torch.randint(n_symbols, (batch,), generator=generator)
    return ids, ids[:, 0].clone()


def path_length(output: Tensor, source: Tensor) -> int:
    """Fewest operations of torch's graph between a result and a leaf it was computed from.

    So many derivatives a gradient is multiplied by on its shortest way back: the "maximum path
    length" of Vaswani et al. 2017, table 1, in operations. ValueError when none leads there.

    >>> x = torch.ones(3, requires_grad=True)
    >>> path_length(x.exp().cos().sum() + x.sum(), x)  # sum and plus: the shorter way
    2
    """
    front, seen, length = {output.grad_fn} - {None}, set(), 0
    while front:
        if any(getattr(node, "variable", None) is source for node in front):
            return length
        seen |= front
        steps = {following for node in front for following, _ in node.next_functions}
        front, length = steps - seen - {None}, length + 1
    raise ValueError("no path leads back; the source must be a leaf that requires a gradient")
