"""Exercises of notebook 04: what textbooks write passes, and what learners get wrong is named."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.distributed as dist
from parallel_inputs import by_value

from course_utils import exercises
from course_utils.checks import data_parallel


@pytest.fixture(autouse=True)
def as_from_a_cell():
    with by_value(sys.modules[__name__]):
        yield


def problem(name, attempt):
    return exercises.first_problem(data_parallel.EXERCISES[name], attempt)


# ── textbook variants ───────────────────────────────────────────────────────────────────────────


def share_by_counting(n, rank, world_size):
    each = (n + world_size - 1) // world_size
    return [(rank + i * world_size) % n for i in range(each)]


def hooks_on_the_gradient(module, all_reduce, size):
    for p in module.parameters():
        p.register_hook(lambda gradient: all_reduce(gradient.clone()) / size)


def hooks_that_divide_first(module, all_reduce, size):
    def average(p):
        p.grad = all_reduce(p.grad / size)

    for _, p in module.named_parameters():
        p.register_post_accumulate_grad_hook(average)


def mean_by_torch(loss_sum, n_tokens, wire):
    n = torch.tensor(float(n_tokens))
    dist.all_reduce(n)
    return loss_sum / (n / wire.size)


def mean_without_item(loss_sum, n_tokens, wire):
    return loss_sum * wire.size / data_parallel.ring_all_reduce(torch.tensor([n_tokens]), wire)


def share_without_end(n, rank, world_size):
    """Filled up once only: of two examples the fifth rank gets none."""
    order = list(range(n))
    return (order + order[: -n % world_size])[rank::world_size]


def a_number_for_show(x, wire):
    if wire.size > 1:
        one = torch.empty(1)
        wire.exchange(one.clone(), (wire.rank + 1) % wire.size, one, (wire.rank - 1) % wire.size)
    return all_reduce_of_torch(x, wire)


def all_reduce_of_torch(x, wire):
    dist.all_reduce(x)
    return x


def everyone_to_everyone(x, wire):
    total = x.clone()
    for shift in range(1, wire.size):
        other = torch.empty_like(x)
        wire.exchange(x, (wire.rank + shift) % wire.size, other, (wire.rank - shift) % wire.size)
        total += other
    return total


def ring_the_other_way(x, wire):
    n, rank = wire.size, wire.rank
    chunks, part = x.view(n, -1), torch.empty_like(x.view(n, -1)[0])
    for i in range(n - 1):
        wire.exchange(chunks[(rank - i) % n], (rank + 1) % n, part, (rank - 1) % n)
        chunks[(rank - i - 1) % n] += part
    for i in range(n - 1):
        wire.exchange(chunks[(rank + 1 - i) % n], (rank + 1) % n, part, (rank - 1) % n)
        chunks[(rank - i) % n] = part
    return x


@pytest.mark.parametrize(
    ("name", "attempt"),
    [
        ("my_share", share_by_counting),
        ("gradient_hooks", hooks_on_the_gradient),
        ("gradient_hooks", hooks_that_divide_first),
        ("token_mean", mean_by_torch),
        ("token_mean", mean_without_item),
        ("all_reduce", all_reduce_of_torch),
        ("all_reduce", everyone_to_everyone),
        ("all_reduce", ring_the_other_way),
        ("ring", ring_the_other_way),
    ],
)
def test_a_textbook_variant_passes(name, attempt):
    assert problem(name, attempt) is None


# ── what goes wrong ─────────────────────────────────────────────────────────────────────────────


def around_whole(x, wire):
    total, part = x.clone(), x
    for _ in range(wire.size - 1):
        received = torch.empty_like(x)
        wire.exchange(part, (wire.rank - 1) % wire.size, received, (wire.rank + 1) % wire.size)
        total, part = total + received, received
    return total


def stops_on_rank_one(x, wire):
    if wire.rank == 1:
        raise ArithmeticError("no")
    return x


def forgets_to_return(x, wire):
    everyone_to_everyone(x, wire)


def waits_for_nobody(x, wire):
    wire.receive(torch.empty_like(x), (wire.rank + 1) % wire.size)
    return x


@pytest.mark.parametrize(
    ("name", "attempt", "words"),
    [
        ("ring", around_whole, "all of x travels, by way of rank 0 or around the ring"),
        ("ring", all_reduce_of_torch, "rank 0 sent 0 bytes through its wire"),
        ("ring", a_number_for_show, "rank 0 sent 4 bytes through its wire"),
        ("my_share", share_without_end, "there are 0 items, not 1"),
        ("all_reduce", stops_on_rank_one, "rank 1 of 2 raised ArithmeticError: no"),
        ("all_reduce", forgets_to_return, "item 0: only one of them is None"),
    ],
)
def test_what_is_said_of_a_wrong_one(name, attempt, words):
    assert words in problem(name, attempt)


def test_ranks_that_wait_for_each_other_are_named(monkeypatch):
    monkeypatch.setattr(data_parallel, "LIMIT", 1.0)
    assert "did not answer within 1 s" in problem("all_reduce", waits_for_nobody)


def test_a_stub_starts_no_ranks(monkeypatch):
    monkeypatch.setattr(data_parallel, "pool", None)  # calling it would fail
    with pytest.raises(exercises.NotAttempted):
        problem("ring", lambda x, wire: ...)
