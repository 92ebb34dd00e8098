"""Answers in a model's text: a number, a label. Notebooks 10 and 11."""

from __future__ import annotations

import re
from collections.abc import Sequence

from course_utils.metrics import check_labels

# ── answers in a text ─────────────────────────────────────────────────────────────────────────


# A sign counts unless it stands between numbers ("10-12"); digits inside a word ("x2") do not.
_NUMBER = re.compile(
    r"""
    (?P<sign> (?<![\w.)]) [-−] )?  \$?  (?<![^\W\d])(?<!\d)
    (?P<digits> [0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?
              | [0-9]+(?:\.[0-9]+)?
              | (?<![0-9])\.[0-9]+ )
    (?P<power> [eE][-+]?[0-9]{1,3}\b )?
    """,
    re.VERBOSE,
)


def extract_number(text: str, *, after: str = "") -> int | float | None:
    """Return the number that a text gives as its answer, or None when it has none.

    It is the last one, since a model reasons first and answers last; with `after` ("answer is")
    it is the first one behind the last place where these words stand, if there is any. Reads
    "1,234", "$3.50", "−7", ".5" and "1e6"; leaves units, per cent signs and fractions alone.
    """
    place = text.lower().rfind(after.lower()) if after else -1
    if place >= 0 and (behind := _NUMBER.search(text, place + len(after))):
        return _value(behind)
    found = list(_NUMBER.finditer(text))
    return _value(found[-1]) if found else None


def _value(match: re.Match[str]) -> int | float | None:
    digits = match["digits"].replace(",", "")
    sign = -1 if match["sign"] else 1
    if match["power"] or "." in digits:
        number = sign * float(digits + (match["power"] or ""))
        return int(number) if number.is_integer() else number
    return sign * int(digits)


def extract_label(text: str, labels: Sequence[str]) -> str | None:
    """Return the label that occurs first in a text, as whole words in any case, or None.

    Where two begin at one place, the longer: "not positive" before "not". It does not understand
    the text: "positively" is no label, and "not positive" holds one.
    """
    check_labels(labels)
    by_name = {label.lower(): label for label in labels}
    if len(by_name) < len(labels):
        raise ValueError(f"labels is {list(labels)}; two differ in nothing but capital letters")
    longest_first = sorted(labels, key=len, reverse=True)
    either = "|".join(rf"(?<!\w){re.escape(label)}(?!\w)" for label in longest_first)
    found = re.search(either, text, re.IGNORECASE)
    return by_name[found[0].lower()] if found else None
