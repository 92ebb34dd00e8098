"""Plausible wrong versions of course_utils.architectures.decoder."""

from __future__ import annotations

import torch
from planting import Bug, originals

from course_utils.architectures.decoder import DecoderBlock

right = originals("architectures.decoder")


class DecoderBlockParallel(right["DecoderBlock"]):
    """Feed-forward reads what attention read, not what it wrote."""

    def forward(self, x, **seen):
        attended = self.attention(self.attention_norm(x), **seen)
        return x + attended + self.feed_forward(self.feed_forward_norm(x))


class DecoderBlockBlind(right["DecoderBlock"]):
    """The future is visible."""

    def forward(self, x, **seen):
        return super().forward(x, **{**seen, "causal": False})


class DecoderBlockForgetsPadding(right["DecoderBlock"]):
    def forward(self, x, **seen):
        return super().forward(x, **{**seen, "mask": None})


class DecoderBlockAlwaysCausal(DecoderBlock):
    def forward(self, x, **seen):
        return super().forward(x, **{**seen, "causal": True})


class DecoderLeavesTheCacheInPlace(right["Decoder"]):
    """Beams go on with each other's keys and values."""

    def read_and_reorder(self, mask=None):
        read, _ = super().read_and_reorder(mask)
        return read, lambda cache, rows: cache


class DecoderForgetsTheMask(right["Decoder"]):
    """The mask is known while the prompt is read, and no longer."""

    def read_and_reorder(self, mask=None):
        read, reorder = super().read_and_reorder(mask)

        def forget(ids, cache):
            if cache is not None and mask is not None:
                cache = (cache[0], torch.ones(len(ids), cache[0].length))
            return read(ids, cache)

        return forget, reorder


class DecoderPadsWrittenTokens(right["Decoder"]):
    """What is written is taken for padding."""

    def read_and_reorder(self, mask=None):
        read, reorder = super().read_and_reorder(mask)

        def hide(ids, cache):
            logits, (steps, seen) = read(ids, cache)
            if cache is not None and seen is not None:
                seen = seen.clone()
                seen[:, -ids.shape[1] :] = 0
            return logits, (steps, seen)

        return hide, reorder


BUGS = [
    Bug("Decoder", "keeps its beams in place", DecoderLeavesTheCacheInPlace, tests="beams"),
    Bug("Decoder", "forgets the prompt's mask", DecoderForgetsTheMask, tests="different_lengths"),
    Bug("Decoder", "takes its words for padding", DecoderPadsWrittenTokens, tests="lengths"),
    Bug("DecoderBlock", "runs both halves in parallel", DecoderBlockParallel, tests="llamas"),
    Bug("DecoderBlock", "sees the future", DecoderBlockBlind, tests="future"),
    Bug("DecoderBlock", "sees padding", DecoderBlockForgetsPadding, tests="left_padding"),
    Bug("DecoderBlock", "keeps its triangle", DecoderBlockAlwaysCausal, tests="triangle"),
]
