"""Plausible wrong versions of course_utils.training."""

from __future__ import annotations

import torch
from planting import Bug, originals

right = originals("training")


def step_that_adds_up(loss_of, batch, optimizer, max_norm, scheduler):
    """Gradients of the last step are still there."""
    zero, optimizer.zero_grad = optimizer.zero_grad, lambda **_: None
    try:
        return right["_step"](loss_of, batch, optimizer, max_norm, scheduler)
    finally:
        optimizer.zero_grad = zero


def step_unclipped(loss_of, batch, optimizer, max_norm, scheduler):
    return right["_step"](loss_of, batch, optimizer, None, scheduler)


def step_without_schedule(loss_of, batch, optimizer, max_norm, scheduler):
    return right["_step"](loss_of, batch, optimizer, max_norm, None)


def step_that_never_diverges(loss_of, batch, optimizer, max_norm, scheduler):
    optimizer.zero_grad()
    loss = loss_of(batch)
    loss.backward()
    optimizer.step()
    return torch.nan_to_num(loss).item()


def cycle_once(make_batches):
    yield from make_batches()


def shuffled_batches_in_one_order(items, size, seed=0):
    return (batch for _ in range(99) for batch in one_epoch(items, size, seed))


def one_epoch(items, size, seed):
    source = right["shuffled_batches"](items, size, seed)
    return [next(source) for _ in range(len(items) // size)]


def shuffled_batches_with_rest(items, size, seed=0):
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed)).tolist()
    epoch = [[items[i] for i in order[at : at + size]] for at in range(0, len(items), size)]
    return iter(epoch * 9)


def decay_without_warm_up(optimizer, steps):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)


BUGS = [
    Bug("_step", "adds gradients up", step_that_adds_up, tests="textbook"),
    Bug("_step", "does not clip", step_unclipped, tests="textbook"),
    Bug("_step", "forgets the schedule", step_without_schedule, tests="textbook"),
    Bug("_step", "lets NaN into the weights", step_that_never_diverges, tests="diverging"),
    Bug("shuffled_batches", "has one order for all epochs", shuffled_batches_in_one_order),
    Bug("shuffled_batches", "keeps a rest", shuffled_batches_with_rest),
    Bug("warm_up_and_decay", "begins at the top", decay_without_warm_up),
    Bug("cycle", "ends after one epoch", cycle_once, tests="run_out"),
]
