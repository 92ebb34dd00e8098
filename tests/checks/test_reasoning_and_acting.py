"""Notebook 11's exercises take what textbooks write, and name what learners write instead."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from course_utils import exercises


def problem(name, attempt):
    return exercises.first_problem(exercises.find(f"11.{name}"), attempt)


# ── attempts that are right ─────────────────────────────────────────────────────────────────────


def most_common(answers):
    votes = Counter(answer for answer in answers if answer is not None)
    return votes.most_common(1)[0][0] if votes else None


def by_count(answers):
    given = [answer for answer in answers if answer is not None]
    return max(given, key=given.count, default=None)


def line_by_line(text):
    for line in text.split("\n"):
        if line.startswith("Observation:"):
            break
        if line.startswith("Action:") and line.rstrip().endswith("]"):
            tool, _, rest = line.removeprefix("Action:").strip().partition("[")
            return tool.strip().lower(), rest[:-1].strip()
    return "", ""


def search_once(text):
    found = re.search(r"^Action:\s*(\w+)\[(.*)\]", text.split("Observation:")[0], re.MULTILINE)
    return [found.group(1).lower(), found.group(2).strip()] if found else ["", ""]


def function_lines(text):
    lines = ["def solution():"]
    for line in text.split("\n")[1:]:
        if line.strip() and not line.startswith((" ", "\t")):
            break
        lines.append(line)
    while not lines[-1].strip():
        lines.pop()
    stated = [line for line in lines[1:] if line.strip() and not line.strip().startswith("#")]
    return lines if stated else []


def loop(model, tools, max_steps):
    observations = []
    while max_steps > 0:
        max_steps -= 1
        tool, argument = model(observations)
        if tool == "finish":
            return argument
        observations += [tools[tool](argument) if tool in tools else "unknown tool"]
    return "step limit"


@pytest.mark.parametrize(
    ("name", "attempt"),
    [
        ("majority", most_common),
        ("majority", by_count),
        ("parse_action", line_by_line),
        ("parse_action", search_once),
        ("program_of", function_lines),
        ("act", loop),
    ],
)
def test_textbook_variants_pass(name, attempt):
    assert problem(name, attempt) is None


# ── attempts that are not, and what they are told ───────────────────────────────────────────────


def with_capitals(text):
    found = re.search(r"^Action:\s*(\w+)\[(.*)\]", text.split("Observation:")[0], re.MULTILINE)
    return (found.group(1), found.group(2).strip()) if found else ("", "")


@pytest.mark.parametrize(
    ("name", "attempt", "told"),
    [
        ("parse_action", with_capitals, "keeps its capitals"),
        ("parse_action", lambda t: line_by_line(t) if line_by_line(t)[0] else None, "gives None"),
        ("program_of", lambda t: [*function_lines(t), ""], "blank lines at the end are kept"),
        ("program_of", lambda t: "\n".join(function_lines(t)) + "\n", "one text is returned"),
        ("majority", lambda a: max(a, key=a.count), "None has a vote"),
        ("act", lambda m, t, n: loop(m, t, n + 1), "one action too many"),
        ("act", lambda m, t, n: loop(m, t, n - 1), "one action too few"),
        ("act", lambda m, t, n: loop(lambda seen: m(seen[-1:]), t, n), "only the last observation"),
    ],
)
def test_mistakes_are_named(name, attempt, told):
    assert told in problem(name, attempt)
