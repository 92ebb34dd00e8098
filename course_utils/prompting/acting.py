"""Acting with tools: a calculator, a search, and ReAct. Notebook 11.

What a tool returns is put on one line and only ever pasted into a prompt; actions are read from the
model's own text alone. That keeps the transcript well-formed. It does not keep a page from changing
what the model writes next. Sources: Yao et al. 2023 (ReAct), Cobbe et al. 2021 (a calculator).
"""

from __future__ import annotations

import ast
import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from course_utils.prompting.reasoning import (
    Extract,
    Method,
    Step,
    Trace,
    ended,
    few_shot,
    one_line,
    own_part,
    read,
)

Tool = Callable[[str], str]


class ToolError(ValueError):
    """A tool can't do what it was asked; the sentence goes to the model as an observation."""


# ── tools ───────────────────────────────────────────────────────────────────────────────────────

_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


def calculate(expression: str) -> str:
    """Work out numbers with + - * / and brackets; a whole result is written without a point.

    It is exact until the result is rounded, to six places or six digits, whichever keeps more.
    The expression is parsed and walked, never evaluated as a program. Raises ToolError, with a
    sentence for the model, for anything else.

    >>> calculate("2 * (3 + 4)"), calculate("1 / 3"), calculate("1 / 3000000")
    ('14', '0.333333', '3.33333e-07')
    """
    if len(expression) > 200:
        raise ToolError(f"the expression has {len(expression)} characters; 200 are allowed")
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except ZeroDivisionError:
        raise ToolError("division by zero") from None
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        raise ToolError(f"{expression!r} is not a sum of numbers with + - * / ( )") from None
    if abs(value) >= 10**15:  # beyond that a float is no longer exact
        raise ToolError("the result is too large")
    if value and abs(value) < Fraction(1, 10**300):  # nor is it below that
        raise ToolError("the result is too close to zero")
    places = 5 - math.floor(math.log10(abs(value))) if value else 6
    value = round(value, max(places, 6))
    return str(value.numerator if value.denominator == 1 else float(value))


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(str(node.value))  # 0.1 as it is written
    if isinstance(node, ast.BinOp) and (work := _OPERATORS.get(type(node.op))):
        return work(_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and (work := _OPERATORS.get(type(node.op))):
        return work(_value(node.operand))
    raise ValueError("not arithmetic")


def search_tool(find: Callable[[str], Sequence[str]]) -> Tool:
    """Make a tool of a search: `find(query)` returns passages, best first.

    >>> search_tool(lambda query: ["Galford has 12 gates."] if query == "Galford" else [])("Rome")
    'Nothing was found.'
    """

    def search(query: str) -> str:
        return " ".join(find(query)) or "Nothing was found."

    return search


# ── sums in a text ──────────────────────────────────────────────────────────────────────────────

_SUM = re.compile(r"(?<![-+*/] )\b(\d+) ([-+*/]) (\d+) = (\d+(?:\.\d+)?)")
_OPEN_SUM = re.compile(r"\d+(?: [-+*/] \d+)+ *$")
_MORE_DIGITS = re.compile(r"[.,]?\d")


def sums_in(text: str) -> list[tuple[str, str]]:
    """Return the sums of two numbers that a text writes down: what is worked out, and the result.

    >>> sums_in("8 * 3 = 25 lemons. 25 - 1 = 24 are left.")
    [('8 * 3', '25'), ('25 - 1', '24')]
    """
    return [(f"{a} {sign} {b}", result) for a, sign, b, result in _SUM.findall(text)]


def is_true(left: str, result: str) -> bool:
    """Whether the calculator finds this result; False for what it cannot work out.

    >>> is_true("8 * 3", "25"), is_true("8 * 3", "24"), is_true("8 / 0", "8")
    (False, True, False)
    """
    return use({"calculate": calculate}, Action("calculate", left)) == result


def chain_with_calculator(
    question: str, shots: Sequence[Mapping[str, Any]], extract: Extract, *, max_sums: int = 6
) -> Method:
    """A chain of thought whose sums a calculator works out (Cobbe et al. 2021, annotations).

    Whenever the model has written a sum, such as "8 * 3 =", the result is put behind it and the
    model goes on. Where it goes on with more digits, and would turn 24 into 24.5, it is asked
    again behind a blank. `generate` should stop at "="; what no sum can be made of stays.

    >>> from course_utils.prompting.reasoning import solve
    >>> texts = iter([" 8 * 3", " lemons. The answer is 24."])
    >>> last = lambda text: text.split()[-1]
    >>> solve(chain_with_calculator("8 * 3?", [], last), lambda prompt: next(texts)).answer
    '24.'
    """
    if max_sums < 1:
        raise ValueError(f"max_sums is {max_sums}; at least one sum is needed")
    prompt, said = few_shot(shots, question, "reasoning"), ""
    for _ in range(max_sums + 1):
        (text,) = yield [prompt + said]
        if said and _MORE_DIGITS.match(text):
            (text,) = yield [f"{prompt}{said} "]
            text = f" {text.lstrip()}"
        gap = text[: len(text) - len(text.lstrip())]  # "= 24" may go on with a point or a word
        said = f"{said}{gap}{own_part(text)}".removesuffix("=").rstrip()
        left = _OPEN_SUM.search(said)
        result = use({"calculate": calculate}, Action("calculate", left[0])) if left else "Error"
        if result.startswith("Error"):
            break
        said += f" = {result}"
    return ended(read(extract, said), [Step("thought", said.strip())])


# ── acting ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Action:
    """A tool call: `search[Galford]` is Action("search", "Galford")."""

    tool: str
    argument: str

    def __str__(self) -> str:
        return f"{self.tool}[{self.argument}]"


def parse_action(text: str) -> Action | None:
    """Return the first action of a model's text, `Action: tool[argument]`; None without one.

    The tool's name is read in any case and returned in lower. The argument ends at the line's last
    bracket, and may hold others. What follows the first "Observation:" is not read: the model made
    that up.

    >>> parse_action("Thought: Where?\\nAction: Search[ Galford ]\\nObservation: In Rome.")
    Action(tool='search', argument='Galford')
    """
    own = text.partition("Observation:")[0]
    found = re.search(r"^[ \t]*Action:[ \t]*([\w-]+)[ \t]*\[(.*)\]", own, re.MULTILINE)
    return Action(found[1].lower(), found[2].strip()) if found else None


def use(tools: Mapping[str, Tool], action: Action | None) -> str:
    """Return what an action brings, on one line; whatever goes wrong becomes a sentence.

    A tool is found in any case: the model may write `Search`, and so may the one who gives it.

    >>> use({"Upper": str.upper}, Action("upper", "galford"))
    'GALFORD'
    >>> use({"Upper": str.upper}, Action("fly", "home"))
    "Error: there is no tool 'fly'; the tools are Upper, finish."
    """
    if action is None:
        return "Error: write one action as tool[input]."
    tool = {name.lower(): tool for name, tool in tools.items()}.get(action.tool.lower())
    if tool is None:
        names = ", ".join([*tools, "finish"])
        return f"Error: there is no tool {action.tool!r}; the tools are {names}."
    try:
        return one_line(tool(action.argument))
    except Exception as error:  # a tool may fail in any way; the model is told, and goes on
        return one_line(f"Error: {str(error) or type(error).__name__}")


def worked_example(
    item: Mapping[str, Any], tools: Mapping[str, Tool], thoughts: bool = True
) -> str:
    """Return a question with its gold steps as a transcript, observations from the real tools."""
    lines = [f"Question: {item['question']}"]
    for step in item["steps"]:
        action = Action(step["tool"], step["input"])
        observation = None if action.tool.lower() == "finish" else use(tools, action)
        lines += _turn(step["thought"] if thoughts else "", str(action), observation)
    return "\n".join(lines)


def _turn(thought: str, action: str, observation: str | None) -> list[str]:
    lines = [f"Thought: {thought}"] if thought else []
    lines.append(f"Action: {action}")
    return lines if observation is None else [*lines, f"Observation: {observation}"]


def react(
    question: str,
    examples: Sequence[str],
    tools: Mapping[str, Tool],
    *,
    thoughts: bool = True,
    max_steps: int = 6,
) -> Method:
    """Think, act, observe, until the action is finish[answer] (ReAct, Yao et al. 2023).

    `examples` are transcripts in the same form. `thoughts=False` leaves the thinking out: the
    act-only baseline. After `max_steps` actions it ends without an answer. Raises ValueError for
    less than one, and for tools whose names can't be written or told apart.

    >>> from course_utils.prompting.reasoning import solve
    >>> texts = iter([" Where?\\nAction: Upper[rome]", " I see.\\nAction: finish[ROME]"])
    >>> solve(react("?", [], {"Upper": str.upper}), lambda prompt: next(texts)).answer
    'ROME'
    """
    if max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}; at least one action is needed")
    _check_names(tools)
    prompt = "\n\n".join([*examples, f"Question: {question}\n"])
    opening, steps = "Thought:" if thoughts else "Action:", []
    for _ in range(max_steps):
        (text,) = yield [prompt + opening]
        written = f"{opening} {own_part(text)}"
        thought, action = _thought(written) if thoughts else "", parse_action(written)
        said = str(action) if action else one_line(written.partition("Action:")[2])
        steps += [Step("thought", thought)] * bool(thought) + [Step("action", said)]
        if action and action.tool == "finish":
            return ended(action.argument or None, steps)
        observation = use(tools, action)
        steps.append(Step("observation", observation))
        prompt += "\n".join(_turn(thought, said, observation)) + "\n"
    return Trace(None, "step limit", tuple(steps))


def _check_names(tools: Iterable[str]) -> None:
    """Raise ValueError for a tool that no action can name, or that two names could mean."""
    known = {"finish": "finish"}
    for name in tools:
        if not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"a tool is called {name!r}; use letters, digits, _ and - alone")
        if (other := known.setdefault(name.lower(), name)) != name or name == "finish":
            raise ValueError(
                f"the tools {other!r} and {name!r} are one to a model, which may write either in "
                "any case; rename one"
            )


def _thought(written: str) -> str:
    """Return the model's thought on one line, without the action after it."""
    return one_line(re.split(r"Action:|Observation:", written)[0].removeprefix("Thought:"))


def action_grammar(tools: Iterable[str], thoughts: bool = True) -> str:
    """Return a grammar (GBNF) in which every turn is well-formed and names a tool that exists.

    It goes on where `react` stops a prompt: after "Thought:", or after "Action:" without thoughts.
    """
    names = " | ".join(json.dumps(name) for name in [*tools, "finish"])
    thought = r'" " [^\n\[\]]{1,160} "\nAction:"' if thoughts else ""
    return "\n".join(
        [
            f'root ::= {thought} " " call'.replace("  ", " "),
            'call ::= tool "[" argument "]"',
            f"tool ::= {names}",
            r"argument ::= [^\n\[\]]{1,80}",
        ]
    )
