"""Evaluation throughput: word problems a minute through llama.cpp and through transformers.

`python tests/benchmarks/bench_engines.py [--json FILE] [--clock]` exits with 1 when a floor is
missed. Both engines answer the same prompts greedily with the same model, eight at a time unless a
row says otherwise, and stop where the next example would begin.

llama.cpp reads and writes 4-bit weights. That pays while memory is the limit: in long answers, one
after the other. Eight long answers side by side keep the processor busy in both engines, and the
ratio falls below 4: that row has no floor.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from side_by_side import Row, compare, hold, main

from course_utils.engines import Engine, load_engine
from course_utils.prompting import reasoning
from course_utils.prompting.answers import extract_number
from course_utils.tasks import question_sets

Compare = Callable[..., Row]
TITLE = "Evaluation through llama.cpp (ours) and transformers (theirs)"
PROBLEMS, SHOTS = 8, 2


def evaluated(engine: Engine, part: str) -> list[float | None]:
    """Answers to the problems, by the method that shows this part of the worked examples."""
    shots = question_sets.load_word_problems("shots")[:SHOTS]
    problems = question_sets.load_word_problems("test")[:PROBLEMS]
    method = reasoning.direct if part == "answer" else reasoning.chain_of_thought
    new = 8 if part == "answer" else 64

    def generate(prompts: list[str]) -> list[str]:
        answers = engine.generate(prompts, max_new_tokens=new, stop="\n\n")
        return [answer.text for answer in answers]

    methods = [method(p["question"], shots, extract_number) for p in problems]
    return [trace.answer for trace in reasoning.solve_all(methods, generate)]


def measure(compare: Compare) -> list[Row]:
    rows = []
    options = {"threads": 1, "context_window": 1024}
    with (
        load_engine("llama.cpp", **options) as quick,
        load_engine("transformers", **options) as batched,
        load_engine("transformers", parallel=1, **options) as single,
    ):
        for part, net, name, floor in (
            ("answer", batched, "direct", 4.0),
            ("reasoning", single, "in words, transformers one at a time", 4.0),
            ("reasoning", batched, "in words", None),
        ):
            ours, theirs = partial(evaluated, quick, part), partial(evaluated, net, part)
            ours()  # llama.cpp keeps what it has read: this measures prompts that it knows
            row = compare(
                f"{PROBLEMS} known problems, {name}", ours, theirs, floor=floor, repeats=2
            )
            rows.append(row)
    return rows


def test_evaluation_meets_its_floor():
    hold(TITLE, measure(compare))


if __name__ == "__main__":
    sys.exit(main(TITLE, measure, __doc__))
