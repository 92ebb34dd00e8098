"""Text in, text out: transformers and llama.cpp behind one call.

    with load_engine("llama.cpp") as engine:
        engine.generate("The capital of France is", max_new_tokens=8).text
        engine.generate([{"role": "user", "content": "Hello!"}], temperature=0.7, seed=1)
        engine.logprobs("Paris is in", [" France", " Spain"])

A text is completed as it stands; a list of {"role", "content"} is a chat and goes through the
model's own chat template; a list of either is a batch, answered in its order.

The two engines run the same weights but not the same arithmetic. transformers multiplies the
dequantized weights in float32. llama.cpp keeps the weights at 4 bits and rounds the *activations*
to 8 bits, in blocks of 32, before each product: that is where its speed comes from, and it moves a
next-token log-probability by some tenths of a nat, at times by one. Greedy decoding then picks
another word wherever two candidates are closer than that, and from there on the texts differ. The
same weights written as a float32 GGUF leave nothing to round, and the engines agree token for token
(tests/test_engines.py measures both).
"""

from __future__ import annotations

import copy
import http.client
import importlib
import itertools
import json
import math
import os
import random
import secrets
import struct
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol

from course_utils import assets

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ENGINES", "Answer", "Engine", "EngineError", "load_engine"]

ENGINES = ("llama.cpp", "transformers")
SMALLEST_WINDOW = 64
# The number types of a GGUF header, as `struct` calls them.
GGUF_NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
DEFAULT_WINDOW = 2048  # tokens; llama.cpp reserves the memory for all of them beforehand
# Tokens that end an answer although a model's configuration names only one of them.
END_OF_TEXT = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "</s>")

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


class _Sampling(NamedTuple):
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


class _Backend(Protocol):
    """What an engine asks of transformers or llama.cpp: token ids in, answers out."""

    window: int

    def render(self, chat: Chat) -> str: ...
    def tokenize(self, text: str, *, special: bool) -> list[int]: ...
    def complete(self, prompts: list[list[int]], how: _Sampling) -> list[Answer]: ...
    def score(self, prompts: list[list[int]], endings: list[list[int]]) -> list[list[float]]: ...
    def close(self) -> None: ...


# ── checks ──────────────────────────────────────────────────────────────────────────────────────


def _check_sampling(how: _Sampling) -> None:
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


def _check_prompt(prompt: Any) -> None:
    if not isinstance(prompt, str) and not _is_chat(prompt):
        raise ValueError(f"a prompt is a text or a list of messages, not {type(prompt).__name__}")
    if not prompt:
        raise ValueError(f"the prompt is empty ({prompt!r}); give at least one token of text")
    for message in () if isinstance(prompt, str) else prompt:
        if not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise ValueError(f'a message is {{"role": text, "content": text}}, not {message!r}')


def _batch(prompts: Any) -> tuple[list[Prompt], bool]:
    """Return the prompts as a list, and whether there was one alone."""
    alone = isinstance(prompts, str) or (_is_chat(prompts) and len(prompts) > 0)
    if not alone and not isinstance(prompts, list | tuple):
        raise ValueError(f"prompts are texts or lists of messages, not {type(prompts).__name__}")
    if not alone and not prompts:
        raise ValueError("the list of prompts is empty; give at least one prompt")
    batch = [prompts] if alone else list(prompts)
    for prompt in batch:
        _check_prompt(prompt)
    return batch, alone


def _window(wanted: int | None, trained: int) -> int:
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


def _default_threads() -> int:
    """Return how many cores this process may use: OMP_NUM_THREADS, torch's setting, or all."""
    if (named := os.environ.get("OMP_NUM_THREADS", "").split(",")[0]).isdigit() and int(named):
        return int(named)
    if torch := sys.modules.get("torch"):
        return torch.get_num_threads()
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# ── the engine ──────────────────────────────────────────────────────────────────────────────────


class Engine:
    """A loaded model that answers texts and chats; made by `load_engine`, closed by `close`."""

    def __init__(self, name: str, backend: _Backend) -> None:
        self.name = name
        self.context_window = backend.window
        self._open: _Backend | None = backend

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
    def _backend(self) -> _Backend:
        if self._open is None:
            raise EngineError(f"this {self.name} engine is closed; load a new one")
        return self._open

    def render(self, chat: Chat) -> str:
        """Return a chat as the text the model reads, up to where its answer begins."""
        _check_prompt(chat)
        return self._backend.render(chat)

    def _ids(self, prompt: Prompt) -> list[int]:
        """Return the token ids of a checked prompt; a template brings its own special tokens."""
        if isinstance(prompt, str):
            return self._backend.tokenize(prompt, special=True)
        return self._backend.tokenize(self._backend.render(prompt), special=False)

    def count_tokens(self, prompt: Prompt) -> int:
        """Return the number of tokens of a text or of a chat, template included."""
        _check_prompt(prompt)
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

        Temperature 0 is greedy. Otherwise tokens are drawn after, in this order, the repetition
        penalty (over prompt and answer), the temperature, top-k, top-p and min-p; equal calls give
        equal answers, and equal prompts in one batch different ones. `grammar` (GBNF) and
        `json_schema` restrict what may be written, in llama.cpp only.
        Raises ValueError for a setting out of range and a prompt too long for the context window.
        """
        how = _Sampling(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            seed=seed,
            grammar=grammar,
            json_schema=json_schema,
        )
        _check_sampling(how)
        batch, alone = _batch(prompts)
        answers = self._backend.complete(self._fitting(batch, max_new_tokens), how)
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
        endings = [self._backend.tokenize(text, special=False) for text in completions]
        batch, alone = _batch(prompts)
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
    once; llama.cpp reserves memory for a window of each. `threads` is by default what
    OMP_NUM_THREADS and torch allow.
    Raises EngineError or AssetError when it can't be loaded, ValueError for a value out of range.
    """
    for key, value in {"parallel": parallel, "threads": threads}.items():
        if value is not None and value < 1:
            raise ValueError(f"{key} is {value!r}; it must be at least 1")
    if name == "llama.cpp":
        if tokenizer is not None or not isinstance(model, str | Path):
            raise ValueError("llama.cpp reads a .gguf file; a loaded model needs 'transformers'")
        backend: _Backend = _LlamaCpp(
            _gguf(model), context_window, parallel, threads or _default_threads(), device
        )
    elif name == "transformers":
        net, tokenizer = _net(model, tokenizer, device)
        backend = _Transformers(net, tokenizer, context_window, parallel, threads)
    else:
        raise ValueError(f"there is no engine {name!r}; choose one of {', '.join(ENGINES)}")
    return Engine(name, backend)


# ── llama.cpp ───────────────────────────────────────────────────────────────────────────────────


def _gguf(model: str | Path) -> Path:
    """Return the GGUF file of a model; say so when it is a folder for transformers instead."""
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file() and not any(folder.glob("*.gguf")):
        raise EngineError(
            f"{str(model)!r} is a folder for transformers, and llama.cpp reads a .gguf file; "
            "use load_engine('transformers', …), or convert the model to GGUF first"
        )
    return assets.gguf_path(model)


def _gguf_value(stream: BinaryIO, kind: int) -> Any:
    """Read one value of a GGUF header; 8 is a text, 9 an array, the others are numbers."""
    if kind == 8:
        return stream.read(*_unpack(stream, "Q")).decode()
    if kind == 9:
        inner, length = _unpack(stream, "IQ")
        return [_gguf_value(stream, inner) for _ in range(length)]
    return _unpack(stream, GGUF_NUMBERS[kind])[0]


def _unpack(stream: BinaryIO, form: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{form}", stream.read(struct.calcsize(f"<{form}")))


def _trained_window(file: Path) -> int:
    """Return the context length in the header of a GGUF file, without reading its vocabulary.

    llama.cpp can be asked only after it has reserved the memory for a window, however large.
    Raises EngineError when the file is no GGUF.
    """
    with file.open("rb") as stream, suppress(struct.error, KeyError, UnicodeDecodeError):
        magic, _, _, entries = _unpack(stream, "4sIQQ")
        for _ in range(entries if magic == b"GGUF" else 0):
            key = _gguf_value(stream, 8)
            value = _gguf_value(stream, *_unpack(stream, "I"))
            if key.endswith(".context_length"):
                return value
    raise EngineError(f"{file} is not a GGUF file; give the path of one, or a model's name")


def _xllamacpp() -> Any:
    """Import xllamacpp, or raise EngineError with the remedy."""
    try:
        return importlib.import_module("xllamacpp")
    except ImportError as error:
        raise EngineError(
            f"the llama.cpp engine needs the package xllamacpp ({error}); "
            "run `pip install xllamacpp`, or use load_engine('transformers', …)"
        ) from error


@contextmanager
def _stderr_of_process() -> Iterator[Callable[[], str]]:
    """Catch what C++ code writes to file descriptor 2, and hand it over as text."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as caught:
        before = os.dup(2)
        os.dup2(caught.fileno(), 2)

        def text() -> str:
            caught.seek(0)
            return caught.read().decode(errors="replace")

        try:
            yield text
        finally:
            os.dup2(before, 2)
            os.close(before)


class _LlamaCpp:
    """llama.cpp's server inside this process, asked over its local, key-protected HTTP port.

    The server decodes up to `parallel` requests together (continuous batching) and keeps each
    slot's last prompt, so that prompts with a common beginning are read once. Neither changes an
    answer on the CPU: its products are computed row by row, whatever else is in the batch.
    """

    def __init__(
        self, file: Path, window: int | None, parallel: int, threads: int, device: str
    ) -> None:
        self.window = _window(window, _trained_window(file))
        self.parallel = parallel
        self._key = secrets.token_hex()
        self._checked: set[str] = set()
        self._server = self._start(file, threads, device)
        # Warm up, and only then let it be closed: a server stopped before its loop has begun
        # never notices, and waits for ever.
        self._ask("/completion", prompt=[0], n_predict=1)

    def _start(self, file: Path, threads: int, device: str) -> Any:
        xllamacpp = _xllamacpp()
        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.warmup = False
        params.verbosity = -1  # nothing on stdout or stderr, which notebooks store
        params.api_keys = [self._key]
        params.ui = params.endpoint_slots = params.fit_params = False
        params.n_ctx = self.window * self.parallel
        params.n_parallel = self.parallel
        params.n_threads_http = 2 * self.parallel + 2  # one for each request on its way
        params.cache_ram_mib = 0  # no second prompt cache: by default it may grow to 8 GiB
        params.cache_idle_slots = False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.n_gpu_layers = _gpu_layers(xllamacpp, device)
        try:
            return xllamacpp.Server(params)
        except RuntimeError as error:
            raise EngineError(
                f"llama.cpp could not load {file}; the file is damaged (fetch it again), needs "
                f"more memory than there is ({self.parallel} windows of {self.window} tokens), or "
                "needs a newer xllamacpp"
            ) from error

    def _send(self, path: str, body: dict[str, Any]) -> http.client.HTTPConnection:
        """Send a request to the server, and return the connection its reply will come on."""
        address = self._server.listening_address.removeprefix("http://")
        connection = http.client.HTTPConnection(address)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        method = "POST" if body else "GET"
        connection.request(method, path, json.dumps(body) if body else None, headers)
        return connection

    def _read(self, connection: http.client.HTTPConnection) -> Any:
        """Wait for a reply; raise EngineError with the server's reason if it refused."""
        with closing(connection), connection.getresponse() as response:
            reply = json.load(response)
        if response.status != 200:
            raise EngineError(f"llama.cpp refused the request: {reply['error']['message']}")
        return reply

    def _ask(self, path: str, **body: Any) -> Any:
        return self._read(self._send(path, body))

    def _complete_all(self, bodies: Iterable[dict[str, Any]]) -> list[Any]:
        """Return the replies to many completions, in order, with enough on the way at any time.

        Twice `parallel`, so that a slot that is done finds the next one waiting. No threads: after
        Ctrl-C the connections are closed, and the server drops what nobody waits for.
        """
        waiting: deque[http.client.HTTPConnection] = deque()
        replies = []
        try:
            for body in bodies:
                if len(waiting) == 2 * self.parallel:
                    replies.append(self._read(waiting.popleft()))
                waiting.append(self._send("/completion", body))
            while waiting:
                replies.append(self._read(waiting.popleft()))
        finally:
            for connection in waiting:
                connection.close()
        return replies

    def close(self) -> None:
        self._server = None  # its destructor stops the server and joins the threads

    def render(self, chat: Chat) -> str:
        return self._ask("/apply-template", messages=list(chat))["prompt"]

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        return self._ask("/tokenize", content=text, add_special=special)["tokens"]

    def complete(self, prompts: list[list[int]], how: _Sampling) -> list[Answer]:
        settings = _llama_settings(how, self.window)
        self._check_constraint(settings)
        draw = random.Random(how.seed)  # equal prompts get different answers
        bodies = [{"prompt": p, "seed": draw.getrandbits(31), **settings} for p in prompts]
        replies = self._complete_all(bodies)
        return [
            Answer(
                text=reply["content"],
                prompt_tokens=len(prompt),
                completion_tokens=reply["tokens_predicted"],
                finish_reason="length" if reply["stop_type"] == "limit" else "stop",
                tokens=tuple(reply["tokens"]),
                seconds=(reply["timings"]["prompt_ms"] + reply["timings"]["predicted_ms"]) / 1000,
            )
            for prompt, reply in zip(prompts, replies, strict=True)
        ]

    def score(self, prompts: list[list[int]], endings: list[list[int]]) -> list[list[float]]:
        """Keep each prompt of a group in a slot of its own, so that it is read only once."""
        scores = []
        for first in range(0, len(prompts), self.parallel):
            group = prompts[first : first + self.parallel]
            scores += zip(*(self._forced(group, ending) for ending in endings), strict=True)
        return [list(row) for row in scores]

    def _forced(self, prompts: list[list[int]], ending: list[int]) -> list[float]:
        """Force the ending token by token by a huge bias, and add up what each had without it.

        The server reports probabilities of the model's own logits, before any bias.
        """
        totals = [0.0] * len(prompts)
        settings = {**_llama_settings(_Sampling(), self.window), "n_probs": 1}
        for done, token in enumerate(ending):
            replies = self._complete_all(
                {"prompt": p + ending[:done], "id_slot": slot, "logit_bias": [[token, 1e4]]}
                | settings
                for slot, p in enumerate(prompts)
            )
            for slot, reply in enumerate(replies):
                step = reply["completion_probabilities"][0]
                if step["id"] != token:
                    raise EngineError(f"llama.cpp wrote token {step['id']}, not the forced {token}")
                totals[slot] += step["logprob"]
        return totals

    def _check_constraint(self, settings: dict[str, Any]) -> None:
        """Raise ValueError for a grammar or schema that llama.cpp can't use.

        It prints its complaints about a grammar, and answers *without* a schema it can't follow:
        so ask for one token, biased to one that no JSON begins with, and see whether it comes.
        """
        given = {key: settings[key] for key in ("grammar", "json_schema") if key in settings}
        if not given or (known := json.dumps(given)) in self._checked:
            return
        (closing,) = self.tokenize("}", special=False)
        probe = {
            **_llama_settings(_Sampling(), self.window),
            **given,
            "logit_bias": [[closing, 1e4]],
        }
        with _stderr_of_process() as printed:
            try:
                reply = self._ask("/completion", prompt=[closing], **probe)
            except EngineError as error:
                reason = " ".join(printed().split()) or str(error)
                raise ValueError(f"the grammar can't be used: {reason}") from error
        if "json_schema" in given and reply["tokens"] == [closing]:
            raise ValueError(f"the JSON schema can't be used: {given['json_schema']!r}")
        self._checked.add(known)


def _gpu_layers(xllamacpp: Any, device: str) -> int:
    """Return how many layers to put on the GPU: none on the CPU, otherwise all (−1)."""
    if device == "cpu":
        return 0
    cpu = xllamacpp.ggml_backend_dev_type.GGML_BACKEND_DEVICE_TYPE_CPU
    if all(found["type"] == cpu for found in xllamacpp.get_device_info()):
        raise EngineError(
            f"device is {device!r}, but this xllamacpp was built for the CPU or sees no GPU; "
            "use device='cpu', or install the build of xllamacpp for your GPU"
        )
    return -1


def _llama_settings(how: _Sampling, window: int) -> dict[str, Any]:
    """Return the settings as llama.cpp's server names them, samplers in transformers' order."""
    greedy = how.temperature == 0
    settings = {
        "n_predict": how.max_new_tokens,
        "temperature": how.temperature,
        "top_k": 1 if greedy else how.top_k or 0,
        "top_p": how.top_p,
        "min_p": how.min_p,
        "repeat_penalty": how.repetition_penalty,
        "repeat_last_n": window,  # all the text, as in transformers; by default only 64 tokens
        "samplers": ["penalties", "top_k"]
        if greedy
        else ["penalties", "temperature", "top_k", "top_p", "min_p"],
        "stop": list(how.stop),
        "return_tokens": True,
    }
    if how.grammar is not None:
        settings["grammar"] = how.grammar
    if how.json_schema is not None:
        settings["json_schema"] = how.json_schema
    return settings


# ── transformers ────────────────────────────────────────────────────────────────────────────────


def _net(
    model: str | Path | PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, device: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a loaded model and its tokenizer: the given ones, or those of a name."""
    if isinstance(model, str | Path):
        if tokenizer is not None:
            raise ValueError("a tokenizer is given for a model's name, which brings its own")
        if Path(model).suffix == ".gguf":
            raise EngineError(
                f"{str(model)!r} is a GGUF file, and transformers reads a folder or a hub id; "
                "use load_engine('llama.cpp', …)"
            )
        return assets.load_decoder(model, device=device)
    if tokenizer is None:
        raise ValueError("a loaded model needs its tokenizer; give tokenizer=…")
    return model, tokenizer


def _batches(lengths: list[int], size: int, *, equal: bool) -> list[list[int]]:
    """Group prompts of about one length, so that little is padded; of exactly one if `equal`."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        last = groups[-1] if groups else []
        fits = 0 < len(last) < size and not (equal and lengths[last[0]] != lengths[i])
        if fits:
            last.append(i)
        else:
            groups.append([i])
    return groups


class _Transformers:
    """A transformers model and its tokenizer, batched with padding on the left."""

    def __init__(
        self,
        net: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        window: int | None,
        parallel: int,
        threads: int | None,
    ) -> None:
        self.window = _window(window, net.config.get_text_config().max_position_embeddings)
        self.net, self.tokenizer, self.parallel, self.threads = net, tokenizer, parallel, threads
        named = net.generation_config.eos_token_id
        ends = {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id}
        special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        self.ends = sorted((ends | {special.get(text) for text in END_OF_TEXT}) - {None})

    def close(self) -> None:
        self.net = self.tokenizer = None

    def render(self, chat: Chat) -> str:
        if not self.tokenizer.chat_template:
            raise EngineError("this model has no chat template; give it a text instead of a chat")
        return self.tokenizer.apply_chat_template(
            list(chat), tokenize=False, add_generation_prompt=True
        )

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        # Counting may be asked of a text beyond the window, which is no reason for a warning.
        return self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]

    @contextmanager
    def _computing(self, seed: int = 0) -> Iterator[None]:
        """Compute without gradients and dropout; leave threads, mode and random state as found."""
        import torch

        threads, training = torch.get_num_threads(), self.net.training
        cuda = [self.net.device] if self.net.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=cuda):
            torch.manual_seed(seed)
            torch.set_num_threads(self.threads or threads)
            self.net.eval()
            try:
                yield
            finally:
                self.net.train(training)
                torch.set_num_threads(threads)

    def complete(self, prompts: list[list[int]], how: _Sampling) -> list[Answer]:
        if how.grammar is not None or how.json_schema is not None:
            raise ValueError("only the llama.cpp engine follows a grammar or a json_schema")
        # Padding is masked out of attention, but a repetition penalty would count it as text.
        groups = _batches(
            [len(p) for p in prompts], self.parallel, equal=how.repetition_penalty != 1
        )
        answers: dict[int, Answer] = {}
        with self._computing(how.seed):
            for group in groups:
                batch = self._answers([prompts[i] for i in group], how)
                answers.update(zip(group, batch, strict=True))
        return [answers[i] for i in range(len(prompts))]

    def _answers(self, prompts: list[list[int]], how: _Sampling) -> list[Answer]:
        """Answer one batch."""
        import torch

        start, width = time.perf_counter(), max(map(len, prompts))
        pad = [width - len(p) for p in prompts]
        ids = torch.tensor([[self.ends[0]] * n + p for n, p in zip(pad, prompts, strict=True)])
        mask = torch.tensor([[0] * n + [1] * (width - n) for n in pad])
        stopped: dict[int, int] = {}
        criteria = [self._stopping(how.stop, width, stopped)] if how.stop else []
        written = self.net.generate(
            ids.to(self.net.device),
            attention_mask=mask.to(self.net.device),
            generation_config=self._config(how),
            stopping_criteria=criteria,
        )[:, width:].tolist()
        seconds = time.perf_counter() - start
        return [
            self._answer(len(prompt), tokens[: stopped.get(row)], row in stopped, how, seconds)
            for row, (prompt, tokens) in enumerate(zip(prompts, written, strict=True))
        ]

    def _config(self, how: _Sampling) -> Any:
        """Return the settings as transformers names them, none left to the model's own file."""
        from transformers import GenerationConfig

        sampling = {
            "temperature": float(how.temperature),
            "top_k": how.top_k or 0,
            "top_p": float(how.top_p),
            "min_p": float(how.min_p),
        }
        return GenerationConfig(
            max_new_tokens=how.max_new_tokens,
            do_sample=how.temperature > 0,
            repetition_penalty=float(how.repetition_penalty),
            eos_token_id=self.ends,
            pad_token_id=self.ends[0],
            **(sampling if how.temperature > 0 else {}),
        )

    def _stopping(
        self, stops: tuple[str, ...], width: int, stopped: dict[int, int]
    ) -> Callable[..., torch.Tensor]:
        """Return a stopping rule that notes after how many tokens each row has a stop string."""
        import torch

        tail = max(len(stop.encode()) for stop in stops)  # a token is at least one byte

        def rule(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            for row, tokens in enumerate(ids[:, width:][:, -tail:].tolist()):
                text = self.tokenizer.decode(tokens, skip_special_tokens=True)
                if row not in stopped and any(stop in text for stop in stops):
                    stopped[row] = ids.shape[1] - width
            done = [row in stopped for row in range(len(ids))]
            return torch.tensor(done, device=ids.device)

        return rule

    def _answer(
        self, prompt_tokens: int, tokens: list[int], stopped: bool, how: _Sampling, seconds: float
    ) -> Answer:
        """Cut one row of a batch off where its answer ended."""
        end = next((i + 1 for i, token in enumerate(tokens) if token in self.ends), None)
        text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True)
        for stop in how.stop:
            text = text.partition(stop)[0]
        return Answer(
            text=text,
            prompt_tokens=prompt_tokens,
            completion_tokens=len(tokens[:end]),
            finish_reason="stop" if stopped or end is not None else "length",
            tokens=tuple(tokens[:end]),
            seconds=seconds,
        )

    def score(self, prompts: list[list[int]], endings: list[list[int]]) -> list[list[float]]:
        """Read several prompts together where every ending is one token, as labels mostly are."""
        with self._computing():
            if len(prompts) > 1 and max(map(len, endings)) == 1:
                return self._next_logprobs(prompts, [token for (token,) in endings])
            return [self._logprobs(prompt, endings) for prompt in prompts]

    def _next_logprobs(self, prompts: list[list[int]], tokens: list[int]) -> list[list[float]]:
        """Read the common beginning of all prompts once, and the rest in batches, on copies of it.

        At least one token of each prompt is left to the rest: only what is read has logits.
        """
        columns = zip(*prompts, strict=False)
        common = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
        common = min(common, min(map(len, prompts)) - 1)
        rests = [prompt[common:] for prompt in prompts]
        begun = self._read(prompts[0][:common]).past_key_values if common else None
        scores: dict[int, list[float]] = {}
        for group in _batches([len(rest) for rest in rests], self.parallel, equal=False):
            batch = self._next_of_batch([rests[i] for i in group], copy.deepcopy(begun), tokens)
            scores.update(zip(group, batch, strict=True))
        return [scores[i] for i in range(len(prompts))]

    def _read(self, prompt: list[int]) -> Any:
        """Read one text: its key-value cache, and the logits after its last token, (1, 1, V)."""
        import torch

        ids = torch.tensor([prompt], device=self.net.device)
        return self.net(ids, use_cache=True, logits_to_keep=1)

    def _next_of_batch(self, rests: list[list[int]], cache: Any, tokens: list[int]) -> Any:
        """Go on from a cache with several texts: (B, len(tokens)) in nats."""
        import torch

        last = torch.tensor([len(rest) - 1 for rest in rests], device=self.net.device)  # (B,)
        places, at = last.unique(return_inverse=True)
        if cache is not None:
            cache.batch_repeat_interleave(len(rests))
        ids = self._padded(rests)
        read = self.net(ids, past_key_values=cache, logits_to_keep=places)
        rows = torch.arange(len(rests), device=self.net.device)
        logits = read.logits[rows, at]  # of (B, places, V): (B, V)
        return logits.float().log_softmax(-1)[:, tokens].tolist()

    def _padded(self, texts: list[list[int]]) -> torch.Tensor:
        """Stack token ids, padded on the right: (B, T).

        That needs no mask where nothing is read after the padding: no token looks ahead.
        """
        import torch

        width = max(map(len, texts))
        rows = [text + [0] * (width - len(text)) for text in texts]
        return torch.tensor(rows, device=self.net.device)

    def _logprobs(self, prompt: list[int], endings: list[list[int]]) -> list[float]:
        """Read the prompt once, then all endings in one batch on copies of its cache."""
        import torch

        ids = self._padded(endings)  # (N, L)
        n, longest = ids.shape
        lengths = torch.tensor([len(ending) for ending in endings], device=ids.device)
        real = torch.arange(longest, device=ids.device) < lengths[:, None]  # (N, L)
        read = self._read(prompt)
        logits = read.logits.expand(n, -1, -1)  # (N, 1, V)
        if longest > 1:
            read.past_key_values.batch_repeat_interleave(n)
            more = self.net(ids[:, :-1], past_key_values=read.past_key_values).logits
            logits = torch.cat([logits, more], dim=1)  # (N, L, V)
        logp = logits.float().log_softmax(-1).gather(-1, ids[:, :, None]).squeeze(-1)  # (N, L)
        return (logp * real).sum(1).tolist()
