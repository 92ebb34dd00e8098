"""Thoughts, votes and programs against hand-worked cases and a scripted model."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reasoning_inputs import ITEM, TOOLS, TRANSCRIPT, prop, scripted, turns

from course_utils.prompting import reasoning, sandbox
from course_utils.prompting.acting import react
from course_utils.prompting.answers import extract_number
from course_utils.prompting.reasoning import ReplayError, Step, Trace

SHOTS = [
    dict(question="1 + 1?", answer=2, reasoning="1 + 1 = 2. The answer is 2.",
         program="def solution():\n    return 1 + 1\n"),
    dict(question="2 * 3?", answer=6, reasoning="2 * 3 = 6. The answer is 6.",
         program="def solution():\n    return 2 * 3\n"),
]  # fmt: skip


def run(program: str) -> sandbox.Result:
    return sandbox.run(program, entry="solution")


def ran(value=None, error=None):
    """What a sandbox returns, without starting one."""
    text = repr(value) if error is None else f"{error}: it went wrong"
    return type("Ran", (), {"ok": error is None, "value": value, "__str__": lambda _: text})()


def echo(name: str, rounds: int):
    """A method that asks `rounds` times, each time two prompts, and answers with all it got."""
    got = []
    for i in range(rounds):
        got += yield [f"{name}{i}a", f"{name}{i}b"]
    return Trace("".join(got), "answered", (Step("answer", name),))


def test_solve_all_gives_each_method_its_own_texts_in_order():
    asked = []

    def generate(prompts):
        asked.append(list(prompts))
        return [f"<{prompt}>" for prompt in prompts]

    traces = reasoning.solve_all([echo("x", 1), echo("y", 3), echo("z", 2)], generate)
    assert [trace.answer for trace in traces] == [
        "<x0a><x0b>",
        "<y0a><y0b><y1a><y1b><y2a><y2b>",
        "<z0a><z0b><z1a><z1b>",
    ]
    assert asked == [
        ["x0a", "x0b", "y0a", "y0b", "z0a", "z0b"],
        ["y1a", "y1b", "z1a", "z1b"],
        ["y2a", "y2b"],
    ]
    assert [(c.prompt, c.text) for c in traces[0].calls] == [("x0a", "<x0a>"), ("x0b", "<x0b>")]
    assert len(traces[1].calls) == 6


def test_solve_all_of_none_and_of_a_method_that_asks_nothing():
    assert reasoning.solve_all([], lambda prompts: 1 / 0) == []
    (trace,) = reasoning.solve_all([echo("x", 0)], lambda prompts: 1 / 0)
    assert trace.answer == ""


def test_solve_all_refuses_another_number_of_texts():
    with pytest.raises(ValueError, match="generate returned 1 texts for 2 prompts"):
        reasoning.solve_all([echo("x", 1)], lambda prompts: ["one"])


def test_solve_one_equals_solve_all_and_errors_of_the_model_come_through():
    assert reasoning.solve(echo("x", 2), str.upper).answer == "X0AX0BX1AX1B"
    with pytest.raises(ZeroDivisionError):
        reasoning.solve(echo("x", 2), lambda prompt: 1 / 0)


def test_replay_gives_the_same_trace_without_a_model():
    texts = iter(["a", "b", "c", "d"])
    trace = reasoning.solve(echo("x", 2), lambda prompt: next(texts))
    assert reasoning.replay(trace, echo("x", 2)) == trace
    assert reasoning.replay(Trace.from_json(trace.to_json()), echo("x", 2)) == trace


def test_replay_refuses_another_method():
    trace = reasoning.solve(echo("x", 2), str.upper)
    with pytest.raises(ReplayError, match="another prompt than was recorded"):
        reasoning.replay(trace, echo("y", 2))
    with pytest.raises(ReplayError, match="more than was recorded"):
        reasoning.replay(trace, echo("x", 3))
    with pytest.raises(ReplayError, match="asks 2 prompts, and 2 more were recorded; replay with"):
        reasoning.replay(trace, echo("x", 1))
    with pytest.raises(ReplayError, match="asks 0 prompts, and 4 more were recorded"):
        reasoning.replay(trace, echo("x", 0))


@prop
@given(st.lists(st.tuples(st.text(), st.text())), st.none() | st.text() | st.integers())
def test_trace_survives_json(pairs, answer):
    steps = tuple(Step(kind, text) for kind, text in pairs)
    calls = tuple(reasoning.Call(prompt, text) for prompt, text in pairs)
    trace = Trace(answer, "answered", steps, calls)
    assert Trace.from_json(trace.to_json()) == trace


def test_few_shot_by_hand():
    assert reasoning.few_shot(SHOTS[:1], "3 + 4?", "reasoning") == (
        "Question: 1 + 1?\nAnswer: 1 + 1 = 2. The answer is 2.\n\nQuestion: 3 + 4?\nAnswer:"
    )
    assert reasoning.few_shot(SHOTS[:1], "3 + 4?", "program") == (
        "Question: 1 + 1?\nAnswer:\ndef solution():\n    return 1 + 1\n\nQuestion: 3 + 4?\nAnswer:"
    )
    assert reasoning.few_shot([], "3 + 4?", "answer") == "Question: 3 + 4?\nAnswer:"


@pytest.mark.parametrize(
    ("text", "own"),
    [
        (" 3 + 4 = 7. The answer is 7.\n\nQuestion: 5?\nAnswer: 5", "3 + 4 = 7. The answer is 7."),
        (" 7\nQuestion: 5?", "7"),
        ("\n\n 7", "7"),
        (" 3 + 4 = 7.\nThe answer is 7.", "3 + 4 = 7.\nThe answer is 7."),
        (" Two.\n\nSo 7.\n \nQuestion: 5?", "Two.\n\nSo 7."),  # a blank line is not the end
        (" 7.\n\nQ: 5?\nA: 99", "7."),
        ("See FAQ: 7", "See FAQ: 7"),
        ("Question: what?", ""),
        ("", ""),
        (" \n \n", ""),
    ],
)
def test_own_part_ends_where_the_model_makes_up_another_example(text, own):
    assert reasoning.own_part(text) == own


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It is in Galford. The answer is Mabeth.", "Mabeth"),
        ("The answer is 3. No, the answer is: 4.", "4"),
        ("So the ANSWER IS Kelo Brun", "Kelo Brun"),
        ("The answer is\nGalford", None),
        ("I do not know.", None),
        ("", None),
    ],
)
def test_stated_answer(text, answer):
    assert reasoning.stated_answer(text) == answer


def test_direct_and_chain_of_thought_read_only_their_own_part():
    model = scripted(" 3 + 4 = 7. The answer is 7.\n\nQuestion: 5?\nAnswer: 99")
    for method in (reasoning.direct, reasoning.chain_of_thought):
        trace = reasoning.solve(method("3 + 4?", SHOTS, extract_number), model)
        assert (trace.answer, trace.ended, len(trace.calls)) == (7, "answered", 1)
        assert trace.steps[0].text == "3 + 4 = 7. The answer is 7."


@pytest.mark.parametrize(
    "method", [reasoning.direct, reasoning.chain_of_thought, reasoning.self_consistency]
)
@pytest.mark.parametrize(
    ("said", "answer", "end"),
    [
        (" She buys 3 packs of 4.\n\nSo the answer is 12.", 12, "answered"),
        (" " + "0" * 5000, 0, "answered"),
        (" " + "9" * 5000, None, "no answer"),
        (" 9e999", None, "no answer"),
    ],
)
def test_direct_and_chain_of_thought_end_with_a_trace_whatever_is_said(method, said, answer, end):
    trace = reasoning.solve(method("3 packs of 4?", [], extract_number), scripted(said))
    assert (trace.answer, trace.ended) == (answer, end)
    assert Trace.from_json(trace.to_json()) == trace


@pytest.mark.parametrize("method", [reasoning.direct, reasoning.chain_of_thought])
def test_direct_and_chain_of_thought_take_what_extract_cannot_read_for_no_answer(method):
    """As a reader would write it: `int(text)`, `re.search(…)[0]`."""
    for extract in (int, lambda text: re.search("[0-9]+", text)[0], lambda text: text.split()[9]):
        trace = reasoning.solve(method("?", [], extract), scripted("twelve"))
        assert (trace.answer, trace.ended) == (None, "no answer")
    with pytest.raises(NameError):
        reasoning.solve(method("?", [], lambda text: unknown), scripted("x"))  # noqa: F821


def test_self_consistency_of_what_extract_cannot_read():
    method = reasoning.self_consistency("?", [], int, samples=3)
    assert reasoning.solve(method, scripted("five", "5", "six")).answer == 5


def test_zero_shot_thought_of_what_extract_cannot_read():
    trace = reasoning.solve(reasoning.zero_shot_thought("?", int), scripted("five"))
    assert (trace.answer, trace.ended) == (None, "no answer")


def test_direct_shows_answers_and_chain_of_thought_shows_reasoning():
    said = scripted("7")
    (call,) = reasoning.solve(reasoning.direct("3 + 4?", SHOTS, extract_number), said).calls
    assert call.prompt == reasoning.few_shot(SHOTS, "3 + 4?", "answer")
    method = reasoning.chain_of_thought("3 + 4?", SHOTS, extract_number)
    assert "1 + 1 = 2. The answer is 2." in reasoning.solve(method, said).calls[0].prompt


@pytest.mark.parametrize("said", ["", "I cannot say.", "\n\n\n", "Question: 5?\nAnswer: 5"])
def test_chain_of_thought_without_a_number_has_no_answer(said):
    for method in (reasoning.direct, reasoning.chain_of_thought, reasoning.self_consistency):
        trace = reasoning.solve(method("3 + 4?", SHOTS, extract_number), scripted(said))
        assert (trace.answer, trace.ended) == (None, "no answer")


def test_zero_shot_thought_asks_twice_and_shows_the_thought_again():
    asked = []

    def model(prompt):
        asked.append(prompt)
        return ["3 and 4 make 7.", " 7.\n\nQuestion: 5?"][len(asked) - 1]

    method = reasoning.zero_shot_thought("3 + 4?", extract_number)
    trace = reasoning.solve(method, model)
    assert trace.answer == 7
    assert asked[0] == "Q: 3 + 4?\nA: Let's think step by step."
    assert asked[1] == (f"{asked[0]}3 and 4 make 7.\nTherefore, the answer (arabic numerals) is")
    assert [step.kind for step in trace.steps] == ["thought", "answer"]


def test_zero_shot_thought_through_a_chat_template():
    method = reasoning.zero_shot_thought("3 + 4?", extract_number, chat="<user>{}<model>".format)
    (first, _) = reasoning.solve(method, scripted("7")).calls
    assert first.prompt == "<user>3 + 4?<model> Let's think step by step."


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        ([1, 2, 2], 2),
        ([3, 1, 1, 3], 3),  # a tie: the first of them
        ([None, None, 5], 5),
        ([None, None], None),
        ([], None),
        ([2.0, 2, 3], 2),
        (["b", "a", "a"], "a"),
        ([0, 0, 1], 0),
    ],
)
def test_majority_by_hand(answers, winner):
    assert reasoning.majority(answers) == winner


@prop
@given(st.lists(st.none() | st.integers(0, 4), max_size=12))
def test_majority_property_no_answer_has_more_votes(answers):
    winner = reasoning.majority(answers)
    votes = [answers.count(answer) for answer in set(answers) - {None}]
    if votes:
        assert answers.count(winner) == max(votes)
        equals = [a for a in answers if a is not None and answers.count(a) == max(votes)]
        assert winner == equals[0]
    else:
        assert winner is None


def test_self_consistency_asks_the_same_prompt_and_votes():
    texts = ["The answer is 7.", "The answer is 8.", "No idea.", "The answer is 7.", "No idea."]
    method = reasoning.self_consistency("3 + 4?", SHOTS, extract_number, samples=5)
    trace = reasoning.solve(method, scripted(*texts))
    assert trace.answer == 7
    assert len({call.prompt for call in trace.calls}) == 1
    assert len(trace.calls) == len(trace.steps) == 5
    with pytest.raises(ValueError, match="samples is 0"):
        reasoning.solve(reasoning.self_consistency("?", [], extract_number, 0), scripted("1"))


def test_self_consistency_of_one_sample_is_a_chain_of_thought():
    method = reasoning.self_consistency("3 + 4?", SHOTS, extract_number, samples=1)
    trace = reasoning.solve(method, scripted("7", "8"))
    assert (trace.answer, len(trace.calls)) == (7, 1)


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("\n    return 1\n\nQuestion: 5?", "def solution():\n    return 1\n"),
        ("\n    a = 1\n\n    return a\nprint(2)", "def solution():\n    a = 1\n\n    return a\n"),
        (" return 3\nmore", "def solution(): return 3\n"),
        ("\n\treturn 1", "def solution():\n\treturn 1\n"),
        ("\n    # nothing\n\nQuestion: 5?", ""),
        ("\nreturn 1", ""),
        ("\n   \n", ""),
        ("", ""),
        ("  # add them", ""),
        ("\n    return 5\n# The next one:\nprint(6)", "def solution():\n    return 5\n"),
        (" return (\n3)\nmore", "def solution(): return (\n3)\n"),
        ("\n    return 1\nIt isn't hard", "def solution():\n    return 1\n"),
        ("\n    return 1\n'''", "def solution():\n    return 1\n"),
    ],
)
def test_program_of_ends_with_the_function(text, program):
    assert reasoning.program_of(text) == program


WHOLE = {
    "a comment": "\n    a = 3\n# add\n    return a + 4",
    "a bracket": "\n    a = sum([3,\n4\n])\n    return a",
    "a docstring": '\n    """Add.\nTwo numbers.\n"""\n    return 3 + 4',
    "a text": "\n    a = '''x\ny'''\n    return 7 * len(a) // 3",
    "a backslash": "\n    a = 3 + \\\n4\n    return a",
    "a comment first": "\n# add\n    return 3 + 4",
    "blocks": "\n    for i in range(2):\n        a = 7\n# x\n\n    return a",
}


@pytest.mark.parametrize("name", WHOLE)
def test_program_of_keeps_what_stands_at_the_margin_inside_the_function(name):
    text = WHOLE[name]
    program = reasoning.program_of(f"{text}\n\nQuestion: Isn't it?\nAnswer: (")
    assert program == f"def solution():{text}\n"
    space = {}
    exec(program, space)
    assert space["solution"]() == 7


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("\n    x = 'it\n# a\n    return 1\n\nQuestion: 5?", "\n    x = 'it\n# a\n    return 1\n"),
        ("\n    return 1\n  x = 2\nQ", "\n    return 1\n  x = 2\n"),
        ("\n    return (1\n\nQuestion: 5?", "\n    return (1\n"),
        ("\n    return 1 $ 2\nQ", "\n    return 1 $ 2\n"),
    ],
)
def test_program_of_what_is_no_python_ends_at_the_margin(text, program):
    """So that the program's own error is what the model is shown."""
    assert reasoning.program_of(text) == f"def solution():{program}"


@prop
@given(st.text(alphabet="ab:()[]'\"#\\ \n\t\r\x0c0={}\ud800\0", max_size=60))
def test_program_of_never_fails_and_keeps_the_beginning(text):
    program = reasoning.program_of(text)
    assert program == "" or f"def solution():{text}\n".startswith(program.rstrip())


@pytest.mark.parametrize(
    ("body", "signs"),
    [
        ("a = 8 * 3\n    return a // 4", ["*", "/"]),
        ("return 8 - 3 - 2", ["-", "-"]),
        ("return 2 * (3 + 4) / 7", ["+", "*", "/"]),  # as Python works it out
        ("return 7", []),
        ("return 2 ** 3 % 5", []),  # other operators are not counted
        ("return 8 *", []),
        ("return '8 * 3'", []),
    ],
)
def test_signs_of_a_program(body, signs):
    assert reasoning.signs_of(f"def solution():\n    {body}") == signs


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (3, 3.0), (2.5, 2.5), (Fraction(1, 4), 0.25), (-1, -1.0),
        (True, None), ("3", None), (None, None), ([3], None), (math.nan, None), (math.inf, None),
        (10**400, None), (3 + 0j, None), (Decimal("59.97"), 59.97),
        (Decimal("NaN"), None), (Decimal("sNaN"), None), (Decimal("1e400"), None),
    ],
)  # fmt: skip
def test_as_number(value, number):
    assert reasoning.as_number(value) == number


def test_pal_runs_the_program_in_a_real_sandbox():
    trace = reasoning.solve(reasoning.pal("3 + 4?", SHOTS, run), scripted("\n    return 3 + 4\n"))
    assert (trace.answer, trace.ended) == (7.0, "answered")
    assert [step.kind for step in trace.steps] == ["program", "result"]
    prompt = trace.calls[0].prompt
    assert prompt.endswith("Question: 3 + 4?\nAnswer:\ndef solution():")
    assert prompt.count("def solution():\n    return") == 2


def test_pal_feeds_an_error_back_once():
    asked = []

    def model(prompt):
        asked.append(prompt)
        return "\n    return 3 + five\n" if len(asked) == 1 else "\n    return 3 + 4"

    trace = reasoning.solve(reasoning.pal("3 + 4?", SHOTS, run), model)
    assert trace.answer == 7.0
    assert asked[1] == (
        asked[0] + "\n    return 3 + five\n\n"
        "# This fails: NameError in line 2: name 'five' is not defined\n"
        "# The corrected program:\ndef solution():"
    )
    assert [step.kind for step in trace.steps] == ["program", "result", "program", "result"]


def test_pal_gives_up_after_its_repairs():
    for repairs in (0, 1, 3):
        method = reasoning.pal("3 + 4?", SHOTS, lambda p: ran(error="NameError"), repairs)
        trace = reasoning.solve(method, scripted("\n    return five"))
        assert (trace.answer, trace.ended) == (None, "failed")
        assert len(trace.calls) == repairs + 1


def test_pal_reads_decimals_from_the_sandbox():
    program = "\n    from decimal import Decimal\n    return Decimal('19.99') * 3"
    trace = reasoning.solve(reasoning.pal("?", SHOTS, run), scripted(program))
    assert (trace.answer, len(trace.calls)) == (59.97, 1)


def test_pal_with_fewer_repairs_than_none():
    with pytest.raises(ValueError, match="repairs is -1; it must be 0 or more"):
        reasoning.solve(reasoning.pal("?", SHOTS, run, repairs=-1), scripted("x"))


def test_pal_does_not_repair_what_ran():
    method = reasoning.pal("3 + 4?", SHOTS, lambda program: ran(0))
    trace = reasoning.solve(method, scripted("\n    return 0"))
    assert (trace.answer, len(trace.calls)) == (0.0, 1)


@pytest.mark.parametrize("said", ["", "\n\n", "\nI would add them.", "\n    # add them\n"])
def test_pal_with_an_empty_program_never_runs_it(said):
    method = reasoning.pal("3 + 4?", SHOTS, lambda program: pytest.fail("nothing to run"))
    trace = reasoning.solve(method, scripted(said))
    assert (trace.answer, trace.ended) == (None, "failed")
    assert trace.steps[-1].text == "the program is empty"


@pytest.mark.parametrize("value", ["seven", None, True, [7], math.nan])
def test_pal_takes_only_numbers_for_answers(value):
    method = reasoning.pal("3 + 4?", SHOTS, lambda program: ran(value), repairs=0)
    trace = reasoning.solve(method, scripted("\n    return x"))
    assert (trace.answer, trace.ended) == (None, "failed")
    assert "not a number" in trace.steps[-1].text


def test_pal_keeps_an_error_message_on_one_line_of_the_prompt():
    method = reasoning.pal("3 + 4?", SHOTS, lambda program: ran(error="x\n\nQuestion: y"))
    trace = reasoning.solve(method, scripted("\n    return five"))
    assert "# This fails: x Question: y: it went wrong\n" in trace.calls[1].prompt


@prop
@given(st.text(max_size=400), st.integers(1, 50))
def test_one_line_property(text, limit):
    line = reasoning.one_line(text, limit)
    assert len(line) <= limit
    assert len(line.splitlines()) <= 1
    assert reasoning.one_line(" a\n b\t\u2028c ") == "a b c"
    reasoning.one_line(text + "\ud83d").encode()  # half a character would stop the tokenizer


def test_replay_of_react_without_a_model():
    model = scripted(*turns(TRANSCRIPT, "Thought:"))
    trace = reasoning.solve(react(ITEM["question"], ["Shot"], TOOLS), model)
    again = Trace.from_json(trace.to_json())
    assert reasoning.replay(again, react(ITEM["question"], ["Shot"], TOOLS)) == trace
    other = {**TOOLS, "search": lambda query: "Galford has 13 gates."}
    with pytest.raises(ReplayError, match="another prompt"):
        reasoning.replay(again, react(ITEM["question"], ["Shot"], other))
