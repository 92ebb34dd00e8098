"""Decoding against transformers: the loops, and every logits processor at 49,152 tokens.

`make bench`, or `python tests/benchmarks/bench_decoding.py [--json FILE] [--clock]`, which exits
with 1 when a floor is missed. Both sides have the same model and inputs and must give the same
answer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from side_by_side import Row, compare, hold, main
from torch import Tensor
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from course_utils import models
from course_utils.engines import load_engine
from course_utils.inference import decoding
from course_utils.inference.next_logits import cached_next_logits_of, next_logits_of
from course_utils.inference.processors import (
    min_p,
    no_repeat_ngram,
    repetition_penalty,
    temperature,
    top_k,
    top_p,
)
from course_utils.inference.search import beam_search

QUESTION = "Explain in a long essay why the sky is blue."
NEW_TOKENS = 32
HISTORY = 256  # tokens that the penalties look back on
CALLS = 50  # of a processor, in one measurement


Compare = Callable[..., Row]
TITLE = "Decoding: ours and transformers (theirs)"


# ── Loops ─────────────────────────────────────────────────────────────────────────────────────────


def generate(model: Any, ids: Tensor, **options: Any) -> list[int]:
    options = {"do_sample": False, "max_new_tokens": NEW_TOKENS, **options}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0].tolist()


def ours_by(loop: Callable, make: Callable, model: Any, ids: Tensor, stop: list[int]) -> list[int]:
    """A fresh cache each time: the prompt is read within the time measured, as in `generate`."""
    return [*ids[0].tolist(), *loop(make(model), ids, NEW_TOKENS, stop=stop)[0].tokens]


def asked(tokenizer: Any) -> tuple[list[dict[str, str]], Tensor]:
    """The question as a chat, and its ids (1, T)."""
    chat = [{"role": "user", "content": QUESTION}]
    read = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    return chat, read["input_ids"]


def loops(compare: Compare) -> list[Row]:
    model, tokenizer = models.load_decoder("smollm2")
    _, ids = asked(tokenizer)
    stop, new = [tokenizer.eos_token_id], f"{NEW_TOKENS} tokens"
    greedy = partial(ours_by, decoding.greedy, cached_next_logits_of, model, ids, stop)
    slow = partial(ours_by, decoding.greedy, next_logits_of, model, ids, stop)
    beams = partial(ours_by, beam_search, cached_next_logits_of, model, ids, stop)
    their_greedy = partial(generate, model, ids)
    their_beams = partial(generate, model, ids, num_beams=4)
    assert greedy() == their_greedy(), "the two greedy loops disagree"
    assert beams() == their_beams(), "the two beam searches disagree"
    return [
        compare(f"greedy, cached, {new}", greedy, their_greedy, floor=1.0, repeats=11),
        compare(f"beam search, 4 beams, cached, {new}", beams, their_beams, floor=1.0, repeats=5),
        compare(f"greedy, no cache, {new}", slow, their_greedy, repeats=1),
    ]


def llama_cpp(compare: Compare) -> list[Row]:
    """The packaged 4-bit file as it is, not dequantized: other arithmetic, the same question."""
    model, tokenizer = models.load_decoder("smollm2")
    chat, ids = asked(tokenizer)
    stop = [tokenizer.eos_token_id]
    ours = partial(ours_by, decoding.greedy, cached_next_logits_of, model, ids, stop)
    with load_engine("llama.cpp", threads=1) as engine:
        theirs = partial(engine.generate, chat, max_new_tokens=NEW_TOKENS)
        name = f"greedy, cached, {NEW_TOKENS} tokens; theirs is llama.cpp"
        return [compare(name, ours, theirs, repeats=3)]


# ── Logits processors ─────────────────────────────────────────────────────────────────────────────


def repeat(call: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        call()


def processor_rows(compare: Compare, logits: Tensor, ids: Tensor, label: str) -> list[Row]:
    pairs: list[tuple[str, Callable[[], Tensor], LogitsProcessor]] = [
        ("temperature", lambda: temperature(logits, 0.7), TemperatureLogitsWarper(0.7)),
        ("top_k", lambda: top_k(logits, 50), TopKLogitsWarper(50)),
        ("top_p", lambda: top_p(logits, 0.9), TopPLogitsWarper(0.9)),
        ("min_p", lambda: min_p(logits, 0.05), MinPLogitsWarper(0.05)),
        (
            "repetition_penalty",
            lambda: repetition_penalty(logits, ids, 1.2),
            RepetitionPenaltyLogitsProcessor(1.2),
        ),
        (
            "no_repeat_ngram",
            lambda: no_repeat_ngram(logits, ids, 3),
            NoRepeatNGramLogitsProcessor(3),
        ),
    ]
    return [
        processor_row(compare, f"{name}, {label}", ours, partial(theirs, ids, logits))
        for name, ours, theirs in pairs
    ]


def processor_row(
    compare: Compare, name: str, ours: Callable[[], Tensor], theirs: Callable[[], Tensor]
) -> Row:
    # A last bit, and a token at the very edge of a nucleus, may differ: see test_processors.py.
    apart = (ours() - theirs()).nan_to_num(0, 0, 0).abs().max()
    assert apart < 1e-4, f"{name} differs by {apart}"
    name = f"{CALLS} × {name}"
    sides = partial(repeat, ours, CALLS), partial(repeat, theirs, CALLS)
    return compare(name, *sides, floor=1.0, repeats=21)


@torch.inference_mode()
def processors(compare: Compare) -> list[Row]:
    model, tokenizer = models.load_decoder("smollm2")
    ids = tokenizer(QUESTION, return_tensors="pt").input_ids
    logits = next_logits_of(model)(ids)
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(4, logits.shape[-1], generator=generator)
    history = torch.randint(1000, (4, HISTORY), generator=generator)
    return [
        *processor_rows(compare, logits, history[:1], "SmolLM2's logits"),
        *processor_rows(compare, flat, history, "4 nearly flat rows"),
    ]


# ── Report ────────────────────────────────────────────────────────────────────────────────────────

PARTS = (processors, loops, llama_cpp)


def measure(compare: Compare) -> list[Row]:
    return [row for part in PARTS for row in part(compare)]


@pytest.mark.parametrize("part", PARTS)
def test_decoding_meets_its_floors(part):
    hold(TITLE, part(compare))


if __name__ == "__main__":
    sys.exit(main(TITLE, measure, __doc__))
