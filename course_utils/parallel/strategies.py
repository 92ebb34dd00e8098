"""Six ways to train one decoder on many ranks, with one face for the training loop. Notebook 05.

`ddp` and `zero1` to `zero3` are the course's own, `hsdp` its ZeRO-3 within groups of ranks, and
`fsdp` torch's `fully_shard`, the production form of `zero3`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from course_utils.parallel import checkpoints
from course_utils.parallel.collectives import Wire
from course_utils.parallel.data_parallel import DataParallel, ring_in_background
from course_utils.parallel.sharding import Held, Sharded, traffic_bytes

STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "fsdp", "hsdp")
MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class Strategy(NamedTuple):
    """What the training loop needs of a model on many ranks.

    `model` is called, `saved` is what a checkpoint holds of it. `step` follows the last backward
    pass of a step and leaves no gradients; the micro-batches before run inside `gathering()`.
    """

    name: str
    model: nn.Module
    saved: nn.Module
    optimizer: torch.optim.Optimizer
    step: Callable[[], None]
    gathering: Callable[[], contextlib.AbstractContextManager]
    held: Callable[[], Held]
    sent: Callable[[int], float]  # backward passes so far → bytes that this rank has sent in them


def build(
    name: str,
    module: nn.Module,
    make_optimizer: MakeOptimizer,
    compute_dtype: torch.dtype | None = None,
    shard_ranks: int | None = None,
    prefetch: bool = False,
) -> Strategy:
    """`module`, a decoder with `blocks`, under one of STRATEGIES on all ranks.

    `compute_dtype` and `prefetch` as in `Sharded`; `shard_ranks` is how many ranks share a model
    under `hsdp`.
    """
    if name not in STRATEGIES:
        raise ValueError(f"strategy is {name!r}; there are {', '.join(STRATEGIES)}")
    if shard_ranks is not None and name != "hsdp":
        raise ValueError(f"shard_ranks is {shard_ranks}, which is for hsdp alone, not for {name}")
    if prefetch and name in ("ddp", "fsdp"):
        raise ValueError(f"prefetch is for zero1 to zero3 and hsdp; {name} overlaps by itself")
    if name == "ddp":
        if compute_dtype is not None:
            raise ValueError(
                f"compute_dtype is {compute_dtype}, but ddp computes in the model's own type; "
                "zero1 is the same with masters"
            )
        return _replicated(module, make_optimizer)
    if name == "fsdp":
        return _fully_sharded(module, make_optimizer, compute_dtype)
    options: dict[str, Any] = {"compute_dtype": compute_dtype, "prefetch": prefetch}
    options["stage"] = 3 if name == "hsdp" else int(name[-1])
    if name == "hsdp":
        options["wire"], options["replicas"] = groups(shard_ranks)
    return _sharded(name, module, make_optimizer, options)


def groups(shard_ranks: int | None) -> tuple[Wire, Wire]:
    """This rank's wires for hybrid sharding: to those that share a model, to those with its shard.

    Neighbours share one, as on one machine: 2 × 2 ranks are (0, 1), (2, 3) and (0, 2), (1, 3).
    None: half of the ranks where their number is even, else all.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    if shard_ranks is None:
        shard_ranks = size // 2 if size % 2 == 0 else size
    if not 1 <= shard_ranks <= size or size % shard_ranks:
        raise ValueError(f"shard_ranks is {shard_ranks}; it must divide the {size} ranks evenly")
    first = rank - rank % shard_ranks
    inner = Wire(range(first, first + shard_ranks))
    return inner, Wire(range(rank % shard_ranks, size, shard_ranks))


# ── one function for each kind ────────────────────────────────────────────────────────────────────


def _replicated(module: nn.Module, make_optimizer: MakeOptimizer) -> Strategy:
    wire = Wire()
    model = DataParallel(module, all_reduce=ring_in_background(wire))
    optimizer = make_optimizer(model.trained)

    def step() -> None:
        model.synchronize()
        optimizer.step()
        optimizer.zero_grad()

    return Strategy(
        name="ddp",
        model=model,
        saved=module,
        optimizer=optimizer,
        step=step,
        gathering=model.no_sync,
        held=lambda: local_bytes(optimizer),
        sent=lambda passes: wire.bytes_sent,
    )


def _sharded(
    name: str, module: nn.Module, make_optimizer: MakeOptimizer, options: dict[str, Any]
) -> Strategy:
    model = Sharded(module, list(module.blocks), make_optimizer, **options)
    wires = [model.wire, *([model.replicas] if model.replicas else [])]
    return Strategy(
        name=name,
        model=model,
        saved=model,
        optimizer=model.optimizer,
        step=model.step,
        gathering=contextlib.nullcontext,
        held=model.held,
        sent=lambda passes: sum(wire.bytes_sent for wire in wires),
    )


def _fully_sharded(
    module: nn.Module, make_optimizer: MakeOptimizer, compute_dtype: torch.dtype | None
) -> Strategy:
    first, size = next(module.parameters()), dist.get_world_size()
    mesh = DeviceMesh(first.device.type, list(range(size)))
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=compute_dtype)
    n = sum(p.numel() for p in module.parameters())
    for part in (*module.blocks, module):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    optimizer = make_optimizer(list(module.parameters()))
    itemsize = (compute_dtype or first.dtype).itemsize

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return Strategy(
        name="fsdp",
        model=module,
        saved=module,
        optimizer=optimizer,
        step=step,
        gathering=contextlib.nullcontext,
        held=lambda: local_bytes(optimizer),
        sent=lambda passes: passes * traffic_bytes(n, size, 3, itemsize),  # by the formula
    )


# ── bytes, checkpoints ────────────────────────────────────────────────────────────────────────────


def local_bytes(optimizer: torch.optim.Optimizer) -> Held:
    """Bytes of this rank's part of an optimizer's parameters, gradients and state.

    The buckets of data parallelism come on top: as many bytes as the gradients.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    state = [x for of in optimizer.state.values() for x in of.values()]
    state = [x for x in state if torch.is_tensor(x) and x.dim()]
    return Held(*(sum(_local(x).nbytes for x in kind) for kind in (parameters, gradients, state)))


def _local(x: Tensor) -> Tensor:
    return x.to_local() if hasattr(x, "to_local") else x


def save(strategy: Strategy, folder: str, step: int, notes: dict[str, Any]) -> None:
    """A checkpoint of all that the run goes on from; see `checkpoints.save`."""
    tensors = checkpoints.tensors_of(strategy.saved, strategy.optimizer)
    layout = getattr(strategy.model, "layout", None)
    checkpoints.save(folder, step, tensors, notes | {"layout": layout})


def restore(strategy: Strategy, path: str) -> dict[str, Any]:
    """Load a checkpoint into a new strategy -> its notes."""
    notes = checkpoints.restore(path, strategy.saved, strategy.optimizer)
    if isinstance(strategy.model, DataParallel):
        strategy.model.take_layout(notes["layout"])
    return notes
