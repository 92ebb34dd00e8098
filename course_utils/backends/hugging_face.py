"""transformers behind the engine: batches, stop strings, scores."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils import models
from course_utils.backends.protocol import Answer, Chat, EngineError, Settings, window_of
from course_utils.training import batches_by_length

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# Tokens that end an answer although a model's configuration names only one of them.
END_OF_TEXT = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "</s>")


# ── transformers ────────────────────────────────────────────────────────────────────────────────


def loaded(
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
        return models.load_decoder(model, device=device)
    if tokenizer is None:
        raise ValueError("a loaded model needs its tokenizer; give tokenizer=…")
    return model, tokenizer


class HuggingFace:
    """A transformers model and its tokenizer, batched with padding on the left."""

    def __init__(
        self,
        net: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        window: int | None,
        parallel: int,
        threads: int | None,
    ) -> None:
        self.window = window_of(window, net.config.get_text_config().max_position_embeddings)
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

    def complete(self, prompts: list[list[int]], settings: Settings) -> list[Answer]:
        if settings.grammar is not None or settings.json_schema is not None:
            raise ValueError("only the llama.cpp engine follows a grammar or a json_schema")
        # Padding is masked out of attention, but a repetition penalty would count it as text.
        equal = settings.repetition_penalty != 1
        groups = batches_by_length([len(p) for p in prompts], self.parallel, equal=equal)
        answers: dict[int, Answer] = {}
        with self._computing(settings.seed):
            for group in groups:
                batch = self._answers([prompts[i] for i in group], settings)
                answers.update(zip(group, batch, strict=True))
        return [answers[i] for i in range(len(prompts))]

    def _answers(self, prompts: list[list[int]], settings: Settings) -> list[Answer]:
        """Answer one batch."""
        start = time.perf_counter()
        ids = self._padded(prompts, self.ends[0], "left")  # (B, T)
        mask = self._padded([[1] * len(prompt) for prompt in prompts], 0, "left")
        width, stopped = ids.shape[1], dict[int, int]()
        criteria = [self._stopping(settings.stop, width, stopped)] if settings.stop else []
        written = self.net.generate(
            ids,
            attention_mask=mask,
            generation_config=self._config(settings),
            stopping_criteria=criteria,
        )[:, width:].tolist()
        seconds = time.perf_counter() - start
        return [
            self._answer(len(prompt), tokens[: stopped.get(row)], row in stopped, settings, seconds)
            for row, (prompt, tokens) in enumerate(zip(prompts, written, strict=True))
        ]

    def _config(self, settings: Settings) -> Any:
        """Return the settings as transformers names them, none left to the model's own file."""
        from transformers import GenerationConfig

        sampling = {
            "temperature": float(settings.temperature),
            "top_k": settings.top_k or 0,
            "top_p": float(settings.top_p),
            "min_p": float(settings.min_p),
        }
        return GenerationConfig(
            max_new_tokens=settings.max_new_tokens,
            do_sample=not settings.greedy,
            repetition_penalty=float(settings.repetition_penalty),
            eos_token_id=self.ends,
            pad_token_id=self.ends[0],
            **({} if settings.greedy else sampling),
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
        self,
        prompt_tokens: int,
        tokens: list[int],
        stopped: bool,
        settings: Settings,
        seconds: float,
    ) -> Answer:
        """Cut one row of a batch off where its answer ended."""
        end = next((i + 1 for i, token in enumerate(tokens) if token in self.ends), None)
        text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True)
        for stop in settings.stop:
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
        for group in batches_by_length([len(rest) for rest in rests], self.parallel):
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

    def _padded(self, texts: list[list[int]], value: int = 0, side: str = "right") -> torch.Tensor:
        """Stack token ids, padded on one side: (B, T).

        Padding on the right needs no mask where nothing is read after it: no token looks ahead.
        """
        import torch

        rows = [torch.tensor(text) for text in texts]
        padded = torch.nn.utils.rnn.pad_sequence(
            rows, batch_first=True, padding_value=value, padding_side=side
        )
        return padded.to(self.net.device)

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
