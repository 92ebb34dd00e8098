"""The form of a stored notebook: what a reader meets, and in which order."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from course_utils.runner import scaffold
from course_utils.runner.notebooks import ADDED_TAGS, code_cells, source_of, tags_of
from course_utils.runner.reach import parse

MOST_LINES = 15  # of a code cell; empty ones do not count, comments do
MOST_IN_A_ROW = 2  # code cells without a sentence between them
LEAST_EXERCISES = 4
EXERCISES = ("check", "predict", "judge")


def faults(notebook: dict) -> list[str]:
    """A sentence for each thing that the house style asks for and the notebook lacks."""
    return [
        *_headings(notebook),
        *_runs_of_code(notebook),
        *_long_cells(notebook),
        *_standard_paragraph(notebook),
        *_figures_without_words(notebook),
        *_missing_exercises(notebook),
    ]


def _headings(notebook: dict) -> Iterator[str]:
    """A heading starts its own cell."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            text = re.sub(r"(?ms)^```.*?^```", "", source_of(cell)).strip()
            for heading in re.findall(r"(?m)(?<!\A)^#{1,6} .*", text):
                yield f"a heading stands inside a cell: {heading!r}"


def _runs_of_code(notebook: dict) -> Iterator[str]:
    """No more than two code cells without a sentence; those that papermill adds do not count."""
    row: list[str] = []
    for cell in [c for c in notebook["cells"] if not ADDED_TAGS & set(tags_of(c))]:
        row = [*row, source_of(cell)] if cell["cell_type"] == "code" else []
        if len(row) == MOST_IN_A_ROW + 1:
            yield f"{len(row)} code cells in a row, the last: {_first_line(row[-1])!r}"


def _long_cells(notebook: dict) -> Iterator[str]:
    """No code cell over 15 lines, but for the standard one that installs the course on Colab."""
    for number, cell in enumerate(code_cells(notebook), start=1):
        lines = [line for line in source_of(cell).splitlines() if line.strip()]
        if len(lines) > MOST_LINES and "bootstrap" not in tags_of(cell):
            yield f"In [{number}] has {len(lines)} lines: {_first_line(source_of(cell))!r}"


def _standard_paragraph(notebook: dict) -> Iterator[str]:
    """The paragraph that explains the brackets and the boxes stands below the parameters."""
    cells = notebook["cells"]
    place = next((i for i, c in enumerate(cells) if "parameters" in tags_of(c)), len(cells))
    below = next((c for c in cells[place + 1 :] if c["cell_type"] == "markdown"), None)
    if below is None or _words(scaffold.STANDARD) not in _words(source_of(below)):
        yield "the standard paragraph does not stand, word for word, below the parameters"


def _figures_without_words(notebook: dict) -> Iterator[str]:
    """Every picture says in words what it shows."""
    for number, cell in enumerate(code_cells(notebook), start=1):
        for output in cell["outputs"]:
            for kind in {"image/png", "image/jpeg", "image/svg+xml"} & set(output.get("data", {})):
                if not output.get("metadata", {}).get(kind, {}).get("alt"):
                    yield f"In [{number}] shows a picture without alt text; show it by plots.show"


def _missing_exercises(notebook: dict) -> Iterator[str]:
    """At least four exercises that give feedback, among them a guess and a judgement."""
    found = {ast.dump(c.args[0]): _name(c) for c in _calls(notebook)
             if _name(c) in EXERCISES and c.args}  # fmt: skip
    if len(found) < LEAST_EXERCISES:
        yield f"there are {len(found)} exercises by {', '.join(EXERCISES)}; at least four are asked"
    for name in ("predict", "judge"):
        if name not in found.values():
            yield f"there is no exercise by {name}"


def _calls(notebook: dict) -> Iterator[ast.Call]:
    for cell in code_cells(notebook):
        yield from (node for node in ast.walk(parse(source_of(cell))) if isinstance(node, ast.Call))


def _name(call: ast.Call) -> str:
    return getattr(call.func, "id", getattr(call.func, "attr", ""))


def _words(text: str) -> str:
    return " ".join(re.sub(r"(?m)^>", "", text).split())


def _first_line(source: str) -> str:
    return source.strip().splitlines()[0] if source.strip() else ""
