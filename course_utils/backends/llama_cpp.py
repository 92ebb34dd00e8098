"""llama.cpp behind the engine: its own server, inside this process."""

from __future__ import annotations

import http.client
import importlib
import json
import os
import random
import secrets
import struct
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from course_utils import models
from course_utils.backends.protocol import Answer, Chat, EngineError, Settings, window_of

# The number types of a GGUF header, as `struct` calls them. gguf.GGUFReader knows them too, but it
# reads the whole file: 6 to 7 seconds for the packaged one, against 0.1 ms for the one number here.
GGUF_NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))


# ── llama.cpp ───────────────────────────────────────────────────────────────────────────────────


def gguf_file(model: str | Path) -> Path:
    """Return the GGUF file of a model; say so when it is a folder for transformers instead."""
    folder = Path(os.path.expanduser(model))  # unlike Path's, never raises
    if (folder / "config.json").is_file() and not any(folder.glob("*.gguf")):
        raise EngineError(
            f"{str(model)!r} is a folder for transformers, and llama.cpp reads a .gguf file; "
            "use load_engine('transformers', …), or convert the model to GGUF first"
        )
    return models.gguf_path(model)


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


class LlamaCpp:
    """llama.cpp's server inside this process, asked over its local, key-protected HTTP port.

    The server decodes up to `parallel` requests together (continuous batching) and keeps each
    slot's last prompt, so that prompts with a common beginning are read once. Neither changes an
    answer on the CPU: its products are computed row by row, whatever else is in the batch.

    Over HTTP and not by xllamacpp's own `handle_completions`, beside which nothing tokenizes or
    applies the chat template.
    """

    def __init__(
        self, file: Path, window: int | None, parallel: int, threads: int, device: str
    ) -> None:
        self.window = window_of(window, _trained_window(file))
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

    def complete(self, prompts: list[list[int]], settings: Settings) -> list[Answer]:
        body = _body(settings, self.window)
        self._check_constraint(body)
        draw = random.Random(settings.seed)  # equal prompts get different answers
        bodies = [{"prompt": p, "seed": draw.getrandbits(31), **body} for p in prompts]
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
        body = {**_body(Settings(), self.window), "n_probs": 1}
        for done, token in enumerate(ending):
            read = [prompt + ending[:done] for prompt in prompts]
            replies = self._complete_all(
                {**body, "prompt": ids, "id_slot": slot, "logit_bias": [[token, 1e4]]}
                for slot, ids in enumerate(read)
            )
            for slot, reply in enumerate(replies):
                if "completion_probabilities" in reply:
                    totals[slot] += _forced_logprob(reply, token)
                else:
                    totals[slot] += self._looked_up(read[slot], token, slot)
        return totals

    def _looked_up(self, prompt: list[int], token: int, slot: int) -> float:
        """Log-probability of a token that is only a part of a character, such as the bytes of 😀.

        The server holds such a token back until the character is whole, and its probability for
        good: so a whole one is forced, and this one looked up in the list of the others.
        """
        body = _body(Settings(), self.window)
        body |= {"prompt": prompt, "id_slot": slot, "logit_bias": [[self._brace(), 1e4]]}
        for likeliest in (1_000, 1_000_000):  # the whole vocabulary takes 0.7 s, a thousand 0.02 s
            reply = self._ask("/completion", **body, n_probs=likeliest)
            others = reply["completion_probabilities"][0]["top_logprobs"]
            if found := [other["logprob"] for other in others if other["id"] == token]:
                return found[0]
        raise EngineError(f"llama.cpp gives no probability of token {token} after {len(prompt)}")

    def _brace(self) -> int:
        """The token of a closing brace: a whole character, with which no JSON begins."""
        (brace,) = self.tokenize("}", special=False)
        return brace

    def _check_constraint(self, body: dict[str, Any]) -> None:
        """Raise ValueError for a grammar or schema that llama.cpp can't use.

        It prints its complaints about a grammar, and answers *without* a schema it can't follow:
        so ask for one token, biased to one that no JSON begins with, and see whether it comes.
        """
        given = {key: body[key] for key in ("grammar", "json_schema") if key in body}
        if not given or (known := json.dumps(given)) in self._checked:
            return
        brace = self._brace()
        probe = {**_body(Settings(), self.window), **given, "logit_bias": [[brace, 1e4]]}
        with _stderr_of_process() as printed:
            try:
                reply = self._ask("/completion", prompt=[brace], **probe)
            except EngineError as error:
                reason = " ".join(printed().split()) or str(error)
                raise ValueError(f"the grammar can't be used: {reason}") from error
        if "json_schema" in given and reply["tokens"] == [brace]:
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


def _forced_logprob(reply: dict[str, Any], token: int) -> float:
    step = reply["completion_probabilities"][0]
    if step["id"] != token:
        raise EngineError(f"llama.cpp wrote token {step['id']}, not the forced {token}")
    return step["logprob"]


def _body(settings: Settings, window: int) -> dict[str, Any]:
    """Return the settings as llama.cpp's server names them, samplers in transformers' order."""
    samplers = ["penalties", "temperature", "top_k", "top_p", "min_p"]
    body = {
        "n_predict": settings.max_new_tokens,
        "temperature": settings.temperature,
        "top_k": 1 if settings.greedy else settings.top_k or 0,
        "top_p": settings.top_p,
        "min_p": settings.min_p,
        "repeat_penalty": settings.repetition_penalty,
        "repeat_last_n": window,  # all the text, as in transformers; by default only 64 tokens
        "samplers": ["penalties", "top_k"] if settings.greedy else samplers,
        "stop": list(settings.stop),
        "return_tokens": True,
    }
    if settings.grammar is not None:
        body["grammar"] = settings.grammar
    if settings.json_schema is not None:
        body["json_schema"] = settings.json_schema
    return body
