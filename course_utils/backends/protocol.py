"""What an engine asks of a backend, and what it refuses before asking."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

SMALLEST_WINDOW = 64
DEFAULT_WINDOW = 2048  # tokens; llama.cpp reserves the memory for all of them beforehand
Chat = Sequence[dict[str, str]]
Prompt = str | Chat


class EngineError(RuntimeError):
    """An engine can't be loaded, or can't do what was asked of it."""


@dataclass(frozen=True)
class Answer:
    """What a model wrote: text without special tokens and without the stop string.

    `finish_reason` is "stop" when the model ended its answer or a stop string came, and "length"
    when `max_new_tokens` ran out. `tokens` are the ids behind `completion_tokens`, an end token
    included. `seconds` it took, beside the others of its batch; it differs from run to run and so
    is left out of comparisons and of the printed form.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    tokens: tuple[int, ...] = field(default=(), repr=False)
    seconds: float = field(default=0.0, compare=False, repr=False)


class Settings(NamedTuple):
    """The settings of one call; by default one greedy token."""

    max_new_tokens: int = 1
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None


class Backend(Protocol):
    """What an engine asks of transformers or llama.cpp: token ids in, answers out."""

    window: int

    def render(self, chat: Chat) -> str: ...
    def tokenize(self, text: str, *, special: bool) -> list[int]: ...
    def complete(self, prompts: list[list[int]], how: Settings) -> list[Answer]: ...
    def score(self, prompts: list[list[int]], endings: list[list[int]]) -> list[list[float]]: ...
    def close(self) -> None: ...


# ── checks ──────────────────────────────────────────────────────────────────────────────────────


def check_settings(how: Settings) -> None:
    """Raise ValueError that names the first setting out of its range, its value and the range."""
    limits = {
        "max_new_tokens": (how.max_new_tokens >= 1, "at least 1"),
        "temperature": (0 <= how.temperature < math.inf, "0 (greedy) or more, and finite"),
        "top_k": (how.top_k is None or how.top_k >= 1, "at least 1, or None for all tokens"),
        "top_p": (0 <= how.top_p <= 1, "between 0 and 1"),
        "min_p": (0 <= how.min_p <= 1, "between 0 and 1"),
        "repetition_penalty": (0 < how.repetition_penalty < math.inf, "above 0, and finite"),
        "stop": (all(how.stop), "strings of at least one character"),
        "seed": (0 <= how.seed < 2**63, "between 0 and 2**63 − 1"),
        # llama.cpp takes grammars in other languages too, but ignores their mistakes in silence.
        "grammar": (how.grammar is None or "::=" in how.grammar, "in GBNF: root ::= …"),
    }
    for name, (within, limit) in limits.items():
        if not within:
            raise ValueError(f"{name} is {getattr(how, name)!r}; it must be {limit}")
    if how.grammar is not None and how.json_schema is not None:
        raise ValueError("grammar and json_schema are both given; an answer can follow only one")


def _is_chat(prompt: Any) -> bool:
    return isinstance(prompt, list | tuple) and all(isinstance(part, dict) for part in prompt)


def check_prompt(prompt: Any) -> None:
    if not isinstance(prompt, str) and not _is_chat(prompt):
        raise ValueError(f"a prompt is a text or a list of messages, not {type(prompt).__name__}")
    if not prompt:
        raise ValueError(f"the prompt is empty ({prompt!r}); give at least one token of text")
    for message in () if isinstance(prompt, str) else prompt:
        if not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise ValueError(f'a message is {{"role": text, "content": text}}, not {message!r}')


def batch_of(prompts: Any) -> tuple[list[Prompt], bool]:
    """Return the prompts as a list, and whether there was one alone."""
    alone = isinstance(prompts, str) or (_is_chat(prompts) and len(prompts) > 0)
    if not alone and not isinstance(prompts, list | tuple):
        raise ValueError(f"prompts are texts or lists of messages, not {type(prompts).__name__}")
    if not alone and not prompts:
        raise ValueError("the list of prompts is empty; give at least one prompt")
    batch = [prompts] if alone else list(prompts)
    for prompt in batch:
        check_prompt(prompt)
    return batch, alone


def window_of(wanted: int | None, trained: int) -> int:
    """Return the context window to use: the wanted one, or a default the model can hold."""
    if wanted is None:
        return min(DEFAULT_WINDOW, trained)
    _refuse_tiny_window(wanted)
    if wanted > trained:
        raise ValueError(
            f"context_window is {wanted}; this model was trained for at most {trained} tokens"
        )
    return wanted


def _refuse_tiny_window(wanted: int | None) -> None:
    """ValueError for a window that llama.cpp would end the whole process over."""
    if wanted is not None and wanted < SMALLEST_WINDOW:
        raise ValueError(
            f"context_window is {wanted}; it must be at least {SMALLEST_WINDOW} tokens, for a "
            "prompt and an answer"
        )
