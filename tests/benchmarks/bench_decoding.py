"""Decoding against transformers: tokens per second, and every logits processor at 49,152 tokens.

`make bench`, or `python tests/benchmarks/bench_decoding.py [--json FILE]`, which exits with 1 when
a floor is missed. Ratios above one: ours is faster. The two sides run in turns, with the same
model, threads and inputs, and must give the same answer; a ratio is the median over the pairs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
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
from course_utils.metrics import time_ratio

QUESTION = "Explain in a long essay why the sky is blue."
NEW_TOKENS = 32
HISTORY = 256  # tokens that the penalties look back on


@dataclass(frozen=True)
class Row:
    """One comparison; speeds are in `unit`, and `floor` is None where nothing is promised."""

    name: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    low: float
    high: float
    floor: float | None

    @property
    def missed(self) -> bool:
        return self.floor is not None and self.ratio < self.floor


def compare(
    name: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    unit: str,
    scale: Callable[[float], float],
    floor: float | None = 1.0,
    repeats: int = 7,
) -> Row:
    print(f"measuring {name} …", file=sys.stderr, flush=True)
    found = time_ratio(ours, theirs, repeats=repeats)
    speeds = scale(found.fast_seconds), scale(found.slow_seconds)
    return Row(name, *speeds, unit, found.median, found.low, found.high, floor)


# ── Loops ─────────────────────────────────────────────────────────────────────────────────────────


def generate(model: Any, ids: Tensor, **options: Any) -> list[int]:
    options = {"do_sample": False, "max_new_tokens": NEW_TOKENS, **options}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0].tolist()


def ours_by(loop: Callable, make: Callable, model: Any, ids: Tensor, stop: list[int]) -> list[int]:
    """A fresh cache each time: the prompt is read within the time measured, as in `generate`."""
    return [*ids[0].tolist(), *loop(make(model), ids, NEW_TOKENS, stop=stop)[0].tokens]


def loops(model: Any, tokenizer: Any) -> list[Row]:
    chat = [{"role": "user", "content": QUESTION}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")[
        "input_ids"
    ]
    stop = [tokenizer.eos_token_id]
    cached, uncached = cached_next_logits_of, next_logits_of
    greedy = partial(ours_by, decoding.greedy, cached, model, ids, stop)
    slow = partial(ours_by, decoding.greedy, uncached, model, ids, stop)
    beams = partial(ours_by, beam_search, cached, model, ids, stop)
    their_greedy, their_beams = (
        partial(generate, model, ids),
        partial(generate, model, ids, num_beams=4),
    )
    assert greedy() == their_greedy(), "the two greedy loops disagree"
    assert beams() == their_beams(), "the two beam searches disagree"
    length = len(greedy()) - ids.shape[1]
    long = {"unit": "tok/s", "scale": lambda seconds: length / seconds}
    beam_length = len(beams()) - ids.shape[1]
    wide = {"unit": "tok/s", "scale": lambda seconds: beam_length / seconds}
    return [
        compare("greedy, cached", greedy, their_greedy, repeats=11, **long),
        compare("beam search, 4 beams, cached", beams, their_beams, repeats=5, **wide),
        compare("greedy, no cache", slow, their_greedy, floor=None, repeats=1, **long),
    ]


def llama_cpp(model: Any, tokenizer: Any) -> Row:
    """The packaged 4-bit file as it is, not dequantized: other arithmetic, the same question."""
    chat = [{"role": "user", "content": QUESTION}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")[
        "input_ids"
    ]
    ours = partial(
        ours_by, decoding.greedy, cached_next_logits_of, model, ids, [tokenizer.eos_token_id]
    )
    with load_engine("llama.cpp", threads=torch.get_num_threads()) as engine:
        theirs = partial(engine.generate, chat, max_new_tokens=NEW_TOKENS)
        return compare("greedy, cached; theirs is llama.cpp", ours, theirs, "tok/s",
                       lambda seconds: NEW_TOKENS / seconds, floor=None, repeats=3)  # fmt: skip


# ── Logits processors ─────────────────────────────────────────────────────────────────────────────


def repeat(call: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        call()


def processor_rows(logits: Tensor, ids: Tensor, label: str) -> list[Row]:
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
        processor_row(f"{name}, {label}", ours, partial(theirs, ids, logits))
        for name, ours, theirs in pairs
    ]


def processor_row(name: str, ours: Callable[[], Tensor], theirs: Callable[[], Tensor]) -> Row:
    # A last bit, and a token at the very edge of a nucleus, may differ: see test_processors.py.
    apart = (ours() - theirs()).nan_to_num(0, 0, 0).abs().max()
    assert apart < 1e-4, f"{name} differs by {apart}"
    times = 50
    return compare(name, partial(repeat, ours, times), partial(repeat, theirs, times), "µs",
                   lambda seconds: seconds / times * 1e6, repeats=21)  # fmt: skip


@torch.inference_mode()
def processors(model: Any, tokenizer: Any) -> list[Row]:
    ids = tokenizer(QUESTION, return_tensors="pt").input_ids
    logits = next_logits_of(model)(ids)
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(4, logits.shape[-1], generator=generator)
    history = torch.randint(1000, (4, HISTORY), generator=generator)
    return [
        *processor_rows(logits, history[:1], "SmolLM2's logits"),
        *processor_rows(flat, history, "4 nearly flat rows"),
    ]


# ── Report ────────────────────────────────────────────────────────────────────────────────────────


def measure() -> list[Row]:
    model, tokenizer = models.load_decoder("smollm2")
    return [*processors(model, tokenizer), *loops(model, tokenizer), llama_cpp(model, tokenizer)]


def table(rows: list[Row]) -> Table:
    shown = Table(title=f"Decoding against transformers, {torch.get_num_threads()} threads")
    for column in ("", "ours", "theirs", "unit", "ratio", "range", "floor"):
        shown.add_column(column, justify="left" if column in ("", "unit") else "right")
    for row in rows:
        floor = "" if row.floor is None else f"{row.floor:.1f} {'missed' if row.missed else 'met'}"
        spread = f"{row.low:.2f} – {row.high:.2f}"
        cells = f"{row.ours:.1f}", f"{row.theirs:.1f}", row.unit, f"{row.ratio:.2f}×", spread, floor
        shown.add_row(row.name, *cells, style="red" if row.missed else None)
    return shown


def test_decoding_meets_its_floors():
    rows = measure()
    Console(width=110).print(table(rows))
    missed = [f"{row.name}: {row.ratio:.3f}" for row in rows if row.missed]
    assert not missed, f"below 1.0 × transformers: {'; '.join(missed)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write the rows there too")
    arguments = parser.parse_args()
    rows = measure()
    Console(width=110).print(table(rows))
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump([asdict(row) for row in rows], file, indent=2)
    return int(any(row.missed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
