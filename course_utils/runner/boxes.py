"""The stored boxes say how often a claim held; `course badges` keeps that what the records say.

A notebook is recorded before it is replicated, and recording it again changes nothing that is
compared: so the line on recorded runs is the one part of an output that is written afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from course_utils.evidence.records import record_of
from course_utils.runner import canonical, notebooks, outputs

SAYS = re.compile(
    r"⟨(?:no recorded runs yet|it held in \d+ of \d+ recorded runs(?:, the same in all runs)?)⟩"
)


def stale(root: Path) -> list[Path]:
    """Return the notebooks in which a box says something else of earlier runs than the records."""
    return [path for path in notebooks.all_notebooks(root) if any(_changes(notebooks.load(path)))]


def refresh(root: Path) -> list[Path]:
    """Write the records' numbers into the boxes and return the notebooks that changed."""
    changed = []
    for path in notebooks.all_notebooks(root):
        notebook = notebooks.load(path)
        found = list(_changes(notebook))
        for data, kind, text in found:
            data[kind] = text
        if found:
            outputs.store(canonical.canonical(notebook), path)
            changed.append(path)
    return changed


def _changes(notebook: dict) -> Iterator[tuple[dict[str, Any], str, str | list[str]]]:
    """(data, MIME type, new text) of each box whose line on recorded runs is not today's."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            if claim := output.get("metadata", {}).get("claim"):
                says = record_of(claim["id"])
                for kind, text in output["data"].items():
                    lines = [text] if isinstance(text, str) else text
                    fresh = [SAYS.sub(lambda _, says=says: says, line) for line in lines]
                    if fresh != lines:
                        yield output["data"], kind, fresh[0] if isinstance(text, str) else fresh
