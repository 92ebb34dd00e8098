"""Small courses for the tests of the runner and the guard, made on the spot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARAMETERS = ("parameters", 'PROFILE = "cpu"\nSEED = 0')
COST = ("cost", "**Cost** …")


def notebook(*cells: str | tuple[str, str]) -> dict:
    """A notebook: text that starts with # or ** is markdown, (tag, text) a tagged cell."""
    made = []
    for index, cell in enumerate(cells):
        tag, source = cell if isinstance(cell, tuple) else ("", cell)
        markdown = source.startswith(("# ", "**"))
        entry = {
            "cell_type": "markdown" if markdown else "code",
            "id": f"cell-{index}",
            "metadata": {"tags": [tag]} if tag else {},
            "source": source.splitlines(keepends=True),
        }
        made.append(entry if markdown else entry | {"outputs": [], "execution_count": None})
    return {"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def stream(text: str | list[str], name: str = "stdout") -> dict:
    """An output that a cell wrote."""
    return {"output_type": "stream", "name": name, "text": text}


def data(**data: str) -> dict:
    """An output that a cell displayed: text_html="…" for text/html."""
    mime = {key.replace("_", "/"): value for key, value in data.items()}
    return {"output_type": "display_data", "data": mime, "metadata": {}}


def error(name: str = "ValueError", text: str = "no") -> dict:
    """An output that a cell left when it raised."""
    trace = ["\x1b[31mTraceback\x1b[0m", f"{name}: {text}"]
    return {"output_type": "error", "ename": name, "evalue": text, "traceback": trace}


def make(root: Path, **notebooks: dict) -> Path:
    """Write a course with these notebooks (names without the leading n) into `root`."""
    (root / "notebooks").mkdir(parents=True)
    (root / "pyproject.toml").write_text('[tool.course]\nrepository = "owner/name"\n')
    for name, content in notebooks.items():
        path = root / "notebooks" / f"{name.removeprefix('n')}.ipynb"
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return root


def course(
    root: Path, *arguments: str, **environment: str | None
) -> subprocess.CompletedProcess[str]:
    """Run the `course` command in a toy course: a process of its own, no terminal.

    `environment` is added to this process's; None takes a variable away.
    """
    merged = {**os.environ, **environment}
    return subprocess.run(
        command(*arguments),
        cwd=root,
        env={name: value for name, value in merged.items() if value is not None},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def command(*arguments: str) -> list[str]:
    """The command line of `course` in this environment."""
    return [sys.executable, "-m", "course_utils.cli", *arguments]


def outputs(root: Path, name: str, profile: str = "cpu") -> dict:
    """An executed notebook of a run."""
    return json.loads((root / "runs" / profile / f"{name}.ipynb").read_text(encoding="utf-8"))


def printed(executed: dict) -> str:
    """Everything an executed notebook wrote to standard output."""
    streams = (o for cell in executed["cells"] for o in cell.get("outputs", []))
    return "".join("".join(o["text"]) for o in streams if o.get("name") == "stdout")
