"""Answers in a model's text: a number, a label. Notebooks 10 to 12."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from itertools import combinations

from course_utils.metrics import check_labels
from course_utils.prompting.words import UNSPACED

# Every kind of dash that a model writes for a minus, of blank and of apostrophe, as the plain one.
_PLAIN = str.maketrans("−–‐‑‒－’＇０１２３４５６７８９，．" + "\u00a0\u2009\u202f",
                       "------''0123456789,." + "   ")  # fmt: skip

# A sign counts unless it stands between numbers ("10-12"); digits inside a word ("x2") do not.
_NUMBER = re.compile(
    rf"""
    (?P<sign> (?<![^\W{UNSPACED}])(?<![.)]) - )?  \\?[$€£¥]?  (?<![^\W\d{UNSPACED}])(?<!\d)
    (?P<digits> [0-9]{{1,3}} (?P<gap> ,|\{{,\}}|\\,|[ '_] ) [0-9]{{3}} (?:(?P=gap)[0-9]{{3}})*
                (?![0-9])(?:\.[0-9]+)?
              | [0-9]{{1,3}}(?:\.[0-9]{{3}}){{2,}}(?![0-9])
              | [0-9]+(?:\.[0-9]+)?
              | (?<![0-9])\.[0-9]+ )
    (?P<power> [eE][-+]?[0-9]{{1,3}}\b )?
    """,
    re.VERBOSE,
)


def extract_number(text: str, *, after: str = "") -> int | float | None:
    """Return the number that a text gives as its answer, or None when it has none.

    It is the last one, since a model reasons first and answers last; with `after` ("answer is")
    it is the first one behind the last place where these words stand, if there is any. Reads
    "1,234", "9{,}500", "1 000", "$3.50", "−7", ".5" and "1e6"; leaves units, per cent signs and
    fractions alone. Three digits after a blank go with those before it, so that "100 200" is one
    number; a comma before fewer parts two. None, too, for a number that no float can hold.

    >>> extract_number("3 packs of 4: the answer is 12 eggs, not 7.", after="answer is")
    12
    """
    text = text.translate(_PLAIN)  # one character for one
    behind = [found.end() for found in re.finditer(re.escape(after), text, re.IGNORECASE)]
    if after and behind and (found := _NUMBER.search(text, behind[-1])):
        return _value(found)
    every = list(_NUMBER.finditer(text))
    return _value(every[-1]) if every else None


def _value(match: re.Match[str]) -> int | float | None:
    digits = match["digits"].replace(match["gap"] or ",", "")
    if digits.count(".") > 1:
        digits = digits.replace(".", "")
    number = float(digits + (match["power"] or ""))
    if not math.isfinite(number):
        return None
    sign = -1 if match["sign"] else 1
    if match["power"] or "." in digits:
        return sign * (int(number) if number.is_integer() else number)
    return sign * int(digits.lstrip("0") or "0")  # int() refuses thousands of digits, zeros too


def extract_label(text: str, labels: Sequence[str]) -> str | None:
    """Return the label that occurs first in a text, as whole words in any case, or None.

    Where two begin at one place, the longer: "not positive" before "not". It does not understand
    the text: "positively" is no label, and "not positive" holds one. In a script without spaces,
    any place is a word's.

    >>> extract_label("Rather NEGATIVE, not positive.", ["positive", "negative"])
    'negative'
    """
    check_labels(labels)
    composed = {label: unicodedata.normalize("NFC", label) for label in labels}
    if any(re.fullmatch(re.escape(a), b, re.I) for a, b in combinations(composed.values(), 2)):
        raise ValueError(f"labels is {list(labels)}; two differ in nothing but capital letters")
    longest_first = sorted(labels, key=len, reverse=True)
    letter = rf"[^\W{UNSPACED}]"
    either = "|".join(
        rf"(?<!{letter})({re.escape(composed[label])})(?!{letter})" for label in longest_first
    )
    found = re.search(either, unicodedata.normalize("NFC", text), re.IGNORECASE)
    return longest_first[found.lastindex - 1] if found else None
