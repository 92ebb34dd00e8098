"""ZeRO 1, 2 and 3 from scratch: what N ranks hold once is held by one of them each. Notebook 05.

Ψ parameters, N ranks. Stage 1 shards the optimizer's state, stage 2 the gradients too, stage 3 the
parameters too. Rajbhandari et al. 2020 (ZeRO), §3 and §5 for memory, §7 for traffic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from course_utils.parallel.collectives import Wire, all_gather, reduce_scatter, ring_all_reduce
from course_utils.parallel.data_parallel import check_same_model, share_state

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


# ── a unit: parameters that are gathered and released together ────────────────────────────────────


class _Unit:
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
    ) -> None:
        self.named, self.wire = named, wire
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

    def parts(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of a flat unit by parameter."""
        sizes = [p.numel() for p in self.named.values()]
        parts = zip(self.named.items(), flat[: self.numel].split(sizes), strict=True)
        return {name: part.view_as(p) for (name, p), part in parts}

    @torch.no_grad()
    def gather(self) -> None:
        """All shards into the parameters."""
        if not self.gathered:
            self.full.untyped_storage().resize_(self.nbytes)
        self.full.copy_(all_gather(self.sent.detach().clone(), self.wire))
        self.gathered = True

    def release(self) -> None:
        self.full.untyped_storage().resize_(0)
        self.gathered = False

    @torch.no_grad()
    def scatter_gradients(self, factor: float, replicas: Wire | None) -> None:
        """This rank's shard of the mean gradient into `gradient`; the whole one is dropped."""
        flat = self.full.new_zeros(self.size * self.wire.size)
        start = 0
        for parameter in self.named.values():
            stop = start + parameter.numel()
            torch.mul(parameter.grad.reshape(-1), factor, out=flat[start:stop])
            parameter.grad, start = None, stop
        mean = reduce_scatter(flat, self.wire)
        if replicas is not None:
            ring_all_reduce(mean, replicas)
        if self.gradient is None:
            self.gradient = mean
        else:
            self.gradient += mean
        self.waiting = set(self.named)


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
        *inside, rest = [
            _Unit(named, self.wire, stage, compute_dtype) if named else None
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
        given = [self._cast(x) for x in arguments]
        return self.module(*given, **{name: self._cast(x) for name, x in options.items()})

    @torch.no_grad()
    def step(self) -> None:
        """Average what is left, let the optimizer update the shards, and share the result."""
        for unit in self._units:
            if self.stage == 1 and not unit.waiting:
                unit.scatter_gradients(self._factor, self.replicas)
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
    def units(self) -> Sequence[_Unit]:
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

    def _watch_gradients(self, unit: _Unit) -> None:
        """Note each gradient; from stage 2 on a unit's are scattered as soon as it has all."""

        def arrived(name: str) -> None:
            unit.waiting.discard(name)
            if self.stage >= 2 and not unit.waiting:
                unit.scatter_gradients(self._factor, self.replicas)
                if self.stage == 3:
                    unit.release()

        for name, parameter in unit.named.items():
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: arrived(name))

    def _watch_passes(self, unit: _Unit, module: nn.Module) -> None:
        """Gather a unit before its forward and its backward pass, release it after each."""

        def gather(*_: object) -> None:
            if not unit.gathered:
                unit.gather()

        def release(*_: object) -> None:
            if self.reshard or not torch.is_grad_enabled():
                unit.release()

        module.register_forward_pre_hook(gather)
        module.register_forward_hook(release)
        module.register_full_backward_pre_hook(gather)


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
