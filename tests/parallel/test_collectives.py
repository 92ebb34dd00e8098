"""Collectives on real ranks: torch's results bit by bit, and the bytes that they cost."""

from __future__ import annotations

import itertools
import time

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from parallel_inputs import SIZES, on_ranks

from course_utils.parallel import collectives
from course_utils.parallel.collectives import Background, Wire
from course_utils.parallel.launch import RankError

# Fewer numbers than ranks, one chunk shorter or empty, several segments a chunk (1,300,001).
LENGTHS = (0, 1, 2, 3, 5, 7, 8, 64, 1001, 1_300_001)


def numbers(n, dtype=torch.float32, rank=None):
    """Other numbers on each rank, whose sum depends on its order."""
    generator = torch.Generator().manual_seed(dist.get_rank() if rank is None else rank)
    return (10 * torch.randn(n, generator=generator)).to(dtype)


def largest_difference(ours, theirs):
    return (ours - theirs).abs().max().item() if ours.numel() else 0.0


def differences(pair, lengths=LENGTHS, dtype=torch.float32):
    """Length → difference and whether equal, of what `pair(x)` returns."""
    found = {}
    for n in lengths:
        ours, theirs = pair(numbers(n, dtype))
        found[n] = torch.equal(ours, theirs), largest_difference(ours, theirs)
    return found


def assert_equal(by_rank):
    for rank, found in enumerate(by_rank):
        for n, (equal, difference) in found.items():
            assert equal, f"rank {rank}, {n} numbers: differs by {difference}"


def on_all(pair, world_size, **options):
    return on_ranks(differences, pair, world_size=world_size, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("world_size", SIZES)
def test_ring_all_reduce_is_torchs(world_size, dtype):
    """To the last bit: it sums in gloo's order, over gloo's chunks."""

    def pair(x):
        theirs = x.clone()
        if x.numel():  # gloo refuses to sum nothing
            dist.all_reduce(theirs)
        return collectives.ring_all_reduce(x, Wire()), theirs

    lengths = LENGTHS if dtype == torch.float32 else LENGTHS[:-1]
    assert_equal(on_all(pair, world_size, lengths=lengths, dtype=dtype))


@pytest.mark.parametrize("world_size", SIZES)
def test_all_reduce_by_root_sums(world_size):
    """Another order of summation than gloo's: a few units in the last place of sums near 30."""

    def pair(x):
        theirs = x.clone()
        dist.all_reduce(theirs)
        return collectives.all_reduce_by_root(x, Wire()), theirs

    for found in on_all(pair, world_size, lengths=(1, 8, 1001)):
        assert max(difference for _, difference in found.values()) < 1e-5


@pytest.mark.parametrize("world_size", SIZES)
def test_broadcast_is_torchs(world_size):
    def pairs():
        found = {}
        for source in range(dist.get_world_size()):
            ours, theirs = numbers(7), numbers(7)
            collectives.broadcast(ours, Wire(), source)
            dist.broadcast(theirs, source)
            found[source] = torch.equal(ours, theirs), largest_difference(ours, theirs)
        return found

    assert_equal(on_ranks(pairs, world_size=world_size))


@pytest.mark.parametrize("world_size", SIZES)
def test_reduce_is_torchs(world_size):
    """At the target; elsewhere ours is left as it was, torch's is not."""

    def pairs():
        found = {}
        for target in range(dist.get_world_size()):
            for n in (1, 7, 1001):
                ours, theirs = numbers(n), numbers(n)
                collectives.reduce(ours, Wire(), target)
                dist.reduce(theirs, target)
                expected = theirs if dist.get_rank() == target else numbers(n)
                difference = largest_difference(ours, expected)
                found[target, n] = torch.equal(ours, expected), difference
        return found

    assert_equal(on_ranks(pairs, world_size=world_size))


@pytest.mark.parametrize("world_size", SIZES)
def test_all_gather_is_torchs(world_size):
    def pair(x):
        theirs = x.new_empty(dist.get_world_size() * x.numel())
        dist.all_gather_into_tensor(theirs, x)
        return collectives.all_gather(x, Wire()), theirs

    assert_equal(on_all(pair, world_size, lengths=(1, 7, 1001)))


@pytest.mark.parametrize("world_size", SIZES)
def test_reduce_scatter_is_torchs(world_size):
    """gloo makes it of an all-reduce, whose chunks are ours where a share is an even number."""

    def pair(x):
        x = numbers(dist.get_world_size() * x.numel())
        theirs = x.new_empty(x.numel() // dist.get_world_size())
        dist.reduce_scatter_tensor(theirs, x.clone())
        return collectives.reduce_scatter(x, Wire()), theirs

    assert_equal(on_all(pair, world_size, lengths=(2, 8, 64, 1000)))
    for found in on_all(pair, world_size, lengths=(1, 7, 1001)):
        # Other order of summation in a few chunks: some units in the last place of sums near 30.
        assert max(difference for _, difference in found.values()) < 1e-5


def test_by_hand():
    """Rank r holds r + 1, 10(r + 1), 100(r + 1): the sums over three ranks are 6, 60, 600."""

    def sums():
        x = (dist.get_rank() + 1.0) * torch.tensor([1.0, 10.0, 100.0])
        part = collectives.reduce_scatter(x, Wire())
        assert collectives.all_gather(part, Wire()).tolist() == [6, 60, 600]
        return part.item(), collectives.ring_all_reduce(x, Wire()).tolist()

    assert on_ranks(sums, world_size=3) == [(v, [6.0, 60.0, 600.0]) for v in (6.0, 60.0, 600.0)]


# ── bytes and times ───────────────────────────────────────────────────────────────────────────────


def sent(name, n, *arguments):
    wire = Wire()
    getattr(collectives, name)(numbers(n), wire, *arguments)
    return wire.bytes_sent


@pytest.mark.parametrize("world_size", SIZES)
def test_bytes_of_the_collectives(world_size):
    """Of 4·240 bytes, which every number of ranks shares evenly: the formulas exactly."""
    n, psi, N = 240, 960, world_size
    ring = on_ranks(sent, "ring_all_reduce", n, world_size=N)
    assert ring == [2 * (N - 1) * psi // N] * N
    assert on_ranks(sent, "reduce_scatter", n, world_size=N) == [(N - 1) * psi // N] * N
    assert on_ranks(sent, "all_gather", n, world_size=N) == [(N - 1) * psi] * N
    root = on_ranks(sent, "all_reduce_by_root", n, world_size=N)
    assert root == [(N - 1) * psi] + [psi] * (N - 1)
    tree = on_ranks(sent, "broadcast", n, world_size=N)
    assert sum(tree) == (N - 1) * psi
    assert max(tree) == psi * (N - 1).bit_length()  # rank 0 sends in each of log₂ N rounds
    assert sum(on_ranks(sent, "reduce", n, 0, world_size=N)) == (N - 1) * psi * (N + 1) // N


def test_messages_of_a_ring_are_on_record():
    """Rank r sends to r − 1, in 2(N − 1) rounds, on a clock that all ranks share."""

    def messages():
        before = time.perf_counter()
        wire = Wire()
        collectives.ring_all_reduce(numbers(240), wire)
        return before, wire.messages, time.perf_counter()

    start = time.perf_counter()
    by_rank = on_ranks(messages, world_size=3)
    for rank, (before, found, after) in enumerate(by_rank):
        assert [m[:3] for m in found] == [(rank, (rank - 1) % 3, 320)] * 4
        assert [m.label for m in found] == ["sum", "sum", "share", "share"]
        times = [t for m in found for t in (m.start, m.end)]
        assert [start, before, *times, after] == sorted([start, before, *times, after])


# ── groups, threads ───────────────────────────────────────────────────────────────────────────────


def test_two_rings_beside_each_other():
    """Ranks 0 and 2 add up, and so do 3 and 1, in this order of places."""

    def add():
        mine = [0, 2] if dist.get_rank() in (0, 2) else [3, 1]
        wire = Wire(mine)
        x = torch.tensor([float(dist.get_rank())])
        gathered = collectives.all_gather(x, wire)
        return wire.rank, collectives.ring_all_reduce(x, wire).item(), gathered.tolist()

    assert on_ranks(add, world_size=4) == [
        (0, 2.0, [0.0, 2.0]),
        (1, 4.0, [3.0, 1.0]),
        (1, 2.0, [0.0, 2.0]),
        (0, 4.0, [3.0, 1.0]),
    ]


def test_collectives_in_the_background_keep_their_order():
    def add():
        background, wire = Background(), Wire()
        futures = [
            background.start(collectives.ring_all_reduce, torch.full((n,), float(n)), wire)
            for n in (1, 5, 3)
        ]
        sums = [future.wait().tolist() for future in futures]
        wrong = background.start(collectives.reduce, torch.zeros(1), wire, 7)
        background.close()
        with pytest.raises(ValueError, match="place is 7"):
            wrong.wait()
        return sums

    assert on_ranks(add, world_size=2) == [[[2.0], [10.0] * 5, [6.0] * 3]] * 2


# ── chunks ────────────────────────────────────────────────────────────────────────────────────────


@given(st.integers(0, 5_000_000), st.integers(1, 9), st.sampled_from([2, 4, 8]))
def test_bounds_cover_every_element_once(n, parts, itemsize):
    for bounds in (
        collectives.even_bounds(n, parts),
        collectives.gloo_bounds(n, parts, itemsize),
    ):
        assert len(bounds) == parts
        assert bounds[0][0] == 0
        assert bounds[-1][1] == n
        assert all(before[1] == after[0] for before, after in itertools.pairwise(bounds))


def test_bounds_by_hand():
    assert collectives.even_bounds(8, 4) == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert collectives.gloo_bounds(3, 3, 4) == [(0, 2), (2, 3), (3, 3)]
    # 3 MiB for two ranks: four segments of 3/4 MiB, two a chunk
    assert collectives.gloo_bounds(3 * 2**18, 2, 4) == [(0, 393216), (393216, 786432)]


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────


def refused(call):
    def body():
        with pytest.raises(ValueError, match=r"\d") as caught:
            call(Wire())
        return str(caught.value)

    return on_ranks(body, world_size=2)[0]


def test_bad_input():
    assert "place is 2; 2 ranks take part" in refused(
        lambda wire: collectives.broadcast(torch.zeros(2), wire, 2)
    )
    assert "place is -1" in refused(lambda wire: collectives.reduce(torch.zeros(2), wire, -1))
    assert "shape (3,); give one dimension that 2 ranks share evenly" in refused(
        lambda wire: collectives.reduce_scatter(torch.zeros(3), wire)
    )
    assert "x of shape (2, 3) is not contiguous" in refused(
        lambda wire: collectives.ring_all_reduce(torch.zeros(3, 2).T, wire)
    )
    assert "ranks are [0, 0, 1]; each once" in refused(lambda wire: Wire([0, 0, 1]))
    assert "ranks are [0, 1, 2]; there are 2" in refused(lambda wire: Wire([0, 1, 2]))


def test_a_nan_on_one_rank_is_a_nan_on_all():
    def add():
        x = torch.ones(4)
        if dist.get_rank() == 1:
            x[2] = torch.nan
        return collectives.ring_all_reduce(x, Wire()).isnan().tolist()

    assert on_ranks(add, world_size=3) == [[False, False, True, False]] * 3


def test_another_length_on_one_rank_ends_the_run():
    def add():
        return collectives.ring_all_reduce(torch.ones(40 + 40 * dist.get_rank()), Wire())

    with pytest.raises(RankError, match=r"rank \d of 2 "):
        on_ranks(add, world_size=2, limit=2)
