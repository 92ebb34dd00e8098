"""Plausible wrong versions of course_utils.prompting.answers."""

from __future__ import annotations

import math
import re

from planting import Bug, originals

from course_utils.prompting.answers import _NUMBER, _value

right = originals("prompting.answers")


def extract_number_first(text, *, after=""):
    found = _NUMBER.search(text)
    return _value(found) if found else None


def extract_number_digits_only(text, *, after=""):
    found = re.findall(r"[0-9]+", text)
    return int(found[-1]) if found else None


def extract_number_range_as_negative(text, *, after=""):
    found = re.findall(r"[-−]?[0-9]+(?:\.[0-9]+)?", text.replace(",", ""))
    got = right["extract_number"](text, after=after)
    return got if not found or "." in found[-1] else type(got)(found[-1].replace("−", "-"))


def extract_number_last_behind_the_phrase(text, *, after=""):
    place = text.lower().rfind(after.lower()) if after else 0
    behind = right["extract_number"](text[max(place, 0) :])
    return right["extract_number"](text) if behind is None else behind


def extract_number_without_bounds(text, *, after=""):
    return right["extract_number"](text, after=after) or (math.inf if "9" * 400 in text else None)


def extract_number_cut_at_blanks(text, *, after=""):
    return right["extract_number"](text.replace(" ", " , "), after=after)


def extract_label_in_words(text, labels):
    right["extract_label"](text, labels)
    found = [(text.lower().find(label), label) for label in labels if label in text.lower()]
    return min(found)[1] if found else None


def extract_label_last(text, labels):
    found = right["extract_label"](text, labels)
    while found:
        text = text[text.lower().index(found.lower()) + len(found) :]
        later = right["extract_label"](text, labels)
        if later is None:
            return found
        found = later
    return None


def extract_label_case_matters(text, labels):
    right["extract_label"](text, labels)
    found = re.search("|".join(rf"\b{re.escape(label)}\b" for label in labels), text)
    return found[0] if found else None


def extract_label_guesses(text, labels):
    return right["extract_label"](text, labels) or labels[0]


BUGS = [
    Bug("extract_number", "takes the first", extract_number_first),
    Bug("extract_number", "reads digits only", extract_number_digits_only),
    Bug("extract_number", "takes a range for a minus", extract_number_range_as_negative),
    Bug("extract_number", "takes the last after all", extract_number_last_behind_the_phrase),
    Bug("extract_number", "lets infinity through", extract_number_without_bounds),
    Bug("extract_number", "parts groups at a blank", extract_number_cut_at_blanks),
    Bug("extract_label", "finds labels inside words", extract_label_in_words),
    Bug("extract_label", "takes the last", extract_label_last),
    Bug("extract_label", "minds capital letters", extract_label_case_matters),
    Bug("extract_label", "guesses", extract_label_guesses),
]
