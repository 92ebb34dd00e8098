"""Our data parallelism, sharding and ring against torch's, on two real ranks with gloo.

`PYTHONPATH=tests/support python tests/benchmarks/bench_parallel.py [--json FILE]` exits with 1 when
a floor is missed. Ratios by the clock of rank 0, since what is compared is waiting as much as work;
above one, ours is faster. The two sides run in turns, the order alternating, after a warm-up, and a
ratio is the median over the pairs. On a machine whose cores are busy the range is wide.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from side_by_side import Row, hold, main
from torch import nn

from course_utils.architectures.decoder import Decoder, DecoderConfig
from course_utils.parallel.collectives import Wire, ring_all_reduce
from course_utils.parallel.data_parallel import DataParallel
from course_utils.parallel.launch import Pool
from course_utils.parallel.sharding import Sharded

TITLE = "Two ranks against torch on gloo"
Pairs = list[tuple[float, float]]


def in_turns(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> Pairs:
    """Seconds of both sides on this rank, each from a common start."""

    def seconds(call: Callable[[], object]) -> float:
        dist.barrier()
        start = time.perf_counter()
        call()
        dist.barrier()
        return time.perf_counter() - start

    ours(), theirs()
    found = []
    for turn in range(repeats):
        if turn % 2:
            their_time, our_time = seconds(theirs), seconds(ours)
        else:
            our_time, their_time = seconds(ours), seconds(theirs)
        found.append((our_time, their_time))
    return found


def all_reduces() -> Pairs:
    """16 MiB in fp32."""
    x, wire = torch.ones(4 * 2**20), Wire()
    y = x.clone()
    return in_turns(
        lambda: ring_all_reduce(x.fill_(1), wire), lambda: dist.all_reduce(y.fill_(1)), 15
    )


def ddp_steps() -> Pairs:
    """A training step of 5 layers of 512, 64 examples a rank, SGD."""
    torch.manual_seed(0)
    net = nn.Sequential(*[part for _ in range(5) for part in (nn.Linear(512, 512), nn.GELU())])
    x = torch.randn(64, 512)
    ours, theirs = DataParallel(copy.deepcopy(net)), nn.parallel.DistributedDataParallel(net)
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-3) for m in (ours, theirs)]

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        if model is ours:
            model.synchronize()
        optimizer.step()

    return in_turns(lambda: step(ours, optimizers[0]), lambda: step(theirs, optimizers[1]), 31)


def sharded_steps() -> Pairs:
    """A training step of a decoder of 4 layers of 128, 4 × 64 tokens a rank, AdamW."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    net = Decoder(DecoderConfig(512, 128, n_heads=4, n_layers=4, d_ff=384))
    theirs, ids = copy.deepcopy(net), torch.randint(512, (4, 65))
    ours = Sharded(net, list(net.blocks), lambda p: torch.optim.AdamW(p, lr=1e-3))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for part in (*theirs.blocks, theirs):
        fully_shard(part, mesh=mesh)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-3)

    def loss_of(model: nn.Module) -> torch.Tensor:
        return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    def our_step() -> None:
        loss_of(ours).backward()
        ours.step()

    def their_step() -> None:
        optimizer.zero_grad()
        loss_of(theirs).backward()
        optimizer.step()

    return in_turns(our_step, their_step, 15)


def row_of(pool: Pool, name: str, measured: Callable[[], Pairs], floor: float | None) -> Row:
    found = pool.run(measured, limit=300)[0]
    ratios = [theirs / ours for ours, theirs in found]
    our_ms, their_ms = (1e3 * statistics.median(side) for side in zip(*found, strict=True))
    middle = statistics.median(ratios)
    row = Row(name, our_ms, their_ms, middle, min(ratios), max(ratios), floor)
    print(f"{row.ratio:.2f}×  {row.name}{'  MISSED' if row.missed else ''}", flush=True)
    return row


def measure(compare: object = None) -> list[Row]:
    """`compare`, which times one process, is not used: ranks are timed where they run."""
    with Pool(2) as pool:
        return [
            row_of(pool, "ring all-reduce of 16 MiB against gloo's", all_reduces, 0.5),
            row_of(pool, "training step against DistributedDataParallel", ddp_steps, 0.95),
            row_of(pool, "ZeRO-3 training step against fully_shard", sharded_steps, None),
        ]


def test_two_ranks_meet_their_floors():
    hold(TITLE, measure())


if __name__ == "__main__":
    sys.exit(main(TITLE, measure, __doc__))
