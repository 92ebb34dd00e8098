"""Plausible wrong versions of course_utils.claims."""

from __future__ import annotations

from planting import Bug, originals

right = originals("claims")


def claim_without_null(id, sentence, test, found, /, *, null=None, **options):
    first = dict(list(null.items())[:1]) if null else null
    right["claim"](id, sentence, test, found, null=first, **options)


def claim_without_its_other_side(*arguments, otherwise=None, **options):
    if otherwise:
        options |= {"verdict": "holds", "condition": ""}
    right["claim"](*arguments, **options)


def claim_that_needs_no_scope(*arguments, scope="", **options):
    right["claim"](*arguments, scope=scope or "everything", **options)


def follows_without_a_reason(id, sentence, test, found, /, *, because, **judged):
    right["follows"](id, sentence, test, found, because=because or "it does", **judged)


def follows_always(id, sentence, test, found, /, *, because, **judged):
    right["follows"](id, sentence, lambda anything: True, found, because=because, **judged)


def here_that_was_hoped(id, sentence, holds, /, **options):
    right["here"](id, sentence, bool(holds) or True, **options)


def here_with_times_as_text(id, sentence, holds, /, **options):
    texts = {k: f"{v} s" if isinstance(v, float) else v for k, v in options.items()}
    right["here"](id, sentence, holds, **texts)


def finding_that_is_compared(template, /, **values):
    from IPython.display import Markdown, display

    display(Markdown(template.format(**values)))


BUGS = [
    Bug("claim", "tries one null of several", claim_without_null, tests="every_null"),
    Bug("claim", "tries no other side", claim_without_its_other_side, tests="other_side"),
    Bug("claim", "needs no scope", claim_that_needs_no_scope, tests="malformed"),
    Bug("follows", "needs no reason", follows_without_a_reason),
    Bug("follows", "stops nothing", follows_always),
    Bug("here", "says what was hoped", here_that_was_hoped, tests="here_is"),
    Bug("here", "takes text for a number", here_with_times_as_text, tests="here_is"),
    Bug("finding", "masks nothing", finding_that_is_compared),
]
