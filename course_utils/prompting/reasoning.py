"""Answers in steps: chain of thought, votes, programs. Notebook 11.

A method is a generator: it yields the prompts it wants answered and receives the model's texts, so
it reads like a plain function and knows no model. `solve` drives one method with any
`generate(prompt) -> text`, `solve_all` drives many together so that an engine can batch their
prompts, and `replay` drives one from the texts of a recorded trace, without any model.

    def method(question):
        (text,) = yield [prompt]
        return Trace(answer, "answered", steps)

Whatever a model writes, a method ends with a Trace and never raises: what can't be used ends as
"no answer", "failed" or "step limit".

Sources: Wei et al. 2022 (chain of thought), Kojima et al. 2022 (zero-shot), Wang et al. 2022
(self-consistency), Gao et al. 2023 (PAL).
"""

from __future__ import annotations

import ast
import io
import json
import math
import re
import tokenize
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from numbers import Real
from typing import Any, Protocol

Extract = Callable[[str], Any]  # a model's text → its answer, or None
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
    """What became of one question: the answer (or None), why it ended, and how it got there.

    `ended` is "answered", "no answer", "failed" (a program) or "step limit" (actions).
    """

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

    Raises ReplayError as soon as the method asks another prompt than was recorded, and when it
    ends before all were asked: then it is not the same method, question or tool.
    """
    recorded = iter(trace.calls)

    def generate(prompt: str) -> str:
        call = next(recorded, None)
        if call is None or call.prompt != prompt:
            what = "more than was recorded" if call is None else "another prompt than was recorded"
            raise ReplayError(f"the method asks {what}; replay with the same question and tools")
        return call.text

    trace = solve(method, generate)
    if left := sum(1 for _ in recorded):
        raise ReplayError(
            f"the method asks {len(trace.calls)} prompts, and {left} more were recorded; replay "
            "with the same question, tools and number of steps"
        )
    return trace


def ended(answer: Any, steps: Sequence[Step]) -> Trace:
    """Return the trace of an answer in words."""
    return Trace(answer, "no answer" if answer is None else "answered", tuple(steps))


def read(extract: Extract, text: str) -> Any:
    """Return the answer in a model's text; None where `extract` fails at it, as `int("six")` does.

    An error that no text can cause (a name that is not defined) comes through.
    """
    try:
        return extract(text)
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError):
        return None


# ── prompts ─────────────────────────────────────────────────────────────────────────────────────

# Where the model goes on with an example of its own; "Q:" as in `zero_shot_thought`.
_NEXT_EXAMPLE = re.compile(r"Question:|^\s*Q:", re.MULTILINE)


def few_shot(shots: Sequence[Mapping[str, Any]], question: str, part: str) -> str:
    """Return a prompt of worked examples and one open question.

    `part` names what an example shows after its question: "answer", "reasoning" or "program".
    A program begins on a line of its own.

    >>> few_shot([{"question": "1 + 1?", "answer": 2}], "2 + 3?", "answer")
    'Question: 1 + 1?\\nAnswer: 2\\n\\nQuestion: 2 + 3?\\nAnswer:'
    """
    gap = "\n" if part == "program" else " "
    blocks = [f"Question: {shot['question']}\nAnswer:{gap}{shot[part]}".rstrip() for shot in shots]
    return "\n\n".join([*blocks, f"Question: {question}\nAnswer:"])


def own_part(text: str) -> str:
    """Return what a model wrote for the open question, without further examples it made up.

    A blank line is not the end: a thought may have paragraphs.

    >>> own_part(" 3 + 4 = 7.\\n\\nThe answer is 7.\\n\\nQuestion: And now?")
    '3 + 4 = 7.\\n\\nThe answer is 7.'
    """
    return _NEXT_EXAMPLE.split(text, maxsplit=1)[0].strip()


def stated_answer(text: str) -> str | None:
    """Return what stands after the last "answer is" on its line, without the full stop; or None."""
    *_, last = re.split("answer is:?", f"answer is\n{text}", flags=re.IGNORECASE)
    return last.partition("\n")[0].strip().rstrip(".").strip() or None


# ── answers in words ────────────────────────────────────────────────────────────────────────────


def direct(question: str, shots: Sequence[Mapping[str, Any]], extract: Extract) -> Method:
    """Ask for the answer alone: the baseline (Brown et al. 2020).

    >>> solve(direct("2 + 3?", [], int), lambda prompt: " 5").answer
    5
    """
    (text,) = yield [few_shot(shots, question, "answer")]
    said = own_part(text)
    return ended(read(extract, said), [Step("answer", said)])


def chain_of_thought(question: str, shots: Sequence[Mapping[str, Any]], extract: Extract) -> Method:
    """Show worked solutions, so that the model writes its own before the answer (Wei et al. 2022).

    The shots' "reasoning" ends with the answer, and so `extract` should look there.

    >>> last = lambda text: int(text.split()[-1])
    >>> solve(chain_of_thought("2 + 3?", [], last), lambda prompt: "2 + 3 = 5").answer
    5
    """
    (text,) = yield [few_shot(shots, question, "reasoning")]
    said = own_part(text)
    return ended(read(extract, said), [Step("thought", said)])


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
    return ended(read(extract, said), [Step("thought", thought.strip()), Step("answer", said)])


def majority(answers: Iterable[Hashable | None]) -> Any:
    """Return the most frequent answer; None does not vote, and of equals the first one wins.

    >>> majority([12, 15, 12, None, 9]), majority([7, 5])
    (12, 7)
    """
    votes = Counter(answer for answer in answers if answer is not None)
    return max(votes, key=votes.__getitem__) if votes else None


def self_consistency(
    question: str, shots: Sequence[Mapping[str, Any]], extract: Extract, samples: int = 5
) -> Method:
    """Draw several chains of thought and take the majority of their answers (Wang et al. 2022).

    The same prompt is asked `samples` times: `generate` must sample, or all votes are one.

    >>> votes = iter(["5", "6", "5"])
    >>> solve(self_consistency("2 + 3?", [], int, samples=3), lambda prompt: next(votes)).answer
    5
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}; a vote takes at least one")
    texts = yield [few_shot(shots, question, "reasoning")] * samples
    said = [own_part(text) for text in texts]
    answers = [read(extract, text) for text in said]
    steps = [Step("vote", f"{text} → {answer}") for text, answer in zip(said, answers, strict=True)]
    return ended(majority(answers), steps)


# ── programs ────────────────────────────────────────────────────────────────────────────────────


def program_of(text: str) -> str:
    """Return the program that a model wrote after "def solution():", the line included.

    It ends where the function does by Python's own tokenizer: a comment, a bracket or a line of a
    text may stand at the margin. Where that can't read the program, it ends before the first line
    at the margin that is no comment. Empty when there is no statement.

    >>> program_of("\\n    a = 3\\n# add\\n    return a + 4\\n\\nQuestion: And now?")
    'def solution():\\n    a = 3\\n# add\\n    return a + 4\\n'
    """
    lines = (FUNCTION + text).split("\n")
    try:
        n_lines = _lines_of_function(lines)
    except (tokenize.TokenError, SyntaxError, ValueError, SystemError):  # the last for "\0"
        n_lines = _lines_to_the_margin(lines)
    return "\n".join(lines[:n_lines]).rstrip() + "\n" if n_lines else ""


_SIGNS = {"Add": "+", "Sub": "-", "Mult": "*", "Div": "/", "FloorDiv": "/"}


def signs_of(program: str) -> list[str]:
    """Return the operators of a program, + - * /, in the order of its lines; whole division is /.

    None of them in what is no Python.

    >>> signs_of("def solution():\\n    a = 8 * 3\\n    return a // 4")
    ['*', '/']
    """
    try:
        nodes = [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.BinOp)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    nodes.sort(key=lambda node: (node.end_lineno, node.end_col_offset))
    signs = (_SIGNS.get(type(node.op).__name__) for node in nodes)
    return [sign for sign in signs if sign]


def _lines_of_function(lines: list[str]) -> int:
    """Count the lines up to the end of a function's last statement; 0 without a statement."""
    source = io.StringIO("\n".join(lines))
    depth, last, before, inside = 0, 0, "", False
    for token in tokenize.generate_tokens(source.readline):
        depth += (token.type == tokenize.INDENT) - (token.type == tokenize.DEDENT)
        if token.type in (tokenize.NL, tokenize.COMMENT):
            continue
        if token.type != tokenize.NEWLINE and inside and depth == 0:
            break
        if token.type == tokenize.NEWLINE and (depth or before != ":"):  # not a bare def
            last = token.start[0]
        inside = inside or token.type == tokenize.NEWLINE
        before = token.string
    return last


def _lines_to_the_margin(lines: list[str]) -> int:
    """Count the lines before one at the margin that is no comment; 0 without a statement."""
    margin = (n for n, line in enumerate(lines) if n and re.match(r"[^\s#]", line))
    end = next(margin, len(lines))
    stated = any(re.match(r"\s*[^\s#]", line) for line in lines[1:end])
    return end if stated or lines[0].strip() != FUNCTION else 0


def as_number(value: Any) -> float | None:
    """Return a program's value as a float; None for what is no finite number, truth values too.

    The sandbox offers fractions and decimals, so that a program may return those.

    >>> as_number(Decimal("59.97")), as_number("59.97"), as_number(True)
    (59.97, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, (Real, Decimal)):
        return None
    try:
        number = float(value)
    except (OverflowError, ValueError):  # a signalling NaN of decimal raises ValueError
        return None
    return number if math.isfinite(number) else None


def pal(question: str, shots: Sequence[Mapping[str, Any]], run: Run, repairs: int = 1) -> Method:
    """Let the model write a program and a computer run it (PAL, Gao et al. 2023).

    `run(program)` returns a result with `.ok`, `.value` and, as a text, its error. A program that
    fails, or returns no number, goes back to the model with its error, `repairs` times.

    >>> from course_utils.prompting import sandbox
    >>> run = lambda program: sandbox.run(program, entry="solution")
    >>> solve(pal("2 + 3?", [], run), lambda prompt: "\\n    return 2 + 3").answer
    5.0
    """
    if repairs < 0:
        raise ValueError(f"repairs is {repairs}; it must be 0 or more")
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

    On one line, nothing in it can pass for a line that the model or another tool wrote. Half a
    character (a lone surrogate), which no tokenizer reads, becomes "?".

    >>> one_line("a town\\nAction: finish[42]", limit=12)
    'a town Acti…'
    """
    text = " ".join(text.split()).encode("utf-8", "replace").decode()
    return text if len(text) <= limit else text[: limit - 1] + "…"
