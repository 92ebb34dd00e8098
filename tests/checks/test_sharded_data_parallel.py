"""Exercises of notebook 05: what textbooks write passes, and what learners get wrong is named."""

from __future__ import annotations

import math
import sys

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from parallel_inputs import by_value

from course_utils import exercises
from course_utils.checks import sharded_data_parallel
from course_utils.parallel.collectives import all_gather, ring_all_reduce


@pytest.fixture(autouse=True)
def as_from_a_cell():
    with by_value(sys.modules[__name__]):
        yield


def problem(name, attempt):
    return exercises.first_problem(sharded_data_parallel.EXERCISES[name], attempt)


# ── textbook variants ───────────────────────────────────────────────────────────────────────────


def bytes_by_cases(n_parameters, world_size, stage):
    fixed = {0: 16, 1: 4, 2: 2, 3: 0}[stage]
    return n_parameters * (fixed + (16 - fixed) / world_size)


def shard_by_chunk(x, rank, world_size):
    flat = x.reshape(-1)
    padded = F.pad(flat, (0, -len(flat) % world_size))
    return padded.chunk(world_size)[rank]


def shard_by_view(x, rank, world_size):
    size = math.ceil(x.numel() / world_size)
    table = x.new_zeros(world_size, size)
    table.view(-1)[: x.numel()] = x.ravel()
    return table[rank]


def unshard_by_torch(part, shape, wire):
    parts = [torch.empty_like(part) for _ in range(wire.size)]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)[: math.prod(shape)].reshape(shape)


def unshard_by_a_sum(part, shape, wire):
    """Everyone's part at its place, zeros elsewhere, added up."""
    table = part.new_zeros(wire.size, len(part))
    table[wire.rank] = part
    whole = ring_all_reduce(table.view(-1), wire)
    return whole[: math.prod(shape)].view(*shape)


def mean_afterwards(gradient, wire):
    from course_utils.parallel.collectives import reduce_scatter

    return reduce_scatter(gradient, wire).div_(wire.size)


@pytest.mark.parametrize(
    ("name", "attempt"),
    [
        ("zero_bytes", bytes_by_cases),
        ("shard", shard_by_chunk),
        ("shard", shard_by_view),
        ("unshard", unshard_by_torch),
        ("unshard", unshard_by_a_sum),
        ("own_mean", mean_afterwards),
    ],
)
def test_a_textbook_variant_passes(name, attempt):
    assert problem(name, attempt) is None


# ── what goes wrong ─────────────────────────────────────────────────────────────────────────────


def unshard_without_form(part, shape, wire):
    return all_gather(part, wire)[: math.prod(shape)]


def own_mean_by_torch(gradient, wire):
    dist.all_reduce(gradient)
    return (gradient / wire.size).chunk(wire.size)[wire.rank]


@pytest.mark.parametrize(
    ("name", "attempt", "words"),
    [
        ("unshard", unshard_without_form, "its shape is (3,), not (3, 1)"),
        ("own_mean", own_mean_by_torch, "rank 0 sent 0 bytes through its wire"),
    ],
)
def test_what_is_said_of_a_wrong_one(name, attempt, words):
    assert words in problem(name, attempt)
