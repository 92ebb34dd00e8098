"""Plausible wrong versions of course_utils.parallel.strategies, which run on the ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from planting import Bug, originals

from course_utils.parallel import checkpoints
from course_utils.parallel.collectives import Wire

right = originals("parallel.strategies")


def groups_across(shard_ranks):
    """A model is shared by ranks of different machines."""
    inner, across = right["groups"](shard_ranks)
    return across, inner


def groups_alone(shard_ranks):
    """Every group trains a model of its own."""
    inner, _ = right["groups"](shard_ranks)
    return inner, Wire([dist.get_rank()])


def restore_without_layout(strategy, path):
    """The buckets are found anew: on three ranks the first step adds up in another order."""
    return checkpoints.restore(path, strategy.saved, strategy.optimizer)


def local_bytes_of_all(optimizer):
    """What all ranks hold together."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = [x for of in optimizer.state.values() for x in of.values()]
    kinds = (parameters, [p.grad for p in parameters], [x for x in state if x.dim()])
    return right["Held"](*(sum(x.numel() * x.element_size() for x in kind) for kind in kinds))


def build_stage_3_as_2(name, *arguments):
    return right["build"]("zero2" if name == "zero3" else name, *arguments)


def fully_sharded_by_sum(module, make_optimizer, compute_dtype):
    """Gradients are summed over the ranks, where the loss is already the mean of all tokens."""
    strategy = right["_fully_sharded"](module, make_optimizer, compute_dtype)
    parameters = [p for group in strategy.optimizer.param_groups for p in group["params"]]

    def step():
        with torch.no_grad():
            for p in parameters:
                p.grad.add_(p, alpha=0.1)  # and decay, as L2 has it, on top of AdamW's
        strategy.step()

    return strategy._replace(step=step)


WHERE = "parallel.train"
BUGS = [
    Bug("groups", "crosses machines", groups_across, "neighbours", WHERE),
    Bug("groups", "averages within groups", groups_alone, "neighbours", WHERE),
    Bug("restore", "finds the buckets anew", restore_without_layout, "last_bit and ddp", WHERE),
    Bug("local_bytes", "counts other ranks'", local_bytes_of_all, "held_and_sent", WHERE),
    Bug("build", "takes stage 2 for 3", build_stage_3_as_2, "held_and_sent", WHERE),
    Bug("_fully_sharded", "decays twice", fully_sharded_by_sum, "all_batches and fsdp", WHERE),
]
