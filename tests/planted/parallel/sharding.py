"""Plausible wrong versions of course_utils.parallel.sharding, which run on the ranks."""

from __future__ import annotations

import time

import torch
from planting import Bug, originals

from course_utils.parallel.collectives import all_gather

right = originals("parallel.sharding")
Held = right["Held"]


class SumsWithoutMean(right["Unit"]):
    def scatter_gradients(self, factor, replicas):
        super().scatter_gradients(1.0, replicas)


class ForgetsTheReplicas(right["Unit"]):
    def scatter_gradients(self, factor, replicas):
        super().scatter_gradients(factor, None)


class OverwritesTheShard(right["Unit"]):
    """Of the micro-batches only the last counts."""

    def scatter_gradients(self, factor, replicas):
        self.gradient = None
        super().scatter_gradients(factor, replicas)


class KeepsWholeGradients(right["Unit"]):
    """Stage 2 and 3 in name only: `.grad` stays beside the shard."""

    def scatter_gradients(self, factor, replicas):
        kept = [p.grad for p in self.named.values()]
        super().scatter_gradients(factor, replicas)
        for parameter, gradient in zip(self.named.values(), kept, strict=True):
            parameter.grad = gradient.zero_()


class ReleasesNothing(right["Unit"]):
    def release(self):
        self.gathered = False


class GathersInReverse(right["Unit"]):
    @torch.no_grad()
    def gather(self):
        super().gather()
        shards = all_gather(self.shard.detach().clone(), self.wire).view(self.wire.size, -1)
        self.full.copy_(shards.flip(0).view(-1))


class GathersAlways(right["Unit"]):
    """Parameters travel twice where they are there already."""

    def gather(self):
        super().gather()
        super().gather()


class KeepsTheForwardsParameters(right["Sharded"]):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.reshard = False


class StepsOnStaleParameters(right["Sharded"]):
    """What the step gathered or released is put back as it was."""

    def step(self):
        before = [u.full.clone() if u.gathered else None for u in self._units]
        super().step()
        for unit, full in zip(self._units, before, strict=True):
            if full is not None and unit.gathered:
                unit.full.copy_(full)


class MastersOfRounded(right["Unit"]):
    """The masters are made after the parameters were rounded."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        if self.mixed:
            self.shard.data = self.sent.to(self.shard.dtype)


class SendsTheMasters(right["Unit"]):
    """In fp32, to be rounded where they arrive."""

    @torch.no_grad()
    def gather(self):
        super().gather()
        self.full.copy_(all_gather(self.shard.detach().clone(), self.wire))


class AddsUpInFp32(right["Unit"]):
    """A gradient of 4 bytes a parameter waits for the step."""

    def scatter_gradients(self, factor, replicas):
        super().scatter_gradients(factor, replicas)
        self.gradient = self.gradient.to(self.shard.dtype)


class RoundsTheMasters(right["Sharded"]):
    """What is small beside a parameter is lost, as without masters."""

    @torch.no_grad()
    def step(self):
        super().step()
        for unit in self._units:
            unit.shard.copy_(unit.sent)


class SendsWhatWasBefore(right["Sharded"]):
    """The masters move, and what is made of them does not."""

    @torch.no_grad()
    def step(self):
        before = [unit.sent.clone() for unit in self._units]
        super().step()
        for unit, sent in zip(self._units, before, strict=True):
            if unit.mixed:
                unit.sent.copy_(sent)


class CountsNoMasters(right["Sharded"]):
    def held(self):
        found = super().held()
        masters = sum(unit.shard.nbytes for unit in self._units if unit.mixed)
        return found._replace(optimizer=found.optimizer - masters)


class LeavesFrozenAsTheyAre(right["Sharded"]):
    def _cast_frozen(self):
        pass


class UsesWhatHasNotCome(right["Unit"]):
    """Computes with parameters that are still on their way."""

    def _fill(self):
        time.sleep(0.05)
        super()._fill()

    def gather(self):
        if self.coming is None:
            self.prefetch()
        self.coming, self.gathered = None, True


class StepsBeforeGradientsCame(right["Sharded"]):
    def _settle(self):
        pass


class FetchesNothingAhead(right["Sharded"]):
    def _prefetch_after(self, place):
        pass


class FetchesForwardAlways(right["Sharded"]):
    """In the backward pass it fetches what was just released."""

    def _prefetch_after(self, place):
        self._direction = 1
        super()._prefetch_after(place)


class FetchesAllAhead(right["Sharded"]):
    """All units at once, as if nothing were sharded."""

    def _prefetch_after(self, place):
        for following in range(len(self._inside)):
            super()._prefetch_after(following - self._direction)


def state_bytes_without_master(n_parameters, world_size, stage, costs=right["MIXED_ADAM"]):
    """Adam's two moments, but no fp32 copy."""
    found = right["state_bytes"](n_parameters, world_size, stage, costs)
    return found._replace(optimizer=found.optimizer * 8 / 12)


def state_bytes_one_stage_late(n_parameters, world_size, stage, costs=right["MIXED_ADAM"]):
    right["state_bytes"](n_parameters, world_size, stage, costs)
    return right["state_bytes"](n_parameters, world_size, max(stage - 1, 0), costs)


def state_bytes_gradients_before_optimizer(
    n_parameters, world_size, stage, costs=right["MIXED_ADAM"]
):
    """Stage 1 shards the gradients."""
    found = right["state_bytes"](n_parameters, world_size, stage, costs)
    whole = right["state_bytes"](n_parameters, world_size, 0, costs)
    if stage != 1:
        return found
    return Held(whole.parameters, whole.gradients / world_size, whole.optimizer)


def traffic_bytes_of_all_ranks(n_parameters, world_size, stage, itemsize=4):
    return world_size * right["traffic_bytes"](n_parameters, world_size, stage, itemsize)


def traffic_bytes_stage_3_as_2(n_parameters, world_size, stage, itemsize=4):
    return right["traffic_bytes"](n_parameters, world_size, min(stage, 2), itemsize)


def unit_parameters_tied_in_a_unit(module, units):
    """A parameter of several units is taken by the first."""
    groups = right["unit_parameters"](module, units)
    for name in list(groups[-1]):
        parameter = groups[-1][name]
        for group, unit in zip(groups, units, strict=False):
            if any(parameter is p for p in unit.parameters()):
                group[name] = groups[-1].pop(name)
                break
    return groups


UNSHARDED = "accumulation"
MIXED, AHEAD = "parallel.sharding_mixed", "parallel.sharding_prefetch"
BUGS = [
    Bug("Unit", "sums instead of averaging", SumsWithoutMean, UNSHARDED),
    Bug("Unit", "forgets the replicas", ForgetsTheReplicas, "hybrid"),
    Bug("Unit", "overwrites what was accumulated", OverwritesTheShard, UNSHARDED),
    Bug("Unit", "keeps whole gradients", KeepsWholeGradients, "bytes_held"),
    Bug("Unit", "gives no memory back", ReleasesNothing, "come_and_go"),
    Bug("Unit", "gathers in reverse", GathersInReverse, UNSHARDED),
    Bug("Unit", "gathers twice", GathersAlways, "bytes_sent"),
    Bug("Sharded", "keeps the forward's parameters", KeepsTheForwardsParameters, "come_and_go"),
    Bug("Sharded", "goes on with stale parameters", StepsOnStaleParameters, UNSHARDED),
    Bug("state_bytes", "has no fp32 copy", state_bytes_without_master, "table"),
    Bug("state_bytes", "is a stage late", state_bytes_one_stage_late, "table"),
    Bug("state_bytes", "shards gradients first", state_bytes_gradients_before_optimizer, "table"),
    Bug("traffic_bytes", "counts all ranks", traffic_bytes_of_all_ranks, "traffic"),
    Bug("traffic_bytes", "gathers once at stage 3", traffic_bytes_stage_3_as_2, "traffic"),
    Bug("unit_parameters", "ties within a unit", unit_parameters_tied_in_a_unit, "shared_by_units"),
    Bug("Unit", "makes masters of what is rounded", MastersOfRounded, "bfloat16", MIXED),
    Bug("Unit", "sends masters", SendsTheMasters, "bytes_are", MIXED),
    Bug("Unit", "adds up in fp32", AddsUpInFp32, "bytes_are", MIXED),
    Bug("Sharded", "rounds its masters", RoundsTheMasters, "by_hand", MIXED),
    Bug("Sharded", "sends old parameters", SendsWhatWasBefore, "adam_is", MIXED),
    Bug("Sharded", "counts no masters", CountsNoMasters, "bytes_are", MIXED),
    Bug("Sharded", "leaves frozen parameters", LeavesFrozenAsTheyAre, "floats_and", MIXED),
    Bug("Unit", "uses what has not come", UsesWhatHasNotCome, "prefetching_is", AHEAD),
    Bug("Sharded", "steps too early", StepsBeforeGradientsCame, "prefetching_is", AHEAD),
    Bug("Sharded", "fetches nothing ahead", FetchesNothingAhead, "arrives", AHEAD),
    Bug("Sharded", "fetches forward always", FetchesForwardAlways, "in_vain", AHEAD),
    Bug("Sharded", "fetches all ahead", FetchesAllAhead, "at_most", AHEAD),
]
