"""Plausible wrong versions of course_utils.parallel.train, which run on the ranks."""

from __future__ import annotations

import contextlib

import torch
import torch.distributed as dist
import torch.nn.functional as F
from planting import Bug, originals

from course_utils.parallel.data_parallel import rank_indices, token_mean

right = originals("parallel.train")


def rows_apart(ids, length):
    """Rows that do not overlap: no row guesses its first token."""
    right["rows_of"](ids, length)
    padded = F.pad(ids, (0, -len(ids) % (length + 1)), value=right["PADDING"])
    return padded.view(-1, length + 1)


def rows_of_whole_ones(ids, length):
    """The last row is dropped where it is not full."""
    rows = right["rows_of"](ids, length)
    return rows if (rows[-1] >= 0).all() else rows[:-1]


def batch_at_of_rank_0(rows, step, batch_size, seed):
    """All ranks read the same."""
    each = -(-len(rows) // dist.get_world_size())
    epoch, at = divmod(step, -(-each // batch_size))
    order = rank_indices(len(rows), 0, dist.get_world_size(), seed=seed, epoch=epoch)
    return rows[order[at * batch_size : (at + 1) * batch_size]]


def batch_at_one_order(rows, step, batch_size, seed):
    each = -(-len(rows) // dist.get_world_size())
    return right["batch_at"](rows, step % -(-each // batch_size), batch_size, seed)


def loss_sum_of_what_is_given(model, batch):
    """Without the shift each token is to guess itself."""
    batch = batch.clone()
    batch[:, 1:] = torch.where(batch[:, 1:] < 0, batch[:, 1:], batch[:, :-1])
    return right["loss_sum"](model, batch)


def loss_sum_with_padding(model, batch):
    """The filling is guessed too."""
    return right["loss_sum"](model, batch.clamp(min=0))


def take_step_mean_of_means(own, batches, step):
    """Each rank divides by its own number of tokens, as if all had equally many."""
    old = right["take_step"].__globals__["token_mean"]
    try:
        right["take_step"].__globals__["token_mean"] = lambda total, n: (
            token_mean(total, n) * 0 + total / n
        )
        return right["take_step"](own, batches, step)
    finally:
        right["take_step"].__globals__["token_mean"] = old


def take_step_on_nan(own, batches, step):
    """The step is taken, and then the loss is looked at."""

    def held():
        return right["strategies"].Held(0, 0, 0)

    try:
        return right["take_step"](own, batches, step)
    except right["TrainingDiverged"]:
        own.step()
        return {"step": step, "loss": 0.0, "tokens_per_s": 0.0, "held": held()._asdict()}


def go_on_from_the_start(own, folder, settings):
    """All is loaded, and the data begin again."""
    right["_go_on"](own, folder, settings)
    return 0


def go_on_with_any_settings(own, folder, settings):
    return right["_go_on"](own, folder, {})


def set_rate_from_zero(optimizer, lr, warmup, step):
    """The first step stands still."""
    for group in optimizer.param_groups:
        group["lr"] = lr * min(1.0, step / max(warmup, 1))


def remedy_for_memory_none(strategy):
    return contextlib.nullcontext()


ALONE = "all_batches and zero3"
BUGS = [
    Bug("rows_of", "does not overlap", rows_apart, "guessed_once"),
    Bug("rows_of", "drops the last row", rows_of_whole_ones, "guessed_once"),
    Bug("batch_at", "gives all ranks the same", batch_at_of_rank_0, "share_the_rows"),
    Bug("batch_at", "has one order for all passes", batch_at_one_order, "share_the_rows"),
    Bug("loss_sum", "guesses what is given", loss_sum_of_what_is_given, ALONE),
    Bug("loss_sum", "counts the filling", loss_sum_with_padding, ALONE),
    Bug("take_step", "takes the mean of means", take_step_mean_of_means, ALONE),
    Bug("take_step", "steps on NaN", take_step_on_nan, "not_finite"),
    Bug("_go_on", "begins the data anew", go_on_from_the_start, "last_bit and zero3"),
    Bug("_go_on", "takes any settings", go_on_with_any_settings, "other_settings"),
    Bug("set_rate", "begins at 0", set_rate_from_zero, "warm_up"),
    Bug("_remedy_for_memory", "says nothing", remedy_for_memory_none, "out_of_memory"),
]
