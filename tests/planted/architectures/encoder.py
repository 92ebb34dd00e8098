"""Plausible wrong versions of course_utils.architectures.encoder."""

from __future__ import annotations

from planting import Bug, originals

right = originals("architectures.encoder")


class EncoderBlockPreNorm(right["EncoderBlock"]):
    def forward(self, x, mask):
        x = x + self.attention(self.attention_norm(x), mask=mask)
        return x + self.feed_forward(self.feed_forward_norm(x))


class EncoderBlockOneResidual(right["EncoderBlock"]):
    def forward(self, x, mask):
        x = self.attention_norm(x + self.attention(x, mask=mask))
        return self.feed_forward_norm(self.feed_forward(x))


BUGS = [
    Bug("EncoderBlock", "normalises first", EncoderBlockPreNorm, tests="berts"),
    Bug("EncoderBlock", "lacks a residual", EncoderBlockOneResidual, tests="berts"),
]
