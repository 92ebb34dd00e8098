"""Decoding loops: how next-token distributions become text. Notebook 09.

`greedy` and `sample` see the model only as a callable `next_logits(ids)`: ids (B, T) → logits
(B, V). `next_logits` makes that callable from a model; `search` holds beam and exact search.
Reference: transformers' `generate`, token for token. Left out: padding (the rows of a batch have
equal length). Log-probabilities are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from course_utils.inference.processors import Process, is_count, refuse_broken, require, widened

NextLogits = Callable[[Tensor], Tensor]  # ids (B, T) -> logits of the next token (B, V)

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
    return write(next_logits, prompt, max_new_tokens, _likeliest_token, stop, process)


def _likeliest_token(logits: Tensor) -> Tensor:
    best = logits.max(-1, keepdim=True)
    refuse_broken(best.values)
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
        refuse_broken(logits.amax(-1))
        return widened(logits).softmax(-1).multinomial(1, generator=generator)

    return write(next_logits, prompt, max_new_tokens, draw, stop, process)


@torch.inference_mode()
def write(
    next_logits: NextLogits,
    prompt: Tensor | Sequence[int],
    max_new_tokens: int,
    choose: Callable[[Tensor], Tensor],
    stop: Collection[int],
    process: Process | None,
) -> list[Continuation]:
    """The loop that greedy and sample share: ask the model, choose, append.

    >>> def after(ids):  # 0 is followed by 1, 1 by 2, 2 by 0
    ...     return torch.eye(3).roll(1, 1)[ids[:, -1]].log()
    >>> def likeliest(logits):
    ...     return logits.argmax(-1, keepdim=True)
    >>> write(after, [0], 5, likeliest, stop=[0], process=None)[0].tokens
    (1, 2, 0)
    """
    require(is_count(max_new_tokens, 1), "max_new_tokens", max_new_tokens, "an integer >= 1")
    ids = as_ids(prompt)  # (B, T)
    prompt_len, stops = ids.shape[1], as_stops(stop, ids)
    logprob = torch.zeros(len(ids), 1, device=ids.device)
    running = torch.ones(len(ids), 1, dtype=torch.bool, device=ids.device)
    for _ in range(max_new_tokens):
        logits = ask(next_logits, ids)
        chosen = choose(process(logits, ids) if process else logits)  # (B, 1)
        gained = widened(logits).log_softmax(-1).gather(-1, chosen)
        logprob += torch.where(running, gained, 0)
        ids = torch.cat([ids, chosen], dim=1)
        running &= ~torch.isin(chosen, stops)
        if not running.any():
            break
    new = ids[:, prompt_len:].tolist()
    return [_cut(row, stop, x) for row, x in zip(new, logprob[:, 0].tolist(), strict=True)]


def write_plain(
    next_logits: NextLogits,
    prompt: Sequence[int],
    max_new_tokens: int,
    choose: Callable[[Tensor], int],
    stop: Collection[int] = (),
) -> list[int]:
    """`write` as a textbook has it, for one prompt: the new tokens.

    >>> def after(ids):  # 0 is followed by 1, 1 by 2, 2 by 0
    ...     return torch.eye(3).roll(1, 1)[ids[:, -1]].log()
    >>> write_plain(after, [0], 5, lambda logits: int(logits.argmax()), stop=[0])
    [1, 2, 0]
    """
    ids = list(prompt)
    for _ in range(max_new_tokens):
        logits = next_logits(torch.tensor([ids]))[0]  # (V,): ask the model
        token = choose(logits)  # take one token
        ids.append(token)  # append it, and ask again
        if token in stop:
            break
    return ids[len(prompt) :]


def as_ids(prompt: Tensor | Sequence[int]) -> Tensor:
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


def as_stops(stop: Collection[int], ids: Tensor) -> Tensor:
    if not isinstance(stop, Collection) or isinstance(stop, str):
        raise ValueError(f"stop is {stop!r}; it must be a collection of token ids, such as [2]")
    return torch.tensor(list(stop), dtype=torch.long, device=ids.device)


def ask(next_logits: NextLogits, ids: Tensor) -> Tensor:
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


def one_prompt(prompt: Tensor | Sequence[int]) -> Tensor:
    ids = as_ids(prompt)
    if len(ids) != 1:
        raise ValueError(f"the prompt has {len(ids)} rows; search for one prompt at a time")
    return ids


def next_logprobs(next_logits: NextLogits, ids: Tensor, process: Process | None) -> Tensor:
    """Log-probabilities (B, V) of every next token after every beam."""
    logprobs = widened(ask(next_logits, ids)).log_softmax(-1)
    logprobs = process(logprobs, ids) if process else logprobs
    refuse_broken(logprobs.amax(-1))
    return logprobs
