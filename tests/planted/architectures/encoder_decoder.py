"""Plausible wrong versions of course_utils.architectures.encoder_decoder."""

from __future__ import annotations

from planting import Bug, originals

right = originals("architectures.encoder_decoder")


class Seq2SeqBlockSeesSourcePadding(right["Seq2SeqBlock"]):
    def forward(self, x, memory=None, memory_mask=None, **seen):
        return super().forward(x, memory, None, **seen)


class Seq2SeqBlockScaled(right["Seq2SeqBlock"]):
    """1/√D, which T5 leaves out."""

    def __init__(self, sizes, cross):
        super().__init__(sizes, cross)
        self.attention.scale = self.attention.d_head**-0.5


class StackWithOneSidedBias(right["Stack"]):
    """The encoder's distances do not tell before from after."""

    def bias(self, n_queries, n_keys):
        self.decoder, before = True, self.decoder
        found = super().bias(n_queries, n_keys)
        self.decoder = before
        return found


def greedy_never_stops(next_logits, ids, max_new, stop):
    return right["_greedy"](next_logits, ids, max_new, None)


def greedy_keeps_the_stop(next_logits, ids, max_new, stop):
    rows = right["_greedy"](next_logits, ids, max_new, None)
    return [row[: row.index(stop) + 1] if stop in row else row for row in rows]


BUGS = [
    Bug("Seq2SeqBlock", "reads padding", Seq2SeqBlockSeesSourcePadding, tests="who_sees"),
    Bug("Seq2SeqBlock", "scales its scores", Seq2SeqBlockScaled, tests="t5s"),
    Bug("Stack", "mirrors distances", StackWithOneSidedBias, tests="t5s"),
    Bug("_greedy", "never stops", greedy_never_stops, tests="stops or writes"),
    Bug("_greedy", "keeps the stop", greedy_keeps_the_stop, tests="stops or writes"),
]
