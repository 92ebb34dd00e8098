"""What came of a run: executed notebooks read back, failures located, claims gathered."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from course_utils.runner.ledger import claims_of, held
from course_utils.runner.notebooks import (
    ADDED_TAGS,
    ERROR_TAG,
    exempt_cells,
    source_of,
    tags_of,
)
from course_utils.runner.outputs import read_notebook

GOOD = ("ok", "kept")


@dataclass
class Failure:
    """Where a notebook stopped. Cells are counted as in the notebook's source.

    `cell` is the position in the file from 0, `number` the position among code cells from 1 (what
    JupyterLab shows as In [number] after running all); both None when no cell had started.
    """

    error: str
    cell: int | None = None
    number: int | None = None
    source: str = ""
    traceback: str = ""

    def place(self) -> str:
        """Say which cell it was."""
        return "before the first cell" if self.number is None else f"In [{self.number}]"


@dataclass
class Result:
    """One notebook of a run.

    Status: ok, kept, failed, timed out, kernel died, interrupted or not run.
    """

    notebook: str
    status: str
    seconds: float = 0.0
    peak_mb: float = 0.0
    claims: list[dict] = field(default_factory=list)
    exempt: int = 0
    failure: Failure | None = None

    @property
    def good(self) -> bool:
        return self.status in GOOD

    def held(self) -> str:
        """Claims that held, of those that were measured."""
        return held(self.claims)


def mark_stopped_cell(notebook: dict, index: int, name: str, message: str) -> None:
    """Give the cell that was running an error output, unless it has one already."""
    cells = [cell for cell in notebook["cells"] if ERROR_TAG not in tags_of(cell)]
    if index >= len(cells) or find_error(notebook):
        return
    cell = cells[index]
    message = message or "it raised an error whose text did not arrive"
    error = {"output_type": "error", "ename": name, "evalue": message, "traceback": [message]}
    cell.setdefault("outputs", []).append(error)
    for later in cells[index:]:  # papermill marks what it did not reach as completed
        if "papermill" in later["metadata"]:
            later["metadata"]["papermill"]["status"] = "failed" if later is cell else "pending"


def find_error(notebook: dict) -> tuple[int, dict] | None:
    """Return the index of the first cell with an error output, and that output."""
    for index, cell in enumerate(notebook["cells"]):
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                return index, output
    return None


def locate_failure(notebook: dict | None, message: str = "") -> Failure:
    """Describe where an executed notebook stopped; `message` replaces the error's own text."""
    found = find_error(notebook) if notebook else None
    if not found:
        return Failure(message or "it stopped without an error")
    index, output = found
    before = [c for c in notebook["cells"][: index + 1] if not ADDED_TAGS & set(tags_of(c))]
    traceback = "\n".join(output.get("traceback", []))
    return Failure(
        error=message or f"{output['ename']}: {output['evalue']}",
        cell=len(before) - 1,
        number=sum(cell["cell_type"] == "code" for cell in before),
        source=source_of(notebook["cells"][index]),
        traceback=traceback,
    )


def read_result(name: str, notebook: dict, status: str) -> Result:
    """Read a finished notebook's result back from what the run left in its metadata."""
    run = notebook["metadata"].get("course_run", {})
    return Result(
        name,
        status,
        run.get("seconds", 0.0),
        run.get("peak_mb", 0.0),
        claims_of(notebook, name),
        exempt_cells(notebook),
        None if status in GOOD else locate_failure(notebook),
    )


def kept(name: str, address: str, key: str) -> Result | None:
    """Return the result of an earlier run when its output is there, good, and made from `key`."""
    notebook = read_notebook(address)
    run = notebook.get("metadata", {}).get("course_run", {}) if notebook else {}
    if run.get("key") != key or run.get("status") not in GOOD:
        return None
    return read_result(name, notebook, "kept")


def plain(text: str) -> str:
    """Drop the terminal colours of a traceback."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def as_json(results: list[Result], about: dict[str, Any]) -> str:
    """The contents of claims.json: what was run, each notebook's result, and the ledger."""
    notebooks = []
    for result in results:
        entry = asdict(result)
        del entry["claims"]
        if entry["failure"]:
            entry["failure"]["traceback"] = plain(entry["failure"]["traceback"])
        notebooks.append(entry)
    claims = [claim for result in results for claim in result.claims]
    record = {**about, "notebooks": notebooks, "claims": claims}
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"
