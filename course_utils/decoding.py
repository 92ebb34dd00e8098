"""Decoding: how next-token logits become text.

Three layers, each usable alone:

1. Logits processors reshape one next-token distribution: `temperature`, `top_k`, `top_p`, `min_p`,
   `repetition_penalty`, `no_repeat_ngram`. Where the fast form is harder to read, `<name>_plain` is
   the textbook loop over one row; both agree.
2. Decoding loops write text: `greedy`, `sample`, `beam_search`, and the exact `likeliest`. They see
   the model only as a callable `next_logits(ids)`: ids (B, T) → logits (B, V).
3. `next_logits_of(model)` and `CachedNextLogits(model)` make that callable from a transformers
   model, without and with a key–value cache. The loops cannot tell them apart.

Reference: transformers' logits processors and `generate`, token for token. Left out: padding (the
rows of a batch have equal length) and beam search over more than one prompt at a time.
Probabilities are natural: log-probabilities and entropies are in nats.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NextLogits = Callable[[Tensor], Tensor]  # ids (B, T) -> logits of the next token (B, V)
Process = Callable[[Tensor, Tensor], Tensor]  # logits (B, V), ids (B, T) -> logits (B, V)


# ── Checks ────────────────────────────────────────────────────────────────────────────────────────


def _require(allowed: bool, name: str, value: object, wanted: str) -> None:
    if not allowed:
        raise ValueError(f"{name} is {value!r}; it must be {wanted}")


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and value >= least


def _refuse_broken(peak: Tensor) -> None:
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
    _require(0 <= T < math.inf, "temperature T", T, "a finite number >= 0")
    if T == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, -math.inf).scatter(-1, best, logits.gather(-1, best))
    return logits * (1 / T)  # one division instead of V


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest logits, and whatever equals the smallest of them.

    A k beyond the vocabulary keeps everything. Raises ValueError when k < 1, or for NaN logits.
    Source: Fan, Lewis & Dauphin 2018.
    """
    _require(_is_count(k, 1), "k", k, "an integer >= 1")
    kept = largest(logits, min(k, logits.shape[-1])).values
    _refuse_broken(kept[..., 0])
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
    _require(0 <= p <= 1, "p", p, "between 0 and 1")
    _refuse_broken(logits.amax(-1))
    if p == 1:
        return logits
    probabilities = _wide(logits).softmax(-1)
    candidates = largest(logits, _enough_for(probabilities, p))  # (..., m), descending
    mass = probabilities.gather(-1, candidates.indices).double()
    above = mass.cumsum(-1) - mass  # probability of the likelier tokens
    size = (above < p).sum(-1, keepdim=True).clamp(min=1)  # (..., 1)
    edge = candidates.values.gather(-1, size - 1)
    return torch.where(_at_least(logits, edge, size), logits, -math.inf)


def _wide(logits: Tensor) -> Tensor:
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
    _require(0 <= p_base <= 1, "p_base", p_base, "between 0 and 1")
    peak = logits.amax(-1, keepdim=True)
    _refuse_broken(peak)
    least = math.log(p_base) if p_base > 0 else -math.inf
    return torch.where(_wide(logits) - peak < least, -math.inf, logits)


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
    _require(0 < penalty < math.inf, "penalty", penalty, "a finite number > 0")
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
    _require(_is_count(n, 0), "n", n, "an integer >= 0")
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


def largest(x: Tensor, k: int, block: int = 64) -> torch.return_types.topk:
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


def knobs(
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
    _refuse_broken(logits.amax(-1))
    return torch.special.entr(_wide(logits).softmax(-1)).sum(-1)


def nucleus_size(logits: Tensor, p: float) -> Tensor:
    """How many tokens `top_p` keeps: logits (..., V) → integers (...)."""
    return (top_p(logits, p) > -math.inf).sum(-1)


# ── Decoding loops: next_logits(ids) in, continuations out ────────────────────────────────────────


@dataclass(frozen=True)
class Continuation:
    """What a decoding loop wrote after a prompt.

    `tokens`: the new ids, with the stop token when one came. `logprob`: the log-probability of the
    tokens given the prompt. `finish_reason`: "stop" or "length"; in a recorded beam tree also
    "running" and "pruned". `score`: what the loop ranks by: beam search divides the log-probability
    by length ** length_penalty.
    """

    tokens: tuple[int, ...]
    logprob: float
    finish_reason: str
    score: float

    @property
    def finished(self) -> bool:
        return self.finish_reason in ("stop", "length")


def greedy(
    next_logits: NextLogits,
    prompt: Tensor | Sequence[int],
    max_new_tokens: int,
    *,
    stop: Collection[int] = (),
    process: Process | None = None,
) -> list[Continuation]:
    """Append the likeliest token, again and again, up to a stop token or the maximum length.

    prompt (T,) or (B, T); returns one continuation per row. `process(logits, ids)` reshapes each
    distribution first; log-probabilities are the model's own, before it.
    Raises ValueError for an empty prompt, max_new_tokens < 1, or logits with NaN or of a wrong
    shape.
    """
    return _write(next_logits, prompt, max_new_tokens, _likeliest_token, stop, process)


def _likeliest_token(logits: Tensor) -> Tensor:
    best = logits.max(-1, keepdim=True)
    _refuse_broken(best.values)
    return best.indices


def sample(
    next_logits: NextLogits,
    prompt: Tensor | Sequence[int],
    max_new_tokens: int,
    *,
    stop: Collection[int] = (),
    process: Process | None = None,
    generator: torch.Generator | None = None,
) -> list[Continuation]:
    """Append a token drawn from the distribution, up to a stop token or the maximum length.

    As `greedy`, but random: `generator` (on the device of the logits) makes it repeatable;
    without one torch's global generator is used.
    """

    def draw(logits: Tensor) -> Tensor:
        _refuse_broken(logits.amax(-1))
        return _wide(logits).softmax(-1).multinomial(1, generator=generator)

    return _write(next_logits, prompt, max_new_tokens, draw, stop, process)


@torch.inference_mode()
def _write(
    next_logits: NextLogits,
    prompt: Tensor | Sequence[int],
    max_new_tokens: int,
    choose: Callable[[Tensor], Tensor],
    stop: Collection[int],
    process: Process | None,
) -> list[Continuation]:
    """The loop that greedy and sample share: ask the model, choose, append."""
    _require(_is_count(max_new_tokens, 1), "max_new_tokens", max_new_tokens, "an integer >= 1")
    ids = _as_ids(prompt)  # (B, T)
    prompt_len, stops = ids.shape[1], _as_stops(stop, ids)
    logprob = torch.zeros(len(ids), 1, device=ids.device)
    running = torch.ones(len(ids), 1, dtype=torch.bool, device=ids.device)
    for _ in range(max_new_tokens):
        logits = _ask(next_logits, ids)
        chosen = choose(process(logits, ids) if process else logits)  # (B, 1)
        gained = _wide(logits).log_softmax(-1).gather(-1, chosen)
        logprob += torch.where(running, gained, 0)
        ids = torch.cat([ids, chosen], dim=1)
        running &= ~torch.isin(chosen, stops)
        if not running.any():
            break
    new = ids[:, prompt_len:].tolist()
    return [_cut(row, stop, x) for row, x in zip(new, logprob[:, 0].tolist(), strict=True)]


def _as_ids(prompt: Tensor | Sequence[int]) -> Tensor:
    """The prompt as (B, T) integers; ValueError when it is empty or something else."""
    ids = torch.as_tensor(prompt)
    if ids.numel() == 0:
        raise ValueError("the prompt is empty; give at least one token (the start token will do)")
    if ids.ndim not in (1, 2) or ids.is_floating_point() or ids.is_complex():
        raise ValueError(
            f"the prompt has shape {tuple(ids.shape)} and dtype {ids.dtype}; it must be token ids, "
            "integers of shape (T,) or (B, T)"
        )
    return (ids[None] if ids.ndim == 1 else ids).long()


def _as_stops(stop: Collection[int], ids: Tensor) -> Tensor:
    if not isinstance(stop, Collection) or isinstance(stop, str):
        raise ValueError(f"stop is {stop!r}; it must be a collection of token ids, such as [2]")
    return torch.tensor(list(stop), dtype=torch.long, device=ids.device)


def _ask(next_logits: NextLogits, ids: Tensor) -> Tensor:
    """next_logits(ids), with its shape checked."""
    logits = next_logits(ids)
    if logits.ndim != 2 or len(logits) != len(ids):
        raise ValueError(
            f"next_logits returned shape {tuple(logits.shape)} for ids of shape "
            f"{tuple(ids.shape)}; it must be ({len(ids)}, vocabulary), of the last position only"
        )
    return logits


def _cut(tokens: list[int], stop: Collection[int], logprob: float) -> Continuation:
    """End a row at its first stop token: a batch runs on until its last row is finished."""
    for length, token in enumerate(tokens, start=1):
        if token in stop:
            return Continuation(tuple(tokens[:length]), logprob, "stop", logprob)
    return Continuation(tuple(tokens), logprob, "length", logprob)


# ── Beam search ───────────────────────────────────────────────────────────────────────────────────


@torch.inference_mode()
def beam_search(
    next_logits: NextLogits,
    prompt: Tensor | Sequence[int],
    max_new_tokens: int,
    *,
    num_beams: int = 4,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    stop: Collection[int] = (),
    process: Process | None = None,
    tree: list[Continuation] | None = None,
) -> list[Continuation]:
    """Follow the num_beams likeliest beginnings side by side; return the finished ones, best first.

    prompt (T,) or (1, T). Finished continuations are ranked by log-probability / length **
    length_penalty. The search ends when num_beams are finished and: with early_stopping True, at
    once; False, when the best running beam scores no better at its present length; "never", nor at
    the maximum length. `process` reshapes log-probabilities, and those are what counts.
    A list given as `tree` receives every candidate looked at, with what became of it.
    Raises ValueError for num_beams < 1, an infinite length_penalty, more than one prompt, and what
    `greedy` refuses. Source: Graves 2012; length normalisation as in Wu et al. 2016, §7, without
    their constant.
    """
    _check_beam_search(max_new_tokens, num_beams, length_penalty, early_stopping)
    ids = _one_prompt(prompt)
    stops = _as_stops(stop, ids)
    width = num_beams * max(2, 1 + len(stops))  # so many that num_beams of them do not stop
    totals, finished = torch.zeros(1, device=ids.device), []
    for length in range(1, max_new_tokens + 1):
        logprobs = _score(next_logits, ids, process)
        ids, totals = _expand(ids, totals, logprobs, width)
        fates = _fates(ids[:, -1], stops, num_beams, last=length == max_new_tokens)
        written = _candidates(ids[:, -length:], totals, fates, length**length_penalty)
        if tree is not None:
            tree.extend(written)
        finished = _best([*finished, *(c for c in written if c.finished)], num_beams)
        running = torch.tensor([fate == "running" for fate in fates], device=ids.device)
        ids, totals = ids[running], totals[running]
        horizon = max_new_tokens if early_stopping == "never" and length_penalty > 0 else length
        if _settled(totals, finished, num_beams, early_stopping is True, horizon**length_penalty):
            break
    return finished


def _check_beam_search(
    max_new_tokens: int, num_beams: int, length_penalty: float, early_stopping: bool | str
) -> None:
    _require(_is_count(max_new_tokens, 1), "max_new_tokens", max_new_tokens, "an integer >= 1")
    _require(_is_count(num_beams, 1), "num_beams", num_beams, "an integer >= 1")
    _require(math.isfinite(length_penalty), "length_penalty", length_penalty, "a finite number")
    known = early_stopping in (True, False, "never")
    _require(known, "early_stopping", early_stopping, "True, False or 'never'")


def _one_prompt(prompt: Tensor | Sequence[int]) -> Tensor:
    ids = _as_ids(prompt)
    if len(ids) != 1:
        raise ValueError(f"the prompt has {len(ids)} rows; search for one prompt at a time")
    return ids


def _score(next_logits: NextLogits, ids: Tensor, process: Process | None) -> Tensor:
    """Log-probabilities (B, V) of every next token after every beam."""
    logprobs = _wide(_ask(next_logits, ids)).log_softmax(-1)
    logprobs = process(logprobs, ids) if process else logprobs
    _refuse_broken(logprobs.amax(-1))
    return logprobs


def _expand(ids: Tensor, totals: Tensor, logprobs: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The `width` likeliest beams one token longer, best first: ids (W, T + 1), totals (W,)."""
    sums = (totals[:, None] + logprobs).flatten()  # (B · V,)
    totals, at = largest(sums, min(width, len(sums)))
    totals, at = totals[totals > -math.inf], at[totals > -math.inf]
    beam, token = at // logprobs.shape[1], at % logprobs.shape[1]
    return torch.cat([ids[beam], token[:, None]], dim=1), totals


def _fates(tokens: Tensor, stops: Tensor, num_beams: int, *, last: bool) -> list[str]:
    """What becomes of each candidate, best first: "stop", "length", "running" or "pruned".

    A stop counts only among the num_beams best; the num_beams best of the others run on.
    """
    fates, running = [], 0
    for rank, stopped in enumerate(torch.isin(tokens, stops).tolist()):
        if stopped or last:
            end = "stop" if stopped else "length"
            fates.append(end if rank < num_beams else "pruned")
        else:
            fates.append("running" if running < num_beams else "pruned")
            running += 1
    return fates


def _candidates(
    tokens: Tensor, totals: Tensor, fates: list[str], normaliser: float
) -> list[Continuation]:
    rows = zip(tokens.tolist(), totals.tolist(), fates, strict=True)
    return [Continuation(tuple(t), total, fate, total / normaliser) for t, total, fate in rows]


def _best(continuations: Iterable[Continuation], count: int) -> list[Continuation]:
    return sorted(continuations, key=lambda c: -c.score)[:count]


def _settled(
    totals: Tensor, finished: list[Continuation], num_beams: int, early: bool, normaliser: float
) -> bool:
    """Can no running beam (totals, best first) displace one of the finished any more?"""
    if len(totals) == 0:
        return True
    if len(finished) < num_beams:
        return False
    return early or totals[0].item() / normaliser <= finished[-1].score


# ── Exact search ──────────────────────────────────────────────────────────────────────────────────


@torch.inference_mode()
def likeliest(
    next_logits: NextLogits,
    prompt: Tensor | Sequence[int],
    max_new_tokens: int,
    *,
    stop: Collection[int] = (),
    max_prefixes: int = 256,
) -> Continuation:
    """The most probable continuation there is: exhaustive search that skips only what cannot win.

    A sequence is never likelier than its beginning, so beginnings less likely than greedy's whole
    result are dropped. At most 1 / P(greedy) are left at any length, because they exclude each
    other. prompt (T,) or (1, T). Raises ValueError when more than max_prefixes are left, and for
    what `greedy` refuses.
    """
    ids = _one_prompt(prompt)
    stops, totals = _as_stops(stop, ids), torch.zeros(1, device=ids.device)
    best = greedy(next_logits, prompt, max_new_tokens, stop=stop)[0]
    for length in range(1, max_new_tokens + 1):
        ids, totals = _likelier(best.logprob, ids, totals, _score(next_logits, ids, None))
        stopped = torch.isin(ids[:, -1], stops)
        ended = stopped | (length == max_new_tokens)
        fates = ["stop" if flag else "length" for flag in stopped[ended].tolist()]
        best = _best([best, *_candidates(ids[ended, -length:], totals[ended], fates, 1.0)], 1)[0]
        alive = ~ended & (totals > best.logprob)
        ids, totals = ids[alive], totals[alive]
        if len(ids) == 0:
            break
        if len(ids) > max_prefixes:
            raise ValueError(
                f"{len(ids)} beginnings of {length} tokens can still win, more than max_prefixes = "
                f"{max_prefixes}; search fewer than {max_new_tokens} tokens, or raise max_prefixes"
            )
    return best


def _likelier(bound: float, ids: Tensor, totals: Tensor, logprobs: Tensor) -> tuple[Tensor, Tensor]:
    """All sequences one token longer and likelier than `bound`: ids (N, T + 1), totals (N,)."""
    sums = totals[:, None] + logprobs  # (B, V)
    row, token = (sums > bound).nonzero(as_tuple=True)
    return torch.cat([ids[row], token[:, None]], dim=1), sums[row, token]


def likeliest_plain(
    next_logits: NextLogits,
    prompt: Sequence[int],
    max_new_tokens: int,
    vocab_size: int,
) -> tuple[int, ...]:
    """`likeliest` without stop tokens, by trying all vocab_size ** max_new_tokens sequences."""
    every = itertools.product(range(vocab_size), repeat=max_new_tokens)
    return max(every, key=lambda new: sequence_logprob(next_logits, [*prompt, *new], len(prompt)))


# ── Scoring a given text ──────────────────────────────────────────────────────────────────────────


def sequence_logprob(
    next_logits: NextLogits, ids: Tensor | Sequence[int], prompt_len: int
) -> float:
    """Log-probability of ids[prompt_len:] given ids[:prompt_len], by the chain rule, in nats.

    One call per token; `token_logprobs` does it in one pass over a transformers model.
    Raises ValueError when prompt_len leaves no prompt or nothing to score.
    """
    row = _one_prompt(ids)
    _check_prompt_len(prompt_len, row)
    total = 0.0
    for t in range(prompt_len, row.shape[1]):
        logprobs = _score(next_logits, row[:, :t], None)  # (1, V)
        total += logprobs[0, row[0, t]].item()
    return total


def token_logprobs(model: Any, ids: Tensor | Sequence[int], prompt_len: int = 1) -> Tensor:
    """Log-probability of each token from prompt_len on, given all before it: ids (B, T) → (B, N).

    One forward pass of a transformers model. N = T − prompt_len.
    Raises ValueError when prompt_len leaves no prompt or nothing to score.
    """
    ids = _as_ids(ids)
    _check_prompt_len(prompt_len, ids)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[:, prompt_len - 1 : -1]
    logprobs = _wide(logits).log_softmax(-1)  # (B, N, V): position t − 1 predicts token t
    return logprobs.gather(-1, ids[:, prompt_len:, None])[..., 0]


def _check_prompt_len(prompt_len: int, ids: Tensor) -> None:
    inside = _is_count(prompt_len, 1) and prompt_len < ids.shape[1]
    wanted = f"an integer from 1 to {ids.shape[1] - 1}, to leave a prompt and something to score"
    _require(inside, "prompt_len", prompt_len, wanted)


# ── The model behind the callable ─────────────────────────────────────────────────────────────────


def next_logits_of(model: Any) -> NextLogits:
    """The callable of a transformers model, without a cache: every call reads all tokens again."""

    def next_logits(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return model(input_ids=ids, use_cache=False, **_last_only(model)).logits[:, -1]

    return next_logits


def _last_only(model: Any) -> dict[str, int]:
    """Ask for the last position's logits alone where the model can: prompts are read faster."""
    can = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if can else {}


class CachedNextLogits:
    """The callable of a transformers model, with a key–value cache: only new tokens are read.

    It remembers the ids of its last call. Where every new row continues one of those, it reuses
    that row's keys and values, in whatever order and number beam search asks for; otherwise it
    starts over. So a loop needs to know nothing of the cache, and cannot use it wrongly. After a
    change of the model's weights, call `forget()`.

    The model is called as model(input_ids=…, past_key_values=…, use_cache=True) and returns .logits
    and .past_key_values, which has reorder_cache(rows). `tokens_read` counts what it was fed.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.options = _last_only(model)
        self.tokens_read = 0
        self.forget()

    def forget(self) -> None:
        """Drop the cache, and the memory it holds."""
        self.ids: Tensor | None = None
        self.cache: Any = None

    def __call__(self, ids: Tensor) -> Tensor:
        known = self._align(ids)
        self.ids = None  # an interrupted call must not leave ids that the cache does not match
        with torch.no_grad():
            output = self.model(
                input_ids=ids[:, known:],
                past_key_values=self.cache,
                use_cache=True,
                **self.options,
            )
        self.ids, self.cache = ids.clone(), output.past_key_values
        self.tokens_read += ids[:, known:].numel()
        return output.logits[:, -1]

    def _align(self, ids: Tensor) -> int:
        """Order the cache to match the rows of `ids`; return how many tokens each row shares."""
        if self.ids is None or self.ids.shape[1] >= ids.shape[1]:
            self.forget()
            return 0
        known = self.ids.shape[1]
        same = (ids[:, None, :known] == self.ids[None]).all(-1)  # (new rows, old rows)
        if not same.any(1).all():
            self.forget()
            return 0
        rows = same.int().argmax(1)
        if rows.tolist() != list(range(len(self.ids))):
            self.cache.reorder_cache(rows)
        return known
