"""Plausible wrong versions of course_utils.prompting.acting."""

from __future__ import annotations

import ast
import re
from dataclasses import replace

from planting import Bug, originals

from course_utils.prompting import acting, reasoning
from course_utils.prompting.acting import Action, ToolError

right = originals("prompting.acting")


def calculate_by_eval(expression):
    try:
        return str(eval(expression))
    except Exception as error:
        raise ToolError(str(error)) from error


def calculate_left_to_right(expression):
    numbers = re.findall(r"\d+|[-+*/]", expression)
    value = int(numbers[0]) if numbers else 0
    for sign, number in zip(numbers[1::2], numbers[2::2], strict=False):
        value = right["_OPERATORS"][type(ast.parse(f"1{sign}1").body[0].value.op)](
            value, int(number) if number.isdigit() else 0
        )
    return str(value)


def calculate_to_six_places(expression):
    value = round(float(right["calculate"](expression)), 6)
    return str(int(value) if value == int(value) else value)


def calculate_to_six_digits(expression):
    return f"{float(right['calculate'](expression)):.6g}"


def use_case_matters(tools, action):
    known = tools if action is None or action.tool in tools else {}
    return right["use"](known, action)


def check_names_never(tools):
    pass


def parse_action_anywhere(text):
    own = text.partition("Observation:")[0]
    found = re.search(r"(\w+)[ \t]*\[(.*)\]", own)
    return Action(found[1].lower(), found[2].strip()) if found else None


def parse_action_first_bracket(text):
    own = text.partition("Observation:")[0]
    found = re.search(r"^[ \t]*Action:[ \t]*(\w+)[ \t]*\[(.*?)\]", own, re.MULTILINE)
    return Action(found[1].lower(), found[2].strip()) if found else None


def parse_action_last(text):
    found = re.findall(r"^[ \t]*Action:[ \t]*(\w+)[ \t]*\[(.*)\]", text, re.MULTILINE)
    return Action(found[-1][0].lower(), found[-1][1].strip()) if found else None


def parse_action_keeps_case(text):
    own = text.partition("Observation:")[0]
    found = re.search(r"^[ \t]*Action:[ \t]*(\w+)[ \t]*\[(.*)\]", own, re.MULTILINE)
    return Action(found[1], found[2]) if found else None


def use_lets_errors_through(tools, action):
    if action is None or action.tool not in tools:
        return right["use"](tools, action)
    return reasoning.one_line(tools[action.tool](action.argument))


def use_swallows_everything(tools, action):
    try:
        return right["use"](tools, action)
    except BaseException as error:
        return f"Error: {error}"


def use_keeps_lines(tools, action):
    if action is None or action.tool not in tools:
        return right["use"](tools, action)
    try:
        return tools[action.tool](action.argument)
    except Exception as error:
        return f"Error: {error}"


def react_reads_actions_from_the_page(question, examples, tools, *, thoughts=True, max_steps=6):
    """An observation that holds an action is obeyed."""
    trace = yield from right["react"](
        question, examples, tools, thoughts=thoughts, max_steps=max_steps
    )
    for step in trace.steps:
        if step.kind == "observation" and (found := re.search(r"finish\[(.*?)\]", step.text)):
            return replace(trace, answer=found[1])
    return trace


def react_one_step_more(question, examples, tools, *, thoughts=True, max_steps=6):
    more = max_steps + 1 if max_steps else 0
    return right["react"](question, examples, tools, thoughts=thoughts, max_steps=more)


def react_answers_at_the_limit(question, examples, tools, *, thoughts=True, max_steps=6):
    """The last observation is taken for the answer."""
    trace = yield from right["react"](
        question, examples, tools, thoughts=thoughts, max_steps=max_steps
    )
    if trace.ended == "step limit":
        return replace(trace, answer=trace.steps[-1].text, ended="answered")
    return trace


def react_forgets_its_thoughts(question, examples, tools, *, thoughts=True, max_steps=6):
    return right["react"](question, examples, tools, thoughts=False, max_steps=max_steps)


def worked_example_without_observations(item, tools, thoughts=True):
    text = right["worked_example"](item, tools, thoughts)
    return "\n".join(line for line in text.split("\n") if not line.startswith("Observation"))


def action_grammar_without_finish(tools, thoughts=True):
    return right["action_grammar"](tools, thoughts).replace(' | "finish"', "")


def sums_in_of_any_length(text):
    return re.findall(r"(\d+ [-+*/] \d+) = (\d+(?:\.\d+)?)", text)


def is_true_to_whole_numbers(left, result):
    return right["is_true"](left, result) or right["calculate"](left).split(".")[0] == result


def chain_with_calculator_believes_the_model(question, shots, extract, *, max_sums=6):
    return reasoning.chain_of_thought(question, shots, extract)


def chain_with_calculator_reads_made_up_examples(question, shots, extract, *, max_sums=6):
    own_part = acting.own_part
    acting.own_part = str.strip
    try:
        return (
            yield from right["chain_with_calculator"](question, shots, extract, max_sums=max_sums)
        )
    finally:
        acting.own_part = own_part


def chain_with_calculator_keeps_more_digits(question, shots, extract, *, max_sums=6):
    never, acting._MORE_DIGITS = acting._MORE_DIGITS, re.compile(r"(?!)")
    try:
        return (
            yield from right["chain_with_calculator"](question, shots, extract, max_sums=max_sums)
        )
    finally:
        acting._MORE_DIGITS = never


BUGS = [
    Bug("sums_in", "takes a part of a longer sum", sums_in_of_any_length),
    Bug("is_true", "drops what is behind the point", is_true_to_whole_numbers),
    Bug("chain_with_calculator", "has no calculator", chain_with_calculator_believes_the_model),
    Bug(
        "chain_with_calculator",
        "reads made-up examples",
        chain_with_calculator_reads_made_up_examples,
    ),
    Bug("chain_with_calculator", "lengthens a result", chain_with_calculator_keeps_more_digits),
    Bug("calculate", "evaluates Python", calculate_by_eval),
    Bug("calculate", "has no precedence", calculate_left_to_right),
    Bug("calculate", "rounds small results to 0", calculate_to_six_places),
    Bug("calculate", "rounds large results", calculate_to_six_digits),
    Bug("use", "minds capitals", use_case_matters, tests="any_case"),
    Bug("_check_names", "takes any tools", check_names_never, tests="react_refuses"),
    Bug("parse_action", "reads thoughts as actions", parse_action_anywhere),
    Bug("parse_action", "ends at the first bracket", parse_action_first_bracket),
    Bug("parse_action", "takes the last action", parse_action_last),
    Bug("parse_action", "keeps blanks and capitals", parse_action_keeps_case),
    Bug("use", "lets a tool's error through", use_lets_errors_through, tests="use_of"),
    Bug("use", "swallows Ctrl-C", use_swallows_everything, tests="use_of"),
    Bug("use", "keeps an observation's lines", use_keeps_lines, tests="injection"),
    Bug("react", "obeys a page", react_reads_actions_from_the_page, tests="injection"),
    Bug("react", "takes one step more", react_one_step_more),
    Bug("react", "takes an observation for the answer", react_answers_at_the_limit),
    Bug("react", "leaves out the thoughts", react_forgets_its_thoughts),
    Bug("worked_example", "lacks observations", worked_example_without_observations),
    Bug("action_grammar", "cannot finish", action_grammar_without_finish),
]
