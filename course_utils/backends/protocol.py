"""What an engine asks of a backend, and what it refuses before asking."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, NamedTuple, Protocol

# Below this temperature the likeliest token is taken: two float32 logits above 1 are at least 1e-7
# apart, odds of e^1000 to one here, and at 1e-38 the quotients overflow.
COLDEST = 1e-10
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
    """The settings of one call, in the order of `Engine.generate`; by default one greedy token."""

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

    @property
    def greedy(self) -> bool:
        return self.temperature < COLDEST


class Backend(Protocol):
    """What an engine asks of transformers or llama.cpp: token ids in, answers out."""

    window: int

    def render(self, chat: Chat) -> str: ...
    def tokenize(self, text: str, *, special: bool) -> list[int]: ...
    def complete(self, prompts: list[list[int]], settings: Settings) -> list[Answer]: ...
    def score(self, prompts: list[list[int]], endings: list[list[int]]) -> list[list[float]]: ...
    def close(self) -> None: ...


# ── checks ──────────────────────────────────────────────────────────────────────────────────────


def checked(settings: Settings) -> Settings:
    """The settings in Python's own numbers: numpy's are numbers too, but JSON can't hold them.

    Raises ValueError that names the first setting out of its range, its value and the range.
    """
    given = Settings(*(value.item() if hasattr(value, "item") else value for value in settings))
    limits = {
        "max_new_tokens": (_is_count(given.max_new_tokens), "at least 1 (an integer)"),
        "temperature": (0 <= given.temperature < math.inf, "0 (greedy) or more, and finite"),
        "top_k": (
            given.top_k is None or _is_count(given.top_k),
            "at least 1 (an integer), or None for all tokens",
        ),
        "top_p": (0 <= given.top_p <= 1, "between 0 and 1"),
        "min_p": (0 <= given.min_p <= 1, "between 0 and 1"),
        "repetition_penalty": (0 < given.repetition_penalty < math.inf, "above 0, and finite"),
        "stop": (all(given.stop), "strings of at least one character"),
        "seed": (_is_seed(given.seed), "an integer between 0 and 2**63 − 1"),
        # llama.cpp takes grammars in other languages too, but ignores their mistakes in silence.
        "grammar": (given.grammar is None or "::=" in given.grammar, "in GBNF: root ::= …"),
    }
    for name, (within, limit) in limits.items():
        if not within:
            raise ValueError(f"{name} is {getattr(given, name)!r}; it must be {limit}")
    if given.grammar is not None and given.json_schema is not None:
        raise ValueError("grammar and json_schema are both given; an answer can follow only one")
    check_texts("a stop string", given.stop)
    check_texts("the grammar", [given.grammar or ""])
    check_texts("the json_schema", [json.dumps(given.json_schema, ensure_ascii=False)])
    return given


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and value >= 1


def _is_seed(value: Any) -> bool:
    return isinstance(value, Integral) and 0 <= value < 2**63


def check_texts(name: str, texts: Iterable[str]) -> None:
    """ValueError for half of a character, which a Python string can hold and no text can."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{name} has {text[error.start]!r} at position {error.start}, a lone surrogate: "
                "half of a character, as badly decoded text has it; decode it anew, or drop it"
            ) from None


def _is_chat(prompt: Any) -> bool:
    return isinstance(prompt, list | tuple) and all(isinstance(part, dict) for part in prompt)


def check_prompt(prompt: Any) -> None:
    if not isinstance(prompt, str) and not _is_chat(prompt):
        raise ValueError(f"a prompt is a text or a list of messages, not {type(prompt).__name__}")
    if not prompt:
        raise ValueError(f"the prompt is empty ({prompt!r}); give at least one token of text")
    if isinstance(prompt, str):
        check_texts("the prompt", [prompt])
        return
    for message in prompt:
        if not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise ValueError(f'a message is {{"role": text, "content": text}}, not {message!r}')
        check_texts("a message", [message["role"], message["content"]])
    _check_turns([message["role"] for message in prompt])


def _check_turns(roles: list[str]) -> None:
    """A last answer is continued: something must come before it, and not an answer again."""
    if roles[-1] == "assistant" and roles[-2:-1] in ([], ["assistant"]):
        before = "another one" if roles[:-1] else "nothing"
        raise ValueError(
            f"the chat ends with an answer, to be continued, and {before} before it; "
            "begin with what the user says, and join answers that follow each other"
        )


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
