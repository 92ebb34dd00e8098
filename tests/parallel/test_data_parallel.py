"""Our data parallelism on real ranks against DistributedDataParallel and against one process."""

from __future__ import annotations

import contextlib
import copy
import time

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from parallel_inputs import SIZES, on_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from course_utils.parallel import data_parallel
from course_utils.parallel.collectives import Wire
from course_utils.parallel.launch import RankError

MANY = SIZES[1:]
SMALL = 0.0005  # MiB: about 130 numbers a bucket
STEPS, VOCABULARY = 20, 11
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
}


class Tied(nn.Module):
    """Words in, scores of words out, through one table; a layer that is frozen."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 8)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.hidden = nn.Linear(8, 8)
        self.out = nn.Linear(8, VOCABULARY, bias=False)
        self.out.weight = self.table.weight

    def forward(self, ids):
        return self.out(torch.tanh(self.hidden(self.frozen(self.table(ids)))))


class Normed(nn.Module):
    """Statistics of the batch in buffers."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 6)
        self.norm = nn.BatchNorm1d(6)
        self.out = nn.Linear(6, VOCABULARY)

    def forward(self, ids):
        return self.out(self.norm(self.table(ids).flatten(0, 1))).view(*ids.shape, -1)


def plain():
    layers = [nn.Embedding(VOCABULARY, 12), nn.Linear(12, 30), nn.GELU(), nn.LayerNorm(30)]
    return nn.Sequential(*layers, nn.Linear(30, 17), nn.ReLU(), nn.Linear(17, VOCABULARY))


NETS = {"plain": plain, "tied": Tied, "normed": Normed}


def net(kind, seed=0):
    torch.manual_seed(seed)
    return NETS[kind]()


def batch(step, rank, size=3):
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randint(VOCABULARY, (2, size, 5), generator=generator)


def loss_of(model, step, rank):
    ids, targets = batch(step, rank)
    return F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())


def ours(module, **options):
    return data_parallel.DataParallel(module, **options)


def theirs(module, **options):
    wrapped = DistributedDataParallel(module, **options)
    wrapped.synchronize = lambda: None
    return wrapped


def train(wrapped, optimizer="sgd", steps=STEPS, micro=1, net_seed=0):
    """`steps` steps of `micro` micro-batches each -> parameters and buffers by name."""
    step_of = OPTIMIZERS[optimizer](wrapped.module.parameters())
    for step in range(steps):
        step_of.zero_grad()
        for part in range(micro):
            last = part == micro - 1
            with contextlib.nullcontext() if last else wrapped.no_sync():
                loss_of(wrapped, micro * step + part, dist.get_rank()).backward()
        wrapped.synchronize()
        step_of.step()
    return {name: x.clone() for name, x in wrapped.module.state_dict().items()}


def largest(a, b):
    """The largest difference between two states; 0 only where they are equal bit by bit."""
    if all(torch.equal(a[name], b[name]) for name in a):
        return 0.0
    return max((a[n].double() - b[n].double()).abs().max().item() for n in a) or 1e-45


# ── against DistributedDataParallel ───────────────────────────────────────────────────────────────


def both(kind, optimizer, caps, micro=1, ring=False):
    """Other weights on each rank to begin with, as rank 0's are to be taken."""
    module = net(kind, seed=dist.get_rank())
    wire = Wire()
    own = {"all_reduce": data_parallel.ring_in_background(wire)} if ring else {}
    firsts = {"first_cap_mb": caps["bucket_cap_mb"]} if caps else {}
    a = train(ours(copy.deepcopy(module), **caps, **firsts, **own), optimizer, micro=micro)
    b = train(theirs(module, **caps), optimizer, micro=micro)
    return largest(a, b)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("world_size", SIZES)
def test_twenty_steps_are_torchs(world_size, optimizer):
    """To the last bit, with buckets of 1 and 25 MiB and with many small ones."""
    for kind in ("plain", "tied"):
        for caps in ({}, {"bucket_cap_mb": SMALL}):
            found = on_ranks(both, kind, optimizer, caps, world_size=world_size)
            assert found == [0.0] * world_size, (kind, caps)


def test_accumulation_without_sync_is_torchs():
    found = on_ranks(both, "tied", "adamw", {"bucket_cap_mb": SMALL}, micro=3, world_size=3)
    assert found == [0.0] * 3


def test_buffers_are_torchs():
    """Rank 0's statistics are taken before each forward pass."""
    assert on_ranks(both, "normed", "sgd", {}, micro=2, world_size=3) == [0.0] * 3


def test_our_ring_in_the_background_is_torchs():
    found = on_ranks(both, "plain", "adamw", {"bucket_cap_mb": SMALL}, ring=True, world_size=4)
    assert found == [0.0] * 4


def test_two_types_of_numbers_have_buckets_of_their_own():
    def mixed():
        module = net("plain")
        module[1].to(torch.float64)
        module[2] = nn.Sequential(nn.GELU(), Cast(torch.float32))
        module[0] = nn.Sequential(module[0], Cast(torch.float64))
        a = train(ours(copy.deepcopy(module), bucket_cap_mb=SMALL, first_cap_mb=SMALL))
        return largest(a, train(theirs(module, bucket_cap_mb=SMALL)))

    assert on_ranks(mixed, world_size=3) == [0.0] * 3


class Cast(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, x):
        return x.to(self.dtype)


# ── against one process with the large batch ──────────────────────────────────────────────────────


def one_process(kind, optimizer, world_size, steps=STEPS):
    module = net(kind)
    step_of = OPTIMIZERS[optimizer](module.parameters())
    for step in range(steps):
        step_of.zero_grad()
        parts = [batch(step, rank) for rank in range(world_size)]
        ids, targets = torch.cat(parts, dim=1)
        F.cross_entropy(module(ids).flatten(0, 1), targets.flatten()).backward()
        step_of.step()
    return module.state_dict()


def trained(kind, optimizer):
    return train(ours(net(kind)), optimizer)


# The large batch's sums run in another order: units in the last place of fp32, about 1e-7, which
# 20 steps at lr 0.1 keep near 1e-6. AdamW divides by the gradient's own size, so where a gradient
# is itself as small as these units its step of up to lr = 1e-2 is any fraction of that.
LARGE_BATCH = {"sgd": 5e-6, "adamw": 1e-4}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("world_size", SIZES)
def test_the_large_batch_in_one_process(world_size, optimizer):
    for kind in ("plain", "tied"):
        by_rank = on_ranks(trained, kind, optimizer, world_size=world_size)
        alone = one_process(kind, optimizer, world_size)
        assert all(largest(state, by_rank[0]) == 0 for state in by_rank)
        difference = largest(by_rank[0], alone)
        assert difference < LARGE_BATCH[optimizer], (kind, difference)


def test_averages_by_hand():
    """One weight, loss w·x with x = 1, 2, 6 on three ranks: each gets the gradient 3."""

    def gradient():
        model = ours(nn.Linear(1, 1, bias=False))
        model(torch.tensor([[[1.0], [2.0], [6.0]][dist.get_rank()]])).sum().backward()
        model.synchronize()
        return model.module.weight.grad.item()

    assert on_ranks(gradient, world_size=3) == pytest.approx([3.0] * 3, abs=1e-6)  # 1/3 in fp32


def test_replicas_without_exchange_drift():
    """And are equal again, to the last bit, as long as they exchange at every step."""

    def distances():
        model = ours(net("plain"))
        step_of = OPTIMIZERS["sgd"](model.module.parameters())
        found = []
        for step in range(4):
            with model.no_sync() if step > 1 else contextlib.nullcontext():
                step_of.zero_grad()
                loss_of(model, step, dist.get_rank()).backward()
            if step < 2:
                model.synchronize()
            step_of.step()
            found.append(data_parallel.drift(model.module, model.wire))
        return found

    first, second = on_ranks(distances, world_size=2)
    assert first == [0.0] * 4  # rank 0 is what the others are measured from
    assert second[:2] == [0.0, 0.0]
    assert 0 < second[2] < second[3]


# ── buckets, overlap, bytes ───────────────────────────────────────────────────────────────────────


def test_bucket_order_by_hand():
    order = data_parallel.bucket_order
    assert order([3, 3, 3], first_cap=4, cap=4) == [[0, 1], [2]]
    assert order([8, 1, 1], first_cap=1, cap=2) == [[0], [1, 2]]
    assert order([], first_cap=1, cap=1) == []


@given(st.lists(st.integers(1, 50), min_size=1), st.integers(1, 60), st.integers(1, 60))
def test_bucket_order_is_torchs(sizes, first_cap, cap):
    tensors = [torch.empty(size, dtype=torch.int8) for size in sizes]
    expected = dist._compute_bucket_assignment_by_size(
        tensors, [first_cap, cap], [False] * len(sizes), list(range(len(sizes)))
    )[0]
    assert data_parallel.bucket_order(sizes, first_cap, cap) == expected


def timelines():
    """The spans of two steps, and when the last gradient came in the second."""
    module, found, last = net("plain"), [], []
    module[0].weight.register_post_accumulate_grad_hook(lambda _: last.append(time.perf_counter()))
    model = ours(module, bucket_cap_mb=SMALL, first_cap_mb=SMALL)
    for step in range(2):
        loss_of(model, step, dist.get_rank()).backward()
        model.synchronize()
        found.append(sorted(model.timeline, key=lambda span: span.start))
    return *found, last[1]


def test_buckets_travel_while_the_backward_pass_goes_on():
    """From the second step on: in the first, one bucket waits for all gradients."""
    for first, second, last in on_ranks(timelines, world_size=2):
        for spans, buckets in ((first, 1), (second, 4)):
            assert sum(span.what == "gradient" for span in spans) == 9  # parameters
            names = [span.what for span in spans if span.what != "gradient"]
            assert names == ["backward", *(f"bucket {i}" for i in range(buckets)), "wait"]
            assert all(span.start <= span.end for span in spans)
        backward, *buckets, wait = [span for span in second if span.what != "gradient"]
        moments = [span.start for span in second if span.what == "gradient"]
        assert max(moments) == pytest.approx(last, abs=0.01)
        assert all(backward.start <= moment <= backward.end for moment in moments)
        assert all(backward.start < bucket.start < last for bucket in buckets[:-1])
        assert last < buckets[-1].start < backward.end
        assert all(bucket.end <= wait.end for bucket in buckets)


def test_bytes_of_a_step():
    """2(N − 1)/N·Ψ a rank and step: tied weights travel once, frozen ones never."""

    def sent():
        module = nn.Sequential(nn.Linear(11, 12, bias=False), nn.Linear(12, 12, bias=False))
        module.append(copy.deepcopy(module[1])).append(nn.Linear(12, 5).requires_grad_(False))
        module[2].weight = module[1].weight
        wire = Wire()
        model = ours(module, all_reduce=data_parallel.ring_in_background(wire))
        for _ in range(3):
            model(torch.ones(2, 11)).sum().backward()
            model.synchronize()
        return wire.bytes_sent

    psi = 4 * (11 * 12 + 12 * 12)  # 1,104 bytes, divided evenly by 2·2 and 2·3 numbers
    for world_size in (2, 3):
        expected = 3 * 2 * (world_size - 1) * psi // world_size
        assert on_ranks(sent, world_size=world_size) == [expected] * world_size


# ── tokens, sampler ───────────────────────────────────────────────────────────────────────────────

LENGTHS = ([8, 64], [60, 4, 60], [7, 7, 7, 7], [5, 0])


def token_gradient(lengths, micro=1, mean_of_means=False):
    """The gradient of the mean over all tokens of texts of these lengths, one a rank."""
    model = ours(net("plain"))
    n = lengths[dist.get_rank()]
    ids, targets = batch(0, dist.get_rank(), size=13)
    ids, targets = ids.flatten()[:n], targets.flatten()[:n]
    for part in range(micro):
        mine = slice(part * n // micro, (part + 1) * n // micro)
        total = F.cross_entropy(model(ids[mine]), targets[mine], reduction="sum")
        with contextlib.nullcontext() if part == micro - 1 else model.no_sync():
            loss = total / max(n, 1) if mean_of_means else data_parallel.token_mean(total, n)
            loss.backward()
    model.synchronize()
    return torch.cat([p.grad.flatten() for p in model.module.parameters()])


def gradient_of_all(lengths):
    module = net("plain")
    pairs = [batch(0, rank, size=13) for rank in range(len(lengths))]
    ids, targets = (
        torch.cat([pair[i].flatten()[:n] for pair, n in zip(pairs, lengths, strict=True)])
        for i in (0, 1)
    )
    F.cross_entropy(module(ids), targets).backward()
    return torch.cat([p.grad.flatten() for p in module.parameters()])


@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_token_mean_is_the_mean_over_all_tokens(lengths, micro):
    """Uneven batches, a rank without a token, micro-batches: always the same mean."""
    expected = gradient_of_all(lengths)
    for found in on_ranks(token_gradient, lengths, micro=micro, world_size=len(lengths)):
        # fp32, sums of up to 124 tokens in another order, values below 1
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_token_mean_differs_from_the_mean_of_means():
    """By more than the gradient itself where lengths differ, not at all where they are equal."""
    for lengths, least in (([8, 64], 0.5), ([7, 7], 0.0)):
        right = gradient_of_all(lengths)
        wrong = on_ranks(token_gradient, lengths, mean_of_means=True, world_size=2)[0]
        error = ((wrong - right).norm() / right.norm()).item()
        assert error > least if least else error < 1e-5


@pytest.mark.parametrize("drop_last", [False, True])
def test_rank_indices_are_torchs_samplers(drop_last):
    for n in (1, 5, 8, 23):
        for world_size in (size for size in SIZES if size <= n or not drop_last):
            for seed, epoch in ((None, 0), (3, 0), (3, 2)):
                for rank in range(world_size):
                    sampler = DistributedSampler(
                        range(n), world_size, rank, shuffle=seed is not None,
                        seed=seed or 0, drop_last=drop_last,
                    )  # fmt: skip
                    sampler.set_epoch(epoch)
                    found = data_parallel.rank_indices(
                        n, rank, world_size, seed=seed, epoch=epoch, drop_last=drop_last
                    )
                    assert found == list(sampler)


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 3))
def test_rank_indices_cover_all_and_are_as_many(n, world_size, seed):
    parts = [data_parallel.rank_indices(n, r, world_size, seed=seed) for r in range(world_size)]
    assert {len(part) for part in parts} == {-(-n // world_size)}
    assert set().union(*parts) == set(range(n))
    cut = [
        data_parallel.rank_indices(n, r, world_size, seed=seed, drop_last=True)
        for r in range(world_size)
    ]
    together = [index for part in cut for index in part]
    assert len(together) == len(set(together)) == n // world_size * world_size


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────


def message(body, world_size=2):
    """What `body` complains of, on each rank."""

    def caught():
        with pytest.raises((ValueError, RuntimeError), match=r"\w") as error:
            body()
        return str(error.value)

    return on_ranks(caught, world_size=world_size)


def test_another_model_on_one_rank_is_named_on_all():
    def wider():
        ours(nn.Linear(4, 5 if dist.get_rank() == 2 else 3))

    def longer():
        ours(nn.Sequential(*[nn.Linear(2, 2) for _ in range(1 + dist.get_rank())]))

    for said in message(wider, 3):
        assert said.startswith("rank 2 has another model than rank 0: weight (5, 4) torch.float32")
        assert "instead of weight (3, 4) torch.float32; build the same one" in said
    for said in message(longer):
        assert "1.weight (2, 2) torch.float32 instead of nothing" in said


def test_a_gradient_that_is_missing_is_named():
    def unused():
        model = ours(net("plain"))
        model.module[1](torch.ones(1, 12)).sum().backward()
        model.synchronize()

    for rank, said in enumerate(message(unused)):
        assert said.startswith(f"rank {rank} has no gradient of 0.weight, 3.weight, 3.bias, 4.we")
        assert "freeze those that are not used" in said


def test_two_backward_passes_without_synchronize():
    def twice():
        model = ours(net("plain"))
        for step in range(2):
            loss_of(model, step, 0).backward()

    assert all("6.bias came twice in one step: call synchronize()" in m for m in message(twice))


def test_a_nan_on_one_rank_reaches_all_alike():
    """The replicas stay equal: all are NaN where one was, here in every parameter."""

    def gradients():
        model = ours(net("plain"))
        factor = torch.nan if dist.get_rank() == 1 else 1.0
        (factor * loss_of(model, 0, dist.get_rank())).backward()
        model.synchronize()
        return [p.grad.isnan() for p in model.module.parameters()]

    first, *others = on_ranks(gradients, world_size=3)
    assert all(mask.any() for mask in first)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_rank_with_fewer_batches_ends_the_run():
    """`rank_indices` gives all equally many; where one has fewer, the others wait for it."""

    def uneven():
        model = ours(net("plain"))
        for step in range(2 - dist.get_rank()):
            loss_of(model, step, 0).backward()
            model.synchronize()

    with pytest.raises(RankError, match=r"rank 0 of 2 did not answer within 1 s .*rank 1"):
        on_ranks(uneven, world_size=2, limit=1)


def test_other_bad_input():
    said = message(lambda: ours(nn.Linear(2, 2), bucket_cap_mb=0), 1)[0]
    assert said == "bucket_cap_mb is 0 and first_cap_mb 1.0; both are MiB above 0"
    nothing = torch.zeros(())
    assert "n_tokens is 0 on every rank" in message(lambda: data_parallel.token_mean(nothing, 0))[1]
    assert "n_tokens is -1" in message(lambda: data_parallel.token_mean(nothing, -1))[0]
    for n, rank, size in ((0, 0, 1), (3, 2, 2), (3, -1, 2)):
        with pytest.raises(ValueError, match=f"n is {n}, rank {rank} of {size}"):
            data_parallel.rank_indices(n, rank, size)
