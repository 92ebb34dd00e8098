"""Data parallelism from scratch: a copy of the model a rank, gradients averaged. Notebook 04.

`DataParallel` is equal to `torch.nn.parallel.DistributedDataParallel` bit by bit: it multiplies by
1/N before the sum and cuts the gradients into the same buckets. Li et al. 2020 (PyTorch
Distributed), §3. N ranks.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future

from course_utils.parallel.collectives import Background, Wire, broadcast, ring_all_reduce

MIB = 2**20
AllReduce = Callable[[Tensor], Future]  # begins to sum a tensor over all ranks, in place


class Span(NamedTuple):
    """What happened when, on one rank: seconds of `time.perf_counter`."""

    what: str  # "backward", "gradient" (a moment), "bucket 0", …, "wait"
    start: float
    end: float


# ── two ways to add up while the backward pass goes on ────────────────────────────────────────────


def gloo_all_reduce(x: Tensor) -> Future:
    """torch's own, in a thread of gloo's."""
    return dist.all_reduce(x, async_op=True).get_future()


def ring_in_background(wire: Wire) -> AllReduce:
    """Our ring, in a thread of ours: the same sums, and every message on record in `wire`."""
    background = Background()
    return lambda x: background.start(ring_all_reduce, x, wire)


# ── buckets ───────────────────────────────────────────────────────────────────────────────────────


def bucket_order(sizes: Sequence[int], first_cap: int, cap: int) -> list[list[int]]:
    """Gradients of these sizes in bytes, in order of arrival -> indices by bucket.

    A bucket is full with the gradient that reaches its cap; the first has a cap of its own, so
    that communication begins early. PyTorch, `compute_bucket_assignment_by_size`.

    >>> bucket_order([4, 4, 4, 9, 4], first_cap=4, cap=8)
    [[0], [1, 2], [3], [4]]
    """
    buckets: list[list[int]] = []
    filled, limit = 0, first_cap
    for index, size in enumerate(sizes):
        if filled == 0:
            buckets.append([])
        buckets[-1].append(index)
        filled += size
        if filled >= limit:
            filled, limit = 0, cap
    return buckets


class _Bucket:
    """Gradients that travel as one tensor."""

    def __init__(self, parameters: dict[int, nn.Parameter]) -> None:
        sizes = [p.numel() for p in parameters.values()]
        self.flat = next(iter(parameters.values())).detach().new_empty(sum(sizes))
        self.parameters = parameters
        self.views = {
            index: part.view_as(p)
            for (index, p), part in zip(parameters.items(), self.flat.split(sizes), strict=True)
        }
        self.missing = set(parameters)
        self.future: Future | None = None

    def put(self, index: int, gradient: Tensor, factor: float) -> None:
        torch.mul(gradient, factor, out=self.views[index])
        self.missing.discard(index)

    def take_back(self) -> None:
        """The averages into `.grad`, and ready for the next step."""
        self.future.wait()
        for index, parameter in self.parameters.items():
            parameter.grad.copy_(self.views[index])
        self.missing, self.future = set(self.parameters), None


# ── the wrapper ───────────────────────────────────────────────────────────────────────────────────


class DataParallel(nn.Module):
    """A copy of `module` on every rank, which `synchronize` keeps equal.

    At construction all take rank 0's parameters and buffers. As soon as a gradient is computed it
    is multiplied by 1/N and put into its bucket; a full bucket is summed over the ranks while the
    backward pass goes on. Call `synchronize()` after `backward()` and before the optimizer's step.

    `bucket_cap_mb` and `first_cap_mb` in MiB. In the first step all gradients share one bucket;
    it shows the order in which they arrive, by which they are then cut into buckets.
    `timeline` holds the spans of the last step.
    Raises ValueError on all ranks where one has another model.
    """

    def __init__(
        self,
        module: nn.Module,
        bucket_cap_mb: float = 25.0,
        first_cap_mb: float = 1.0,
        all_reduce: AllReduce = gloo_all_reduce,
    ) -> None:
        super().__init__()
        if not bucket_cap_mb > 0 or not first_cap_mb > 0:
            raise ValueError(
                f"bucket_cap_mb is {bucket_cap_mb} and first_cap_mb {first_cap_mb}; "
                "both are MiB above 0"
            )
        self.module, self.all_reduce, self.wire = module, all_reduce, Wire()
        self.caps = int(min(first_cap_mb, bucket_cap_mb) * MIB), int(bucket_cap_mb * MIB)
        check_same_model(module)
        share_state(module, self.wire)
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.names, self.trained = list(named), list(named.values())  # a tied weight once
        self.timeline: list[Span] = []
        self._arrived: list[int] = []
        self._syncing, self._buffers_due, self._in_first_step = True, True, True
        self._buckets = self._cut([range(len(self.trained))])
        for index, parameter in enumerate(self.trained):
            parameter.register_post_accumulate_grad_hook(
                lambda p, index=index: self._on_gradient(index, p)
            )

    def forward(self, *arguments: object, **options: object) -> object:
        if self._buffers_due:
            share_tensors(self.module.buffers(), self.wire)
        self._buffers_due = torch.is_grad_enabled() and self._syncing
        result = self.module(*arguments, **options)
        self._began = time.perf_counter()
        return result

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Inside, gradients pile up on each rank alone: for all micro-batches but the last."""
        before, self._syncing = self._syncing, False
        try:
            yield
        finally:
            self._syncing = before

    def synchronize(self) -> None:
        """Wait for all buckets, and put the averages into `.grad`."""
        start = time.perf_counter()
        self._check_all_arrived()
        for bucket in self._buckets:
            bucket.take_back()
        end = time.perf_counter()
        self.timeline += [Span("backward", self._began, start), Span("wait", start, end)]
        if self._in_first_step:
            self._in_first_step = False
            self._cut_by_arrival()
        self._arrived = []

    @property
    def layout(self) -> list[list[int]] | None:
        """Which gradients share a bucket; None in the first step, which finds it out."""
        return None if self._in_first_step else [list(b.parameters) for b in self._buckets]

    def take_layout(self, layout: list[list[int]] | None) -> None:
        """Go on with another run's buckets: their cut is the order of summation, to the last bit.

        On three ranks and more a run that finds its buckets anew adds up in another order.
        """
        if layout is None:
            return
        if sorted(index for bucket in layout for index in bucket) != list(range(len(self.trained))):
            raise ValueError(
                f"the layout {layout} is not one of {len(self.trained)} parameters, each once; "
                "take one from `layout` of the same model"
            )
        self._buckets, self._in_first_step = self._cut(layout), False

    def _on_gradient(self, index: int, parameter: nn.Parameter) -> None:
        """A hook of autograd: called for each parameter when its gradient is complete."""
        if not self._syncing:
            return
        if not self._arrived:
            self.timeline = []
        bucket = next(b for b in self._buckets if index in b.parameters)
        if index not in bucket.missing:
            raise RuntimeError(
                f"the gradient of {self.names[index]} came twice in one step: call synchronize() "
                "after each backward(), or accumulate inside no_sync()"
            )
        self._arrived.append(index)
        now = time.perf_counter()
        self.timeline.append(Span("gradient", now, now))
        bucket.put(index, parameter.grad, 1 / self.wire.size)
        self._launch()

    def _launch(self) -> None:
        """Begin to sum what is full, in the same order on all ranks."""
        for number, bucket in enumerate(self._buckets):
            if bucket.missing:
                return
            if bucket.future is None:
                begun = self.all_reduce(bucket.flat)
                bucket.future = begun.then(self._noting(f"bucket {number}", time.perf_counter()))

    def _noting(self, what: str, start: float) -> Callable[[Future], None]:
        """For `Future.then`: note the span, in the thread and at the time in which it ends."""

        def note(done: Future) -> None:
            done.value()  # raises what went wrong
            self.timeline.append(Span(what, start, time.perf_counter()))

        return note

    def _check_all_arrived(self) -> None:
        missing = sorted(index for bucket in self._buckets for index in bucket.missing)
        if missing:
            names = ", ".join(self.names[index] for index in missing)
            raise RuntimeError(
                f"rank {self.wire.rank} has no gradient of {names} in this step: run backward() "
                "outside of no_sync() first, use every parameter in the loss, or freeze those "
                "that are not used (requires_grad_(False))"
            )

    def _cut_by_arrival(self) -> None:
        """Buckets in rank 0's order: on another rank the order could differ."""
        order = broadcast(torch.tensor(self._arrived), self.wire).tolist()
        groups = []
        for dtype in dict.fromkeys(self.trained[i].dtype for i in order):
            alike = [i for i in order if self.trained[i].dtype == dtype]
            cut = bucket_order([self.trained[i].nbytes for i in alike], *self.caps)
            groups += [[alike[k] for k in bucket] for bucket in cut]
        self._buckets = self._cut(groups)

    def _cut(self, groups: Sequence[Sequence[int]]) -> list[_Bucket]:
        buckets = []
        for group in groups:
            for dtype in dict.fromkeys(self.trained[i].dtype for i in group):
                alike = {i: self.trained[i] for i in group if self.trained[i].dtype == dtype}
                buckets.append(_Bucket(alike))
        return buckets


# ── equal at the start ────────────────────────────────────────────────────────────────────────────


def check_same_model(module: nn.Module) -> None:
    """Raise ValueError on every rank where the ranks' models differ in a name, shape or type."""
    ours = [(name, tuple(x.shape), str(x.dtype)) for name, x in module.state_dict().items()]
    everyone: list[list] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, ours)
    for rank, theirs in enumerate(everyone):
        if theirs != everyone[0]:
            pairs = zip([*everyone[0], None], [*theirs, None], strict=False)
            first, other = next((a, b) for a, b in pairs if a != b)
            raise ValueError(
                f"rank {rank} has another model than rank 0: {_told(other)} instead of "
                f"{_told(first)}; build the same one on every rank"
            )


def _told(tensor: tuple | None) -> str:
    return "nothing" if tensor is None else "{} {} {}".format(*tensor)


def share_state(module: nn.Module, wire: Wire) -> None:
    """Rank 0's parameters and buffers to all ranks."""
    share_tensors([*module.parameters(), *module.buffers()], wire)


@torch.no_grad()
def share_tensors(tensors: Iterator[Tensor] | Sequence[Tensor], wire: Wire) -> None:
    """Rank 0's tensors into those of all ranks, in place."""
    for tensor in tensors:
        tensor.copy_(broadcast(tensor.detach().clone().contiguous(), wire))


def drift(module: nn.Module, wire: Wire) -> float:
    """‖θ − θ₀‖ between this rank's parameters and rank 0's: 0 where the replicas are equal."""
    ours = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    return (ours - broadcast(ours.clone(), wire)).norm().item()


# ── what each rank computes ───────────────────────────────────────────────────────────────────────


def token_mean(loss_sum: Tensor, n_tokens: int) -> Tensor:
    """This rank's share of the mean over the tokens of *all* ranks: Σloss · N / Σn.

    Averaged over the ranks, as `DataParallel` does, its gradients are those of the mean over all
    tokens. The mean of the ranks' means is another number where lengths differ. With accumulation
    `n_tokens` counts all micro-batches of the step. A rank may have 0; all together may not.
    """
    total = torch.tensor([n_tokens], dtype=torch.int64)
    if n_tokens < 0:
        raise ValueError(f"n_tokens is {n_tokens}; give the number of tokens in loss_sum")
    ring_all_reduce(total, wire := Wire())
    if not total.item():
        raise ValueError("n_tokens is 0 on every rank; leave this step out")
    return loss_sum * (wire.size / total.item())


def rank_indices(
    n: int,
    rank: int,
    world_size: int,
    seed: int | None = None,
    epoch: int = 0,
    drop_last: bool = False,
) -> list[int]:
    """Which of n examples this rank reads in an epoch: every world_size-th of a common order.

    All ranks get equally many, or the last steps would wait for ranks that have nothing left: the
    order is filled up from its start or, with `drop_last`, cut. `seed` shuffles it, anew each
    epoch; None leaves it. Equal to `torch.utils.data.DistributedSampler`.

    >>> [rank_indices(5, rank, 2) for rank in range(2)]
    [[0, 2, 4], [1, 3, 0]]
    """
    if n < 1 or not 0 <= rank < world_size:
        raise ValueError(f"n is {n}, rank {rank} of {world_size}; n from 1, ranks from 0 on")
    order = list(range(n))
    if seed is not None:
        generator = torch.Generator().manual_seed(seed + epoch)
        order = torch.randperm(n, generator=generator).tolist()
    each = n // world_size if drop_last else -(-n // world_size)
    total = each * world_size
    order = (order * -(-total // n))[:total]
    return order[rank::world_size]
