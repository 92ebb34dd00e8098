"""Searching for likely texts: beam search and exact search. Notebook 09.

Reference: transformers' `generate` with beams, scores included. Left out: more than one prompt at a
time. Log-probabilities are in nats.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from course_utils.inference.decoding import (
    Continuation,
    NextLogits,
    as_stops,
    greedy,
    next_logprobs,
    one_prompt,
)
from course_utils.inference.next_logits import sequence_logprob
from course_utils.inference.processors import (
    Process,
    is_count,
    require,
    topk_by_blocks,
)

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
    ids = one_prompt(prompt)
    stops = as_stops(stop, ids)
    width = num_beams * max(2, 1 + len(stops))  # so many that num_beams of them do not stop
    totals, finished = torch.zeros(1, device=ids.device), []
    for length in range(1, max_new_tokens + 1):
        logprobs = next_logprobs(next_logits, ids, process)
        ids, totals = expand(ids, totals, logprobs, width)
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
    require(is_count(max_new_tokens, 1), "max_new_tokens", max_new_tokens, "an integer >= 1")
    require(is_count(num_beams, 1), "num_beams", num_beams, "an integer >= 1")
    require(math.isfinite(length_penalty), "length_penalty", length_penalty, "a finite number")
    known = early_stopping in (True, False, "never")
    require(known, "early_stopping", early_stopping, "True, False or 'never'")


def expand(ids: Tensor, totals: Tensor, logprobs: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The `width` likeliest beams one token longer, best first: ids (W, T + 1), totals (W,).

    Beams of probability 0.6 and 0.4; what follows the second is more certain:

    >>> ids, totals = torch.tensor([[0], [1]]), torch.tensor([0.6, 0.4]).log()
    >>> longer, totals = expand(ids, totals, torch.tensor([[0.55, 0.45], [0.9, 0.1]]).log(), 2)
    >>> longer.tolist(), totals.exp()
    ([[1, 0], [0, 0]], tensor([0.3600, 0.3300]))
    """
    sums = (totals[:, None] + logprobs).flatten()  # (B · V,)
    totals, at = topk_by_blocks(sums, min(width, len(sums)))
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
def exact_search(
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

    Greedy takes 0, and then has 0.6 · 0.5; with 1 first it is 0.4 · 0.9:

    >>> after = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.1, 0.9], [0.6, 0.4, 0.0]])
    >>> best = exact_search(lambda ids: after[ids[:, -1]].log(), [2], 2)
    >>> best.tokens, round(math.exp(best.logprob), 2)
    ((1, 2), 0.36)
    """
    ids = one_prompt(prompt)
    stops, totals = as_stops(stop, ids), torch.zeros(1, device=ids.device)
    best = greedy(next_logits, prompt, max_new_tokens, stop=stop)[0]
    for length in range(1, max_new_tokens + 1):
        ids, totals = _likelier(best.logprob, ids, totals, next_logprobs(next_logits, ids, None))
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


def exact_search_plain(
    next_logits: NextLogits,
    prompt: Sequence[int],
    max_new_tokens: int,
    vocab_size: int,
) -> tuple[int, ...]:
    """`exact_search` without stop tokens, by trying all vocab_size ** max_new_tokens sequences."""
    every = itertools.product(range(vocab_size), repeat=max_new_tokens)
    return max(every, key=lambda new: sequence_logprob(next_logits, [*prompt, *new], len(prompt)))
