"""Plausible wrong versions of course_utils.prompting.context."""

from __future__ import annotations

from dataclasses import replace

from planting import Bug, originals

from course_utils.prompting.context import Context

right = originals("prompting.context", "prompting.retrieval")


def assemble_context_stops_early(passages, budget, count_tokens, **options):
    whole = right["assemble_context"](passages, budget, count_tokens, **options)
    first = passages.index(whole.left_out[0]) if whole.left_out else len(passages)
    kept = passages[: max(first, 1)]
    return replace(
        right["assemble_context"](kept, budget, count_tokens, **options),
        left_out=tuple(passages[len(kept) :]),
    )


def assemble_context_adds_up(passages, budget, count_tokens, **options):
    kept, used = [], 0
    for passage in passages:
        used += count_tokens(passage.text)
        kept += [passage] if used <= budget else []
    text = "\n\n".join(f"[{n}] ({p.source})\n{p.text}" for n, p in enumerate(kept, start=1))
    return Context(text, tuple(kept), used, tuple(p for p in passages if p not in kept))


def overlap_never(one, other):
    return 0.0


def overlap_across_sources(one, other):
    return right["_overlap"](one, replace(other, source=one.source))


def without_markers_none(text):
    return text


def cited_numbers_first_of_a_group(text):
    return [int(group.split(",")[0].split(";")[0]) for group in right["_MARKER"].findall(text)]


def is_end_always(text, mark):
    return True


def is_end_never_after_a_short_word(text, mark):
    return mark.start() < 3 or not text[mark.start() - 3 : mark.start()].strip().isalpha()


def support_of_all_words(said, passage):
    words = set(right["tokenize"](said))
    return len(words & set(right["tokenize"](passage))) / len(words) if words else 0.0


def support_any_word(said, passage):
    return float(right["_support"](said, passage) > 0)


BUGS = [
    Bug("assemble_context", "stops at what does not fit", assemble_context_stops_early),
    Bug("assemble_context", "adds up the parts", assemble_context_adds_up),
    Bug("_overlap", "repeats passages", overlap_never, tests="assemble_context"),
    Bug("_overlap", "mixes sources", overlap_across_sources, tests="assemble_context"),
    Bug("_without_markers", "lets pose", without_markers_none, tests="assemble_context"),
    Bug("cited_numbers", "reads one number of a group", cited_numbers_first_of_a_group),
    Bug("_is_end", "takes every full stop for an end", is_end_always, tests="check_citations"),
    Bug(
        "_is_end",
        "takes every short word for an abbreviation",
        is_end_never_after_a_short_word,
        tests="check_citations",
    ),
    Bug("_support", "counts function words", support_of_all_words, tests="check_citations"),
    Bug("_support", "is content with one word", support_any_word, tests="check_citations"),
]
