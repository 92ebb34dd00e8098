"""Plausible wrong versions of course_utils.claims."""

from __future__ import annotations

from planting import Bug, originals

right = originals("claims")


def claim_that_stops_for_time(id, text, /, *, holds, timing=False, **options):
    right["claim"](id, text, holds=holds, **options)


def claim_that_forgives(id, text, /, *, holds, **options):
    right["claim"](id, text, holds=holds, **{**options, "timing": True})


def says_what_was_hoped(outcome, verdict, condition, timing):
    return right["_says"](True, verdict, condition, timing)


def says_it_unmasked(outcome, verdict, condition, timing):
    return right["_says"](outcome, verdict, condition, timing).strip("⟨⟩")


def as_measured_but_for_integers(value):
    return right["_shown"](value)


BUGS = [
    Bug("claim", "stops for a time", claim_that_stops_for_time, tests="about_time"),
    Bug("claim", "stops for nothing", claim_that_forgives, tests="does_not_hold"),
    Bug("_says", "says what was hoped", says_what_was_hoped, tests="about_time"),
    Bug("_says", "masks no verdict", says_it_unmasked, tests="about_time"),
    Bug("_as_measured", "shows integers", as_measured_but_for_integers, tests="about_time"),
]
