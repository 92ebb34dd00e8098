"""Plausible wrong versions of course_utils.architectures.decoder."""

from __future__ import annotations

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


BUGS = [
    Bug("DecoderBlock", "runs both halves in parallel", DecoderBlockParallel, tests="llamas"),
    Bug("DecoderBlock", "sees the future", DecoderBlockBlind, tests="future"),
    Bug("DecoderBlock", "sees padding", DecoderBlockForgetsPadding, tests="left_padding"),
    Bug("DecoderBlock", "keeps its triangle", DecoderBlockAlwaysCausal, tests="triangle"),
]
