"""ZeRO 1, 2 and 3 from scratch: what N ranks hold once is held by one of them each. Notebook 05.

Ψ parameters, N ranks. Stage 1 shards the optimizer's state, stage 2 the gradients too, stage 3 the
parameters too. Rajbhandari et al. 2020 (ZeRO), §3 and §5 for memory, §7 for traffic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.futures import Future

from course_utils.parallel.collectives import Background, Wire, all_gather
from course_utils.parallel.data_parallel import check_same_model, share_state
from course_utils.parallel.units import Unit, now

# Bytes a parameter costs as parameter, as gradient, and in the optimizer's state.
MIXED_ADAM = (2, 2, 12)  # fp16 twice; an fp32 copy, momentum and variance
FP32_ADAM = (4, 4, 8)
FP32_SGD = (4, 4, 0)
STAGES = (0, 1, 2, 3)


class Held(NamedTuple):
    """Bytes of the model's state on one rank."""

    parameters: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        return sum(self)


# ── formulas ──────────────────────────────────────────────────────────────────────────────────────


def state_bytes(
    n_parameters: float, world_size: int, stage: int, costs: tuple[float, ...] = MIXED_ADAM
) -> Held:
    """Bytes a rank holds of parameters, gradients and optimizer state; activations come on top.

    `costs` in bytes a parameter. ZeRO, §5 and figure 1: 7.5 billion parameters on 64 ranks, in GB:

    >>> [round(state_bytes(7.5, 64, stage).total, 1) for stage in (0, 1, 2, 3)]
    [120.0, 31.4, 16.6, 1.9]
    """
    _check(world_size, stage)
    if n_parameters < 0:
        raise ValueError(f"n_parameters is {n_parameters}; a model has 0 or more")
    full = [n_parameters * cost for cost in costs]
    sharded = (stage >= 3, stage >= 2, stage >= 1)
    return Held(*(x / world_size if s else x for x, s in zip(full, sharded, strict=True)))


def traffic_bytes(n_parameters: float, world_size: int, stage: int, itemsize: int = 4) -> float:
    """Bytes that a rank sends in a step, on a ring: (N − 1)/N·Ψ for each gather or scatter.

    Two of them up to stage 2: gradients scattered, and parameters (or summed gradients) gathered.
    Three at stage 3, which gathers parameters before the forward and the backward pass. ZeRO, §7.

    >>> [traffic_bytes(12, 4, stage, itemsize=1) for stage in (0, 1, 2, 3)]
    [18.0, 18.0, 18.0, 27.0]
    """
    _check(world_size, stage)
    rounds = 3 if stage == 3 else 2
    return rounds * (world_size - 1) / world_size * n_parameters * itemsize


def _check(world_size: int, stage: int) -> None:
    if stage not in STAGES:
        raise ValueError(f"stage is {stage!r}; ZeRO has the stages 0, 1, 2 and 3")
    if world_size < 1:
        raise ValueError(f"world_size is {world_size}; there is at least one rank")


# ── the wrapper ───────────────────────────────────────────────────────────────────────────────────


class Sharded(nn.Module):
    """`module` with its training state sharded over the ranks of `wire`: ZeRO 1, 2 or 3.

    `units` are submodules whose parameters are gathered and released together, a transformer's
    blocks; what they leave, embeddings and tied weights, is one more unit, which stays from
    the forward pass to the end of the backward pass. `make_optimizer` gets the shards.
    Call `backward()` and then `step()`, which also clears the gradients.

    `replicas`: the ranks that hold the same shard in other groups (HSDP); gradients are averaged
    over both. `reshard_after_forward=False` keeps stage 3's parameters for the backward pass,
    at the memory of stage 2 and its traffic.

    `compute_dtype`, torch.float16 or torch.bfloat16: parameters and gradients are held and sent in
    it, and the module computes in it, floats that it is given included; the optimizer keeps fp32
    masters of the shards and is given their gradients in fp32 (Micikevicius et al. 2018, §3.1).
    Gradients below 6e-8 are 0 in float16, and those of micro-batches are added up in it.

    `prefetch`: collectives run in a thread of their own. While a unit computes, the parameters of
    the next of `units` are on their way, in the backward pass those of the one before, at the
    memory of one more unit; and gradients travel while the backward pass goes on.
    """

    def __init__(
        self,
        module: nn.Module,
        units: Sequence[nn.Module],
        make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        stage: int = 3,
        wire: Wire | None = None,
        replicas: Wire | None = None,
        reshard_after_forward: bool = True,
        compute_dtype: torch.dtype | None = None,
        prefetch: bool = False,
    ) -> None:
        super().__init__()
        if stage not in STAGES[1:]:
            raise ValueError(f"stage is {stage!r}; give 1, 2 or 3, or use DataParallel for 0")
        if compute_dtype is not None and not compute_dtype.is_floating_point:
            raise ValueError(
                f"compute_dtype is {compute_dtype}; give torch.float16, torch.bfloat16, or None "
                "for the module's own"
            )
        self.module, self.stage, self.wire = module, stage, wire or Wire()
        self.replicas, self.reshard = replicas, reshard_after_forward
        self.compute_dtype = compute_dtype
        check_same_model(module)
        share_state(module, Wire())
        self._factor = 1 / (self.wire.size * (replicas.size if replicas else 1))
        self._begin = Background().start if prefetch else now
        self._leaving: Future | None = None  # gradients on their way
        self._direction = 1  # of the pass: −1 in the backward pass
        self._inside: list[Unit] = []  # in order of the pass
        *inside, rest = [
            Unit(named, self.wire, stage, compute_dtype, self._begin) if named else None
            for named in unit_parameters(module, units)
        ]
        self._rest, self._units = rest, [unit for unit in (*inside, rest) if unit is not None]
        self._cast_frozen()
        self.optimizer = make_optimizer([unit.shard for unit in self._units])
        for unit in self._units:
            self._watch_gradients(unit)
        if stage == 3:
            for unit, part in zip(inside, units, strict=True):
                if unit is not None:
                    self._watch_passes(unit, part)
            for unit in self._units:
                unit.release()

    def forward(self, *arguments: object, **options: object) -> object:
        if self._rest is not None and not self._rest.gathered:
            self._rest.gather()
        self._direction = 1
        self._prefetch_after(-1)
        given = [self._cast(x) for x in arguments]
        return self.module(*given, **{name: self._cast(x) for name, x in options.items()})

    @torch.no_grad()
    def step(self) -> None:
        """Average what is left, let the optimizer update the shards, and share the result."""
        for unit in self._units:
            if self.stage == 1 and not unit.waiting:
                self._scatter(unit)
        self._settle()
        for unit in self._units:
            if unit.gradient is None or unit.waiting != set(unit.named):
                missing = ", ".join(sorted(unit.waiting))
                raise RuntimeError(
                    f"there is no gradient of {missing}: run backward() before step(), use every "
                    "parameter in the loss, or freeze those that are not used"
                )
        for unit in self._units:
            unit.shard.grad, unit.gradient = unit.gradient.to(unit.shard.dtype), None
        self.optimizer.step()
        for unit in self._units:
            unit.shard.grad = None
        self.share()

    @torch.no_grad()
    def share(self) -> None:
        """Let the parameters be those of the shards, after a step or after loading into these."""
        for unit in self._units:
            if unit.mixed:
                unit.sent.copy_(unit.shard)
            if self.stage == 3:
                unit.release()
            else:
                unit.gather()

    @property
    def units(self) -> Sequence[Unit]:
        """What is gathered and released together, the rest last."""
        return tuple(self._units)

    def held(self) -> Held:
        """Bytes that this rank holds now; fp32 masters count as the optimizer's, as in ZeRO."""
        parameters = sum(u.full.untyped_storage().nbytes() for u in self._units)
        if self.stage == 3:
            parameters += sum(u.sent.nbytes for u in self._units)
        gradients = [p.grad for u in self._units for p in u.named.values()]
        gradients += [u.gradient for u in self._units]
        state = [u.shard.nbytes for u in self._units if u.mixed]
        state += [
            x.nbytes
            for of_shard in self.optimizer.state.values()
            for x in of_shard.values()
            if torch.is_tensor(x) and x.dim()  # the count of steps is no state of a parameter
        ]
        return Held(parameters, sum(g.nbytes for g in gradients if g is not None), sum(state))

    @torch.no_grad()
    def full_state(self) -> dict[str, Tensor]:
        """All parameters by name, whole, on every rank: the masters. For comparing and saving."""
        self._settle()
        for unit in self._units:
            if unit.coming is not None:
                unit.gather()  # no two collectives at once
        state = {}
        for unit in self._units:
            state |= unit.parts(all_gather(unit.shard.detach().clone(), self.wire))
        return {name: x.clone() for name, x in state.items()}

    def _cast(self, x: object) -> object:
        """Floats in the type that the module computes in."""
        floats = self.compute_dtype and isinstance(x, Tensor) and x.is_floating_point()
        return x.to(self.compute_dtype) if floats else x

    def _cast_frozen(self) -> None:
        """What is not trained needs no master."""
        for parameter in self.module.parameters():
            if not parameter.requires_grad:
                parameter.data = self._cast(parameter.data)

    def _scatter(self, unit: Unit) -> None:
        """One unit's at a time: each that travels holds whole gradients."""
        self._settle()
        self._leaving = unit.scatter_gradients(self._factor, self.replicas)

    def _settle(self) -> None:
        if self._leaving is not None:
            self._leaving.wait()
            self._leaving = None

    def _prefetch_after(self, place: int) -> None:
        """Begin to gather what the pass comes to after the unit at this place."""
        following = place + self._direction
        if self._begin is now or self.stage < 3 or not 0 <= following < len(self._inside):
            return
        unit = self._inside[following]
        if not unit.gathered and unit.coming is None:
            unit.prefetch()

    def _watch_gradients(self, unit: Unit) -> None:
        """Note each gradient; from stage 2 on a unit's are scattered as soon as it has all."""

        def arrived(name: str) -> None:
            unit.waiting.discard(name)
            if self.stage >= 2 and not unit.waiting:
                self._scatter(unit)
                if self.stage == 3:
                    unit.release()

        for name, parameter in unit.named.items():
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: arrived(name))

    def _watch_passes(self, unit: Unit, module: nn.Module) -> None:
        """Gather a unit before its forward and its backward pass, release it after each."""
        place = len(self._inside)
        self._inside.append(unit)

        def gather(*_: object) -> None:
            if not unit.gathered:
                unit.gather()
            self._prefetch_after(place)

        def gather_backward(*_: object) -> None:
            self._direction = -1  # blocks that are computed again run forward within it
            gather()

        def release(*_: object) -> None:
            if self.reshard or not torch.is_grad_enabled():
                unit.release()

        module.register_forward_pre_hook(gather)
        module.register_forward_hook(release)
        module.register_full_backward_pre_hook(gather_backward)


def unit_parameters(module: nn.Module, units: Sequence[nn.Module]) -> list[dict[str, nn.Parameter]]:
    """The trained parameters by unit, and last those that are in no unit or in several.

    >>> net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1, bias=False))
    >>> [list(named) for named in unit_parameters(net, [net[0]])]
    [['0.weight', '0.bias'], ['1.weight']]
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    inside = [{id(p) for p in unit.parameters()} for unit in units]
    places: dict[int, list[int]] = {}
    for p in module.parameters():
        places[id(p)] = [i for i, ids in enumerate(inside) if id(p) in ids]
    groups: list[dict[str, nn.Parameter]] = [{} for _ in range(len(units) + 1)]
    for name, p in trained.items():
        where = places[id(p)]
        groups[where[0] if len(where) == 1 else -1][name] = p
    return groups
