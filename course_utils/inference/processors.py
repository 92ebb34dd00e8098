"""Logits processors: each reshapes one next-token distribution. Notebook 09.

`temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `no_repeat_ngram`, and `processor`,
all of them in one. Where the fast form is harder to read, `<name>_plain` is the textbook loop over
one row; both agree. Reference: transformers' logits processors.

Logits (..., V) in, logits (..., V) out; filtered tokens get −inf. Entropies are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Process = Callable[[Tensor, Tensor], Tensor]  # logits (B, V), ids (B, T) -> logits (B, V)


# ── Checks ────────────────────────────────────────────────────────────────────────────────────────


def require(allowed: bool, name: str, value: object, wanted: str) -> None:
    if not allowed:
        raise ValueError(f"{name} is {value!r}; it must be {wanted}")


def is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and value >= least


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


def temperature(logits: Tensor, T: float) -> Tensor:
    """Divide the logits by T: below 1 sharpens the distribution, above 1 flattens it.

    T = 0 is the limit: all mass on the largest logit, the first one of equals (greedy).
    Raises ValueError when T is negative, infinite or NaN.
    Source: Ackley, Hinton & Sejnowski 1985.
    """
    require(0 <= T < math.inf, "temperature T", T, "a finite number >= 0")
    if T == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, -math.inf).scatter(-1, best, logits.gather(-1, best))
    return logits * (1 / T)  # one division instead of V


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest logits, and whatever equals the smallest of them.

    A k beyond the vocabulary keeps everything. Raises ValueError when k < 1, or for NaN logits.
    Source: Fan, Lewis & Dauphin 2018.
    """
    require(is_count(k, 1), "k", k, "an integer >= 1")
    kept = topk_by_blocks(logits, min(k, logits.shape[-1])).values
    refuse_broken(kept[..., 0])
    return torch.where(logits < kept[..., -1:], -math.inf, logits)


def top_k_plain(logits: Tensor, k: int) -> Tensor:
    """`top_k` as a textbook has it, for one row (V,)."""
    smallest_kept = sorted(logits.tolist(), reverse=True)[:k][-1]
    return logits.new_tensor([x if x >= smallest_kept else -math.inf for x in logits.tolist()])


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the nucleus: the fewest, likeliest tokens that together have probability ≥ p.

    At least one token stays, so p = 0 is greedy; p = 1 keeps everything. Of equal logits at the
    edge the lower ids stay. Raises ValueError when p is outside [0, 1], or for NaN logits.
    Source: Holtzman et al. 2020, §3.1.
    """
    require(0 <= p <= 1, "p", p, "between 0 and 1")
    refuse_broken(logits.amax(-1))
    if p == 1:
        return logits
    probabilities = widened(logits).softmax(-1)
    candidates = topk_by_blocks(logits, _enough_for(probabilities, p))  # (..., m), descending
    mass = probabilities.gather(-1, candidates.indices).double()
    above = mass.cumsum(-1) - mass  # probability of the likelier tokens
    size = (above < p).sum(-1, keepdim=True).clamp(min=1)  # (..., 1)
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
    low, high = math.log(1e-12), 0.0
    for _ in range(8):  # to a tenth
        middle = (low + high) / 2
        too_few = _mass_over(math.exp(middle), probabilities) < p + 1e-6  # float32 sums: a margin
        low, high = (low, middle) if too_few.any() else (middle, high)
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
    """`top_p` as a textbook has it, for one row (V,)."""
    probabilities = logits.double().softmax(-1).tolist()
    nucleus, mass = set(), 0.0
    for token in sorted(range(len(logits)), key=lambda i: -logits[i].item()):
        nucleus.add(token)
        mass += probabilities[token]
        if mass >= p:
            break
    kept = [x if i in nucleus else -math.inf for i, x in enumerate(logits.tolist())]
    return logits.new_tensor(kept)


def min_p(logits: Tensor, p_base: float) -> Tensor:
    """Keep the tokens at least p_base times as probable as the likeliest one.

    A ratio of probabilities is a difference of logits: no softmax is needed. p_base = 0 keeps
    everything, 1 only the largest. Raises ValueError when p_base is outside [0, 1], or for NaN
    logits. Source: Nguyen et al. 2024, "Turning Up the Heat".
    """
    require(0 <= p_base <= 1, "p_base", p_base, "between 0 and 1")
    peak = logits.amax(-1, keepdim=True)
    refuse_broken(peak)
    least = math.log(p_base) if p_base > 0 else -math.inf
    return torch.where(widened(logits) - peak < least, -math.inf, logits)


def min_p_plain(logits: Tensor, p_base: float) -> Tensor:
    """`min_p` as a textbook has it, for one row (V,)."""
    probabilities = logits.double().softmax(-1)
    least = p_base * probabilities.max()
    pairs = zip(logits.tolist(), probabilities, strict=True)
    return logits.new_tensor([x if mass >= least else -math.inf for x, mass in pairs])


def repetition_penalty(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Make every token that occurs in `ids` less likely, once, however often it occurs.

    logits (..., V), ids (..., T). Positive logits are divided by the penalty and negative ones
    multiplied, so that a penalty above 1 always lowers; 1 changes nothing, below 1 rewards.
    Raises ValueError when the penalty is not a positive finite number.
    Source: Keskar et al. 2019 (CTRL), §4.1; the case of negative logits is transformers'.
    """
    require(0 < penalty < math.inf, "penalty", penalty, "a finite number > 0")
    seen = logits.gather(-1, ids)  # (..., T)
    lowered = torch.where(seen < 0, seen * penalty, seen / penalty)
    return logits.scatter(-1, ids, lowered)


def repetition_penalty_plain(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """`repetition_penalty` as a textbook has it, for one row (V,) and its ids (T,)."""
    reshaped = logits.clone()
    for token in set(ids.tolist()):
        x = logits[token]
        reshaped[token] = x * penalty if x < 0 else x / penalty
    return reshaped


def no_repeat_ngram(logits: Tensor, ids: Tensor, n: int) -> Tensor:
    """Forbid every token that would complete an n-gram that already occurs in `ids`.

    logits (..., V), ids (..., T). n = 1 forbids all seen tokens, n = 0 nothing.
    Raises ValueError when n is negative. Source: Paulus, Xiong & Socher 2018 (for trigrams).
    """
    require(is_count(n, 0), "n", n, "an integer >= 0")
    if n == 0 or ids.shape[-1] < n:
        return logits
    seen = ids.unfold(-1, n, 1)  # (..., T − n + 1, n): every n-gram so far
    start = ids[..., None, ids.shape[-1] - n + 1 :]  # (..., 1, n − 1): the last n − 1 tokens
    repeats = (seen[..., :-1] == start).all(-1)  # (..., T − n + 1)
    ceiling = torch.where(repeats, -math.inf, math.inf).to(logits.dtype)
    return logits.scatter_reduce(-1, seen[..., -1], ceiling, "amin")


def no_repeat_ngram_plain(logits: Tensor, ids: Tensor, n: int) -> Tensor:
    """`no_repeat_ngram` as a textbook has it, for one row (V,) and its ids (T,)."""
    tokens, reshaped = ids.tolist(), logits.clone()
    seen = {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}
    for token in range(len(logits)):
        if n and tuple([*tokens, token][-n:]) in seen:
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


def processor(
    *,
    T: float = 1.0,
    k: int | None = None,
    p: float = 1.0,
    p_base: float = 0.0,
    penalty: float = 1.0,
    n: int = 0,
) -> Process:
    """All processors as one function of (logits, ids), in the order of transformers' `generate`.

    Penalty and n-grams first, then temperature, top-k, top-p, min-p. Defaults change nothing.
    The parameters have the names they have in the functions of this module.
    """

    def process(logits: Tensor, ids: Tensor) -> Tensor:
        if penalty != 1:
            logits = repetition_penalty(logits, ids, penalty)
        logits = no_repeat_ngram(logits, ids, n)
        if T != 1:
            logits = temperature(logits, T)
        if k is not None:
            logits = top_k(logits, k)
        if p != 1:
            logits = top_p(logits, p)
        return min_p(logits, p_base) if p_base else logits

    return process


# ── Looking at one distribution ───────────────────────────────────────────────────────────────────


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy of softmax(logits) in nats: logits (..., V) → (...). −inf logits count 0."""
    refuse_broken(logits.amax(-1))
    return torch.special.entr(widened(logits).softmax(-1)).sum(-1)


def nucleus_size(logits: Tensor, p: float) -> Tensor:
    """How many tokens `top_p` keeps: logits (..., V) → integers (...)."""
    return (top_p(logits, p) > -math.inf).sum(-1)
