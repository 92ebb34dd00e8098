"""What the tests of reasoning share."""

from __future__ import annotations

import itertools

from hypothesis import settings

from course_utils.prompting.acting import calculate, search_tool

prop = settings(max_examples=80, deadline=None, derandomize=True, database=None)


def scripted(*texts: str):
    """A model that says these texts in turn and then, for ever, the last one."""
    replies = itertools.chain(texts, itertools.repeat(texts[-1]))
    return lambda prompt: next(replies)


TOOLS = {
    "search": search_tool(lambda q: {"Galford": ["Galford has 12 gates."]}.get(q, [])),
    "calculate": calculate,
}


ITEM = dict(
    question="How many gates have two Galfords?",
    steps=[
        dict(thought="I need the gates.", tool="search", input="Galford"),
        dict(thought="Twice 12.", tool="calculate", input="2 * 12"),
        dict(thought="The answer is 24.", tool="finish", input="24"),
    ],
)


TRANSCRIPT = """Question: How many gates have two Galfords?
Thought: I need the gates.
Action: search[Galford]
Observation: Galford has 12 gates.
Thought: Twice 12.
Action: calculate[2 * 12]
Observation: 24
Thought: The answer is 24.
Action: finish[24]"""


def turns(transcript: str, opening: str) -> list[str]:
    """What a model writes to produce this transcript: each turn after its opening word."""
    own = "\n".join(x for x in transcript.split("\n")[1:] if not x.startswith("Observation"))
    return [f" {turn.strip()}" for turn in own.split(opening)[1:]]
