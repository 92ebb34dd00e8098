"""From passages to a prompt's context, and from an answer's citations back. Notebook 12."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from course_utils.prompting.retrieval import _WORD, FUNCTION_WORDS, Passage, tokenize

# ── context and citations ─────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Context:
    """Numbered passages for a prompt: passage n is `passages[n - 1]`; `left_out` did not fit."""

    text: str
    passages: tuple[Passage, ...]
    tokens: int
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
    square brackets inside a passage become round, so that no passage can pose as another.
    Without passages the context is empty. Raises ValueError when not even one passage fits.
    """
    taken: list[Passage] = []
    left_out: list[Passage] = []
    text, tokens = "", 0
    for passage in passages:
        shown = template.format(
            n=len(taken) + 1, source=passage.source, text=_without_markers(passage.text)
        )
        longer = f"{text}{separator}{shown}" if taken else shown
        size = count_tokens(longer)
        if size > budget or any(_overlap(passage, other) > 0.5 for other in taken):
            left_out.append(passage)
            continue
        taken.append(passage)
        text, tokens = longer, size
    if passages and not taken:
        raise ValueError(
            f"no passage fits into {budget} tokens (the last one tried needs {size}); raise the "
            "budget or cut smaller chunks"
        )
    return Context(text, tuple(taken), tokens, tuple(left_out))


def _overlap(one: Passage, other: Passage) -> float:
    """Return the share of `one` that also stands in `other`."""
    if one.source != other.source or one.start == one.end:
        return 0.0
    common = min(one.end, other.end) - max(one.start, other.start)
    return max(common, 0) / (one.end - one.start)


_MARKER = re.compile(r"\[(\d+(?:\s*[,;]\s*\d+)*)\]")


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
    """Compare an answer's citations with the passages they name."""
    numbers = cited_numbers(answer)
    known = tuple(n for n in numbers if 1 <= n <= len(context.passages))
    sentences = _sentences(answer)
    support = {}
    for n in known:
        said = " ".join(s for s in sentences if n in cited_numbers(s))
        support[n] = _support(said, context.passages[n - 1].text)
    uncited = tuple(s for s in sentences if not cited_numbers(s))
    return CitationCheck(known, tuple(n for n in numbers if n not in known), support, uncited)


def _sentences(text: str) -> list[str]:
    """Split after . ! ? and their closing quotes and citations; what has no word is dropped."""
    ends = re.compile(r"(?:[.!?][\"'”’)]*(?:\s*\[[\d,; ]+\])*)(?=\s|$)|\n+")
    parts, start = [], 0
    for match in ends.finditer(text):
        parts.append(text[start : match.end()])
        start = match.end()
    return [part.strip() for part in [*parts, text[start:]] if _WORD.search(_MARKER.sub("", part))]


def _support(said: str, passage: str) -> float:
    words = set(tokenize(_MARKER.sub(" ", said), drop=FUNCTION_WORDS))
    return len(words & set(tokenize(passage))) / len(words) if words else 0.0
