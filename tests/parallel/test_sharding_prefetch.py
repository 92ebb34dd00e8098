"""Sharding that fetches the next unit beside the computation: the same bits, bytes, and overlap."""

from __future__ import annotations

import itertools
import time

import pytest
import torch
import torch.distributed as dist
from parallel_inputs import on_ranks
from sharding_inputs import OPTIMIZERS, decoder, largest, loss_of, one_process, sharded, train
from torch import nn
from torch.utils.checkpoint import checkpoint

from course_utils.parallel import sharding
from course_utils.parallel.collectives import Wire

PATIENCE = 5.0  # seconds for what takes milliseconds on a quiet machine


def prefetching(stage, micro=1, **options):
    return train(sharded(decoder(), stage=stage, prefetch=True, **options), micro=micro)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_prefetching_is_one_process(world_size):
    """To the last bit, as without: the same sums in the same order."""
    alone = one_process(decoder(), "adam", world_size)
    for stage in (1, 2, 3):
        for state in on_ranks(prefetching, stage, world_size=world_size):
            assert largest(state, alone) == 0


@pytest.mark.parametrize(
    "options",
    [{"compute_dtype": torch.float16}, {"reshard_after_forward": False}, {"micro": 2}],
    ids=str,
)
def test_other_settings_are_one_process(options):
    known = {k: v for k, v in options.items() if k != "reshard_after_forward"}
    alone = one_process(decoder(), "adam", 3, **known)
    for state in on_ranks(prefetching, 3, **options, world_size=3):
        assert largest(state, alone) == 0


def hybrid(prefetch):
    rank = dist.get_rank()
    inner, across = Wire([rank // 2 * 2, rank // 2 * 2 + 1]), Wire([rank % 2, rank % 2 + 2])
    model = sharded(decoder(), wire=inner, replicas=across, prefetch=prefetch)
    return train(model)


def test_hybrid_sharding_is_as_without():
    plain = on_ranks(hybrid, False, world_size=4)[0]
    assert all(largest(state, plain) == 0 for state in on_ranks(hybrid, True, world_size=4))


def sent(prefetch, recompute):
    """The messages of a step, by label and size, and what became of the parameters."""
    model = sharded(decoder(), prefetch=prefetch)
    for i, block in enumerate(model.module.blocks) if recompute else ():
        model.module.blocks[i] = Checkpointed(block)
    state = train(model, steps=1)
    return sorted((m.label, m.nbytes) for m in model.wire.messages), state


class Checkpointed(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *arguments, **options):
        return checkpoint(self.inner, *arguments, use_reentrant=False, **options)


@pytest.mark.parametrize("recompute", [False, True])
def test_nothing_is_fetched_in_vain(recompute):
    """Blocks that are computed again run forward while the pass goes backward."""
    for (plain, state), (ahead, other) in zip(
        on_ranks(sent, False, recompute, world_size=2),
        on_ranks(sent, True, recompute, world_size=2),
        strict=True,
    ):
        assert plain == ahead
        assert largest(state, other) == 0


def arrivals(prefetch):
    """Within a block's pass: does the next one's parameters' way end while this one computes?"""
    model, found = sharded(decoder(), prefetch=prefetch), []
    first, second = (model.units[i] for i in (0, 1))

    def arrives(unit):
        missed = False in found  # one is enough to know
        end = time.perf_counter() + (PATIENCE if prefetch and not missed else 0.1)
        while time.perf_counter() < end:
            if unit.coming is not None and unit.coming.done():
                return True
            time.sleep(0.001)
        return False

    one, two = model.module.blocks
    one.attention.register_forward_hook(lambda *_: found.append(arrives(second)))
    two.attention.register_full_backward_hook(lambda *_: found.append(arrives(first)))
    loss_of(model, 0, dist.get_rank()).backward()
    held = model.held()
    model.step()
    return found, held.parameters


def test_the_next_unit_arrives_while_this_one_computes():
    """In both passes; afterwards nothing but the shards is left."""
    shards = 4 * sum(-(-n // 2) for n in unit_sizes())
    assert on_ranks(arrivals, True, world_size=2) == [([True, True], shards)] * 2
    assert on_ranks(arrivals, False, world_size=2) == [([False, False], shards)] * 2


def unit_sizes(n_layers=2):
    module = decoder(n_layers=n_layers)
    groups = sharding.unit_parameters(module, list(module.blocks))
    return [sum(p.numel() for p in group.values()) for group in groups]


def test_two_units_at_most_are_whole():
    """The one that computes and the next, beside the rest."""

    def most():
        model, found = sharded(decoder(n_layers=3), prefetch=True), []
        for block in model.module.blocks:
            block.attention.register_forward_hook(lambda *_: found.append(model.held().parameters))
        loss_of(model, 0, dist.get_rank()).backward()
        return found

    sizes = unit_sizes(n_layers=3)
    shards = 4 * sum(-(-n // 2) for n in sizes)
    *blocks, rest = (4 * 2 * -(-n // 2) for n in sizes)
    for found in on_ranks(most, world_size=2):
        whole = [x - shards - rest for x in found]
        assert whole == [sum(blocks[:2]), sum(blocks[1:]), blocks[2]]


def test_units_in_another_order_than_the_modules():
    """What was fetched in vain is released by the step, and the values are the same."""

    def states():
        found = []
        for order, prefetch in itertools.product((1, -1), (True, False)):
            module = decoder()
            blocks = list(module.blocks)[::order]
            options = {"prefetch": prefetch}
            model = sharding.Sharded(module, blocks, OPTIMIZERS["sgd"], **options)
            found.append(train(model))
            shards = sum(unit.sent.nbytes for unit in model.units)
            assert model.held().parameters == shards
        return [largest(state, found[0]) for state in found]

    assert on_ranks(states, world_size=2) == [[0.0] * 4] * 2


def test_no_gradients_no_backward_pass():
    """Reading with the model: each unit goes as soon as it has computed."""

    def read():
        model = sharded(decoder(), prefetch=True)
        with torch.no_grad():
            loss = loss_of(model, 0, 0)
            again = loss_of(model, 0, 0)
        inside = [unit.full.untyped_storage().nbytes() for unit in model.units[:-1]]
        return loss.item() == again.item(), inside

    assert on_ranks(read, world_size=2) == [(True, [0, 0])] * 2
