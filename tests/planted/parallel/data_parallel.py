"""Plausible wrong versions of course_utils.parallel.data_parallel, which run on the ranks."""

from __future__ import annotations

import torch
from planting import Bug, originals

from course_utils.parallel.collectives import Wire, broadcast, ring_all_reduce

right = originals("parallel.data_parallel")


class SumsWithoutMean(right["_Bucket"]):
    def put(self, index, gradient, factor):
        super().put(index, gradient, 1.0)


class DividesAfterwards(right["_Bucket"]):
    """The mean too, rounded at another place."""

    def put(self, index, gradient, factor):
        super().put(index, gradient, 1.0)
        self.factor = factor

    def take_back(self):
        self.future.wait()
        self.flat.mul_(self.factor)
        super().take_back()


class AddsToTheGradient(right["_Bucket"]):
    def take_back(self):
        before = [p.grad.clone() for p in self.parameters.values()]
        super().take_back()
        for parameter, gradient in zip(self.parameters.values(), before, strict=True):
            parameter.grad += gradient


class KeepsTheFirstBuckets(right["DataParallel"]):
    def _cut_by_arrival(self):
        pass


class CutsByRegistration(right["DataParallel"]):
    def _cut_by_arrival(self):
        self._arrived = list(range(len(self.trained)))
        super()._cut_by_arrival()


class WaitsForTheWholeBackward(right["DataParallel"]):
    """Nothing is sent before `synchronize`."""

    def _launch(self):
        pass

    def synchronize(self):
        super()._check_all_arrived()
        super()._launch()
        super().synchronize()


class SendsEveryMicroBatch(right["DataParallel"]):
    """`no_sync` without effect on what is averaged: each micro-batch is, and only the last used."""

    def no_sync(self):
        for parameter in self.trained:
            parameter.grad = None
        return super().no_sync()


class SharesBuffersOnce(right["DataParallel"]):
    def forward(self, *arguments, **options):
        self._buffers_due = False
        return super().forward(*arguments, **options)


def bucket_order_before_the_cap(sizes, first_cap, cap):
    """Closes a bucket before it would grow above its cap."""
    buckets, filled, limit = [], 0, first_cap
    for index, size in enumerate(sizes):
        if not buckets or filled + size > limit:
            limit = first_cap if not buckets else cap
            buckets.append([])
            filled = 0
        buckets[-1].append(index)
        filled += size
    return buckets


def bucket_order_one_cap(sizes, first_cap, cap):
    return right["bucket_order"](sizes, cap, cap)


def share_state_nothing(module, wire):
    pass


def share_tensors_into_a_copy(tensors, wire):
    for tensor in tensors:
        broadcast(tensor.detach().clone(), wire)


def check_same_model_by_count(module):
    sizes = torch.tensor([sum(p.numel() for p in module.parameters())])
    if ring_all_reduce(sizes.clone(), wire := Wire()) != sizes * wire.size:
        raise ValueError("the models differ")


def token_mean_of_means(loss_sum, n_tokens):
    right["token_mean"](loss_sum, n_tokens)
    return loss_sum / max(n_tokens, 1)


def token_mean_forgets_the_average(loss_sum, n_tokens):
    """Divides by all tokens, although the ranks' gradients are averaged and not summed."""
    return right["token_mean"](loss_sum, n_tokens) / Wire().size


def rank_indices_in_blocks(n, rank, world_size, seed=None, epoch=0, drop_last=False):
    options = {"seed": seed, "epoch": epoch, "drop_last": drop_last}
    parts = [right["rank_indices"](n, r, world_size, **options) for r in range(world_size)]
    order = [i for row in zip(*parts, strict=True) for i in row]
    return order[rank * len(parts[0]) : (rank + 1) * len(parts[0])]


def rank_indices_one_shuffle(n, rank, world_size, seed=None, epoch=0, drop_last=False):
    return right["rank_indices"](n, rank, world_size, seed=seed, drop_last=drop_last)


def rank_indices_uneven(n, rank, world_size, seed=None, epoch=0, drop_last=False):
    """The last ranks get one less: their neighbours wait for them."""
    right["rank_indices"](n, rank, world_size)
    return list(range(n))[rank::world_size]


TORCHS = "accumulation"
BUGS = [
    Bug("_Bucket", "sums instead of averaging", SumsWithoutMean, "by_hand"),
    Bug("_Bucket", "divides after the sum", DividesAfterwards, TORCHS),
    Bug("_Bucket", "adds the mean to the gradient", AddsToTheGradient, "by_hand"),
    Bug("DataParallel", "keeps its first buckets", KeepsTheFirstBuckets, "buckets_travel"),
    Bug("DataParallel", "cuts by registration", CutsByRegistration, TORCHS),
    Bug("DataParallel", "sends after the backward pass", WaitsForTheWholeBackward, "buckets_tr"),
    Bug("DataParallel", "drops what was accumulated", SendsEveryMicroBatch, TORCHS),
    Bug("DataParallel", "shares buffers once", SharesBuffersOnce, "buffers"),
    Bug("bucket_order", "closes before the cap", bucket_order_before_the_cap),
    Bug("bucket_order", "has one cap for all", bucket_order_one_cap),
    Bug("share_state", "shares nothing", share_state_nothing, TORCHS),
    Bug("share_tensors", "fills a copy", share_tensors_into_a_copy, TORCHS),
    Bug("check_same_model", "counts parameters", check_same_model_by_count, "another_model"),
    Bug("token_mean", "is the mean of means", token_mean_of_means, "token_mean_is"),
    Bug("token_mean", "is N times too small", token_mean_forgets_the_average, "token_mean_is"),
    Bug("rank_indices", "cuts blocks", rank_indices_in_blocks),
    Bug("rank_indices", "shuffles once for all epochs", rank_indices_one_shuffle),
    Bug("rank_indices", "gives some ranks less", rank_indices_uneven),
]
