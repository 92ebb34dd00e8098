"""The one form in which a notebook is committed: nothing in it that changes by itself."""

from __future__ import annotations

from course_utils.runner import notebooks, outputs
from course_utils.runner.units import duration, memory

KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
LANGUAGE = {
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
}
CELL_METADATA = {"deletable", "editable", "jupyter", "slideshow", "tags"}
WIDGET = "application/vnd.jupyter.widget-view+json"


def cost_text(about: dict) -> str:
    """The text of the cost cell."""
    download = about["download_mb"]
    return (
        f"**Cost** measured on {about['machine']}, profile cpu: "
        f"{duration(about['seconds'])} · peak memory {memory(about['peak_mb'])} · "
        + (f"one-time download {memory(download)}" if download else "nothing to download")
    )


def canonical(notebook: dict) -> str:
    """The one form in which a notebook is committed: nothing in it that changes by itself.

    A recorded notebook's cells are numbered, and its cost cell says what its metadata says.
    """
    notebook = notebooks.joined(notebook)
    result = {
        "cells": [_canonical_cell(cell, i) for i, cell in enumerate(notebook["cells"])],
        "metadata": {"kernelspec": KERNEL, "language_info": LANGUAGE},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    if about := notebook["metadata"].get("course"):
        result["metadata"]["course"] = about
    _make_ids_unique(result["cells"])
    if about:
        _number(notebooks.code_cells(result))
        if cost := notebooks.tagged(result, "cost"):
            cost["source"] = cost_text(about)
    return outputs.dump(result)


def _canonical_cell(cell: dict, index: int) -> dict:
    kept = {
        "cell_type": cell["cell_type"],
        "id": cell.get("id", f"cell-{index}"),
        "metadata": {k: v for k, v in cell["metadata"].items() if k in CELL_METADATA and v},
        "source": notebooks.source_of(cell),
    }
    if "attachments" in cell:
        kept["attachments"] = cell["attachments"]
    if cell["cell_type"] == "code":
        outputs = (_canonical_output(output) for output in cell.get("outputs", []))
        kept["outputs"] = [output for output in outputs if output]
        kept["execution_count"] = cell.get("execution_count")
    return kept


def _make_ids_unique(cells: list[dict]) -> None:
    seen: set[str] = set()
    for index, cell in enumerate(cells):
        if cell["id"] in seen:
            cell["id"] = f"{cell['id'][:48]}-{index}"
        seen.add(cell["id"])


def _number(cells: list[dict]) -> None:
    """Count the code cells 1, 2, …, as running all of them in a new kernel does."""
    count = 0
    for cell in cells:
        empty = not notebooks.source_of(cell).strip()
        count += not empty
        cell["execution_count"] = None if empty else count
        for output in cell["outputs"]:
            if output["output_type"] == "execute_result":
                output["execution_count"] = count


def _canonical_output(output: dict) -> dict | None:
    """An output without live widgets and warnings; None when nothing is left."""
    if output.get("name") == "stderr":
        return None
    kept = {key: value for key, value in output.items() if key != "transient"}
    if "data" in kept:
        kept["data"] = {kind: data for kind, data in kept["data"].items() if kind != WIDGET}
        if not kept["data"]:
            return None
    return kept
