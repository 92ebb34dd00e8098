"""Plausible wrong versions of course_utils.inference.processors."""

from __future__ import annotations

import math

import torch
from planting import Bug, originals

right = originals("inference.processors")


def temperature_multiplied(logits, temperature):
    right_at_zero = right["temperature"](logits, 0)
    return logits * temperature if temperature > 0 else right_at_zero


def temperature_on_probabilities(logits, temperature):
    right_at_zero = right["temperature"](logits, 0)
    return logits.softmax(-1) / temperature if temperature > 0 else right_at_zero


def temperature_without_zero(logits, temperature):
    return logits / temperature if temperature > 0 else logits


def temperature_overflows(logits, temperature):
    return right["temperature"](logits, 0) if temperature == 0 else logits * (1 / temperature)


def top_k_strict(logits, k):
    edge = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits <= edge, -math.inf)


def top_k_without_ties(logits, k):
    best = logits.topk(min(k, logits.shape[-1])).indices
    return torch.full_like(logits, -math.inf).scatter(-1, best, logits.gather(-1, best))


def top_k_smallest(logits, k):
    edge = logits.topk(min(k, logits.shape[-1]), largest=False).values[..., -1:]
    return logits.masked_fill(logits > edge, -math.inf)


def top_k_to_zero(logits, k):
    return right["top_k"](logits, k).where(right["top_k"](logits, k) > -math.inf, 0)


def largest_of_each_block(x, k, block=64):
    if x.shape[-1] % block or k * block >= x.shape[-1]:
        return x.topk(k)
    return x.unflatten(-1, (-1, block)).amax(-1).topk(k)


def _nucleus(logits, dropped):
    """Drop sorted tokens for which `dropped(mass up to and with it, its own mass)` holds."""
    values, order = logits.sort(dim=-1, descending=True, stable=True)
    mass = values.softmax(-1)
    out = dropped(mass.cumsum(-1), mass)
    return logits.masked_fill(torch.zeros_like(out).scatter(-1, order, out), -math.inf)


def top_p_not_scattered_back(logits, p):
    mass = logits.sort(dim=-1, descending=True).values.softmax(-1)
    return logits.masked_fill(mass.cumsum(-1) - mass >= p, -math.inf)


def top_p_as_threshold(logits, p):
    return logits.masked_fill(logits.softmax(-1) < 1 - p, -math.inf)


def top_p_may_empty(logits, p):
    """p = 0 leaves no token."""
    return _nucleus(logits, lambda upto, own: upto - own >= p)


def top_p_with_ties(logits, p):
    got = right["top_p"](logits, p)
    edge = got.where(got > -math.inf, math.inf).amin(-1, keepdim=True)
    return logits.masked_fill(logits < edge, -math.inf)


def top_p_edge_by_rounding(logits, p):
    """Sums of float32 probabilities: whether p is reached is left to their last bits."""
    mass, order = logits.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
    out = mass.cumsum(-1) - mass >= p if p else mass < mass[..., :1]
    return logits.masked_fill(torch.zeros_like(out).scatter(-1, order, out), -math.inf)


def top_p_tail_forgotten(logits, p):
    """Never more than the tokens above 1e-12."""
    kept = right["top_p"](logits, p)
    return kept.masked_fill(logits.double().softmax(-1) < 1e-12, -math.inf)


def min_p_edge_by_rounding(logits, p):
    least = math.log(p) if p > 0 else -math.inf
    distance = logits.double() - logits.amax(-1, keepdim=True).double()
    return torch.where(distance < least, -math.inf, logits)


def min_p_absolute(logits, p):
    """Relative to 1, not to the likeliest token."""
    return logits.masked_fill(logits.softmax(-1) < p, -math.inf)


def min_p_on_logits(logits, p):
    return logits.masked_fill(logits < p * logits.amax(-1, keepdim=True), -math.inf)


def min_p_over_the_batch(logits, p):
    mass = logits.softmax(-1)
    return logits.masked_fill(mass < p * mass.max(), -math.inf)


def repetition_penalty_subtracts(logits, ids, penalty):
    return logits.scatter(-1, ids, logits.gather(-1, ids) - math.log(penalty))


def repetition_penalty_in_place(logits, ids, penalty):
    return logits.copy_(right["repetition_penalty"](logits, ids, penalty))


def repetition_penalty_last_token(logits, ids, penalty):
    return right["repetition_penalty"](logits, ids[..., -1:], penalty)


def no_repeat_ngram_longer(logits, ids, size):
    return right["no_repeat_ngram"](logits, ids, size + 1 if size else 0)


def no_repeat_ngram_shorter(logits, ids, size):
    return right["no_repeat_ngram"](logits, ids, max(size - 1, 0))


def no_repeat_ngram_misses_the_last(logits, ids, size):
    """The windows end one token early."""
    if size < 2 or ids.shape[-1] < size:
        return right["no_repeat_ngram"](logits, ids, size)
    shorter = torch.cat([ids[..., :-1], ids[..., -size + 1 :]], dim=-1)
    return right["no_repeat_ngram"](logits, shorter, size)


def no_repeat_ngram_allows_once_more(logits, ids, size):
    """Another match of the same start lifts the ban."""
    if size == 0 or ids.shape[-1] < size:
        return logits
    seen = ids.unfold(-1, size, 1)
    start = ids[..., None, ids.shape[-1] - size + 1 :]
    repeats = (seen[..., :-1] == start).all(-1)
    old = logits.gather(-1, seen[..., -1])
    return logits.scatter(-1, seen[..., -1], torch.where(repeats, -math.inf, old))


def entropy_in_bits(logits):
    return right["entropy"](logits) / math.log(2)


def entropy_nan(logits):
    mass = logits.softmax(-1)
    return -(mass * mass.log()).sum(-1)


def processor_temperature_last(*, temperature=1.0, **others):
    """The filters see the distribution before the temperature."""
    filters, heat = right["processor"](**others), right["processor"](temperature=temperature)
    return lambda logits, ids: heat(filters(logits, ids), ids)


def processor_filters_before_penalties(*, repetition_penalty=1.0, no_repeat_ngram_size=0, **others):
    filters = right["processor"](**others)
    penalties = right["processor"](
        repetition_penalty=repetition_penalty, no_repeat_ngram_size=no_repeat_ngram_size
    )
    return lambda logits, ids: penalties(filters(logits, ids), ids)


def in_blocks_every_other_row(processes):
    def process(logits, ids):
        right["in_blocks"](processes)(logits, ids)
        out = logits.clone()
        for i, reshape in enumerate(processes):
            rows = slice(i, None, len(processes))
            out[rows] = reshape(logits[rows], ids[rows])
        return out

    return process


BUGS = [
    Bug("in_blocks", "deals the rows out in turn", in_blocks_every_other_row),
    Bug("temperature", "multiplies", temperature_multiplied),
    Bug("temperature", "divides probabilities, not logits", temperature_on_probabilities),
    Bug("temperature", "0 changes nothing", temperature_without_zero),
    Bug("temperature", "overflows near 0", temperature_overflows),
    Bug("top_k", "drops the k-th token too", top_k_strict),
    Bug("top_k", "drops ties", top_k_without_ties),
    Bug("top_k", "keeps the smallest", top_k_smallest),
    Bug("top_k", "sets filtered tokens to 0, not -inf", top_k_to_zero),
    Bug("topk_by_blocks", "takes one number from each block", largest_of_each_block),
    Bug(
        "top_p", "masks by rank instead of by token", top_p_not_scattered_back, exercise="09.top_p"
    ),
    Bug("top_p", "drops tokens below 1 - p", top_p_as_threshold, exercise="09.top_p"),
    Bug("top_p", "can leave no token", top_p_may_empty),
    Bug("top_p", "keeps all ties at the edge", top_p_with_ties),
    Bug("top_p", "leaves the edge to float32 sums", top_p_edge_by_rounding),
    Bug("top_p", "forgets the tail", top_p_tail_forgotten),
    Bug("min_p", "leaves the edge to rounding", min_p_edge_by_rounding),
    Bug("min_p", "is relative to 1 instead of the maximum", min_p_absolute),
    Bug("min_p", "takes a share of the largest logit", min_p_on_logits),
    Bug("min_p", "takes the maximum of the whole batch", min_p_over_the_batch),
    Bug(
        "repetition_penalty",
        "subtracts log(penalty)",
        repetition_penalty_subtracts,
        exercise="09.repetition_penalty",
    ),
    Bug(
        "repetition_penalty",
        "changes its input",
        repetition_penalty_in_place,
        exercise="09.repetition_penalty",
    ),
    Bug(
        "repetition_penalty",
        "sees the last token only",
        repetition_penalty_last_token,
        exercise="09.repetition_penalty",
    ),
    Bug("no_repeat_ngram", "blocks n-grams one longer", no_repeat_ngram_longer),
    Bug("no_repeat_ngram", "blocks n-grams one shorter", no_repeat_ngram_shorter),
    Bug("no_repeat_ngram", "misses the last n-gram", no_repeat_ngram_misses_the_last),
    Bug("no_repeat_ngram", "another window lifts the ban", no_repeat_ngram_allows_once_more),
    Bug("entropy", "is in bits", entropy_in_bits),
    Bug("entropy", "is NaN where a probability is 0", entropy_nan),
    Bug(
        "processor",
        "applies the temperature last",
        processor_temperature_last,
        tests="with_processors",
        where="inference.decoding",
    ),
    Bug(
        "processor",
        "filters before it penalises",
        processor_filters_before_penalties,
        tests="with_processors",
        where="inference.decoding",
    ),
]
