"""One small training loop, with progress, used everywhere."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from course_utils.showing import measured

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler


class TrainingDiverged(ArithmeticError):  # noqa: N818
    """The loss became NaN or infinite."""


@dataclass
class History:
    """What a run leaves: the loss of each step and the seconds it took in all."""

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def recent(self, steps: int = 20) -> float:
        """Mean loss of the last `steps` steps."""
        tail = self.losses[-steps:]
        return sum(tail) / len(tail)


def cycle(make_batches: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    """Yield batches for ever, epoch after epoch of `make_batches()`; ValueError if one is empty."""
    while True:
        empty = True
        for batch in make_batches():
            empty = False
            yield batch
        if empty:
            raise ValueError("make_batches() gave no batch; there is nothing to train on")


def shuffled_batches(items: Sequence[Any], size: int, seed: int = 0) -> Iterator[list[Any]]:
    """Whole batches for ever, every epoch in another order; ValueError for fewer items than one.

    >>> source = shuffled_batches("abcde", size=2)
    >>> epoch = next(source) + next(source)  # the odd one out has its turn in another epoch
    >>> len(set(epoch)), set(epoch) <= set("abcde")
    (4, True)
    """
    import torch

    if len(items) < size:
        raise ValueError(
            f"{len(items)} texts make no batch of {size}; give more labels, or a smaller batch"
        )
    generator = torch.Generator().manual_seed(seed)

    def epoch() -> Iterator[list[Any]]:
        order = torch.randperm(len(items), generator=generator).tolist()
        for at in range(0, len(order) - size + 1, size):
            yield [items[i] for i in order[at : at + size]]

    return cycle(epoch)


def warm_up_and_decay(optimizer: Optimizer, steps: int) -> LRScheduler:
    """The rate rises over a tenth of the steps and then falls to 0, both in a straight line."""
    from torch.optim.lr_scheduler import LambdaLR

    rising = max(1, steps // 10)

    def factor(step: int) -> float:
        return min((step + 1) / rising, (steps - step) / max(1, steps - rising))

    return LambdaLR(optimizer, factor)


def batches_by_length(lengths: Sequence[int], size: int, *, equal: bool = False) -> list[list[int]]:
    """Group positions by their lengths, shortest first: batches of at most `size`, little padding.

    With `equal`, a batch holds one length only, and nothing is padded. Equal lengths keep their
    order. Raises ValueError when `size` < 1.

    >>> batches_by_length([5, 1, 5, 2], size=3)
    [[1, 3, 0], [2]]
    >>> batches_by_length([5, 1, 5, 2], size=3, equal=True)
    [[1], [3], [0, 2]]
    """
    if size < 1:
        raise ValueError(f"size is {size}; a batch holds at least 1")
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    runs = [order]
    if equal:
        runs = [list(run) for _, run in itertools.groupby(order, lengths.__getitem__)]
    return [run[i : i + size] for run in runs for i in range(0, len(run), size)]


def train(
    loss_of: Callable[[Any], Tensor],
    batches: Iterable[Any],
    optimizer: Optimizer,
    *,
    steps: int,
    max_norm: float | None = None,
    scheduler: LRScheduler | None = None,
    label: str = "training",
) -> History:
    """Take `steps` optimizer steps on `loss_of(batch)` (a scalar) and show progress on one line.

    `max_norm` clips the gradient's global norm. Raises ValueError when `batches` runs out early or
    `steps` < 1, TrainingDiverged when a loss is not finite (the weights are left as they were
    before that step).
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; training takes at least one step")
    history, start = History(), time.perf_counter()
    source = iter(batches)
    with progress(label, steps) as advance:
        for step in range(steps):
            try:
                batch = next(source)
            except StopIteration:
                raise ValueError(
                    f"batches ran out after {step} of {steps} steps; wrap them in cycle()"
                ) from None
            history.losses.append(_step(loss_of, batch, optimizer, max_norm, scheduler))
            history.seconds = time.perf_counter() - start
            advance(f"loss {measured(history.recent(), '.3f')}")
    return history


def _step(
    loss_of: Callable[[Any], Tensor],
    batch: Any,
    optimizer: Optimizer,
    max_norm: float | None,
    scheduler: LRScheduler | None,
) -> float:
    import torch

    optimizer.zero_grad(set_to_none=True)
    loss = loss_of(batch)
    if not torch.isfinite(loss):
        raise TrainingDiverged(
            f"the loss became {loss.item()}; lower the learning rate or clip gradients (max_norm)"
        )
    loss.backward()
    if max_norm is not None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()
    if scheduler is not None:
        scheduler.step()
    return loss.item()


@contextmanager
def progress(label: str, total: int, every: float = 0.5) -> Iterator[Callable[..., None]]:
    """One line on stdout, rewritten in place, that ends as "label: 300/300 · … · ⟨12.1⟩ s".

    `with progress("words", 300) as advance:` gives a function `advance(note="")` that counts one
    more and shows `note`. A carriage return is understood by terminals, JupyterLab and the guard
    alike, so no widget and no stderr is needed; what stays in a stored output is the last state.
    (tqdm would end a line with as many blanks as it was longer before, which no guard can mask.)
    """
    start, shown, done, last = time.perf_counter(), 0.0, 0, ""

    def write(end: str = "") -> None:
        seconds = measured(time.perf_counter() - start, ".1f")
        parts = [f"{label}: {done}/{total}", last, f"{seconds} s"]
        sys.stdout.write("\r" + " · ".join(part for part in parts if part) + end)
        sys.stdout.flush()

    def advance(note: str = "") -> None:
        nonlocal shown, done, last
        done, last = done + 1, note
        if time.perf_counter() - shown >= every:
            shown = time.perf_counter()
            write()

    try:
        yield advance
    finally:
        write(end="\n")
