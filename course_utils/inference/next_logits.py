"""The model behind `next_logits(ids)`, with and without a cache; scoring a given text. Notebook 09.

The decoding loops cannot tell these callables apart. Log-probabilities are in nats.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from course_utils.inference.decoding import NextLogits, as_ids, next_logprobs, one_prompt
from course_utils.inference.processors import is_count, require, widened

Read = Callable[[Tensor, Any], tuple[Tensor, Any]]  # new ids, cache -> logits (B, V), cache
Reorder = Callable[[Any, Tensor], Any]  # cache, rows -> cache

# ── Scoring a given text ──────────────────────────────────────────────────────────────────────────


def sequence_logprob(
    next_logits: NextLogits, ids: Tensor | Sequence[int], prompt_len: int
) -> float:
    """Log-probability of ids[prompt_len:] given ids[:prompt_len], by the chain rule, in nats.

    One call per token; `token_logprobs` does it in one pass over a transformers model.
    Raises ValueError when prompt_len leaves no prompt or nothing to score.
    """
    row = one_prompt(ids)
    _check_prompt_len(prompt_len, row)
    total = 0.0
    for t in range(prompt_len, row.shape[1]):
        logprobs = next_logprobs(next_logits, row[:, :t], None)  # (1, V)
        total += logprobs[0, row[0, t]].item()
    return total


def token_logprobs(model: Any, ids: Tensor | Sequence[int], prompt_len: int = 1) -> Tensor:
    """Log-probability of each token from prompt_len on, given all before it: ids (B, T) → (B, N).

    One forward pass of a transformers model. N = T − prompt_len.
    Raises ValueError when prompt_len leaves no prompt or nothing to score.
    """
    ids = as_ids(ids)
    _check_prompt_len(prompt_len, ids)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[:, prompt_len - 1 : -1]
    logprobs = widened(logits).log_softmax(-1)  # (B, N, V): position t − 1 predicts token t
    return logprobs.gather(-1, ids[:, prompt_len:, None])[..., 0]


def _check_prompt_len(prompt_len: int, ids: Tensor) -> None:
    inside = is_count(prompt_len, 1) and prompt_len < ids.shape[1]
    wanted = f"an integer from 1 to {ids.shape[1] - 1}, to leave a prompt and something to score"
    require(inside, "prompt_len", prompt_len, wanted)


# ── The model behind the callable ─────────────────────────────────────────────────────────────────


def next_logits_of(model: Any) -> NextLogits:
    """The callable of a transformers model, without a cache: every call reads all tokens again."""

    def next_logits(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return model(input_ids=ids, use_cache=False, **_last_only(model)).logits[:, -1]

    return next_logits


def cached_next_logits_of(model: Any) -> CachedNextLogits:
    """The callable of a transformers model, with its key–value cache.

    The model is called as model(input_ids=…, past_key_values=…, use_cache=True) and returns .logits
    and .past_key_values, which has reorder_cache(rows).
    """
    options = _last_only(model)

    def read(ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
        with torch.no_grad():
            output = model(input_ids=ids, past_key_values=cache, use_cache=True, **options)
        return output.logits[:, -1], output.past_key_values

    def reorder(cache: Any, rows: Tensor) -> Any:
        cache.reorder_cache(rows)
        return cache

    return CachedNextLogits(read, reorder)


def _last_only(model: Any) -> dict[str, int]:
    """Ask for the last position's logits alone where the model can: prompts are read faster."""
    can = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if can else {}


class CachedNextLogits:
    """The callable of any model that keeps what it has read in a cache: it reads new tokens only.

    `read(ids, cache)` gives the logits (B, V) after ids (B, T) that follow those in the cache (None
    at first), and the cache. `reorder(cache, rows)` gives the cache of these rows in this order.
    `read_and_reorder` of our own models makes the two: CachedNextLogits(*model.read_and_reorder()).

    It remembers the ids of its last call. Where every new row continues one of those, it reuses
    that row's cache, in whatever order and number beam search asks for; otherwise it starts over.
    So a loop needs to know nothing of the cache, and cannot use it wrongly. After a change of the
    model's weights, call `forget()`. `tokens_read` counts what the model was fed.
    """

    def __init__(self, read: Read, reorder: Reorder) -> None:
        self.read, self.reorder = read, reorder
        self.tokens_read = 0
        self.forget()

    def forget(self) -> None:
        """Drop the cache, and the memory it holds."""
        self.ids: Tensor | None = None
        self.cache: Any = None

    def __call__(self, ids: Tensor) -> Tensor:
        known = self._align(ids)
        self.ids = None  # an interrupted call must not leave ids that the cache does not match
        logits, self.cache = self.read(ids[:, known:], self.cache)
        self.ids = ids.clone()
        self.tokens_read += ids[:, known:].numel()
        return logits

    def _align(self, ids: Tensor) -> int:
        """Order the cache to match the rows of `ids`; return how many tokens each row shares."""
        if self.ids is None or self.ids.shape[1] >= ids.shape[1]:
            self.forget()
            return 0
        known = self.ids.shape[1]
        if torch.equal(ids[:, :known], self.ids):  # also where two rows are alike
            return known
        same = (ids[:, None, :known] == self.ids[None]).all(-1)  # (new rows, old rows)
        if not same.any(1).all():
            self.forget()
            return 0
        self.cache = self.reorder(self.cache, same.int().argmax(1))
        return known
