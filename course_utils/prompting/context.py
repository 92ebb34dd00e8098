"""From passages to a prompt's context, and from an answer's citations back. Notebook 12."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from course_utils.prompting.retrieval import FUNCTION_WORDS, Passage, tokenize
from course_utils.prompting.words import WORD

# ── context and citations ─────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Context:
    """Numbered passages for a prompt: passage n is `passages[n - 1]`; `left_out` did not fit."""

    text: str
    passages: tuple[Passage, ...]
    n_tokens: int
    left_out: tuple[Passage, ...]


def assemble_context(
    passages: Sequence[Passage],
    budget: int,
    count_tokens: Callable[[str], int],
    *,
    template: str = "[{n}] ({source})\n{text}",
    separator: str = "\n\n",
) -> Context:
    """Number passages in the order given and join as many as fit into `budget` tokens.

    A passage that does not fit is left out, and smaller ones after it may still enter; one that
    overlaps another already taken (same source) by more than half is left out too. Numbers in
    square brackets inside a passage or its source become round, so that none can pose as another.
    Without passages the context is empty. Raises ValueError when not even one passage fits.

    >>> fox, hen = Passage("See [2].", "Tale", 0, 8), Passage("I fled at once.", "Song", 0, 15)
    >>> assemble_context([fox, hen], 5, lambda text: len(text.split())).text
    '[1] (Tale)\\nSee (2).'
    """
    taken: list[Passage] = []
    left_out: list[Passage] = []
    text, n_tokens = "", 0
    for passage in passages:
        source, own = _without_markers(passage.source), _without_markers(passage.text)
        shown = template.format(n=len(taken) + 1, source=source, text=own)
        longer = f"{text}{separator}{shown}" if taken else shown
        size = count_tokens(longer)
        if size > budget or any(_overlap(passage, other) > 0.5 for other in taken):
            left_out.append(passage)
            continue
        taken.append(passage)
        text, n_tokens = longer, size
    if passages and not taken:
        raise ValueError(
            f"no passage fits into {budget} tokens (the last one tried needs {size}); raise the "
            "budget or cut smaller chunks"
        )
    return Context(text, tuple(taken), n_tokens, tuple(left_out))


def _overlap(one: Passage, other: Passage) -> float:
    """Return the share of `one` that also stands in `other`."""
    if one.source != other.source or one.start == one.end:
        return 0.0
    common = min(one.end, other.end) - max(one.start, other.start)
    return max(common, 0) / (one.end - one.start)


# Of up to nine digits: no context has more passages, and thousands of digits are no number.
_MARKER = re.compile(r"[\[［【]\s*(\d{1,9}(?:\s*[,;，；]\s*\d{1,9})*)\s*[\]］】]")


def _without_markers(text: str) -> str:
    return _MARKER.sub(r"(\1)", text)


def cited_numbers(text: str) -> list[int]:
    """Return the numbers cited as [1] or [1, 3], each once, in the order of the text."""
    groups = _MARKER.findall(text)
    numbers = (int(number) for group in groups for number in re.findall(r"\d+", group))
    return list(dict.fromkeys(numbers))


@dataclass(frozen=True)
class CitationCheck:
    """What an answer's citations are worth.

    `unknown` names no passage of the context. `support[n]` is the share of the content words of
    the sentences citing [n] that stand in passage n: low support means the passage does not say
    so. `uncited` are the sentences without a citation.
    """

    known: tuple[int, ...]
    unknown: tuple[int, ...]
    support: dict[int, float]
    uncited: tuple[str, ...]


def check_citations(answer: str, context: Context) -> CitationCheck:
    """Compare an answer's citations with the passages they name.

    >>> context = Context("", (Passage("The king drinks wine.", "Hamlet", 0, 21),), 0, ())
    >>> check_citations("The king drinks [1]. He sings [7]! So what?", context)
    CitationCheck(known=(1,), unknown=(7,), support={1: 1.0}, uncited=('So what?',))
    """
    numbers = cited_numbers(answer)
    known = tuple(n for n in numbers if 1 <= n <= len(context.passages))
    sentences = _sentences(answer)
    support = {}
    for n in known:
        said = " ".join(s for s in sentences if n in cited_numbers(s))
        support[n] = _support(said, context.passages[n - 1].text)
    uncited = tuple(s for s in sentences if not cited_numbers(s))
    return CitationCheck(known, tuple(n for n in numbers if n not in known), support, uncited)


# Where a sentence may end, its closing quotes and citations included.
_STOP = re.compile(
    rf"[.!?…][\"'”’)]*(?:\s*{_MARKER.pattern})*(?=\s|$)"
    rf"|[。！？][」』”’）]*(?:\s*{_MARKER.pattern})*|\n+"
)
_NEXT = re.compile(r"\s*(\S?)")
# After the first a full stop never ends a sentence, after the others only before a capital letter.
_NEVER_LAST = re.compile(
    r"mrs?|ms|dr|prof|st|rev|hon|gen|col|capt|sgt|lt|messrs|mme|mlle|mt|cf|vs|viz|e\.g|i\.e", re.I
)
_MAY_BE_LAST = re.compile(
    r"etc|al|[ap]\.m|jr|sr|ca|approx|esq|inc|ltd|co|dept|vol|eds?|sec|fig|pp?|nos?|ch", re.I
)


def _sentences(text: str) -> list[str]:
    """Split after . ! ? and their closing quotes and citations; what has no word is dropped."""
    parts, start = [], 0
    for mark in _STOP.finditer(text):
        if _is_end(text, mark):
            parts.append(text[start : mark.end()])
            start = mark.end()
    return [part.strip() for part in [*parts, text[start:]] if WORD.search(_MARKER.sub("", part))]


def _is_end(text: str, mark: re.Match[str]) -> bool:
    """Does a sentence end here? Not after "Dr.", "J. R. R.", a list's "1." or in '"Who?" he asks'.

    An initial, such as the V of "Henry V.", is always taken for part of a name; "I" never.
    """
    after = _NEXT.match(text, mark.end())[1]
    if mark[0][0] in "!?":
        return not (mark[0][-1] in "\"'”’" and after.islower())
    if mark[0][0] != ".":
        return True
    word = re.search(r"[\w.]*$", text[max(mark.start() - 20, 0) : mark.start()])[0]
    if word.isdigit():
        return bool(text[text.rfind("\n", 0, mark.start()) + 1 : mark.start() - len(word)].strip())
    if re.fullmatch(r"[A-HJ-Z]|[A-Z]\w{0,2}(?:\.[A-Z])+", word) or _NEVER_LAST.fullmatch(word):
        return False
    goes_on = after.islower() or after.isdigit() or after in ("(", ",", ";")
    return not (goes_on and _MAY_BE_LAST.fullmatch(word))


def _support(said: str, passage: str) -> float:
    words = set(tokenize(_MARKER.sub(" ", said), drop=FUNCTION_WORDS))
    return len(words & set(tokenize(passage))) / len(words) if words else 0.0
