"""Text in, text out: transformers and llama.cpp behind one call.

    with load_engine("llama.cpp") as engine:
        engine.generate("The capital of France is", max_new_tokens=8).text
        engine.generate([{"role": "user", "content": "Hello!"}], temperature=0.7, seed=1)
        engine.logprobs("Paris is in", [" France", " Spain"])

A text is completed as it stands; a list of {"role", "content"} is a chat and goes through the
model's own chat template; a list of either is a batch, answered in its order. A chat whose last
message is the assistant's is continued: the prompt ends with that message, and the answer is what
comes after it.

The two engines run the same weights but not the same arithmetic. transformers multiplies the
dequantized weights in float32. llama.cpp keeps the weights at 4 bits and rounds the *activations*
to 8 bits, in blocks of 32, before each product: that is where its speed comes from, and it moves a
next-token log-probability by some tenths of a nat, at times by one. Greedy decoding then picks
another word wherever two candidates are closer than that, and from there on the texts differ. The
same weights written as a float32 GGUF leave nothing to round, and the engines agree token for token
(tests/test_engines.py measures both).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils import profiles
from course_utils.backends.hugging_face import HuggingFace, loaded
from course_utils.backends.llama_cpp import LlamaCpp, gguf_file
from course_utils.backends.protocol import (
    Answer,
    Backend,
    Chat,
    EngineError,
    Prompt,
    Settings,
    batch_of,
    check_prompt,
    check_texts,
    checked,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


ENGINES = ("llama.cpp", "transformers")


# ── the engine ──────────────────────────────────────────────────────────────────────────────────


class Engine:
    """A loaded model that answers texts and chats; made by `load_engine`, closed by `close`."""

    def __init__(self, name: str, backend: Backend) -> None:
        self.name = name
        self.context_window = backend.window
        self._open: Backend | None = backend

    def __repr__(self) -> str:
        state = "closed" if self._open is None else f"{self.context_window} tokens"
        return f"<Engine {self.name}: {state}>"

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model and end its threads; a second call does nothing.

        One idle thread stays for the life of the process once llama.cpp has run: its logger's.
        """
        if self._open is not None:
            self._open.close()
            self._open = None

    @property
    def _backend(self) -> Backend:
        if self._open is None:
            raise EngineError(f"this {self.name} engine is closed; load a new one")
        return self._open

    def render(self, chat: Chat) -> str:
        """Return a chat as the text the model reads, up to where its answer begins or goes on."""
        check_prompt(chat)
        *before, last = chat
        if last["role"] == "assistant":  # templates and engines differ in what they make of it
            return self._backend.render(before) + last["content"]
        return self._backend.render(chat)

    def _ids(self, prompt: Prompt) -> list[int]:
        """Return the token ids of a checked prompt; a template brings its own special tokens."""
        if isinstance(prompt, str):
            return self._backend.tokenize(prompt, special=True)
        return self._backend.tokenize(self.render(prompt), special=False)

    def count_tokens(self, prompt: Prompt) -> int:
        """Return the number of tokens of a text or of a chat, template included."""
        check_prompt(prompt)
        return len(self._ids(prompt))

    def _fitting(self, batch: list[Prompt], new: int) -> list[list[int]]:
        """Return the ids of all prompts; ValueError when one leaves no room for `new` tokens."""
        prompts = [self._ids(prompt) for prompt in batch]
        if not min(map(len, prompts)):
            raise ValueError("a prompt comes to no token at all; give at least one token of text")
        if (longest := max(map(len, prompts))) + new > self.context_window:
            raise ValueError(
                f"the prompt has {longest} tokens and {new} more are asked for, but the context "
                f"window holds {self.context_window}; shorten the prompt, ask for fewer tokens, "
                "or load the engine with a larger context_window"
            )
        return prompts

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] = (),
        seed: int = 0,
        grammar: str | None = None,
        json_schema: dict[str, Any] | None = None,
    ) -> Answer | list[Answer]:
        """Return the `Answer` to one prompt, or the list of answers to a list of prompts.

        Temperature 0 is greedy, and so is its limit, below 1e-10. Otherwise tokens are drawn after,
        in this order, the repetition penalty (over prompt and answer), the temperature, top-k,
        top-p and min-p; equal calls give equal answers, and equal prompts in one batch different
        ones. `grammar` (GBNF) and `json_schema` restrict what may be written, in llama.cpp only.
        Raises ValueError for a setting out of range and a prompt too long for the context window.
        """
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        given = (temperature, top_k, top_p, min_p, repetition_penalty, stops, seed)
        settings = checked(Settings(max_new_tokens, *given, grammar, json_schema))
        batch, alone = batch_of(prompts)
        answers = self._backend.complete(self._fitting(batch, settings.max_new_tokens), settings)
        return answers[0] if alone else answers

    def logprobs(
        self, prompts: Prompt | Sequence[Prompt], completions: Sequence[str]
    ) -> list[float] | list[list[float]]:
        """Return log p(completion | prompt) in nats of each completion: the sum over its tokens.

        One list of floats for one prompt, a list of lists for a list of prompts. A completion is
        cut into tokens by itself, so begin it as the text goes on: " yes", with its blank.
        Raises ValueError for an empty completion and where the context window is too small.
        """
        if isinstance(completions, str) or not completions or not all(completions):
            raise ValueError(f"completions is {completions!r}; give a list of non-empty texts")
        check_texts("a completion", completions)
        endings = [self._backend.tokenize(text, special=False) for text in completions]
        batch, alone = batch_of(prompts)
        scores = self._backend.score(self._fitting(batch, max(map(len, endings))), endings)
        return scores[0] if alone else scores


def load_engine(
    name: str,
    model: str | Path | PreTrainedModel = "smollm2",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    context_window: int | None = None,
    parallel: int = 8,
    threads: int | None = None,
    device: str = "cpu",
) -> Engine:
    """Load a model into one of the `ENGINES`, "llama.cpp" or "transformers".

    `model` is the name of a packaged decoder; for llama.cpp also a .gguf file; for transformers
    also a folder, a hub id, or a loaded model with its `tokenizer`. `context_window` is 2,048
    tokens, or what the model was trained for if that is less. `parallel` prompts are computed at
    once; llama.cpp reserves memory for a window of each. `threads` is by default what torch is set
    to for transformers; for llama.cpp OMP_NUM_THREADS, or all cores that this process may use.
    Raises EngineError or AssetError when it can't be loaded, ValueError for a value out of range.
    """
    for key, value in {"parallel": parallel, "threads": threads}.items():
        if value is not None and value < 1:
            raise ValueError(f"{key} is {value!r}; it must be at least 1")
    if name == "llama.cpp":
        if tokenizer is not None or not isinstance(model, str | Path):
            raise ValueError("llama.cpp reads a .gguf file; a loaded model needs 'transformers'")
        backend: Backend = LlamaCpp(
            gguf_file(model), context_window, parallel, threads or profiles.threads(), device
        )
    elif name == "transformers":
        net, tokenizer = loaded(model, tokenizer, device)
        backend = HuggingFace(net, tokenizer, context_window, parallel, threads)
    else:
        raise ValueError(f"there is no engine {name!r}; choose one of {', '.join(ENGINES)}")
    return Engine(name, backend)
