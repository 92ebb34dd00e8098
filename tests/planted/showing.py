"""Plausible wrong versions of course_utils.showing."""

from __future__ import annotations

from planting import Bug, originals

right = originals("showing")


def masked_with_brackets_inside(text):
    return f"⟨{text}⟩"


def markdown_row_as_it_is(cells):
    return "| " + " | ".join(map(str, cells)) + " |"


def source_of_the_first(*functions):
    return right["source_of"](functions[0])


BUGS = [
    Bug("masked", "lets brackets through", masked_with_brackets_inside, where="claims"),
    Bug("markdown_row", "escapes nothing", markdown_row_as_it_is, tests="table"),
    Bug("source_of", "shows one function", source_of_the_first, tests="every_function"),
]
