"""Plausible wrong versions of course_utils.exercises."""

from __future__ import annotations

import numpy as np
from planting import Bug, originals

right = originals("exercises")


def difference_lenient_with_lists(got, expected, atol=1e-5):
    """Whatever is no list passes for one."""
    if isinstance(expected, list | tuple) and not isinstance(got, list | tuple):
        return ""
    return right["difference"](got, expected, atol)


def between_numbers_of_any_shape(got, expected, atol):
    try:
        close = np.allclose(right["_numpy"](got), right["_numpy"](expected), 0, atol, True)
    except (TypeError, ValueError):
        close = False
    return "" if close else right["_between_numbers"](got, expected, atol)


def between_numbers_relative(got, expected, atol):
    """As numpy does by default: a large number may be off by more."""
    wrong = right["_between_numbers"](got, expected, atol)
    try:
        left, other = right["_numpy"](got), right["_numpy"](expected)
        return "" if np.allclose(left, other, 1e-2, atol, True) else wrong
    except (TypeError, ValueError):
        return wrong


def between_texts_cleaned(got, expected):
    return right["_between_texts"](" ".join(str(got).split()), " ".join(expected.split()))


def is_stub_always(function):
    """Whatever returns None was not attempted."""
    return True


def first_problem_of_cases(exercise, attempt):
    for case in exercise.cases:
        if problem := right["_try"](exercise, attempt, case.args, case.expected):
            return problem + (f"\n    {case.why}" if case.why else "")
    return None


def copy_not_at_all(args):
    return args


def likely_mistake_any(exercise, args, got):
    return next(iter(exercise.mistakes), None)


BUGS = [
    Bug("difference", "takes anything for a list", difference_lenient_with_lists, tests="same"),
    Bug("_between_numbers", "broadcasts", between_numbers_of_any_shape, tests="same"),
    Bug("_between_numbers", "is relative", between_numbers_relative, tests="same"),
    Bug("_between_texts", "cleans texts", between_texts_cleaned, tests="white_space or difference"),
    Bug("is_stub", "takes all for stubs", is_stub_always, tests="attempt or do_something"),
    Bug("first_problem", "tries the cases only", first_problem_of_cases, tests="declared"),
    Bug("_copy", "copies nothing", copy_not_at_all, tests="spoilt_array"),
    Bug("_likely_mistake", "names the first", likely_mistake_any, tests="forgotten_return"),
]
