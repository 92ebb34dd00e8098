"""Plausible wrong versions of course_utils.evidence.box."""

from __future__ import annotations

from dataclasses import replace

from planting import Bug, originals

right = originals("evidence.box")


def conclude_whatever_came(box):
    right["conclude"](replace(box, free=True))


def conclude_always_strictly(box):
    if not box.holds:
        raise right["ClaimFailed"](f"{box.id} does not hold: {box.sentence}")
    right["conclude"](box)


def is_strict_when_set():
    import os

    return "COURSE_STRICT" in os.environ


def shown_unmasked(value, always_masked):
    return right["_shown"](value, always_masked).strip("⟨⟩")


def shown_without_here(value, always_masked):
    return right["_shown"](value, False)


BUGS = [
    Bug("conclude", "forgives all", conclude_whatever_came, tests="amber", where="claims"),
    Bug("conclude", "stops a reader", conclude_always_strictly, tests="amber", where="claims"),
    Bug("is_strict", "takes 0 for yes", is_strict_when_set, tests="switched_off", where="claims"),
    Bug("_shown", "masks nothing", shown_unmasked, tests="every_null", where="claims"),
    Bug("_shown", "compares times", shown_without_here, tests="here_is", where="claims"),
]
