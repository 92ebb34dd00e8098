"""Plausible wrong versions of course_utils.evidence.judging."""

from __future__ import annotations

from dataclasses import replace

from planting import Bug, originals

right = originals("evidence.judging")


def judge_by_chance_leniently(test, found):
    return replace(right["judge_by_chance"](test, found), outcome=False)


def judge_without_asking(name, test, found, wanted):
    return replace(right["judge"](name, test, found, wanted), outcome=wanted)


def judge_of_anything(name, test, found, wanted):
    return right["judge"](name, lambda value: bool(test(value)), found, wanted)


BUGS = [
    Bug("judge_by_chance", "lets coin flips pass", judge_by_chance_leniently,
        tests="coin_flips", where="claims"),
    Bug("judge", "takes the wish for the outcome", judge_without_asking,
        tests="amber", where="claims"),
    Bug("judge", "takes a number for a boolean", judge_of_anything,
        tests="malformed", where="claims"),
]  # fmt: skip
