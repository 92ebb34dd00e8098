"""The exercises of notebook 05, with the mistakes that learners make in them.

Those on real ranks share the pool of notebook 04's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from course_utils.checks.data_parallel import LIMIT, pool, results_and_bytes
from course_utils.exercises import Case, Exercise, Statement
from course_utils.parallel.collectives import (
    Wire,
    all_gather,
    reduce_scatter,
    ring_all_reduce,
)
from course_utils.parallel.sharding import MIXED_ADAM, STAGES, state_bytes

# ── bytes on a rank ──────────────────────────────────────────────────────────────────────────────


def total_bytes(n_parameters: float, world_size: int, stage: int) -> float:
    """Bytes a rank holds in mixed precision with Adam: 2 and 2 and 12 a parameter, by stage."""
    return state_bytes(n_parameters, world_size, stage, MIXED_ADAM).total


def _byte_inputs() -> Iterator[tuple]:
    for stage in STAGES:
        yield 1000.0, 4, stage
        yield 12.0, 1, stage


def _everything(n_parameters: float, world_size: int, stage: int) -> float:
    return 16 * n_parameters


def _all_shared(n_parameters: float, world_size: int, stage: int) -> float:
    return 16 * n_parameters / world_size if stage else 16 * n_parameters


def _in_fp32(n_parameters: float, world_size: int, stage: int) -> float:
    return state_bytes(n_parameters, world_size, stage, (4, 4, 8)).total


def _without_master(n_parameters: float, world_size: int, stage: int) -> float:
    return state_bytes(n_parameters, world_size, stage, (2, 2, 8)).total


def _one_stage_early(n_parameters: float, world_size: int, stage: int) -> float:
    return total_bytes(n_parameters, world_size, min(stage + 1, 3))


# ── a shard, and back ────────────────────────────────────────────────────────────────────────────


def shard(x: Tensor, rank: int, world_size: int) -> Tensor:
    """This rank's part of x, flat: ⌈n / N⌉ numbers, the last ones zeros where x has ended."""
    size = -(-x.numel() // world_size)
    padded = torch.zeros(size * world_size, dtype=x.dtype)
    padded[: x.numel()] = x.flatten()
    return padded[rank * size :][:size].clone()


def _shard_inputs() -> Iterator[tuple]:
    for size, shape in ((2, (3, 4)), (3, (2, 5)), (4, (2, 3, 1))):
        generator = torch.Generator().manual_seed(size)
        for rank in range(size):
            yield torch.randn(shape, generator=generator), rank, size


def _every_nth(x: Tensor, rank: int, world_size: int) -> Tensor:
    size = -(-x.numel() // world_size)
    flat = torch.zeros(size * world_size)
    flat[: x.numel()] = x.flatten()
    return flat[rank::world_size].clone()


def _without_padding(x: Tensor, rank: int, world_size: int) -> Tensor:
    size = -(-x.numel() // world_size)
    return x.flatten()[rank * size :][:size].clone()


def _rounded_down(x: Tensor, rank: int, world_size: int) -> Tensor:
    size = x.numel() // world_size
    return x.flatten()[rank * size :][:size].clone()


def unshard(part: Tensor, shape: tuple[int, ...], wire: Wire) -> Tensor:
    """All ranks' parts as one tensor of `shape`, on every rank; what was padding is cut off."""
    whole = all_gather(part, wire)
    return whole[: torch.Size(shape).numel()].view(shape)


def _on_a_rank(function: Callable, whole: Tensor) -> Tensor:
    wire = Wire()
    return function(shard(whole, wire.rank, wire.size), tuple(whole.shape), wire)


def _unsharded(function: Callable, whole: Tensor, world_size: int) -> list[Any]:
    """What each rank makes of its shard of `whole`."""
    return pool().run(_on_a_rank, function, whole, world_size=world_size, limit=LIMIT)


def _whole_inputs() -> Iterator[tuple]:
    for size, shape in ((2, (3, 4)), (3, (2, 5)), (4, (2, 3, 1))):
        yield torch.randn(shape, generator=torch.Generator().manual_seed(size)), size


def _kept_padding(part: Tensor, shape: tuple[int, ...], wire: Wire) -> Tensor:
    return all_gather(part, wire)


def _only_its_own(part: Tensor, shape: tuple[int, ...], wire: Wire) -> Tensor:
    whole = torch.zeros(wire.size * part.numel())
    whole[wire.rank * part.numel() :][: part.numel()] = part
    return whole[: torch.Size(shape).numel()].view(shape)


def _added_up(part: Tensor, shape: tuple[int, ...], wire: Wire) -> Tensor:
    return wire.size * unshard(part, shape, wire)


# ── gradients to their owners ────────────────────────────────────────────────────────────────────


def own_mean(gradient: Tensor, wire: Wire) -> Tensor:
    """Of the mean of all ranks' gradients (N·k,), the k numbers that this rank is to update."""
    return reduce_scatter(gradient / wire.size, wire)


def _means(function: Callable, gradients: list[Tensor]) -> list[Any]:
    """What each rank keeps, and whether it sent what one round of a ring needs."""
    return results_and_bytes(function, gradients, rounds=1)


def _gradient_inputs() -> Iterator[tuple]:
    for size in (2, 3, 4):
        generator = torch.Generator().manual_seed(size)
        yield ([torch.randn(2 * size, generator=generator) for _ in range(size)],)


def _own_sum(gradient: Tensor, wire: Wire) -> Tensor:
    return reduce_scatter(gradient, wire)


def _whole_mean(gradient: Tensor, wire: Wire) -> Tensor:
    return all_gather(own_mean(gradient, wire), wire)


def _all_and_a_slice(gradient: Tensor, wire: Wire) -> Tensor:
    size = gradient.numel() // wire.size
    total = ring_all_reduce(gradient / wire.size, wire)
    return total[wire.rank * size :][:size].clone()


def _own_alone(gradient: Tensor, wire: Wire) -> Tensor:
    size = gradient.numel() // wire.size
    return gradient[wire.rank * size :][:size].clone()


EXERCISES = {
    "zero_bytes": Exercise(
        reference=total_bytes,
        hint="Three parts a parameter: 2 bytes of parameter, 2 of gradient, 12 of optimizer. Stage "
        "1 divides the last by the number of ranks, stage 2 the last two, stage 3 all three.",
        cases=(
            Case((10, 5, 0), 160.0, why="Stage 0 divides nothing: 16 bytes for each of 10."),
            Case((10, 5, 1), 64.0, why="2·10 + 2·10 + 12·10/5."),
            Case((10, 5, 3), 32.0, why="16·10/5."),
        ),
        inputs=_byte_inputs,
        mistakes={
            "nothing is divided": _everything,
            "every stage divides everything": _all_shared,
            "all is in 32 bits": _in_fp32,
            "the optimizer's own copy of the weights, 4 bytes, is forgotten": _without_master,
            "each stage divides what the next one does": _one_stage_early,
        },
    ),
    "shard": Exercise(
        reference=shard,
        hint="x.flatten(), then zeros behind it up to a multiple of N, then the rank-th of N equal "
        "parts. ⌈n / N⌉ is -(-n // N).",
        cases=(
            Case(
                (torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), 1, 2),
                torch.tensor([4.0, 5.0, 6.0]),
            ),
            Case(
                (torch.tensor([1.0, 2.0, 3.0]), 1, 2),
                torch.tensor([3.0, 0.0]),
                why="Both parts have two numbers; the second ends in a zero.",
            ),
        ),
        inputs=_shard_inputs,
        mistakes={
            "a rank takes every N-th number": _every_nth,
            "the last part is shorter: collectives want equal ones": _without_padding,
            "n / N is rounded down, and the last numbers belong to nobody": _rounded_down,
        },
    ),
    "unshard": Exercise(
        reference=unshard,
        hint="all_gather(part, wire) gives all parts one after another, the padding behind them. "
        "Cut it off, whole[:n], and give it its shape.",
        cases=(
            Case(
                (torch.tensor([[1.0], [2.0], [3.0]]), 2),
                2 * [torch.tensor([[1.0], [2.0], [3.0]])],
                why="The parts are [1, 2] and [3, 0].",
            ),
        ),
        inputs=_whole_inputs,
        mistakes={
            "padding and form are left as they come": _kept_padding,
            "nothing comes from the others": _only_its_own,
            "the parts are added N times": _added_up,
        },
        through=_unsharded,
    ),
    "own_mean": Exercise(
        reference=own_mean,
        hint="reduce_scatter(x, wire) leaves on each rank its own part of the sum. A mean is a sum "
        "divided by wire.size.",
        cases=(
            Case(
                ([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])],),
                [torch.tensor([2.0]), torch.tensor([4.0]), "every rank sent 4 bytes"],
                why="The means are 2 and 4; rank 0 owns the first, rank 1 the second.",
            ),
        ),
        inputs=_gradient_inputs,
        mistakes={
            "the sum is not divided": _own_sum,
            "every rank keeps all of the mean: that is stage 1": _whole_mean,
            "each takes its part of its own gradient": _own_alone,
            "all of the mean is made everywhere, and a part of it kept": _all_and_a_slice,
        },
        through=_means,
        atol=1e-4,  # other orders of summation
    ),
}

STATEMENTS = {
    "verdicts": {
        "a": Statement(
            "Stage 3 holds on each of N ranks an N-th of parameters, gradients and optimizer.",
            supported=True,
            why="To the byte, between two steps; inside a step a block at a time is whole.",
        ),
        "b": Statement(
            "FSDP shards activations, too.",
            supported=False,
            why="Each rank kept as many bytes for its backward pass as one without any sharding.",
        ),
        "c": Statement(
            "In a step of stage 3 a rank sends fewer bytes than with copies.",
            supported=False,
            why="It sends nearly half as many again: memory is bought with traffic.",
        ),
        "d": Statement(
            "If memory runs out, sharding always helps.",
            supported=False,
            why="With a small model and many tokens nearly all bytes were activations.",
        ),
        "e": Statement(
            "A sharded model learns the same as an unsharded one.",
            supported=True,
            why="After three steps weights differed by rounding, a millionth or so.",
        ),
    },
}
