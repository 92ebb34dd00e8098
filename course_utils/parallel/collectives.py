"""Collectives from send and receive, every message counted and timed. Notebook 04.

Broadcast, reduce, all-reduce, reduce-scatter and all-gather as N ranks can do them when each can
only send to and receive from another. N ranks, Ψ bytes. The ring flows from rank r to r − 1 and
sums in the order of gloo's, so that results are equal bit by bit (Patarasu & Yuan 2009 for the
ring; its order in gloo's `allreduce.cc`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

SEGMENT_BYTES = 2**20  # the largest piece that gloo sends at once
Bounds = list[tuple[int, int]]  # chunk → first element, one behind the last


class Message(NamedTuple):
    """One message as its sender saw it; `start` and `end` in seconds of `time.perf_counter`, a
    clock that all processes of a machine share.
    """

    sender: int
    receiver: int
    nbytes: int
    start: float
    end: float
    label: str


class Wire:
    """Send and receive between some ranks, with a record of what this rank sent.

    `ranks` are those taking part, by default all; `rank` and `size` are this one's place among
    them and their number.
    """

    def __init__(self, ranks: Sequence[int] | None = None) -> None:
        here, size = dist.get_rank(), dist.get_world_size()
        self.ranks = list(range(size)) if ranks is None else list(ranks)
        if here not in self.ranks or len(set(self.ranks)) < len(self.ranks):
            raise ValueError(f"ranks are {self.ranks}; each once, and rank {here} among them")
        if not all(0 <= rank < size for rank in self.ranks):
            raise ValueError(f"ranks are {self.ranks}; there are {size}, from 0 on")
        self.rank, self.size = self.ranks.index(here), len(self.ranks)
        self.messages: list[Message] = []

    @property
    def bytes_sent(self) -> int:
        """Bytes that this rank has sent, contents alone."""
        return sum(message.nbytes for message in self.messages)

    def send(self, x: Tensor, to: int, label: str = "") -> None:
        """Send x to place `to`. Nothing is sent where there is nothing in it."""
        self.exchange(x, to, None, None, label)

    def receive(self, into: Tensor, source: int) -> None:
        """Fill `into`, of the sender's shape and type, with what place `source` sends."""
        self.exchange(None, None, into, source)

    def exchange(
        self,
        out: Tensor | None,
        to: int | None,
        into: Tensor | None,
        source: int | None,
        label: str = "",
    ) -> None:
        """Send and receive at the same time: in a ring where all send first, none would receive."""
        start, both = time.perf_counter(), []
        if out is not None and out.numel():
            both.append(dist.P2POp(dist.isend, out.contiguous(), self.ranks[to]))
        if into is not None and into.numel():
            both.append(dist.P2POp(dist.irecv, into, self.ranks[source]))
        # As one batch: NCCL would run a send to its end before it begins to receive.
        for work in dist.batch_isend_irecv(both) if both else []:
            work.wait()
        if out is not None and out.numel():
            end, places = time.perf_counter(), (self.rank, to)
            self.messages.append(Message(*places, out.nbytes, start, end, label))


# ── from one rank, to one rank ────────────────────────────────────────────────────────────────────


def broadcast(x: Tensor, wire: Wire, source: int = 0) -> Tensor:
    """Copy x of place `source` into x of all others, in place: log₂ N rounds of a binomial tree.

    In each round every rank that has it sends it to one that has not: (N − 1)·Ψ bytes in all.
    """
    _check(x, wire, source)
    place, reach = (wire.rank - source) % wire.size, 1
    while reach < wire.size:
        if place < reach and place + reach < wire.size:
            wire.send(x, (wire.rank + reach) % wire.size, "broadcast")
        elif reach <= place < 2 * reach:
            wire.receive(x, (wire.rank - reach) % wire.size)
        reach *= 2
    return x


def reduce(x: Tensor, wire: Wire, target: int = 0) -> Tensor:
    """The sum of all x at place `target`, in place; elsewhere x is left as it was.

    A ring reduce-scatter, after which each rank sends its summed chunk to `target`.
    """
    _check(x, wire, target)
    total = x if wire.rank == target else x.clone()
    bounds = gloo_bounds(x.numel(), wire.size, x.element_size())
    _ring_sum(total, bounds, wire)
    if wire.rank != target:
        wire.send(_chunk(total, bounds, wire.rank), target, "reduce")
        return x
    for other in range(wire.size):
        if other != target:
            wire.receive(_chunk(total, bounds, other), other)
    return x


# ── to all ranks ──────────────────────────────────────────────────────────────────────────────────


def all_reduce_by_root(x: Tensor, wire: Wire) -> Tensor:
    """The sum of all x in every rank, in place, the obvious way: rank 0 adds up and sends back.

    Rank 0 receives and sends (N − 1)·Ψ bytes, more with every rank: what a ring avoids.
    """
    _check(x, wire)
    if wire.rank:
        wire.send(x, 0, "to the root")
        wire.receive(x, 0)
        return x
    part = torch.empty_like(x)
    for other in range(1, wire.size):
        wire.receive(part, other)
        x += part
    for other in range(1, wire.size):
        wire.send(x, other, "back")
    return x


def ring_all_reduce(x: Tensor, wire: Wire) -> Tensor:
    """The sum of all x in every rank, in place: each sends 2·(N − 1)/N·Ψ bytes, whatever N.

    A reduce-scatter, then an all-gather, on N chunks. Patarasu & Yuan 2009, §3.
    """
    _check(x, wire)
    bounds = gloo_bounds(x.numel(), wire.size, x.element_size())
    _ring_sum(x, bounds, wire)
    _ring_share(x, bounds, wire)
    return x


def reduce_scatter(x: Tensor, wire: Wire) -> Tensor:
    """Of the sum of all x (N·k,), this rank's k numbers; x is left as it was.

    Each rank sends (N − 1)/N·Ψ bytes.
    """
    _check(x, wire)
    if x.dim() != 1 or x.numel() % wire.size:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; give one dimension that {wire.size} ranks share "
            "evenly: flatten it, and pad it with zeros"
        )
    total, bounds = x.clone(), even_bounds(x.numel(), wire.size)
    _ring_sum(total, bounds, wire)
    return _chunk(total, bounds, wire.rank).clone()


def all_gather(x: Tensor, wire: Wire) -> Tensor:
    """All ranks' x (k,), one after another (N·k,). Each rank sends (N − 1)·k numbers."""
    _check(x, wire)
    everything = x.new_empty(wire.size * x.numel())
    bounds = even_bounds(everything.numel(), wire.size)
    _chunk(everything, bounds, wire.rank).copy_(x.reshape(-1))
    _ring_share(everything, bounds, wire)
    return everything


def _ring_sum(x: Tensor, bounds: Bounds, wire: Wire) -> None:
    """N − 1 rounds, after which chunk r of rank r holds the sum ((x[r−1] + x[r−2]) + …) + x[r]."""
    left, right = (wire.rank - 1) % wire.size, (wire.rank + 1) % wire.size
    part = x.new_empty(max(stop - start for start, stop in bounds))
    for step in range(wire.size - 1):
        out = _chunk(x, bounds, wire.rank + 1 + step)
        own = _chunk(x, bounds, wire.rank + 2 + step)
        received = part[: own.numel()]
        wire.exchange(out, left, received, right, "sum")
        own += received


def _ring_share(x: Tensor, bounds: Bounds, wire: Wire) -> None:
    """N − 1 rounds, after which every rank has every chunk; rank r starts with chunk r."""
    left, right = (wire.rank - 1) % wire.size, (wire.rank + 1) % wire.size
    for step in range(wire.size - 1):
        out = _chunk(x, bounds, wire.rank + step)
        wire.exchange(out, left, _chunk(x, bounds, wire.rank + step + 1), right, "share")


def _chunk(x: Tensor, bounds: Bounds, index: int) -> Tensor:
    """A view of one chunk; behind the last comes the first."""
    start, stop = bounds[index % len(bounds)]
    return x.view(-1)[start:stop]


def even_bounds(n: int, parts: int) -> Bounds:
    """n elements in `parts` chunks of one size, the last ones shorter or empty.

    >>> even_bounds(7, 3)
    [(0, 3), (3, 6), (6, 7)]
    """
    return _bounds(n, parts, -(-n // parts))


def gloo_bounds(n: int, parts: int, itemsize: int) -> Bounds:
    """The chunks that gloo's all-reduce cuts n elements of `itemsize` bytes into.

    A chunk is a whole number of segments, at least two, none above 1 MiB (gloo, allreduce.cc):
    7 numbers for 2 ranks make 4 segments of 2.

    >>> gloo_bounds(7, 2, 4)
    [(0, 4), (4, 7)]
    """
    segments = max(-(-n * itemsize // SEGMENT_BYTES), 2 * parts)
    segments = -(-segments // parts) * parts
    return _bounds(n, parts, segments // parts * -(-n // segments))


def _bounds(n: int, parts: int, size: int) -> Bounds:
    return [(min(i * size, n), min((i + 1) * size, n)) for i in range(parts)]


def _check(x: Tensor, wire: Wire, place: int = 0) -> None:
    if not 0 <= place < wire.size:
        raise ValueError(f"place is {place}; {wire.size} ranks take part, from 0 on")
    if not x.is_contiguous():
        raise ValueError(f"x of shape {tuple(x.shape)} is not contiguous; use x.contiguous()")


# ── beside the computation ────────────────────────────────────────────────────────────────────────


class Background:
    """One thread that runs collectives in the order in which they were given to it.

    One, since messages between two ranks arrive in the order sent: two collectives at once would
    take each other's.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="collectives")

    def start(self, collective: Callable[..., Tensor], *arguments: Any) -> Future:
        """Begin `collective(*arguments)`; `wait()` gives its result or raises its error."""
        future = Future()
        self._thread.submit(self._run, future, collective, *arguments)
        return future

    def close(self) -> None:
        """Wait for what was begun, and end the thread."""
        self._thread.shutdown()

    @staticmethod
    def _run(future: Future, collective: Callable[..., Tensor], *arguments: Any) -> None:
        try:
            future.set_result(collective(*arguments))
        except Exception as error:
            future.set_exception(error)
