"""Logits processors: each reshapes one next-token distribution. Notebook 09.

`temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `no_repeat_ngram`, and `processor`,
all of them in one. A setting has one name wherever it is given by name, here and in `engines`; a
function calls its one number by the last word of that name. Where the fast form is harder to read,
`<name>_plain` is the textbook loop over one row; both agree. Reference: transformers' processors.

Logits (..., V) in, logits (..., V) out; filtered tokens get −inf. Entropies are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral

import torch
from torch import Tensor

Process = Callable[[Tensor, Tensor], Tensor]  # logits (B, V), ids (B, T) -> logits (B, V)

# What rounding may take from a token at the very edge, whose last bits must not decide: of a
# probability, more than a float64 sum of 100,000 terms errs; of a logit, more than float32 rounds.
SUM_ERROR, LOGIT_ERROR = 1e-10, 1e-6


# ── Checks ────────────────────────────────────────────────────────────────────────────────────────


def require(allowed: bool, name: str, value: object, wanted: str) -> None:
    if not allowed:
        raise ValueError(f"{name} is {value!r}; it must be {wanted}")


def is_count(value: object, least: int) -> bool:
    return isinstance(value, Integral) and value >= least  # numpy's integers are Integral too


def refuse_broken(peak: Tensor) -> None:
    """ValueError unless the largest logit of every row is finite.

    A maximum propagates NaN and is −inf only when no token is left, so one number per row finds
    NaN, +inf and empty distributions without a second pass over the vocabulary.
    """
    if not peak.isfinite().all():
        worst = peak[~peak.isfinite()][0].item()
        raise ValueError(
            f"the largest logit of a row is {worst}; logits must be numbers below +inf, with at "
            "least one above -inf (NaN: look at the model; -inf: the filters left no token)"
        )


# ── Logits processors: logits (..., V) in, logits (..., V) out, tokens filtered out get −inf ──────


def temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divide the logits by the temperature: below 1 sharpens the distribution, above 1 flattens it.

    0 is the limit: all mass on the largest logit, the first one of equals (greedy). A row whose
    quotients are too large for its type is divided as distances from its largest logit: the same
    distribution. Raises ValueError when the temperature is negative, infinite or NaN.
    Source: Ackley, Hinton & Sejnowski 1985.

    >>> odds = torch.tensor([4.0, 1.0])
    >>> temperature(odds.log(), 2).exp()
    tensor([2., 1.])
    >>> temperature(odds.log(), 0).exp()
    tensor([4., 0.])
    """
    require(0 <= temperature < math.inf, "temperature", temperature, "a finite number >= 0")
    if temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, -math.inf).scatter(-1, best, logits.gather(-1, best))
    divided = logits * (1 / float(temperature))  # one division instead of V
    if float(temperature) * torch.finfo(logits.dtype).max > 1e6:  # no model says so large a number
        return divided
    return _repaired(divided, logits, float(temperature))


def _repaired(divided: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Rows of `divided` that overflowed, or lost every token, made anew from the largest logit."""
    peak = logits.amax(-1, keepdim=True)
    lost = peak.isfinite() & ~divided.amax(-1, keepdim=True).isfinite()
    from_peak = (logits.double() - peak) / temperature  # the largest becomes 0
    return torch.where(lost, from_peak.to(logits.dtype), divided)


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest logits, and whatever equals the smallest of them.

    A k beyond the vocabulary keeps everything. Raises ValueError when k < 1, or for NaN logits.
    Source: Fan, Lewis & Dauphin 2018.

    >>> top_k(torch.tensor([0.5, 0.25, 0.125, 0.125]).log(), 1).exp()
    tensor([0.5000, 0.0000, 0.0000, 0.0000])
    """
    require(is_count(k, 1), "top_k", k, "an integer >= 1")
    kept = topk_by_blocks(logits, min(k, logits.shape[-1])).values
    refuse_broken(kept[..., 0])
    return torch.where(logits < kept[..., -1:], -math.inf, logits)


def top_k_plain(logits: Tensor, k: int) -> Tensor:
    """`top_k` as a textbook has it, for one row (V,).

    >>> top_k_plain(torch.tensor([0.5, 0.25, 0.125, 0.125]).log(), 3).exp()  # 4: there is a tie
    tensor([0.5000, 0.2500, 0.1250, 0.1250])
    """
    smallest_kept = sorted(logits.tolist(), reverse=True)[:k][-1]
    return logits.new_tensor([x if x >= smallest_kept else -math.inf for x in logits.tolist()])


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the nucleus: the fewest, likeliest tokens that together have probability ≥ p.

    At least one token stays, so p = 0 is greedy; p = 1 keeps everything. Of equal logits at the
    edge the lower ids stay. Sums are taken in float64 and reach p when no more than SUM_ERROR is
    missing: of V equal tokens p = j / V keeps exactly j.
    Raises ValueError when p is outside [0, 1], or for NaN logits.
    Source: Holtzman et al. 2020, §3.1.

    >>> top_p(torch.tensor([0.5, 0.25, 0.125, 0.125]).log(), 0.6).exp()
    tensor([0.5000, 0.2500, 0.0000, 0.0000])
    """
    require(0 <= p <= 1, "top_p", p, "between 0 and 1")
    refuse_broken(logits.amax(-1))
    if p == 1:
        return logits
    enough = _enough_for(widened(logits).softmax(-1), p)
    candidates = topk_by_blocks(logits, enough)  # (..., m), descending
    mass = logits.double().softmax(-1).gather(-1, candidates.indices)
    above = mass.cumsum(-1) - mass  # probability of the likelier tokens
    size = (above < float(p) - SUM_ERROR).sum(-1, keepdim=True).clamp(min=1)  # (..., 1)
    edge = candidates.values.gather(-1, size - 1)
    return torch.where(_at_least(logits, edge, size), logits, -math.inf)


def widened(logits: Tensor) -> Tensor:
    """At least float32: half precision cannot add up 50,000 probabilities."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _enough_for(probabilities: Tensor, p: float) -> int:
    """How many of the largest probabilities surely reach p together, in every row.

    Found without sorting, by halving the interval that holds the logarithm of a threshold: to sort
    a few of them afterwards is much faster than to sort a vocabulary.
    """
    least = low = math.log(1e-12)
    high = 0.0
    for _ in range(8):  # to a tenth
        middle = (low + high) / 2
        too_few = _mass_over(math.exp(middle), probabilities) < p + 1e-6  # float32 sums: a margin
        low, high = (low, middle) if too_few.any() else (middle, high)
    if low == least:  # p is so near 1 that the tail may count
        return probabilities.shape[-1]
    return max(1, int((probabilities > math.exp(low)).sum(-1).max()))


def _mass_over(threshold: float, probabilities: Tensor) -> Tensor:
    return torch.nn.functional.threshold(probabilities, threshold, 0).sum(-1)


def _at_least(logits: Tensor, edge: Tensor, size: Tensor) -> Tensor:
    """Mask (..., V) of the `size` largest logits; `edge` the smallest; lower ids go first."""
    kept = logits >= edge
    excess = kept.sum(-1, keepdim=True) - size
    if (excess > 0).any():
        ties = logits == edge
        kept &= ~ties | (ties.cumsum(-1) <= ties.sum(-1, keepdim=True) - excess)
    return kept


def top_p_plain(logits: Tensor, p: float) -> Tensor:
    """`top_p` as a textbook has it, for one row (V,).

    >>> top_p_plain(torch.tensor([0.5, 0.25, 0.125, 0.125]).log(), 0.6).exp()
    tensor([0.5000, 0.2500, 0.0000, 0.0000])
    """
    probabilities = logits.double().softmax(-1).tolist()
    nucleus, mass = set(), 0.0
    for token in sorted(range(len(logits)), key=lambda i: -logits[i].item()):
        nucleus.add(token)
        mass += probabilities[token]
        if mass >= float(p) - SUM_ERROR:
            break
    kept = [x if i in nucleus else -math.inf for i, x in enumerate(logits.tolist())]
    return logits.new_tensor(kept)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens at least p times as probable as the likeliest one.

    A ratio of probabilities is a difference of logits: no softmax is needed. p = 0 keeps
    everything, 1 only the largest; who misses the edge by no more than LOGIT_ERROR stays. Raises
    ValueError when p is outside [0, 1], or for NaN logits.
    Source: Nguyen et al. 2024, "Turning Up the Heat".

    >>> min_p(torch.tensor([0.5, 0.25, 0.125, 0.125]).log(), 0.5).exp()
    tensor([0.5000, 0.2500, 0.0000, 0.0000])
    """
    require(0 <= p <= 1, "min_p", p, "between 0 and 1")
    peak = logits.amax(-1, keepdim=True)
    refuse_broken(peak)
    least = math.log(p) - LOGIT_ERROR if p > 0 else -math.inf
    return torch.where(widened(logits) - peak < least, -math.inf, logits)


def min_p_plain(logits: Tensor, p: float) -> Tensor:
    """`min_p` as a textbook has it, for one row (V,).

    >>> min_p_plain(torch.tensor([0.5, 0.25, 0.125, 0.125]).log(), 0.5).exp()
    tensor([0.5000, 0.2500, 0.0000, 0.0000])
    """
    probabilities = logits.double().softmax(-1)
    least = p * probabilities.max() * (1 - LOGIT_ERROR)
    pairs = zip(logits.tolist(), probabilities, strict=True)
    return logits.new_tensor([x if mass >= least else -math.inf for x, mass in pairs])


def repetition_penalty(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Make every token that occurs in `ids` less likely, once, however often it occurs.

    logits (..., V), ids (..., T). Positive logits are divided by the penalty and negative ones
    multiplied, so that a penalty above 1 always lowers; 1 changes nothing, below 1 rewards.
    Raises ValueError when the penalty is not a positive finite number.
    Source: Keskar et al. 2019 (CTRL), §4.1; the case of negative logits is transformers'.

    >>> repetition_penalty(torch.tensor([2.0, -2.0, 1.0]), torch.tensor([0, 1, 0]), 2)
    tensor([ 1., -4.,  1.])
    """
    require(0 < penalty < math.inf, "repetition_penalty", penalty, "a finite number > 0")
    seen = logits.gather(-1, ids)  # (..., T)
    lowered = torch.where(seen < 0, seen * penalty, seen / penalty)
    return logits.scatter(-1, ids, lowered)


def repetition_penalty_plain(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """`repetition_penalty` as a textbook has it, for one row (V,) and its ids (T,).

    >>> repetition_penalty_plain(torch.tensor([2.0, -2.0, 1.0]), torch.tensor([0, 1, 0]), 2)
    tensor([ 1., -4.,  1.])
    """
    reshaped = logits.clone()
    for token in set(ids.tolist()):
        x = logits[token]
        reshaped[token] = x * penalty if x < 0 else x / penalty
    return reshaped


def no_repeat_ngram(logits: Tensor, ids: Tensor, size: int) -> Tensor:
    """Forbid every token that would complete an n-gram, of n = size, that already occurs in `ids`.

    logits (..., V), ids (..., T). A size of 1 forbids all seen tokens, 0 nothing.
    Raises ValueError when the size is negative. Source: Paulus, Xiong & Socher 2018 (trigrams).

    >>> no_repeat_ngram(torch.zeros(4), torch.tensor([0, 1, 2, 0, 1]), 3)  # not 0 1 2 again
    tensor([0., 0., -inf, 0.])
    """
    require(is_count(size, 0), "no_repeat_ngram_size", size, "an integer >= 0")
    if size == 0 or ids.shape[-1] < size:
        return logits
    seen = ids.unfold(-1, size, 1)  # (..., T − size + 1, size): every n-gram so far
    start = ids[..., None, ids.shape[-1] - size + 1 :]  # (..., 1, size − 1): the last tokens
    repeats = (seen[..., :-1] == start).all(-1)  # (..., T − size + 1)
    ceiling = torch.where(repeats, -math.inf, math.inf).to(logits.dtype)
    return logits.scatter_reduce(-1, seen[..., -1], ceiling, "amin")


def no_repeat_ngram_plain(logits: Tensor, ids: Tensor, size: int) -> Tensor:
    """`no_repeat_ngram` as a textbook has it, for one row (V,) and its ids (T,).

    >>> no_repeat_ngram_plain(torch.zeros(4), torch.tensor([0, 1, 2, 0, 1]), 3)
    tensor([0., 0., -inf, 0.])
    """
    tokens, reshaped = ids.tolist(), logits.clone()
    seen = {tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)}
    for token in range(len(logits)):
        if size and tuple([*tokens, token][-size:]) in seen:
            reshaped[token] = -math.inf
    return reshaped


def topk_by_blocks(x: Tensor, k: int, block: int = 64) -> torch.return_types.topk:
    """`x.topk(k)` over the last dimension, faster for a long one and a small k.

    The k largest numbers lie in the k blocks with the largest maxima, so only those are searched.
    Returns (values, indices), each (..., k), descending. Of equal numbers any may come first.
    """
    if x.shape[-1] % block or k * block >= x.shape[-1]:
        return x.topk(k)
    blocks = x.unflatten(-1, (-1, block))  # (..., V / block, block)
    best = blocks.amax(-1).topk(k).indices  # (..., k)
    held = blocks.take_along_dim(best[..., None], dim=-2).flatten(-2)  # (..., k · block)
    values, at = held.topk(k)
    indices = best.gather(-1, at // block) * block + at % block
    return torch.return_types.topk((values, indices))


# Each with the number that changes nothing, in the order of transformers' `generate`.
PENALTIES = ((repetition_penalty, 1), (no_repeat_ngram, 0))
FILTERS = ((temperature, 1), (top_k, None), (top_p, 1), (min_p, 0))


def processor(
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    no_repeat_ngram_size: int = 0,
) -> Process:
    """All processors as one function of (logits, ids), in the order of transformers' `generate`.

    Penalty and n-grams first, then temperature, top-k, top-p, min-p. Defaults change nothing. The
    settings are those of `Engine.generate`, whose temperature is 0, greedy, unless one is given.

    >>> greedy = processor(temperature=0)
    >>> greedy(torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[2, 0]])).exp()
    tensor([[0.5000, 0.0000, 0.0000]])
    """
    penalties = _active(PENALTIES, (repetition_penalty, no_repeat_ngram_size))
    filters = _active(FILTERS, (temperature, top_k, top_p, min_p))

    def process(logits: Tensor, ids: Tensor) -> Tensor:
        for penalise, number in penalties:
            logits = penalise(logits, ids, number)
        for reshape, number in filters:
            logits = reshape(logits, number)
        return logits

    return process


def in_blocks(processes: Sequence[Process]) -> Process:
    """Several processes in one batch: the first acts on the first block of rows, and so on.

    Blocks are equally long: as many rows as there are, divided by the number of processes; raises
    ValueError when that leaves a rest.

    >>> both = in_blocks([processor(), processor(temperature=0)])
    >>> both(torch.tensor([[0.5, 0.25, 0.25]] * 2).log(), torch.tensor([[0], [0]])).exp()
    tensor([[0.5000, 0.2500, 0.2500],
            [0.5000, 0.0000, 0.0000]])
    """

    def process(logits: Tensor, ids: Tensor) -> Tensor:
        if not processes or len(logits) % len(processes):
            raise ValueError(f"{len(logits)} rows do not divide into {len(processes)} equal blocks")
        rows = len(logits) // len(processes)
        blocks = zip(processes, logits.split(rows), ids.split(rows), strict=True)
        return torch.cat([reshape(z, i) for reshape, z, i in blocks])

    return process


def _active(steps: Sequence[tuple], numbers: Sequence[float | None]) -> list[tuple]:
    pairs = zip(steps, numbers, strict=True)
    return [(step, number) for (step, idle), number in pairs if number != idle]


# ── Looking at one distribution ───────────────────────────────────────────────────────────────────


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy of softmax(logits) in nats: logits (..., V) → (...). −inf logits count 0.

    >>> entropy(torch.zeros(8))  # ln 8
    tensor(2.0794)
    """
    refuse_broken(logits.amax(-1))
    return torch.special.entr(widened(logits).softmax(-1)).sum(-1)


def nucleus_size(logits: Tensor, p: float) -> Tensor:
    """How many tokens `top_p` keeps: logits (..., V) → integers (...).

    >>> nucleus_size(torch.tensor([0.5, 0.25, 0.125, 0.125]).log(), 0.6)
    tensor(2)
    """
    return (top_p(logits, p) > -math.inf).sum(-1)
