"""ZeRO on real ranks: bit-equal to one process, its bytes and its traffic as the formulas say."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
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
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from course_utils.parallel import sharding
from course_utils.parallel.collectives import Wire
from course_utils.parallel.launch import RankError

MANY, STAGES = SIZES[1:], (1, 2, 3)


def states(optimizer, stages, micro, **options):
    """(stage, tied) → parameters after three steps; rank 0's weights are everyone's."""
    return {
        (stage, tied): train(
            sharded(decoder(tied, seed=dist.get_rank()), optimizer, stage=stage, **options),
            micro=micro,
        )
        for stage, tied in itertools.product(stages, (True, False))
    }


def assert_is_unsharded(optimizer, world_size, stages=STAGES, micro=1, **options):
    by_rank = on_ranks(states, optimizer, stages, micro, world_size=world_size, **options)
    for tied in (True, False):
        alone = one_process(decoder(tied), optimizer, world_size, micro=micro)
        for rank, stage in itertools.product(range(world_size), stages):
            difference = largest(by_rank[rank][stage, tied], alone)
            assert difference == 0, f"rank {rank}, stage {stage}, tied {tied}: {difference}"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("world_size", SIZES)
def test_sharded_is_unsharded(world_size, optimizer):
    """Three steps of each stage, tied and not, to the last bit."""
    assert_is_unsharded(optimizer, world_size)


def test_accumulation_is_unsharded():
    """From stage 2 on each micro-batch is averaged and added, as the one process here does."""
    assert_is_unsharded("adam", 3, stages=(2, 3), micro=2)


def test_without_reshard_after_forward():
    assert_is_unsharded("adam", 3, stages=(3,), reshard_after_forward=False)


def hybrid():
    """Two groups of two: shards within (0, 1) and (2, 3), copies across."""
    rank = dist.get_rank()
    inner, across = Wire([rank // 2 * 2, rank // 2 * 2 + 1]), Wire([rank % 2, rank % 2 + 2])
    model = sharded(decoder(), "adam", wire=inner, replicas=across)
    state = train(model)

    def add(parts):
        return (parts[0] + parts[1]) + (parts[2] + parts[3])

    return largest(state, one_process(decoder(), "adam", 4, add=add)), model.held().parameters


def test_hybrid_sharding_is_unsharded():
    """((g0 + g1) + (g2 + g3))/4, to the last bit; each rank holds half."""
    half = sum(-(-n // 2) for n in unit_sizes()) * 4
    assert on_ranks(hybrid, world_size=4) == [(0.0, half)] * 4


# ── against FSDP2, with recomputed activations ────────────────────────────────────────────────────


def beside_fully_shard(optimizer):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    theirs = decoder()
    for part in (*theirs.blocks, theirs):
        fully_shard(part, mesh=mesh)
    step_of = OPTIMIZERS[optimizer](theirs.parameters())
    for step in range(STEPS):
        step_of.zero_grad()
        loss_of(theirs, step, dist.get_rank()).backward()
        step_of.step()
    expected = {name: p.full_tensor().detach() for name, p in theirs.named_parameters()}
    return largest(train(sharded(decoder(), optimizer)), expected)


@pytest.mark.parametrize("world_size", MANY)
def test_stage_3_is_fully_shard(world_size):
    """To the last bit on two ranks. On more FSDP2 adds up in another order, as it shards each
    parameter by rows and we the flat unit: SGD's 3 steps at lr 0.1 keep units in the last place.
    """
    tolerance = 0 if world_size == 2 else 1e-6
    for optimizer in ("sgd", "adam") if world_size == 2 else ("sgd",):
        found = on_ranks(beside_fully_shard, optimizer, world_size=world_size)
        assert max(found) <= tolerance, found


def checkpointed(outside):
    """Blocks that recompute their activations, the checkpoint within the hooks or around them."""
    module = decoder()
    model = sharded(module)
    for i, block in enumerate(module.blocks):
        if outside:
            module.blocks[i] = Checkpointed(block)
        else:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    return train(model)


class Checkpointed(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *arguments, **options):
        return checkpoint(self.inner, *arguments, use_reentrant=False, **options)


@pytest.mark.parametrize("outside", [False, True])
def test_activation_checkpointing_changes_nothing(outside):
    alone = one_process(decoder(), "adam", 2)
    for state in on_ranks(checkpointed, outside, world_size=2):
        assert largest(state, alone) == 0


# ── bytes ─────────────────────────────────────────────────────────────────────────────────────────


def unit_sizes(d_model=8):
    module = decoder(d_model=d_model)
    groups = sharding.unit_parameters(module, list(module.blocks))
    return [sum(p.numel() for p in group.values()) for group in groups]


def held_and_sent(stage, **options):
    """Bytes between the backward pass and the step, and those sent in a whole step."""
    model = sharded(decoder(d_model=12), stage=stage, **options)
    for step in range(2):
        model.wire.messages.clear()
        loss_of(model, step, dist.get_rank()).backward()
        held = model.held()
        model.step()
    return held, model.held(), model.wire.bytes_sent


def padded(world_size):
    """Parameters in units that end in zeros so that all shards are of one size."""
    return sum(-(-n // world_size) * world_size for n in unit_sizes(d_model=12))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("world_size", SIZES)
def test_bytes_held_are_the_formulas(world_size, stage):
    """To the byte, with Adam in fp32: 16Ψ, 8Ψ + 8Ψ/N, 4Ψ + 12Ψ/N, 16Ψ/N."""
    expected = sharding.state_bytes(padded(world_size), world_size, stage, sharding.FP32_ADAM)
    for held, after, _ in on_ranks(held_and_sent, stage, world_size=world_size):
        assert held == expected
        assert after == expected._replace(gradients=0)


@pytest.mark.parametrize("world_size", SIZES)
def test_bytes_sent_are_the_formulas(world_size):
    """2Ψ, 2Ψ, 3Ψ times (N − 1)/N; of stage 3's three, the rest is gathered once, not twice."""
    n, itemsize, fraction = padded(world_size), 4, (world_size - 1) / world_size
    rest = -(-unit_sizes(d_model=12)[-1] // world_size) * world_size * itemsize * fraction
    for stage in STAGES:
        expected = sharding.traffic_bytes(n, world_size, stage, itemsize)
        expected -= rest if stage == 3 else 0
        for _, _, sent in on_ranks(held_and_sent, stage, world_size=world_size):
            assert sent == pytest.approx(expected, abs=1e-6)  # the fraction is not exact


def test_parameters_come_and_go():
    """Within stage 3's forward pass one block at a time is whole, and the rest is."""

    def inside():
        model, found = sharded(decoder()), []
        for block in model.module.blocks:
            block.attention.register_forward_hook(lambda *_: found.append(model.held().parameters))
        before = model.held().parameters
        loss = loss_of(model, 0, dist.get_rank())
        middle = model.held().parameters
        loss.backward()
        return before, found, middle, model.held().parameters

    sizes = unit_sizes()
    shards = 4 * sum(-(-n // 2) for n in sizes)
    block, rest = (4 * 2 * -(-n // 2) for n in sizes[1:])
    for before, found, middle, after in on_ranks(inside, world_size=2):
        assert before == after == shards
        assert found == [shards + rest + block] * 2
        assert middle == shards + rest


# ── formulas ──────────────────────────────────────────────────────────────────────────────────────


def test_the_table_of_the_paper():
    """ZeRO, table 1: GB for 7.5 and 128 billion parameters, stages 1 to 3, by number of ranks."""
    table = {
        (7.5, 4): (52.5, 41.3, 30.0),
        (7.5, 64): (31.4, 16.6, 1.88),
        (7.5, 1024): (30.1, 15.1, 0.12),
        (128, 64): (536, 284, 32.0),
        (128, 1024): (514, 257, 2.0),
    }
    for (billions, world_size), row in table.items():
        for stage, gigabytes in enumerate(row, start=1):
            found = sharding.state_bytes(billions, world_size, stage).total
            assert found == pytest.approx(
                gigabytes, rel=0.005, abs=0.005
            )  # the table's own rounding
    assert sharding.state_bytes(7.5, 64, 0).total == 120


@given(st.integers(0, 10**12), st.integers(1, 4096))
def test_each_stage_holds_no_more_than_the_one_before(n, world_size):
    for costs in (sharding.MIXED_ADAM, sharding.FP32_ADAM, sharding.FP32_SGD):
        totals = [sharding.state_bytes(n, world_size, s, costs).total for s in (0, 1, 2, 3)]
        assert totals == sorted(totals, reverse=True)
        assert totals[0] == n * sum(costs)
        assert totals[3] == pytest.approx(totals[0] / world_size, rel=1e-12)


def test_traffic_by_hand():
    """Two ranks: Ψ bytes each up to stage 2, 1.5 Ψ at stage 3; one rank sends nothing."""
    assert [sharding.traffic_bytes(10, 2, s) for s in (0, 1, 2, 3)] == [40, 40, 40, 60]
    assert [sharding.traffic_bytes(10, 1, s) for s in (0, 1, 2, 3)] == [0, 0, 0, 0]


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────


def test_bad_numbers():
    with pytest.raises(ValueError, match="stage is 4; ZeRO has the stages 0, 1, 2 and 3"):
        sharding.state_bytes(1, 1, 4)
    with pytest.raises(ValueError, match="world_size is 0"):
        sharding.traffic_bytes(1, 0, 1)
    with pytest.raises(ValueError, match="n_parameters is -1"):
        sharding.state_bytes(-1, 1, 1)
    with pytest.raises(RankError, match="raised ValueError: stage is 0; give 1, 2 or 3"):
        on_ranks(lambda: sharded(decoder(), stage=0), world_size=1)


def test_another_model_on_one_rank():
    def wider():
        sharded(decoder(d_model=8 + 4 * dist.get_rank()))

    with pytest.raises(RankError, match=r"ValueError: rank 1 has another model than rank 0"):
        on_ranks(wider, world_size=2)


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_without_gradients(stage):
    def early():
        sharded(decoder(), stage=stage).step()

    with pytest.raises(RankError, match=r"no gradient of blocks\.0\.attention.*: run backward\(\)"):
        on_ranks(early, world_size=2)


def test_a_net_that_is_all_units_or_none():
    """No rest; no units: one gather of everything."""

    def both():
        found = []
        for units in (slice(None), slice(0)):
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
            model = sharding.Sharded(net, list(net)[units], OPTIMIZERS["sgd"])
            model(torch.ones(2, 3)).sum().backward()
            model.step()
            found.append(model.full_state())
        return largest(*found)

    assert on_ranks(both, world_size=2) == [0.0, 0.0]


def test_a_nan_on_one_rank_reaches_all_alike():
    def states():
        model = sharded(decoder(), "sgd")
        factor = torch.nan if dist.get_rank() == 1 else 1.0
        (factor * loss_of(model, 0, dist.get_rank())).backward()
        model.step()
        return {name: p.isnan() for name, p in model.full_state().items()}

    first, second = on_ranks(states, world_size=2)
    assert all(torch.equal(mask, second[name]) for name, mask in first.items())
    assert all(mask.any() for mask in first.values())


def test_a_weight_shared_by_units_stays_with_the_rest():
    """It is needed while either is gathered, so neither may release it."""
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    groups = sharding.unit_parameters(nn.Sequential(first, second), [first, second])
    assert [list(group) for group in groups] == [["0.bias"], ["1.bias"], ["0.weight"]]

    def trained():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        net[1].weight = net[0].weight
        model = sharding.Sharded(net, list(net), OPTIMIZERS["sgd"])
        model(torch.ones(1, 2)).sum().backward()
        model.step()
        return model.full_state()["0.weight"]

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    net(torch.ones(1, 2)).sum().backward()
    expected = net[0].weight.detach() - 0.1 * net[0].weight.grad
    for found in on_ranks(trained, world_size=2):
        torch.testing.assert_close(found, expected, atol=1e-7, rtol=0)  # fp32, (g + g)/2 = g
