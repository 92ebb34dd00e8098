"""Plausible wrong versions of course_utils.architectures.seq2seq."""

from __future__ import annotations

from planting import Bug, originals

right = originals("architectures.seq2seq")


def rows_in_place(state, rows):
    """Beams go on with each other's states."""
    n = len(rows)
    if isinstance(state, tuple):
        return tuple(part[:, :1].expand(-1, n, -1) for part in state)
    return state[:, :1].expand(-1, n, -1)


def rows_of_layers(state, rows):
    """The layers are reordered, not the sequences."""
    if isinstance(state, tuple):
        return tuple(part.roll(1, 0)[:, rows] for part in state)
    return state.roll(1, 0)[:, rows]


BUGS = [
    Bug("_rows_of", "gives all the first state", rows_in_place, tests="beams or greedy"),
    Bug("_rows_of", "moves layers", rows_of_layers, tests="beams or greedy"),
]
