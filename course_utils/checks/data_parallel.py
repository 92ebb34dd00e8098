"""The exercises of notebook 04, with the mistakes that learners make in them.

Most run the learner's function on real ranks, processes of a pool that starts with the first check.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.exercises import Case, Exercise, Statement
from course_utils.parallel.collectives import Wire, all_reduce_by_root, ring_all_reduce
from course_utils.parallel.data_parallel import rank_indices
from course_utils.parallel.launch import Pool

LIMIT = 20.0  # seconds: a receive for which nobody sends ends so


@functools.cache
def pool() -> Pool:
    return Pool(4)


# ── which examples a rank reads ──────────────────────────────────────────────────────────────────


def my_share(n: int, rank: int, world_size: int) -> list[int]:
    """Every world_size-th of n examples from `rank` on; filled up from the start, all get equal."""
    return rank_indices(n, rank, world_size)


def _share_inputs() -> Iterator[tuple]:
    for n, size in ((10, 4), (3, 4), (9, 3), (2, 5), (1, 4)):
        for rank in range(size):
            yield n, rank, size


def _blocks(n: int, rank: int, world_size: int) -> list[int]:
    each = -(-n // world_size)
    return [i % n for i in range(rank * each, (rank + 1) * each)]


def _uneven(n: int, rank: int, world_size: int) -> list[int]:
    return list(range(n))[rank::world_size]


def _dropped(n: int, rank: int, world_size: int) -> list[int]:
    return rank_indices(n, rank, world_size, drop_last=True)


def _everything(n: int, rank: int, world_size: int) -> list[int]:
    return list(range(n))


# ── an all-reduce by send and receive ────────────────────────────────────────────────────────────


def all_reduce(x: Tensor, wire: Wire) -> Tensor:
    """The sum of all ranks' x, on every rank."""
    return ring_all_reduce(x, wire)


def _reduced(function: Callable, inputs: list[Tensor]) -> tuple[Tensor, int]:
    """On a rank: the learner's result, and the bytes that this rank sent for it."""
    wire = Wire()
    return function(inputs[wire.rank], wire), wire.bytes_sent


def _sums(function: Callable, inputs: list[Tensor]) -> list[Any]:
    """What each rank has in the end."""
    found = pool().run(_reduced, function, inputs, world_size=len(inputs), limit=LIMIT)
    return [value for value, _ in found]


def results_and_bytes(function: Callable, inputs: list[Tensor], rounds: int = 2) -> list[Any]:
    """What each rank has in the end, and whether it sent what `rounds` around a ring need."""
    size = len(inputs)
    found = pool().run(_reduced, function, inputs, world_size=size, limit=LIMIT)
    target = rounds * (size - 1) * inputs[0].nbytes // size
    return [*(value for value, _ in found), _sent_as_a_ring([n for _, n in found], target)]


def _sent_as_a_ring(sent: list[int], target: int) -> str:
    """Whether every rank sent as many bytes through its wire as a ring needs, in words.

    More is too much, and less has gone another way.
    """
    if max(sent) > target:
        return f"the busiest rank sent {max(sent)} bytes"
    if min(sent) < target:
        return f"rank {sent.index(min(sent))} sent {min(sent)} bytes through its wire"
    return f"every rank sent {target} bytes"


def _sum_inputs() -> Iterator[tuple]:
    for size, n in ((2, 4), (3, 6), (4, 16)):
        generator = torch.Generator().manual_seed(size)
        yield ([torch.randn(n, generator=generator) for _ in range(size)],)


def _one_neighbour(x: Tensor, wire: Wire) -> Tensor:
    received = torch.empty_like(x)
    wire.exchange(x, (wire.rank - 1) % wire.size, received, (wire.rank + 1) % wire.size)
    return x + received


def _root_alone(x: Tensor, wire: Wire) -> Tensor:
    total = all_reduce_by_root(x.clone(), wire)
    return total if wire.rank == 0 else x


def _mean(x: Tensor, wire: Wire) -> Tensor:
    return ring_all_reduce(x, wire) / wire.size


def _piled_up(x: Tensor, wire: Wire) -> Tensor:
    """Sums are passed on where the numbers themselves should be."""
    for _ in range(wire.size - 1):
        received = torch.empty_like(x)
        wire.exchange(x, (wire.rank - 1) % wire.size, received, (wire.rank + 1) % wire.size)
        x = x + received
    return x


# ── gradients averaged by hooks ──────────────────────────────────────────────────────────────────


def average_by_hooks(module: nn.Module, all_reduce: Callable[[Tensor], Tensor], size: int) -> None:
    """Let every parameter's gradient become the mean over `size` ranks once it is complete."""

    def average(parameter: nn.Parameter) -> None:
        parameter.grad.copy_(all_reduce(parameter.grad) / size)

    for parameter in module.parameters():
        parameter.register_post_accumulate_grad_hook(average)


def _hooked(function: Callable, inputs: list[Tensor]) -> list[Tensor]:
    """On a rank: gradients of Σ(w·x + b) over this rank's rows, with the hooks in place."""
    wire = Wire()
    net = nn.Linear(2, 1)
    function(net, functools.partial(ring_all_reduce, wire=wire), wire.size)
    net(inputs[wire.rank]).sum().backward()
    return [p.grad.clone() for p in net.parameters()]


def _gradients(function: Callable, inputs: list[Tensor]) -> list[Any]:
    """The gradients that each rank has after its backward pass."""
    return pool().run(_hooked, function, inputs, world_size=len(inputs), limit=LIMIT)


def _hook_inputs() -> Iterator[tuple]:
    for size in (2, 3, 4):
        generator = torch.Generator().manual_seed(size)
        yield ([torch.randn(rank + 1, 2, generator=generator) for rank in range(size)],)


def _hooks_that_sum(module: nn.Module, all_reduce: Callable, size: int) -> None:
    average_by_hooks(module, all_reduce, 1)


def _no_hooks(module: nn.Module, all_reduce: Callable, size: int) -> None:
    list(module.parameters())


def _hooks_without_sum(module: nn.Module, all_reduce: Callable, size: int) -> None:
    average_by_hooks(module, lambda x: x, size)


def _hooks_on_weights(module: nn.Module, all_reduce: Callable, size: int) -> None:
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.register_hook(lambda gradient: all_reduce(gradient.clone()) / size)


# ── the mean over all tokens ─────────────────────────────────────────────────────────────────────


def token_mean(loss_sum: Tensor, n_tokens: int, wire: Wire) -> Tensor:
    """The loss whose gradients, averaged over the ranks, are those of the mean over all tokens."""
    total = ring_all_reduce(torch.tensor([n_tokens]), wire)
    return loss_sum * wire.size / total.item()


def _own_loss(function: Callable, sums: list[float], counts: list[int]) -> tuple:
    """On a rank: the learner's loss of this rank, and its gradient by the sum."""
    wire = Wire()
    loss_sum = torch.tensor(sums[wire.rank], requires_grad=True)
    loss = function(loss_sum, counts[wire.rank], wire)
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        return None if loss is None else (torch.as_tensor(loss).reshape(()), "no gradient")
    loss.sum().backward()
    return loss.detach().reshape(()), loss_sum.grad


def _losses(function: Callable, sums: list[float], counts: list[int]) -> list[Any]:
    return pool().run(_own_loss, function, sums, counts, world_size=len(sums), limit=LIMIT)


def _mean_inputs() -> Iterator[tuple]:
    yield [3.0, 0.0, 9.0], [4, 0, 5]  # a rank that has no token
    yield [6.0, 5.0], [3, 7]
    yield [2.0, 4.0, 1.0, 8.0], [1, 60, 60, 60]


def _own_mean(loss_sum: Tensor, n_tokens: int, wire: Wire) -> Tensor:
    return loss_sum / n_tokens


def _without_size(loss_sum: Tensor, n_tokens: int, wire: Wire) -> Tensor:
    return token_mean(loss_sum, n_tokens, wire) / wire.size


def _cut_off(loss_sum: Tensor, n_tokens: int, wire: Wire) -> Tensor:
    return token_mean(loss_sum.detach(), n_tokens, wire)


def _summed_too(loss_sum: Tensor, n_tokens: int, wire: Wire) -> Tensor:
    total = ring_all_reduce(loss_sum.detach().clone(), wire)
    return token_mean(total / wire.size + 0 * loss_sum, n_tokens, wire)


EXERCISES = {
    "my_share": Exercise(
        reference=my_share,
        hint="Let each rank have ⌈n / N⌉ examples. Write the order 0 … n − 1, go on from the start "
        "until N of them fit evenly, and take a slice with a step: order[rank::world_size].",
        cases=(
            Case((5, 0, 2), [0, 2, 4], why="Every second, from 0 on."),
            Case((5, 1, 2), [1, 3, 0], why="After 1 and 3 the order goes on from its start: 0."),
        ),
        inputs=_share_inputs,
        mistakes={
            "each rank takes a block": _blocks,
            "the last ranks get fewer: they would leave the others waiting": _uneven,
            "what does not come out even is dropped": _dropped,
            "every rank reads everything": _everything,
        },
    ),
    "gradient_hooks": Exercise(
        reference=average_by_hooks,
        hint="for p in module.parameters(): p.register_post_accumulate_grad_hook(f). Autograd then "
        "calls f(p) as soon as p.grad is complete; f puts the sum over the ranks, divided by "
        "their number, back into p.grad, and returns nothing: write it as a def, not a lambda.",
        cases=(
            Case(
                ([torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 6.0], [0, 0], [0, 0]])],),
                2 * [[torch.tensor([[2.0, 4.0]]), torch.tensor([2.0])]],
                why="Alone, rank 0 has 1 and 2 for the weights and 1 for the bias, rank 1 has 3, 6 "
                "and 3. Both end with the means.",
            ),
        ),
        inputs=_hook_inputs,
        mistakes={
            "the sum is not divided by the number of ranks": _hooks_that_sum,
            "no hook changes the gradient": _no_hooks,
            "each rank divides its own gradient, and nothing is summed": _hooks_without_sum,
            "the biases have no hook": _hooks_on_weights,
        },
        through=_gradients,
        atol=1e-4,  # other orders of summation
    ),
    "token_mean": Exercise(
        reference=token_mean,
        hint="All ranks together have Σn tokens: an all-reduce of n tells every rank. The mean "
        "over all tokens is the sum of all loss_sums divided by that; the averaging of gradients "
        "will divide by N once more, so multiply by N here.",
        cases=(
            Case(
                ([8.0, 4.0], [8, 2]),
                [(torch.tensor(1.6), torch.tensor(0.2)), (torch.tensor(0.8), torch.tensor(0.2))],
                why="Each pair is a loss and its gradient by loss_sum. 12 nats over 10 tokens are "
                "1.2 a token, and so is the mean of 1.6 and 0.8.",
            ),
        ),
        inputs=_mean_inputs,
        mistakes={
            "each rank takes the mean over its own tokens": _own_mean,
            "the division by N that comes later is forgotten": _without_size,
            "the loss has lost its way back: .item() or .detach() cuts it off": _cut_off,
            "the losses are summed over the ranks as well": _summed_too,
        },
        through=_losses,
    ),
    "all_reduce": Exercise(
        reference=all_reduce,
        hint="The simple way: ranks 1 … N − 1 send x to rank 0; it adds up, and sends the sum to "
        "each. wire.send(x, to) and wire.receive(buffer, source), buffer = torch.empty_like(x).",
        cases=(
            Case(
                ([torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])],),
                [torch.tensor([11.0, 22.0]), torch.tensor([11.0, 22.0])],
                why="Both ranks end with the sum of both.",
            ),
        ),
        inputs=_sum_inputs,
        mistakes={
            "each rank adds one neighbour's numbers": _one_neighbour,
            "rank 0 has the sum, and keeps it": _root_alone,
            "the sum is divided by N: that is the mean": _mean,
            "sums are passed on, so that some numbers count several times": _piled_up,
        },
        solution=(all_reduce_by_root,),
        through=_sums,
        atol=1e-4,
    ),
    "ring": Exercise(
        reference=all_reduce,
        hint="Cut x into N chunks: x.view(N, -1). In N − 1 rounds each rank sends one chunk to its "
        "left neighbour while it receives another from its right (wire.exchange does both at "
        "once), and adds it to its own. After that chunk r is complete on rank r; N − 1 more "
        "rounds hand complete chunks on.",
        cases=(
            Case(
                ([torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])],),
                [
                    torch.tensor([11.0, 22.0]),
                    torch.tensor([11.0, 22.0]),
                    "every rank sent 8 bytes",
                ],
                why="Two chunks of one number, 4 bytes: each rank sends one to be added, one back.",
            ),
        ),
        inputs=_sum_inputs,
        mistakes={
            "all of x travels, by way of rank 0 or around the ring, and not a chunk of it": (
                all_reduce_by_root
            ),
            "the sum is divided by N: that is the mean": _mean,
        },
        solution=(ring_all_reduce,),
        through=results_and_bytes,
        atol=1e-4,
    ),
}

STATEMENTS = {
    "verdicts": {
        "a": Statement(
            "Every rank holds the whole model.",
            supported=True,
            why="Each of four processes held as many bytes of parameters as one alone.",
        ),
        "b": Statement(
            "The copies are quantized, so that they fit.",
            supported=False,
            why="They were float32 before and after; wrapping changes no type.",
        ),
        "c": Statement(
            "The ranks' results are combined when training is over.",
            supported=False,
            why="Gradients are averaged at every step. Averaged only at the end, four copies made "
            "a model worse than each of them.",
        ),
        "d": Statement(
            "With twice as many ranks, each sends twice as many bytes in a ring.",
            supported=False,
            why="Each sends 2(N − 1)/N times the gradients: never more than twice them.",
        ),
        "e": Statement(
            "Averaging the ranks' mean losses gives the gradient of the mean over all tokens.",
            supported=False,
            why="Only where all have equally many tokens.",
        ),
        "f": Statement(
            "Buckets let gradients travel while others are still being computed.",
            supported=True,
            why="All buckets but the last were on the wire before the backward pass had ended.",
        ),
    },
}
