"""Answers in steps: chain of thought, votes, programs, and acting with tools.

A method is a generator: it yields the prompts it wants answered and receives the model's texts, so
it reads like a plain function and knows no model. `solve` drives one method with any
`generate(prompt) -> text`, `solve_all` drives many together so that an engine can batch their
prompts, and `replay` drives one from the texts of a recorded trace, without any model.

    def method(question):
        (text,) = yield [prompt]
        return Trace(answer, "answered", steps)

Whatever a model writes, a method ends with a Trace and never raises: what can't be used ends as
"no answer", "failed" or "step limit". What a tool returns is data: it is put on one line and only
ever pasted into a prompt; actions are read from the model's own text alone.

Sources: Wei et al. 2022 (chain of thought), Kojima et al. 2022 (zero-shot), Wang et al. 2022
(self-consistency), Gao et al. 2023 (PAL), Yao et al. 2023 (ReAct).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from numbers import Real
from typing import Any, Protocol

Extract = Callable[[str], Any]  # a model's text → its answer, or None
ENDINGS = ("answered", "no answer", "failed", "step limit")
THINK = "Let's think step by step."  # Kojima et al. 2022, section 3
CONCLUDE = "\nTherefore, the answer (arabic numerals) is"
FUNCTION = "def solution():"


class ReplayError(ValueError):
    """A recorded trace does not belong to the method it is replayed with."""


class Run(Protocol):
    """What `pal` needs to run a program: `sandbox.run` with its entry, or the like."""

    def __call__(self, program: str, /) -> Any: ...  # has .ok, .value, and a text


@dataclass(frozen=True)
class Step:
    """One step of a solution: a thought, action, observation, program, result, vote or answer."""

    kind: str
    text: str


@dataclass(frozen=True)
class Call:
    """One text that the model wrote, and the prompt it was asked with."""

    prompt: str
    text: str


@dataclass(frozen=True)
class Trace:
    """What became of one question: the answer (or None), why it ended, and how it got there."""

    answer: Any
    ended: str
    steps: tuple[Step, ...] = ()
    calls: tuple[Call, ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Trace:
        fields = json.loads(text)
        steps = tuple(Step(**step) for step in fields.pop("steps"))
        calls = tuple(Call(**call) for call in fields.pop("calls"))
        return cls(**fields, steps=steps, calls=calls)


Method = Generator[list[str], Sequence[str], Trace]


# ── driving methods ─────────────────────────────────────────────────────────────────────────────


def solve(method: Method, generate: Callable[[str], str]) -> Trace:
    """Run one method to its end; `generate` answers one prompt."""
    return solve_all([method], lambda prompts: [generate(prompt) for prompt in prompts])[0]


def solve_all(
    methods: Iterable[Method], generate: Callable[[list[str]], Sequence[str]]
) -> list[Trace]:
    """Run methods side by side: each round, `generate` answers all prompts that are waiting.

    Returns their traces in order, with every call recorded. Raises ValueError when `generate`
    returns another number of texts than it was given prompts.
    """
    methods = list(methods)
    calls: list[list[Call]] = [[] for _ in methods]
    traces: dict[int, Trace] = {}
    waiting: dict[int, list[str]] = {}

    def advance(i: int, texts: list[str] | None) -> None:
        try:
            waiting[i] = methods[i].send(texts)
        except StopIteration as end:
            traces[i] = replace(end.value, calls=tuple(calls[i]))

    for i in range(len(methods)):
        advance(i, None)
    while waiting:
        asked, waiting = waiting, {}
        replies = iter(_answered(generate, [p for prompts in asked.values() for p in prompts]))
        for i, prompts in asked.items():
            own = [next(replies) for _ in prompts]
            calls[i] += map(Call, prompts, own)
            advance(i, own)
    return [traces[i] for i in range(len(methods))]


def _answered(generate: Callable[[list[str]], Sequence[str]], prompts: list[str]) -> list[str]:
    texts = list(generate(prompts))
    if len(texts) != len(prompts):
        raise ValueError(f"generate returned {len(texts)} texts for {len(prompts)} prompts")
    return texts


def replay(trace: Trace, method: Method) -> Trace:
    """Run a method again with the texts of a recorded trace in place of a model.

    Raises ReplayError as soon as the method asks another prompt than was recorded: then it is
    not the same method, question or tool.
    """
    recorded = iter(trace.calls)

    def generate(prompt: str) -> str:
        call = next(recorded, None)
        if call is None or call.prompt != prompt:
            what = "more than was recorded" if call is None else "another prompt than was recorded"
            raise ReplayError(f"the method asks {what}; replay with the same question and tools")
        return call.text

    return solve(method, generate)


def ended(answer: Any, steps: Sequence[Step]) -> Trace:
    return Trace(answer, "no answer" if answer is None else "answered", tuple(steps))


# ── prompts ─────────────────────────────────────────────────────────────────────────────────────

# A worked example ends where the next one would begin.
_NEXT_EXAMPLE = re.compile(r"\n\s*\n|\n*Question:")


def few_shot(shots: Sequence[Mapping[str, Any]], question: str, part: str) -> str:
    """Return a prompt of worked examples and one open question.

    `part` names what an example shows after its question: "answer", "reasoning" or "program".
    A program begins on a line of its own.
    """
    gap = "\n" if part == "program" else " "
    blocks = [f"Question: {shot['question']}\nAnswer:{gap}{shot[part]}".rstrip() for shot in shots]
    return "\n\n".join([*blocks, f"Question: {question}\nAnswer:"])


def own_part(text: str) -> str:
    """Return what a model wrote for the open question, without further examples it made up."""
    return _NEXT_EXAMPLE.split(text.strip(), maxsplit=1)[0].strip()


def stated_answer(text: str) -> str | None:
    """Return what stands after the last "answer is" on its line, without the full stop; or None."""
    *_, last = re.split("answer is:?", f"answer is\n{text}", flags=re.IGNORECASE)
    return last.partition("\n")[0].strip().rstrip(".").strip() or None


# ── answers in words ────────────────────────────────────────────────────────────────────────────


def direct(question: str, shots: Sequence[Mapping[str, Any]], extract: Extract) -> Method:
    """Ask for the answer alone: the baseline (Brown et al. 2020)."""
    (text,) = yield [few_shot(shots, question, "answer")]
    said = own_part(text)
    return ended(extract(said), [Step("answer", said)])


def chain_of_thought(question: str, shots: Sequence[Mapping[str, Any]], extract: Extract) -> Method:
    """Show worked solutions, so that the model writes its own before the answer (Wei et al. 2022).

    The shots' "reasoning" ends with the answer, and so `extract` should look there.
    """
    (text,) = yield [few_shot(shots, question, "reasoning")]
    said = own_part(text)
    return ended(extract(said), [Step("thought", said)])


def zero_shot_thought(
    question: str, extract: Extract, chat: Callable[[str], str] = "Q: {}\nA:".format
) -> Method:
    """Ask to think step by step, then for the conclusion (Kojima et al. 2022, section 3).

    `chat(message)` is the prompt up to where the model's answer begins.
    """
    opening = f"{chat(question)} {THINK}"
    (thought,) = yield [opening]
    (text,) = yield [opening + thought.rstrip() + CONCLUDE]
    said = own_part(text)
    return ended(extract(said), [Step("thought", thought.strip()), Step("answer", said)])


def majority(answers: Iterable[Hashable | None]) -> Any:
    """Return the most frequent answer; None does not vote, and of equals the first one wins."""
    votes = Counter(answer for answer in answers if answer is not None)
    return max(votes, key=votes.__getitem__) if votes else None


def self_consistency(
    question: str, shots: Sequence[Mapping[str, Any]], extract: Extract, samples: int = 5
) -> Method:
    """Draw several chains of thought and take the majority of their answers (Wang et al. 2022).

    The same prompt is asked `samples` times: `generate` must sample, or all votes are one.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}; a vote takes at least one")
    texts = yield [few_shot(shots, question, "reasoning")] * samples
    said = [own_part(text) for text in texts]
    answers = [extract(text) for text in said]
    steps = [Step("vote", f"{text} → {answer}") for text, answer in zip(said, answers, strict=True)]
    return ended(majority(answers), steps)


# ── programs ────────────────────────────────────────────────────────────────────────────────────


def program_of(text: str) -> str:
    """Return the program that a model wrote after "def solution():", the line included.

    It ends before the first line that is not indented. Empty when there is no statement.
    """
    lines = text.split("\n")
    body = [lines[0]] if lines[0].strip() else []  # a statement on the line of the def
    for line in lines[1:]:
        if line.strip() and not line[0].isspace():
            break
        body.append(line)
    statements = [line for line in body if line.strip() and not line.strip().startswith("#")]
    if not statements:
        return ""
    head = FUNCTION + body.pop(0) if lines[0].strip() else FUNCTION
    return "\n".join([head, *body]).rstrip() + "\n"


def as_number(value: Any) -> float | None:
    """Return a program's value as a float; None for what is no finite number, truth values too."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def pal(question: str, shots: Sequence[Mapping[str, Any]], run: Run, repairs: int = 1) -> Method:
    """Let the model write a program and a computer run it (PAL, Gao et al. 2023).

    `run(program)` returns a result with `.ok`, `.value` and, as a text, its error. A program that
    fails, or returns no number, goes back to the model with its error, `repairs` times.
    """
    prompt = few_shot(shots, question, "program") + f"\n{FUNCTION}"
    steps: list[Step] = []
    for attempt in range(repairs + 1):
        (text,) = yield [prompt]
        program = program_of(text)
        answer, said = _run(program, run)
        steps += [Step("program", program), Step("result", said)]
        if answer is not None or attempt == repairs:
            break
        prompt += program.removeprefix(FUNCTION) + f"\n# This fails: {one_line(said)}"
        prompt += f"\n# The corrected program:\n{FUNCTION}"
    return Trace(answer, "failed" if answer is None else "answered", tuple(steps))


def _run(program: str, run: Run) -> tuple[float | None, str]:
    """Return a program's number and what to say about it; None and the reason when it has none."""
    if not program:
        return None, "the program is empty"
    result = run(program)
    if not result.ok:
        return None, str(result)
    number = as_number(result.value)
    return number, str(result) if number is not None else f"it returned {result}, not a number"


def one_line(text: str, limit: int = 300) -> str:
    """Return a text on one line and cut to `limit` characters: how an observation is shown.

    On one line, nothing in it can pass for a line that the model or another tool wrote.
    """
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
