"""Plausible wrong versions of course_utils.inference.decoding."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from planting import Bug, originals

from course_utils.inference import decoding

right = originals("inference.decoding")


def greedy_ignores_stop(next_logits, prompt, max_new_tokens, *, stop=(), process=None):
    return right["greedy"](next_logits, prompt, max_new_tokens, process=process)


def greedy_drops_the_stop_token(next_logits, prompt, max_new_tokens, **options):
    found = right["greedy"](next_logits, prompt, max_new_tokens, **options)
    return [replace(c, tokens=c.tokens[:-1]) if c.finish_reason == "stop" else c for c in found]


def greedy_ignores_process(next_logits, prompt, max_new_tokens, *, stop=(), process=None):
    return right["greedy"](next_logits, prompt, max_new_tokens, stop=stop)


def greedy_always_length(*arguments, **options):
    return [replace(c, finish_reason="length") for c in right["greedy"](*arguments, **options)]


def cut_nothing(tokens, stop, logprob):
    """Rows that ended keep what the rest of the batch made them write."""
    reason = "stop" if set(tokens) & set(stop) else "length"
    return decoding.Continuation(tuple(tokens), logprob, reason, logprob)


def sample_ignores_generator(*arguments, generator=None, **options):
    return right["sample"](*arguments, **options)


def sample_uniform(next_logits, prompt, max_new_tokens, *, process=None, **options):
    """Draws among the tokens that are left without regard to their probabilities."""

    def flat(logits, ids):
        logits = process(logits, ids) if process else logits
        return torch.where(logits > -math.inf, 0, logits)

    return right["sample"](next_logits, prompt, max_new_tokens, process=flat, **options)


def sample_ignores_process(*arguments, process=None, **options):
    return right["sample"](*arguments, **options)


BUGS = [
    Bug("greedy", "ignores stop tokens", greedy_ignores_stop),
    Bug("greedy", "drops the stop token", greedy_drops_the_stop_token),
    Bug("greedy", "ignores process", greedy_ignores_process),
    Bug("greedy", "always says length", greedy_always_length),
    Bug("_cut", "rows write on after their stop", cut_nothing, tests="greedy"),
    Bug("sample", "ignores its generator", sample_ignores_generator),
    Bug("sample", "draws uniformly", sample_uniform),
    Bug("sample", "ignores process", sample_ignores_process),
]
