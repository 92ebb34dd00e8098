"""The exercises of notebook 11, with the mistakes that learners make in them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from course_utils.exercises import Case, Exercise, Statement
from course_utils.prompting import acting
from course_utils.prompting.acting import calculate
from course_utils.prompting.reasoning import FUNCTION, majority
from course_utils.prompting.reasoning import program_of as text_of_program

Answers = Iterable[str | None]

# ── majority vote ────────────────────────────────────────────────────────────────────────────────


def _majority_inputs() -> Iterator[tuple]:
    yield (["7", "3", "3", "7", "7"],)
    yield ([None, "12", None, "12", None, "5"],)
    yield (["0", "4", "0"],)
    yield (["9", "2", "2", "9"],)
    yield ([None, None],)


def _none_votes(answers: Answers) -> Any:
    votes = Counter(answers)
    return max(votes, key=votes.__getitem__, default=None)


def _last_of_equals(answers: Answers) -> Any:
    votes = Counter(answer for answer in answers if answer is not None)
    return max(reversed(list(votes)), key=votes.__getitem__, default=None)


def _first_answer(answers: Answers) -> Any:
    return next((answer for answer in answers if answer is not None), None)


def _largest(answers: Answers) -> Any:
    return max((answer for answer in answers if answer is not None), default=None)


# ── reading an action ────────────────────────────────────────────────────────────────────────────


def parse_action(text: str) -> tuple[str, str]:
    """Return the tool and the argument of a text's first action; two empty texts without one."""
    action = acting.parse_action(text)
    return (action.tool, action.argument) if action else ("", "")


def _action_inputs() -> Iterator[tuple]:
    yield ("Thought: I know it.\nAction: finish[Mabeth]",)
    yield ("Action: Calculate[2 * (3 + 4)]",)
    yield ("Thought: I could search[Galford].",)
    yield ("Action: search[Galford]\nThought: Then I take its people[0].",)
    yield ("Action: search[Galford]\nObservation: A town.\nAction: finish[Mabeth]",)


def _match(pattern: str, text: str, flags: int = re.MULTILINE) -> tuple[str, str]:
    found = re.search(pattern, text.partition("Observation:")[0], flags)
    return (found[1].lower(), found[2].strip()) if found else ("", "")


def _anywhere(text: str) -> tuple[str, str]:
    return _match(r"(\w+)[ \t]*\[(.*)\]", text)


def _first_bracket(text: str) -> tuple[str, str]:
    return _match(r"^[ \t]*Action:[ \t]*(\w+)[ \t]*\[(.*?)\]", text)


def _over_lines(text: str) -> tuple[str, str]:
    return _match(r"Action:[ \t]*(\w+)[ \t]*\[(.*)\]", text, re.DOTALL)


def _keeps_capitals(text: str) -> tuple[str, str]:
    found = re.search(
        r"^[ \t]*Action:[ \t]*(\w+)[ \t]*\[(.*)\]", text.partition("Observation:")[0], re.MULTILINE
    )
    return (found[1], found[2].strip()) if found else ("", "")


def _keeps_blanks(text: str) -> tuple[str, str]:
    found = re.search(
        r"^[ \t]*Action:[ \t]*(\w+)[ \t]*\[(.*)\]", text.partition("Observation:")[0], re.MULTILINE
    )
    return (found[1].lower(), found[2]) if found else ("", "")


def _none_without_action(text: str) -> tuple[str, str] | None:
    found = parse_action(text)
    return found if found[0] else None


def _last_action(text: str) -> tuple[str, str]:
    found = re.findall(r"^[ \t]*Action:[ \t]*(\w+)[ \t]*\[(.*)\]", text, re.MULTILINE)
    return (found[-1][0].lower(), found[-1][1].strip()) if found else ("", "")


# ── cutting a program out ────────────────────────────────────────────────────────────────────────


def program_of(text: str) -> list[str]:
    """Return the lines of the function, "def solution():" first; no line without a statement."""
    return text_of_program(text).splitlines()


def _program_inputs() -> Iterator[tuple]:
    yield ("\n    a = 2\n    return a\n\nQuestion: And now?",)
    yield ("\n    return 5\nprint(6)",)
    yield ("\n    # first add\n\n    return 1 + 2",)
    yield ("\nThe answer is 5.",)


def _keeps_everything(text: str) -> list[str]:
    return (FUNCTION + text.rstrip()).split("\n")


def _ends_at_a_blank_line(text: str) -> list[str]:
    body = text.partition("\n\n")[0].rstrip()
    return (FUNCTION + body).split("\n") if body else []


def _body_only(text: str) -> list[str]:
    return program_of(text)[1:]


def _blank_lines_at_the_end(text: str) -> list[str]:
    lines = program_of(text)
    return [*lines, ""] if lines else lines


def _one_text(text: str) -> str:
    return text_of_program(text)


def _head_without_statement(text: str) -> list[str]:
    return program_of(text) or [FUNCTION]


# ── the loop ─────────────────────────────────────────────────────────────────────────────────────


def act(model: Callable, tools: Mapping[str, Callable], max_steps: int) -> str:
    """Ask `model(observations)` for (tool, argument) and use the tool, until it says finish.

    Returns the argument of finish, or "step limit" after `max_steps` actions. An unknown tool
    gives the observation "unknown tool".
    """
    observations: list[str] = []
    for _ in range(max_steps):
        tool, argument = model(list(observations))
        if tool == "finish":
            return argument
        known = tools.get(tool, lambda _: "unknown tool")
        observations.append(known(argument))
    return "step limit"


TOOLS = {"upper": str.upper, "calculate": calculate}


def looks_twice(observations: list[str]) -> tuple[str, str]:
    """A model that acts twice and then answers with what it saw."""
    actions = [("upper", "mabeth"), ("calculate", "2 * 3")]
    if len(observations) < len(actions):
        return actions[len(observations)]
    return "finish", " and ".join(observations)


def never_finishes(observations: list[str]) -> tuple[str, str]:
    """A model that goes on for ever."""
    return "upper", "again"


def invents_a_tool(observations: list[str]) -> tuple[str, str]:
    """A model that calls a tool that does not exist, and reports what came."""
    return ("finish", observations[-1]) if observations else ("fly", "home")


def _act_inputs() -> Iterator[tuple]:
    yield looks_twice, TOOLS, 5
    yield never_finishes, TOOLS, 1
    yield invents_a_tool, TOOLS, 2
    yield looks_twice, {}, 3


def _one_step_fewer(model: Callable, tools: Mapping, max_steps: int) -> str:
    return act(model, tools, max_steps - 1)


def _one_step_more(model: Callable, tools: Mapping, max_steps: int) -> str:
    return act(model, tools, max_steps + 1)


def _finish_is_free(model: Callable, tools: Mapping, max_steps: int) -> str:
    """The answer may come after the last step."""
    observations: list[str] = []
    while True:
        tool, argument = model(list(observations))
        if tool == "finish":
            return argument
        if len(observations) == max_steps:
            return "step limit"
        observations.append(tools.get(tool, lambda _: "unknown tool")(argument))


def _only_the_last(model: Callable, tools: Mapping, max_steps: int) -> str:
    return act(lambda observations: model(observations[-1:]), tools, max_steps)


def _gives_up(model: Callable, tools: Mapping, max_steps: int) -> str:
    """An unknown tool ends it."""
    return act(model, {**tools, "fly": lambda _: "unknown tool"}, 1)


EXERCISES = {
    "majority": Exercise(
        reference=majority,
        hint="Count the answers that are not None. `max(counts, key=counts.get)` returns the "
        "first of equals, and a dictionary keeps the order in which its keys came.",
        cases=(
            Case((["4", "8", "8"],), "8", why="8 has two of three votes."),
            Case(([None, None, "5"],), "5", why="A sample without an answer has no vote."),
            Case((["3", "1", "1", "3"],), "3", why="Two votes each: what came first wins."),
        ),
        inputs=_majority_inputs,
        mistakes={
            "None has a vote": _none_votes,
            "the last of equals wins, not the first": _last_of_equals,
            "the first answer is taken without a vote": _first_answer,
            "the largest answer is taken": _largest,
        },
    ),
    "parse_action": Exercise(
        reference=parse_action,
        solution=(parse_action, acting.parse_action),
        hint="Drop everything from the first 'Observation:' on. Then a regular expression for a "
        "line that begins with 'Action:', a word, and brackets; `.*` takes as much of the line as "
        "it can, up to the last bracket. Tools are named in lower case: `.lower()`.",
        cases=(
            Case(
                ("Thought: I need it.\nAction: search[Galford]",),
                ("search", "Galford"),
            ),
            Case(
                ("Action: search[ a[0] ]",),
                ("search", "a[0]"),
                why="The argument may hold brackets; blanks around it do not count.",
            ),
            Case(
                ("Action: Search[Galford]",),
                ("search", "Galford"),
                why="The tool's name is returned in lower case.",
            ),
            Case(
                ("I could say search[Galford].",),
                ("", ""),
                why="A thought that mentions a tool is no action.",
            ),
            Case(
                ("Action: search[a]\nObservation: b\nAction: finish[c]",),
                ("search", "a"),
                why="The observation, and what follows it, the model made up.",
            ),
        ),
        inputs=_action_inputs,
        mistakes={
            "a tool in a thought is taken for an action": _anywhere,
            "the argument ends at its first bracket": _first_bracket,
            "the argument may run over lines": _over_lines,
            "the last action is taken, after an observation the model made up": _last_action,
            "the tool's name keeps its capitals; it is asked for in lower case": _keeps_capitals,
            "the blanks around the argument are kept": _keeps_blanks,
            "a text without an action gives None, not two empty texts": _none_without_action,
        },
    ),
    "program_of": Exercise(
        reference=program_of,
        solution=(program_of, text_of_program),
        hint="Split the text after 'def solution():' into lines. The function ends before the "
        "first line that has text and does not begin with a blank; blank lines at its end do not "
        "count. "
        "If nothing is left but blank lines and comments, return []. (The package asks Python's "
        "tokenizer, which also knows comments and brackets at the margin.)",
        cases=(
            Case(
                ("\n    return 3 + 4\n\nQuestion: 5?",),
                ["def solution():", "    return 3 + 4"],
                why="The next question is not part of the program.",
            ),
            Case(
                ("\n    a = 1\n\n    return a",),
                ["def solution():", "    a = 1", "", "    return a"],
                why="A blank line does not end a function.",
            ),
            Case(("\nI would add them.",), [], why="There is no statement in the function."),
        ),
        inputs=_program_inputs,
        mistakes={
            "what follows the function is kept": _keeps_everything,
            "the function ends at a blank line": _ends_at_a_blank_line,
            "the line 'def solution():' is missing": _body_only,
            "blank lines at the end are kept": _blank_lines_at_the_end,
            "one text is returned; the lines are asked for, as a list": _one_text,
            "a function without a statement is kept": _head_without_statement,
        },
    ),
    "act": Exercise(
        reference=act,
        hint="A for loop over range(max_steps): ask the model with all observations so far, return "
        "if it says finish, otherwise append what the tool gives. After the loop: 'step limit'.",
        cases=(
            Case(
                (looks_twice, TOOLS, 5),
                "MABETH and 6",
                why="The answer is made of both observations: the model must see all of them.",
            ),
            Case(
                (looks_twice, TOOLS, 3),
                "MABETH and 6",
                why="Two look-ups and the finish: three actions.",
            ),
            Case((looks_twice, TOOLS, 2), "step limit", why="Finishing is an action, too."),
            Case((never_finishes, TOOLS, 4), "step limit"),
            Case((invents_a_tool, TOOLS, 4), "unknown tool"),
        ),
        inputs=_act_inputs,
        mistakes={
            "one action too few is allowed": _one_step_fewer,
            "one action too many is allowed": _one_step_more,
            "finishing does not count as an action": _finish_is_free,
            "the model sees only the last observation": _only_the_last,
            "an unknown tool ends the loop": _gives_up,
        },
    ),
}

STATEMENTS = {
    "supported": {
        "a": Statement(
            "A program mends a chain's false sums.",
            True,
            "With the plan shown, programs were right where chains had the plan and a false sum.",
        ),
        "b": Statement(
            "A program mends a false plan.",
            False,
            "With the plan hidden, hardly any program was right: Python computes what it is told.",
        ),
        "c": Statement(
            "Chains of thought do not help small models.",
            False,
            "One model on a few stories cannot carry that; the difference here was undecided.",
        ),
        "d": Statement(
            "The answer after a chain depends on what the chain says.",
            True,
            "Its last result was changed, and the answer changed with it.",
        ),
        "e": Statement(
            "An observation on one line cannot do harm.",
            False,
            "It writes no action itself, and yet an order in a page reached some next actions.",
        ),
        "f": Statement(
            "A grammar makes a tool call useful.",
            False,
            "It makes it well-formed; which page to search for, it does not know.",
        ),
    },
}
