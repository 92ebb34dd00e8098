"""Plausible wrong versions of course_utils.parallel.collectives, which run on the ranks."""

from __future__ import annotations

import torch
from planting import Bug, originals

right = originals("parallel.collectives")


def ring_sum_the_other_way(x, bounds, wire):
    """Data flows r → r + 1: the same sums in another order."""
    left, to = (wire.rank - 1) % wire.size, (wire.rank + 1) % wire.size
    for step in range(wire.size - 1):
        own = right["_chunk"](x, bounds, wire.rank - 2 - step)
        part = torch.empty_like(own)
        wire.exchange(right["_chunk"](x, bounds, wire.rank - 1 - step), to, part, left, "sum")
        own += part


def ring_sum_one_round_short(x, bounds, wire):
    left, source = (wire.rank - 1) % wire.size, (wire.rank + 1) % wire.size
    for step in range(wire.size - 2):
        own = right["_chunk"](x, bounds, wire.rank + 2 + step)
        part = torch.empty_like(own)
        wire.exchange(right["_chunk"](x, bounds, wire.rank + 1 + step), left, part, source, "sum")
        own += part


def ring_sum_overwrites(x, bounds, wire):
    left, source = (wire.rank - 1) % wire.size, (wire.rank + 1) % wire.size
    for step in range(wire.size - 1):
        own = right["_chunk"](x, bounds, wire.rank + 2 + step)
        wire.exchange(right["_chunk"](x, bounds, wire.rank + 1 + step), left, own, source, "sum")


def ring_share_sends_its_own_again(x, bounds, wire):
    left, source = (wire.rank - 1) % wire.size, (wire.rank + 1) % wire.size
    for step in range(wire.size - 1):
        into = right["_chunk"](x, bounds, wire.rank + step + 1)
        wire.exchange(right["_chunk"](x, bounds, wire.rank), left, into, source, "share")


def gloo_bounds_even(n, parts, itemsize):
    return right["even_bounds"](n, parts)


def even_bounds_drop_the_rest(n, parts):
    size = n // parts
    return [(i * size, (i + 1) * size) for i in range(parts)]


def all_reduce_by_gathering_everything(x, wire):
    """The right sum in the right order of ranks, at N/2 times the bytes."""
    everything = right["all_gather"](x, wire).view(wire.size, -1)
    return x.copy_(everything.sum(0).to(x.dtype).view_as(x))


def all_reduce_averages(x, wire):
    right["ring_all_reduce"](x, wire)
    return x.div_(wire.size) if x.is_floating_point() else x


def all_reduce_by_root_forgets_itself(x, wire):
    if wire.rank == 0:
        x.zero_()
    return right["all_reduce_by_root"](x, wire)


def broadcast_from_rank_0(x, wire, source=0):
    right["_check"](x, wire, source)
    return right["broadcast"](x, wire, 0)


def broadcast_in_a_row(x, wire, source=0):
    """Right values, N − 1 rounds: the source sends all copies itself."""
    right["_check"](x, wire, source)
    for other in range(wire.size):
        if other != source and wire.rank == source:
            wire.send(x, other, "broadcast")
        elif wire.rank == other != source:
            wire.receive(x, source)
    return x


def reduce_everywhere(x, wire, target=0):
    right["_check"](x, wire, target)
    return right["ring_all_reduce"](x, wire)


def reduce_scatter_gives_the_next_chunk(x, wire):
    part = right["reduce_scatter"](x, wire)
    everything = right["all_gather"](part, wire)
    return everything.roll(-part.numel())[wire.rank * part.numel() :][: part.numel()]


def all_gather_from_itself_on(x, wire):
    """Each rank's own part comes first."""
    return right["all_gather"](x, wire).roll(-wire.rank * x.numel())


BUGS = [
    Bug("_ring_sum", "sums in the other direction", ring_sum_the_other_way, "ring_all_reduce"),
    Bug("_ring_sum", "stops a round early", ring_sum_one_round_short, "by_hand"),
    Bug("_ring_sum", "overwrites instead of adding", ring_sum_overwrites, "by_hand"),
    Bug("_ring_share", "passes nothing on", ring_share_sends_its_own_again, "by_hand"),
    Bug("gloo_bounds", "cuts evenly", gloo_bounds_even, "ring_all_reduce or bounds_by_hand"),
    Bug("even_bounds", "drops the rest", even_bounds_drop_the_rest, "bounds_cover"),
    Bug("ring_all_reduce", "gathers everything", all_reduce_by_gathering_everything, "bytes_of"),
    Bug("ring_all_reduce", "averages", all_reduce_averages),
    Bug("all_reduce_by_root", "forgets its own", all_reduce_by_root_forgets_itself),
    Bug("broadcast", "ignores the source", broadcast_from_rank_0),
    Bug("broadcast", "lets the source send all", broadcast_in_a_row, "bytes_of"),
    Bug("reduce", "sums everywhere", reduce_everywhere, "reduce_is_torchs"),
    Bug("reduce_scatter", "gives the next chunk", reduce_scatter_gives_the_next_chunk),
    Bug("all_gather", "starts at its own rank", all_gather_from_itself_on),
]
