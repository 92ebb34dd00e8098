"""Exercises of notebook 09: what textbooks write passes, and what learners get wrong is named."""

from __future__ import annotations

import math

import pytest
import torch

from course_utils import exercises
from course_utils.checks import decoding


def problem(name, attempt):
    return exercises.first_problem(decoding.EXERCISES[name], attempt)


# ── textbook variants ───────────────────────────────────────────────────────────────────────────


def temperature_by_hand(logits, temperature):
    weights = [math.exp(z / temperature) for z in logits.tolist()]
    return [weight / sum(weights) for weight in weights]


def temperature_by_powers(logits, temperature):
    powers = logits.softmax(-1) ** (1 / temperature)
    return powers / powers.sum()


def top_p_shifted(logits, p):
    """As transformers once wrote it: drop what comes after the threshold, shifted by one."""
    ranked, order = logits.sort(descending=True)
    remove = ranked.softmax(-1).cumsum(-1) > p
    remove[1:] = remove[:-1].clone()
    remove[0] = False
    return logits.index_fill(0, order[remove], -math.inf)


def top_p_from_below(logits, p):
    """As transformers writes it: from the least likely upwards."""
    ranked, order = logits.sort()
    remove = ranked.softmax(-1).cumsum(-1) <= 1 - p
    remove[-1] = False
    return logits.index_fill(0, order[remove], -math.inf)


def top_p_of_a_set(logits, p):
    """The tokens are added up in the order of the vocabulary: a set has no likeliest first."""
    mass = logits.softmax(-1)
    return torch.where(mass.cumsum(-1) - mass < p, logits, -math.inf)


def penalty_with_a_mask(logits, ids, penalty):
    seen = torch.zeros_like(logits, dtype=torch.bool)
    seen[ids] = True
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def beams_by_sorting(totals, logprobs, num_beams):
    pairs = [(b, v) for b in range(len(logprobs)) for v in range(logprobs.shape[1])]
    return sorted(pairs, key=lambda at: -(totals[at[0]] + logprobs[at]).item())[:num_beams]


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("temperature", temperature_by_hand),
        ("temperature", temperature_by_powers),
        ("top_p", top_p_shifted),
        ("top_p", top_p_from_below),
        ("repetition_penalty", penalty_with_a_mask),
        ("expand_and_prune", beams_by_sorting),
    ],
)
def test_variant_passes(name, variant):
    assert problem(name, variant) is None


# ── mistakes ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("temperature", lambda z, t: z.softmax(-1) / t / (z.softmax(-1) / t).sum(), "changes noth"),
        ("temperature", lambda z, t: z.softmax(-1) ** (1 / t), "not scaled to a sum of one"),
        ("temperature", lambda z, t: (z / t).exp(), "not divided by the sum"),
        ("temperature", lambda z, t: (z / t).log_softmax(-1), "logarithms"),
        ("temperature", lambda z, t: z / t, "not turned into probabilities"),
        ("top_p", lambda z, p: torch.where(z.softmax(-1) >= p, z, -math.inf), "one by one"),
        ("top_p", top_p_of_a_set, "in vocabulary order"),
        ("repetition_penalty", lambda z, ids, p: z.scatter(-1, ids, z[ids] / p), "likelier"),
    ],
)
def test_mistake_is_named(name, wrong, said):
    assert said in problem(name, wrong)


def test_one_sentence_about_the_settings_was_supported():
    supported = [s for s in decoding.STATEMENTS["settings"].values() if s.supported]
    assert len(supported) == 1
