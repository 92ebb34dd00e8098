"""What the guard compares: two outputs of a cell, with what was measured masked, as nbval does."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from course_utils.runner.notebooks import joined, tags_of

SANITIZER = Path(__file__).with_name("sanitize.cfg")
# What nbval leaves out of the comparison when it runs without nbdime.
NOT_COMPARED = (
    "metadata",
    "traceback",
    "prompt_number",
    "output_type",
    "name",
    "execution_count",
    "application/vnd.jupyter.widget-view+json",
    "image/png",
    "image/jpeg",
)
EXEMPTING_TAGS = {"nbval-ignore-output", "nbval-skip"}


def sanitizer() -> dict[str, str]:
    """Return the sanitizer's patterns and replacements, from a file in nbval's own format."""
    text = SANITIZER.read_text(encoding="utf-8")
    return dict(re.findall(r"^regex: (.*)\nreplace: (.*)$", text, re.MULTILINE))


def difference(stored: dict, fresh: dict, patterns: dict[str, str]) -> str:
    """Compare the outputs of one code cell as nbval would; "" when the guard sees none."""
    if EXEMPTING_TAGS & set(tags_of(stored)):
        return ""
    cells = joined({"cells": [stored, fresh]})["cells"]
    old, new = (_compared(cell["outputs"], patterns) for cell in cells)
    differing = [kind for kind in old | new if old.get(kind) != new.get(kind)]
    return "\n".join(_explained(kind, old.get(kind, []), new.get(kind, [])) for kind in differing)


def _compared(outputs: list[dict], patterns: dict[str, str]) -> dict[str, list]:
    """All values of each kind (stdout, text/html, ename, …) in order; a stream's text is one."""
    values: dict[str, list] = defaultdict(list)
    streams: dict[str, str] = {}
    for output in outputs:
        if output["output_type"] == "stream":
            streams[output["name"]] = streams.get(output["name"], "") + output["text"]
            continue
        for kind, value in (output | output.get("data", {})).items():
            if kind not in (*NOT_COMPARED, "data"):
                values[kind].append(_masked(value, patterns))
    for name, text in streams.items():
        values[name].append(_masked(_overwritten(text), patterns))
    return values


def _overwritten(text: str) -> str:
    """Text as a terminal leaves it: what stands before a carriage return is gone."""
    return re.sub(r"^.*\r(?=[^\n])", "", text, flags=re.MULTILINE)


def _masked(value: Any, patterns: dict[str, str]) -> Any:
    if isinstance(value, str):
        for regex, replace in patterns.items():
            value = re.sub(regex, replace, value)
    return value


def _explained(kind: str, old: list, new: list) -> str:
    before, after = ("\n".join(map(str, values)).splitlines() for values in (old, new))
    return "\n".join([f"{kind} differs", *difflib.ndiff(before, after)])
