"""Sharding in half precision with fp32 masters: against one process, FSDP2 and ZeRO's bytes."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.distributed as dist
from parallel_inputs import SIZES, on_ranks
from sharding_inputs import (
    OPTIMIZERS,
    STEPS,
    decoder,
    largest,
    loss_of,
    one_process,
    sharded,
    train,
)
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from course_utils.parallel import sharding
from course_utils.parallel.launch import RankError

STAGES = (1, 2, 3)
HALF = torch.float16


def states(optimizer, compute_dtype=HALF, micro=1):
    """(stage, tied) → masters after three steps."""
    return {
        (stage, tied): train(
            sharded(decoder(tied), optimizer, stage=stage, compute_dtype=compute_dtype), micro=micro
        )
        for stage, tied in itertools.product(STAGES, (True, False))
    }


def assert_is_one_process(optimizer, world_size, compute_dtype=HALF, micro=1):
    by_rank = on_ranks(states, optimizer, compute_dtype, micro, world_size=world_size)
    for tied in (True, False):
        alone = one_process(
            decoder(tied), optimizer, world_size, micro=micro, compute_dtype=compute_dtype
        )
        for rank, stage in itertools.product(range(world_size), STAGES):
            difference = largest(by_rank[rank][stage, tied], alone)
            assert difference == 0, f"rank {rank}, stage {stage}, tied {tied}: {difference}"


# ── values ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("world_size", SIZES)
def test_one_process_with_masters(world_size):
    """Its gradients summed in the ring's order, each sum rounded to fp16: to the last bit."""
    for optimizer in ("sgd", "adam"):
        assert_is_one_process(optimizer, world_size)


def test_one_process_with_bfloat16():
    assert_is_one_process("adam", 2, compute_dtype=torch.bfloat16)


def test_accumulation_is_one_process_with_masters():
    by_rank = on_ranks(states, "sgd", micro=2, world_size=2)
    alone = one_process(decoder(), "sgd", 2, micro=2, compute_dtype=HALF)
    for stage in (2, 3):  # which average each micro-batch, as the one process does
        assert largest(by_rank[0][stage, True], alone) == 0


def beside_fully_shard(optimizer):
    """The largest difference of three steps, and how far they went."""
    policy = MixedPrecisionPolicy(param_dtype=HALF, reduce_dtype=HALF)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    start, theirs = dict(decoder().named_parameters()), decoder()
    for part in (*theirs.blocks, theirs):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    step_of = OPTIMIZERS[optimizer](theirs.parameters())
    for step in range(STEPS):
        step_of.zero_grad()
        loss_of(theirs, step, dist.get_rank()).backward()
        step_of.step()
    expected = {name: p.full_tensor().detach() for name, p in theirs.named_parameters()}
    return (
        largest(train(sharded(decoder(), optimizer, compute_dtype=HALF)), expected),
        largest(expected, start),
    )


@pytest.mark.parametrize("world_size", SIZES)
def test_fully_shard_with_a_mixed_precision_policy(world_size):
    """To the last bit on one and two ranks. On more the sums of fp16 are taken in another order:
    SGD's three steps at lr 0.1 with gradients of some 0.1 differ by units of 1e-5.
    """
    tolerance = 0 if world_size <= 2 else 1e-4
    for difference, way in on_ranks(beside_fully_shard, "sgd", world_size=world_size):
        assert difference <= tolerance
        assert way > 1e-2


def test_adam_is_fully_shards():
    assert all(d == 0 for d, _ in on_ranks(beside_fully_shard, "adam", world_size=2))


def test_the_modules_own_type_changes_nothing():
    """None and float32 are one thing, to the last bit; float16 is another."""

    def three():
        types = (None, torch.float32, HALF)
        return [train(sharded(decoder(), "adam", compute_dtype=dtype)) for dtype in types]

    none, single, half = on_ranks(three, world_size=2)[0]
    assert largest(none, single) == 0
    assert 1e-4 < largest(none, half) < 0.06  # Adam turns a rounded gradient into up to 2·lr a step


def test_masters_by_hand():
    """Loss w, lr 1e-4, 8 steps from 1: 1 − 8e-4. In fp16, which has no number between 1 and
    1 − 4.9e-4, each step alone would be lost.
    """

    def weight(stage):
        net = nn.Linear(1, 1, bias=False)
        nn.init.ones_(net.weight)
        model = sharding.Sharded(
            net, [], lambda p: torch.optim.SGD(p, lr=1e-4), stage=stage, compute_dtype=HALF
        )
        for _ in range(8):
            model(torch.ones(1, 1)).sum().backward()
            model.step()
        return model.full_state()["weight"].item()

    for stage in STAGES:
        found = on_ranks(weight, stage, world_size=2)
        assert found == pytest.approx([1 - 8e-4] * 2, abs=1e-6)  # eight roundings near 1 in fp32
    alone = torch.ones(1, dtype=HALF)
    for _ in range(8):
        alone -= 1e-4
    assert alone == 1


def test_floats_and_frozen_parameters_are_cast():
    """Words come as ids; other nets are given floats, and may hold what is not trained."""

    def trained():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
        net[0].requires_grad_(False)
        model = sharding.Sharded(net, list(net), OPTIMIZERS["sgd"], compute_dtype=HALF)
        out = model(torch.ones(2, 3))
        out.sum().backward()
        model.step()
        return out.dtype, net[0].weight.dtype, list(model.full_state())

    assert on_ranks(trained, world_size=2) == [(HALF, HALF, ["1.weight", "1.bias"])] * 2


# ── bytes ─────────────────────────────────────────────────────────────────────────────────────────


def held_and_sent(stage):
    """Bytes between the backward pass and the step, after it, and sent in a whole step."""
    model = sharded(decoder(d_model=12), stage=stage, compute_dtype=HALF)
    for step in range(2):
        model.wire.messages.clear()
        loss_of(model, step, dist.get_rank()).backward()
        held = model.held()
        model.step()
    return held, model.held(), model.wire.bytes_sent


def unit_sizes():
    module = decoder(d_model=12)
    groups = sharding.unit_parameters(module, list(module.blocks))
    return [sum(p.numel() for p in group.values()) for group in groups]


def padded(world_size):
    return [-(-n // world_size) * world_size for n in unit_sizes()]


@pytest.mark.parametrize("world_size", SIZES)
def test_bytes_are_zeros_formulas(world_size):
    """To the byte: 16Ψ of which 12Ψ, then 14Ψ, then all are divided by N; 2 bytes on the wire."""
    psi, rest = sum(padded(world_size)), padded(world_size)[-1]
    for stage in STAGES:
        expected = sharding.state_bytes(psi, world_size, stage)
        sent = sharding.traffic_bytes(psi, world_size, stage, itemsize=2)
        if stage == 3:  # the rest is gathered once, not twice
            sent -= 2 * rest * (world_size - 1) / world_size
        for held, after, found in on_ranks(held_and_sent, stage, world_size=world_size):
            assert held == expected
            assert after == expected._replace(gradients=0)
            assert found == pytest.approx(sent, abs=1e-6)  # the fraction is not exact


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────


def test_a_gradient_above_fp16_is_infinite_on_all_ranks():
    """Above 65,504 there is only ∞: the masters it reaches are lost alike on all ranks."""

    def lost():
        model = sharded(decoder(), "sgd", compute_dtype=HALF)
        factor = 1e7 if dist.get_rank() == 1 else 1.0
        (factor * loss_of(model, 0, dist.get_rank()).float()).backward()
        model.step()
        return {name: p.isfinite() for name, p in model.full_state().items()}

    first, second = on_ranks(lost, world_size=2)
    assert all(torch.equal(mask, second[name]) for name, mask in first.items())
    assert not all(mask.all() for mask in first.values())


def test_types_that_cannot_be():
    with pytest.raises(RankError, match=r"compute_dtype is torch.int8; give torch.float16"):
        on_ranks(lambda: sharded(decoder(), compute_dtype=torch.int8), world_size=1)

    def two_types():
        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
        sharding.Sharded(net, [], OPTIMIZERS["sgd"])

    with pytest.raises(RankError, match=r"0.weight is in a unit of several types, torch.float32, "):
        on_ranks(two_types, world_size=1)
