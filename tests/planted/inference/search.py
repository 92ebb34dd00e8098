"""Plausible wrong versions of course_utils.inference.search."""

from __future__ import annotations

import torch
from planting import Bug, originals

right = originals("inference.decoding", "inference.search")


def candidates_without_penalty(tokens, totals, fates, normaliser):
    return right["_candidates"](tokens, totals, fates, 1.0)


def candidates_with_inverse_penalty(tokens, totals, fates, normaliser):
    return right["_candidates"](tokens, totals, fates, 1 / normaliser)


def fates_of_any_rank(tokens, stops, num_beams, *, last):
    """A stop far down the list ends a beam too."""
    reasons = right["_fates"](tokens, stops, num_beams, last=last)
    return [
        "stop" if end else fate
        for end, fate in zip(torch.isin(tokens, stops), reasons, strict=True)
    ]


def fates_stopped_beams_take_places(tokens, stops, num_beams, *, last):
    """The beams that stop are not replaced."""
    reasons = right["_fates"](tokens, stops, num_beams, last=last)
    return [fate if rank < num_beams else "pruned" for rank, fate in enumerate(reasons)]


def fates_stop_ignored(tokens, stops, num_beams, *, last):
    return right["_fates"](tokens, stops[:0], num_beams, last=last)


def expand_per_beam(ids, totals, logprobs, width):
    """The next token's own log-probability decides, not the sum."""
    longer, own = right["expand"](ids, torch.zeros_like(totals), logprobs, width)
    parents = [(ids == row[:-1]).all(1).nonzero()[0, 0] for row in longer]
    return longer, own + totals[parents]


def best_by_logprob(continuations, count):
    return sorted(continuations, key=lambda c: -c.logprob)[:count]


def settled_at_once(totals, finished, num_beams, early, normaliser):
    """As if early_stopping were always True."""
    return right["_settled"](totals, finished, num_beams, True, normaliser)


def settled_never(totals, finished, num_beams, early, normaliser):
    return len(totals) == 0


def settled_against_the_best(totals, finished, num_beams, early, normaliser):
    return right["_settled"](totals, finished[:1] * len(finished), num_beams, early, normaliser)


def exact_search_is_greedy(next_logits, prompt, max_new_tokens, *, stop=(), max_prefixes=256):
    return right["greedy"](next_logits, prompt, max_new_tokens, stop=stop)[0]


def exact_search_is_beam_search(next_logits, prompt, max_new_tokens, *, stop=(), max_prefixes=256):
    found = right["beam_search"](next_logits, prompt, max_new_tokens, num_beams=2, stop=stop)
    return found[0]


BUGS = [
    Bug("_candidates", "no length penalty", candidates_without_penalty, tests="beam_search"),
    Bug("_candidates", "penalty upside down", candidates_with_inverse_penalty, tests="beam_search"),
    Bug("_fates", "a stop of any rank counts", fates_of_any_rank, tests="beam_search"),
    Bug("_fates", "no place is refilled", fates_stopped_beams_take_places, tests="beam_search"),
    Bug("_fates", "stop tokens are ignored", fates_stop_ignored, tests="beam_search"),
    Bug("expand", "ranks by the last token alone", expand_per_beam, tests="beam_search"),
    Bug("_best", "ranks by log-probability", best_by_logprob, tests="beam_search"),
    Bug("_settled", "always stops early", settled_at_once, tests="beam_search"),
    Bug("_settled", "never stops early", settled_never, tests="beam_search"),
    Bug("_settled", "compares with the best", settled_against_the_best, tests="beam_search"),
    Bug("exact_search", "is greedy", exact_search_is_greedy),
    Bug("exact_search", "is beam search", exact_search_is_beam_search),
]
