"""Plausible wrong versions of course_utils.architectures.kv_cache."""

from __future__ import annotations

import torch
from planting import Bug, originals

right = originals("architectures.kv_cache")


class LayerCacheOfTheLast(right["LayerCache"]):
    """Every step overwrites the one before."""

    def extend(self, k, v):
        if self.length:
            self.length = max(0, self.length - k.shape[2])
        return super().extend(k, v)


class LayerCacheThatJoins(right["LayerCache"]):
    """Right, but it copies all steps every time."""

    def extend(self, k, v):
        if self.keys is not None:
            held = self.keys[:, :, : self.length], self.values[:, :, : self.length]
            k, v = torch.cat([held[0], k], 2), torch.cat([held[1], v], 2)
        self.keys, self.values, self.length = k, v, k.shape[2]
        return k.clone(), v.clone()


class LayerCacheOfTheFirstBatch(right["LayerCache"]):
    """Cropped to nothing, it still has the shape of what it held: one row spreads over all."""

    def _check(self, k):
        pass


BUGS = [
    Bug("LayerCache", "keeps an old batch's shape", LayerCacheOfTheFirstBatch, tests="batch"),
    Bug("LayerCache", "overwrites", LayerCacheOfTheLast, tests="cache"),
    Bug("LayerCache", "copies all steps", LayerCacheThatJoins, tests="seldom"),
]
