"""Plausible wrong versions of course_utils.parallel.checkpoints, which run on the ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
import torch.distributed as dist
from planting import Bug, originals
from torch.distributed.tensor import DTensor

right = originals("parallel.checkpoints")


def set_random_state_not(state):
    pass


def set_random_state_of_rank_0(state):
    """All ranks go on with one random state."""
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, state)
    right["set_random_state"](everyone[0])


def save_points_first(folder, step, tensors, notes=None, keep=2):
    place = Path(folder) / f"step-{step}"
    if dist.get_rank() == 0:
        place.mkdir(parents=True, exist_ok=True)
        (place / right["NOTES"]).write_text(json.dumps(notes))
        right["point_to"](place)
    return right["save"](folder, step, tensors, notes, keep)


def latest_by_number(folder):
    """The highest step there is, whole or not."""
    right["latest"](folder)
    found = sorted(Path(folder).glob("step-*"), key=lambda path: int(path.name[5:]))
    return found[-1] if found else None


def point_to_in_place(place):
    place.with_name(right["POINTER"]).write_text(place.name)


def remove_others_of_any_run(place, keep):
    """The last by number, of which some are a killed run's."""
    found = sorted(place.parent.glob("step-[0-9]*"), key=lambda path: int(path.name[5:]))
    for folder in found[:-keep]:
        shutil.rmtree(folder)


def remove_others_never(place, keep):
    pass


def tensors_of_parameters(model, optimizer=None):
    """Without the optimizer's state, which begins anew."""
    found = right["tensors_of"](model, optimizer)
    return {name: x for name, x in found.items() if not name.startswith("optimizer.")}


def shard_with_its_zeros(model, index, x):
    unit, (mesh, placements) = model.units[index], right["_mesh_of"](model)
    shape = torch.Size([unit.size * unit.wire.size])
    return DTensor.from_local(x, mesh, placements, run_check=False, shape=shape, stride=(1,))


def restore_without_sharing(path, model, optimizer=None):
    """The shards are loaded, and the parameters made of them are the old ones."""
    right["prepare_optimizer"](model.optimizer, path)
    return right["load"](path, right["tensors_of"](model, optimizer))


def load_what_fits(path, tensors):
    stored = right["sizes"](path)
    fitting = {k: x for k, x in tensors.items() if stored.get(k) == tuple(x.shape)}
    return right["load"](path, fitting)


EXACT = "continuation_is_exact"
BUGS = [
    Bug("set_random_state", "leaves the random state", set_random_state_not, EXACT),
    Bug("set_random_state", "takes rank 0's", set_random_state_of_rank_0, EXACT),
    Bug("save", "moves the pointer first", save_points_first, "killed"),
    Bug("latest", "takes the highest number", latest_by_number, "killed"),
    Bug("point_to", "writes over the name", point_to_in_place, "moved_not_written"),
    Bug("_remove_others", "keeps a killed run's", remove_others_of_any_run, "last_ones"),
    Bug("_remove_others", "removes nothing", remove_others_never, "last_ones"),
    Bug("tensors_of", "leaves out the optimizer's state", tensors_of_parameters, EXACT),
    Bug("_shard", "saves the zeros too", shard_with_its_zeros, "another_number"),
    Bug("restore", "does not share the shards", restore_without_sharing, EXACT),
    Bug("load", "loads what fits", load_what_fits, "another_model"),
]
