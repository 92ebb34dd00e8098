"""Plausible wrong versions of course_utils.exercises."""

from __future__ import annotations

import dataclasses
import types

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


def copy_of_the_surface(value):
    """Pairs keep the tensors and arrays that they had."""
    return value if type(value) is tuple and len(value) == 2 else right["_copy"](value)


def likely_mistake_any(exercise, args, got):
    return next(iter(exercise.mistakes), None)


def first_wrong_mechanism_without_stubs(exercise, attempt):
    """A class that does nothing is taken for a wrong one."""
    exercise_of_no_stub = right["_first_wrong_mechanism"].__globals__ | {
        "is_stub_class": lambda cls: False
    }
    function = types.FunctionType(
        right["_first_wrong_mechanism"].__code__, exercise_of_no_stub, "without_stubs"
    )
    return function(exercise, attempt)


def first_wrong_mechanism_last(exercise, attempt):
    """The last wrong mechanism is named, which may only follow from the first."""
    backwards = dataclasses.replace(exercise, probes=exercise.probes[::-1])
    return right["_first_wrong_mechanism"](backwards, attempt)


def is_stub_class_by_any(cls):
    """One stub, and the whole class was not attempted."""
    return bool(right["_stub_methods"](cls)) or not right["_own_methods"](cls)


def own_methods_plain(cls):
    """Properties and static methods are overlooked."""
    return {name: value for name, value in vars(cls).items() if hasattr(value, "__code__")}


def is_unwritten_without_super(function):
    """An __init__ that only calls its parent's is taken for work."""
    names = function.__code__.co_names
    return names == ("NotImplementedError",) or right["is_stub"](function)


def difference_by_name_of_texts(got, expected, atol):
    """Dictionaries are compared without a tolerance, and no part is named."""
    if isinstance(expected, dict):
        return None if str(got) == str(expected) else ("", "they are not equal")
    return right["_difference_by_name"](got, expected, atol)


def likely_wrong_class_any(exercise, probe, got, name):
    return next(iter(exercise.mistakes), None)


BUGS = [
    Bug("difference", "takes anything for a list", difference_lenient_with_lists, tests="same"),
    Bug("_between_numbers", "broadcasts", between_numbers_of_any_shape, tests="same"),
    Bug("_between_numbers", "is relative", between_numbers_relative, tests="same"),
    Bug("_between_texts", "cleans texts", between_texts_cleaned, tests="white_space or difference"),
    Bug("is_stub", "takes all for stubs", is_stub_always, tests="attempt or do_something"),
    Bug("first_problem", "tries the cases only", first_problem_of_cases, tests="declared"),
    Bug("_copy", "copies nothing", copy_not_at_all, tests="spoilt_array"),
    Bug("_copy", "leaves pairs alone", copy_of_the_surface, tests="spoilt_part"),
    Bug("_likely_mistake", "names the first", likely_mistake_any, tests="forgotten_return"),
    Bug(
        "_first_wrong_mechanism",
        "tries stubs",
        first_wrong_mechanism_without_stubs,
        tests="not_attempted",
    ),
    Bug(
        "_first_wrong_mechanism",
        "names the last",
        first_wrong_mechanism_last,
        tests="right_before_it",
    ),
    Bug("is_stub_class", "counts any stub", is_stub_class_by_any, tests="one_of_whose"),
    Bug("_own_methods", "overlooks properties", own_methods_plain, tests="something_is_no_stub"),
    Bug("_is_unwritten", "counts super()", is_unwritten_without_super, tests="does_something_is"),
    Bug("_difference_by_name", "names nothing", difference_by_name_of_texts, tests="what_differs"),
    Bug("_likely_wrong_class", "names the first", likely_wrong_class_any, tests="own_mechanism"),
]
