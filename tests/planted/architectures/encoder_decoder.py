"""Plausible wrong versions of course_utils.architectures.encoder_decoder."""

from __future__ import annotations

from planting import Bug, originals

right = originals("architectures.encoder_decoder")


class Seq2SeqBlockSeesSourcePadding(right["Seq2SeqBlock"]):
    def forward(self, x, keys_values=None, source_mask=None, **seen):
        return super().forward(x, keys_values, None, **seen)


class Seq2SeqBlockScaled(right["Seq2SeqBlock"]):
    """1/√D, which T5 leaves out."""

    def __init__(self, config, cross):
        super().__init__(config, cross)
        self.attention.scale = self.attention.d_head**-0.5


class StackWithOneSidedBias(right["Stack"]):
    """The encoder's distances do not tell before from after."""

    def bias(self, n_queries, n_keys):
        self.decoder, before = True, self.decoder
        found = super().bias(n_queries, n_keys)
        self.decoder = before
        return found


class EncoderDecoderLeavesTheCacheInPlace(right["EncoderDecoder"]):
    """Beams go on with each other's keys and values."""

    def read_and_reorder(self, source, mask=None):
        read, _ = super().read_and_reorder(source, mask)
        return read, lambda cache, rows: cache


BUGS = [
    Bug(
        "EncoderDecoder",
        "keeps its beams in place",
        EncoderDecoderLeavesTheCacheInPlace,
        tests="beam_search",
    ),
    Bug("Seq2SeqBlock", "reads padding", Seq2SeqBlockSeesSourcePadding, tests="who_sees"),
    Bug("Seq2SeqBlock", "scales its scores", Seq2SeqBlockScaled, tests="t5s"),
    Bug("Stack", "mirrors distances", StackWithOneSidedBias, tests="t5s"),
]
