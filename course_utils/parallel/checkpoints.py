"""Saving and loading a run on many ranks, on another number of them too. Notebook 05.

Every rank writes the shards that it holds, by `torch.distributed.checkpoint`, and no rank ever
holds the whole. A checkpoint counts once the file `latest` names it, and that file is replaced in
one move: a run that is killed while it saves goes on from the checkpoint before.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from course_utils.parallel.sharding import Sharded

POINTER, NOTES = "latest", "notes.json"
Named = dict[str, Tensor]

# ── a checkpoint: a folder of the ranks' files, and the pointer that makes it count ───────────────


def save(
    folder: str | Path,
    step: int,
    tensors: Named,
    notes: dict[str, Any] | None = None,
    keep: int = 2,
) -> Path:
    """Write `tensors`, each rank's random state and `notes` (JSON) -> the checkpoint's folder.

    All ranks call it. A DTensor is written by the ranks that hold its shards, another tensor by one
    of them. The last `keep` checkpoints stay; `folder` must be one that all machines share.
    """
    if step < 0 or keep < 1:
        raise ValueError(
            f"step is {step} and keep {keep}; steps count from 0, and one at least stays"
        )
    place = Path(folder) / f"step-{step}"
    if dist.get_rank() == 0:
        shutil.rmtree(place, ignore_errors=True)  # of a run that was killed here
        place.mkdir(parents=True)
    _check_shared(place)
    dcp.save(tensors | random_state(), checkpoint_id=place)
    if dist.get_rank() == 0:
        notes = (notes or {}) | {"step": step, "world_size": dist.get_world_size()}
        (place / NOTES).write_text(json.dumps(notes), encoding="utf-8")
        point_to(place)
        _remove_others(place, keep)
    dist.barrier()
    return place


def load(path: str | Path, tensors: Named) -> dict[str, Any]:
    """Fill `tensors` in place, whatever the number of ranks that saved them -> the notes.

    All ranks call it. Rank r's random state is set to what rank r's was, where there was one.
    """
    path = Path(path)
    stored = sizes(path)
    for name, x in tensors.items():
        if stored.get(name) != tuple(x.shape):
            there = f"{name} of shape {stored[name]}" if name in stored else f"no {name}"
            raise ValueError(
                f"{path.name} has {there}, and here it has shape {tuple(x.shape)}: it was saved of "
                "another model, other units or another strategy; build the same one, then load"
            )
    random = {name: x for name, x in random_state().items() if name in stored}
    dcp.load(tensors | random, checkpoint_id=path)
    set_random_state(random)
    return notes_of(path)


def latest(folder: str | Path) -> Path | None:
    """The checkpoint that counts, or None where none was completed."""
    pointer = Path(folder) / POINTER
    if not pointer.is_file():
        return None
    place = pointer.with_name(pointer.read_text(encoding="utf-8").strip())
    if not (place / NOTES).is_file():
        raise ValueError(
            f"{pointer} names {place.name}, which is not there or not whole; restore it, or remove "
            "the pointer to begin anew"
        )
    return place


def notes_of(path: str | Path) -> dict[str, Any]:
    """What was noted with a checkpoint, with its `step` and `world_size`."""
    return json.loads((Path(path) / NOTES).read_text(encoding="utf-8"))


def sizes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Name → shape of all tensors in a checkpoint, from its metadata alone."""
    stored = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    return {name: tuple(entry.size) for name, entry in stored.items()}


def point_to(place: Path) -> None:
    """Let `latest` name a checkpoint: written beside it, onto the disk, then moved over it.

    At every moment there is the old name or the new one, never half of one.
    """
    new = place.with_name(f"{POINTER}.new")
    with new.open("w", encoding="utf-8") as file:
        file.write(place.name)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, place.with_name(POINTER))


def _remove_others(place: Path, keep: int) -> None:
    """All but the last `keep`, and what a run that went further and was killed has left."""
    steps = {
        int(found[1]): folder
        for folder in place.parent.iterdir()
        if folder.is_dir() and (found := re.fullmatch(r"step-(\d+)", folder.name))
    }
    own = int(place.name.removeprefix("step-"))
    stay = sorted(step for step in steps if step <= own)[-keep:]
    for step in steps.keys() - set(stay):
        shutil.rmtree(steps[step], ignore_errors=True)


def _check_shared(place: Path) -> None:
    """Raise ValueError on all ranks where one does not see what rank 0 has made."""
    seen = [False] * dist.get_world_size()
    dist.barrier()  # until rank 0 has
    dist.all_gather_object(seen, place.is_dir())
    if not all(seen):
        raise ValueError(
            f"rank {seen.index(False)} does not see {place}, which rank 0 has made; give a folder "
            "that all machines share"
        )


def restore(
    path: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> dict[str, Any]:
    """Load a checkpoint of `tensors_of(model, optimizer)` into both -> the notes.

    The optimizer is a new one; its settings, the learning rate among them, are the caller's.
    """
    sharded = isinstance(model, Sharded)
    if sharded or optimizer is not None:
        prepare_optimizer(model.optimizer if sharded else optimizer, path)
    notes = load(path, tensors_of(model, optimizer))
    if sharded:
        model.share()
    return notes


# ── what is in it ─────────────────────────────────────────────────────────────────────────────────


def random_state() -> Named:
    """This rank's random state, of torch on the CPU and on its CUDA device, by rank."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return {f"random.{dist.get_rank()}.{device}": x for device, x in state.items()}


def set_random_state(state: Named) -> None:
    """Set what `random_state` gave; what is not in it stays as it is."""
    for name, x in state.items():
        if name.endswith(".cpu"):
            torch.set_rng_state(x)
        else:
            torch.cuda.set_rng_state(x)


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Named:
    """All that training goes on from, by name: parameters, buffers, the optimizer's state.

    Of a `Sharded` its own shards as DTensors, the units numbered, with its own optimizer; what is
    frozen is left out. Any other module, `fully_shard`'s with its DTensors too, with `optimizer`.
    """
    if isinstance(model, Sharded):
        named = {f"unit.{i}": _shard(model, i, u.shard.detach()) for i, u in enumerate(model.units)}
        ours = {id(unit.shard): i for i, unit in enumerate(model.units)}
        whole = {name for name, _ in model.module.named_parameters(remove_duplicate=False)}
        named |= {f"model.{k}": x for k, x in model.module.state_dict().items() if k not in whole}
        state = _optimizer_tensors(model.optimizer)
        return named | {
            name: _shard(model, ours[id(p)], x) if x.dim() else x for name, (p, x) in state.items()
        }
    once = {id(x): (k, x) for k, x in reversed(model.state_dict(keep_vars=True).items())}
    named = {f"model.{k}": x.detach() for k, x in once.values()}  # tied weights once
    state = {} if optimizer is None else _optimizer_tensors(optimizer)
    return named | {name: x for name, (_, x) in state.items()}


def prepare_optimizer(optimizer: torch.optim.Optimizer, path: str | Path) -> None:
    """Give a new optimizer the state that a checkpoint has, as zeros to be filled by `load`.

    An optimizer makes its state in its first step, which would already move the parameters.
    """
    stored = sizes(path)
    for i, parameter in enumerate(_parameters(optimizer)):
        prefix = f"optimizer.{i}."
        for name in (name for name in stored if name.startswith(prefix)):
            like = parameter.detach() if stored[name] else torch.zeros(())
            optimizer.state[parameter][name.removeprefix(prefix)] = torch.zeros_like(like)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, tuple[Tensor, Tensor]]:
    """Name → (parameter, its state)."""
    return {
        f"optimizer.{i}.{key}": (parameter, x)
        for i, parameter in enumerate(_parameters(optimizer))
        for key, x in optimizer.state.get(parameter, {}).items()
        if torch.is_tensor(x)
    }


def _shard(model: Sharded, index: int, x: Tensor) -> Tensor:
    """x of this rank's shard (size,) as a part of the unit's flat vector (numel,).

    Without the zeros at its end, whose number depends on the number of ranks.
    """
    unit, (mesh, placements) = model.units[index], _mesh_of(model)
    own = max(0, min(unit.size, unit.numel - unit.wire.rank * unit.size))
    shape, stride = torch.Size([unit.numel]), (1,)
    return DTensor.from_local(
        x[:own], mesh, placements, run_check=False, shape=shape, stride=stride
    )


def _mesh_of(model: Sharded) -> tuple[DeviceMesh, list]:
    """All ranks as rows of shards, a row for each group of replicas; made once a model."""
    if not hasattr(model, "_mesh"):
        rows: list = [None] * dist.get_world_size()
        dist.all_gather_object(rows, model.wire.ranks)
        rows = [list(row) for row in dict.fromkeys(map(tuple, rows))]
        if len(rows) > 1 and model.replicas is None:
            raise ValueError(
                f"the ranks {rows} hold a model each; save one that all ranks share, or give the "
                "groups as replicas"
            )
        flat = len(rows) == 1
        mesh = DeviceMesh(model.units[0].shard.device.type, rows[0] if flat else rows)
        object.__setattr__(model, "_mesh", (mesh, [Shard(0)] if flat else [Replicate(), Shard(0)]))
    return model._mesh
