"""What the tests of sharding share: a small decoder, its training, and one process that does it."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
import torch.nn.functional as F

from course_utils.architectures.decoder import Decoder, DecoderConfig
from course_utils.parallel import sharding
from course_utils.parallel.collectives import even_bounds

STEPS, VOCABULARY = 3, 13
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
}


def decoder(tied=True, seed=0, d_model=8, n_layers=2):
    torch.manual_seed(seed)
    config = DecoderConfig(VOCABULARY, d_model, n_heads=2, n_layers=n_layers, d_ff=12, tied=tied)
    return Decoder(config)


def loss_of(model, step, rank):
    generator = torch.Generator().manual_seed(100 * step + rank)
    ids = torch.randint(VOCABULARY, (2, 6), generator=generator)
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def sharded(module, optimizer="adam", **options):
    return sharding.Sharded(module, list(module.blocks), OPTIMIZERS[optimizer], **options)


def train(model, steps=STEPS, micro=1):
    for step in range(steps):
        for part in range(micro):
            loss_of(model, micro * step + part, dist.get_rank()).backward()
        model.step()
    return model.full_state()


# ── one process that does what N do ───────────────────────────────────────────────────────────────


def in_ring_order(parts):
    """The sum of one flat gradient a rank, ((x[c−1] + x[c−2]) + …) + x[c] in chunk c."""
    n, total = len(parts), torch.empty_like(parts[0])
    for c, (start, stop) in enumerate(even_bounds(len(total), n)):
        order = [(c - 1 - step) % n for step in range(n)]
        chunk = parts[order[0]][start:stop].clone()
        for rank in order[1:]:
            chunk = chunk + parts[rank][start:stop]
        total[start:stop] = chunk
    return total


def one_process(
    module, optimizer, world_size, steps=STEPS, micro=1, add=in_ring_order, compute_dtype=None
):
    """The unsharded run: torch's optimizer on the module, with the mean of N gradients.

    With `compute_dtype` a rounded copy of it computes, and the module's are the masters.
    """
    masters, module = copy.deepcopy(module), copy.deepcopy(module)
    groups = sharding.unit_parameters(module, list(module.blocks))
    named = dict(masters.named_parameters())
    step_of = OPTIMIZERS[optimizer](masters.parameters())
    for step in range(steps):
        for name, p in module.named_parameters():
            p.data = named[name].detach().to(compute_dtype or p.dtype)
        sums = [0] * len(groups)
        for part in range(micro):
            for i, flat in enumerate(gradients(module, groups, world_size, micro * step + part)):
                sums[i] = sums[i] + add(flat)
        for group, flat in zip(groups, sums, strict=True):
            sizes = [p.numel() for p in group.values()]
            for name, gradient in zip(group, flat[: sum(sizes)].split(sizes), strict=True):
                named[name].grad = gradient.view_as(named[name]).to(named[name].dtype)
        step_of.step()
    return named


def gradients(module, groups, world_size, step):
    """Unit → the ranks' flat gradients, times 1/N and padded so that N chunks are even."""
    by_rank = []
    for rank in range(world_size):
        module.zero_grad()
        loss_of(module, step, rank).backward()
        flat = [torch.cat([p.grad.reshape(-1) for p in group.values()]) for group in groups]
        by_rank.append([F.pad(x, (0, -len(x) % world_size)) * (1 / world_size) for x in flat])
    return zip(*by_rank, strict=True)


def largest(a, b):
    """The largest difference between two states; 0 only where they are equal bit by bit."""
    assert a.keys() == b.keys()
    if all(torch.equal(a[name], b[name]) for name in a):
        return 0.0
    return max((a[name] - b[name]).abs().max().item() for name in a) or 1e-45
