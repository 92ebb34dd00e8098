"""Plausible wrong versions of course_utils.inference.next_logits."""

from __future__ import annotations

from planting import Bug, originals

right = originals("inference.decoding", "inference.next_logits")


class CacheNotReordered(right["CachedNextLogits"]):
    """Beams go on with each other's keys and values."""

    def _align(self, ids):
        if self.ids is None or self.ids.shape[1] >= ids.shape[1] or len(self.ids) != len(ids):
            self.forget()
            return 0
        return self.ids.shape[1]


class CacheNeverForgets(right["CachedNextLogits"]):
    """Another text of the same shape goes on with the old keys and values."""

    def _align(self, ids):
        known = super()._align(ids)
        if known or self.last is None or self.last[0].shape[1] >= ids.shape[1]:
            return known
        self.ids, self.cache = self.last
        return self.ids.shape[1] if len(self.ids) == len(ids) else super()._align(ids)

    def forget(self):
        self.last = (self.ids, self.cache) if getattr(self, "ids", None) is not None else None
        super().forget()


class CacheTakesTheFirstAlike(right["CachedNextLogits"]):
    """Of rows that are alike so far it takes the first, whatever stood before them."""

    def _align(self, ids):
        if self.ids is not None and self.ids.shape[1] < ids.shape[1]:
            known = self.ids.shape[1]
            same = (ids[:, None, :known] == self.ids[None]).all(-1)
            if same.any(1).all():
                self.cache = self.reorder(self.cache, same.int().argmax(1))
                return known
        return super()._align(ids)


class CacheReadsAll(right["CachedNextLogits"]):
    """Right, but it reads every token again: no cache at all."""

    def _align(self, ids):
        self.forget()
        return 0


def sequence_logprob_with_prompt(next_logits, ids, prompt_len):
    return right["sequence_logprob"](next_logits, ids, 1)


def token_logprobs_unshifted(model, ids, prompt_len=1):
    """Position t is taken to predict token t."""
    ids = right["as_ids"](ids)
    right["_check_prompt_len"](prompt_len, ids)
    logprobs = model(input_ids=ids).logits[:, prompt_len:].log_softmax(-1)
    return logprobs.gather(-1, ids[:, prompt_len:, None])[..., 0]


BUGS = [
    Bug("CachedNextLogits", "rows are not reordered", CacheNotReordered),
    Bug("CachedNextLogits", "an old text is not forgotten", CacheNeverForgets),
    Bug("CachedNextLogits", "gives two rows one cache", CacheTakesTheFirstAlike),
    Bug("CachedNextLogits", "reads every token again", CacheReadsAll),
    Bug("sequence_logprob", "scores the prompt as well", sequence_logprob_with_prompt),
    Bug("token_logprobs", "is off by one position", token_logprobs_unshifted),
]
