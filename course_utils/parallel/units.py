"""A unit of sharding: parameters that are gathered and released together. Notebook 05.

What `sharding.Sharded` is made of; nothing here is called by a learner.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.futures import Future

from course_utils.parallel.collectives import Wire, all_gather, reduce_scatter, ring_all_reduce

Begin = Callable[..., Future]  # begins function(*arguments), now or in the background


def now(function: Callable[..., None], *arguments: object) -> Future:
    done = Future()
    done.set_result(function(*arguments))
    return done


class Unit:
    """Some parameters as one flat tensor, of which this rank owns a shard.

    The parameters are views into `full`. To release them its memory is given back, and the views
    stay: what autograd has saved of them is there again after the next `gather`.

    `shard` is what the optimizer updates, `sent` what the other ranks get of it: the same memory,
    or the shard rounded to `compute_dtype`. At stages 1 and 2 `sent` is a part of `full`.
    """

    def __init__(
        self,
        named: dict[str, nn.Parameter],
        wire: Wire,
        stage: int,
        compute_dtype: torch.dtype | None = None,
        begin: Begin = now,
    ) -> None:
        self.named, self.wire, self.begin = named, wire, begin
        self.numel = sum(p.numel() for p in named.values())
        self.size = -(-self.numel // wire.size)  # of a shard; the last one may end in zeros
        first = next(iter(named.values()))
        if len(types := {str(p.dtype) for p in named.values()}) > 1:
            raise ValueError(
                f"{next(iter(named))} is in a unit of several types, {', '.join(sorted(types))}; "
                "a unit is one flat tensor: give each type units of its own"
            )
        whole = torch.zeros(self.size * wire.size, dtype=first.dtype, device=first.device)
        for part, parameter in zip(self.parts(whole).values(), named.values(), strict=True):
            part.copy_(parameter.detach())
        self.full = whole.to(compute_dtype or whole.dtype)
        self.mixed = self.full.dtype != whole.dtype
        self.nbytes = self.full.untyped_storage().nbytes()
        for part, parameter in zip(self.parts(self.full).values(), named.values(), strict=True):
            parameter.data = part
        own = slice(wire.rank * self.size, (wire.rank + 1) * self.size)
        self.sent = self.full[own].clone() if stage == 3 else self.full[own]
        self.shard = nn.Parameter(whole[own].clone() if self.mixed else self.sent)
        self.gradient: Tensor | None = None  # of the shard, in the type of `full`
        self.waiting = set(named)  # for their gradient
        self.gathered = True
        self.coming: Future | None = None  # what `prefetch` has begun

    def parts(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of a flat unit by parameter."""
        sizes = [p.numel() for p in self.named.values()]
        parts = zip(self.named.items(), flat[: self.numel].split(sizes), strict=True)
        return {name: part.view_as(p) for (name, p), part in parts}

    def prefetch(self) -> None:
        """Begin to gather; what is begun, `gather` and `release` wait for."""
        if not self.gathered:
            self.full.untyped_storage().resize_(self.nbytes)
        self.coming = self.begin(self._fill)

    def gather(self) -> None:
        """All shards into the parameters."""
        if self.coming is None:
            self.prefetch()
        self.coming.wait()
        self.coming, self.gathered = None, True

    @torch.no_grad()
    def _fill(self) -> None:
        self.full.copy_(all_gather(self.sent.detach().clone(), self.wire))

    def release(self) -> None:
        if self.coming is not None:
            self.gather()
        self.full.untyped_storage().resize_(0)
        self.gathered = False

    @torch.no_grad()
    def scatter_gradients(self, factor: float, replicas: Wire | None) -> Future:
        """Begin to put this rank's shard of the mean gradient into `gradient`.

        The whole gradients are dropped, and what travels holds a copy of them until it has.
        """
        flat = self.full.new_zeros(self.size * self.wire.size)
        start = 0
        for parameter in self.named.values():
            stop = start + parameter.numel()
            torch.mul(parameter.grad.reshape(-1), factor, out=flat[start:stop])
            parameter.grad, start = None, stop
        self.waiting = set(self.named)
        return self.begin(self._reduce, flat, replicas)

    @torch.no_grad()
    def _reduce(self, flat: Tensor, replicas: Wire | None) -> None:
        mean = reduce_scatter(flat, self.wire)
        if replicas is not None:
            ring_all_reduce(mean, replicas)
        if self.gradient is None:
            self.gradient = mean
        else:
            self.gradient += mean
