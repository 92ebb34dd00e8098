"""What every notebook opens with: a Colab badge and a cell that installs the course on Colab.

Both texts have their one home here; `course badges` writes them into the notebooks.
"""

from __future__ import annotations

import re
from pathlib import Path

from course_utils.runner import canonical, notebooks, outputs, scaffold

# Naming the installed versions keeps pip from replacing them; a second run finds the package.
BOOTSTRAP = """\
# Only on Colab: install the course, and leave the torch and numpy that are there as they are.
import importlib.util
import subprocess
import sys
from importlib.metadata import version

if "google.colab" in sys.modules and not importlib.util.find_spec("course_utils"):
    keep = [f"{{p}}=={{version(p)}}" for p in ("torch", "numpy") if importlib.util.find_spec(p)]
    course = "llms-measured @ git+https://github.com/{repository}"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", course, *keep], check=True)
    importlib.invalidate_caches()
"""
NAME = re.compile(r"\d\d_[a-z0-9_]+")


def bootstrap(repository: str) -> str:
    """The source of the cell that installs the course on Colab, and does nothing elsewhere."""
    return BOOTSTRAP.format(repository=repository).strip()


def with_opening(notebook: dict, file: str, repository: str) -> dict:
    """Return the notebook with a current badge as first cell and bootstrap as first code cell."""
    cells = [cell for cell in notebook["cells"] if "badge" not in notebooks.tags_of(cell)]
    install = new_cell("code", "bootstrap", bootstrap(repository))
    place = next((i for i, cell in enumerate(cells) if cell["cell_type"] == "code"), len(cells))
    if place < len(cells) and "bootstrap" in notebooks.tags_of(cells[place]):
        cells[place] = {**cells[place], "source": install["source"]}
    else:
        cells = [cell for cell in cells if "bootstrap" not in notebooks.tags_of(cell)]
        cells.insert(place, install)
    return {
        **notebook,
        "cells": [new_cell("markdown", "badge", notebooks.badge(file, repository)), *cells],
    }


def new_cell(kind: str, name: str, source: str, tagged: bool = True) -> dict:
    """A cell whose id is `name`, which is its tag too unless `tagged` is false."""
    metadata = {"tags": [name]} if tagged else {}
    cell = {"cell_type": kind, "id": name, "metadata": metadata, "source": source}
    return cell | ({"outputs": [], "execution_count": None} if kind == "code" else {})


def stale(root: Path) -> list[Path]:
    """Return the notebooks whose badge or bootstrap cell is missing or not the current one."""
    wanted = notebooks.repository(root)
    return [path for path in notebooks.all_notebooks(root) if _is_stale(path, wanted)]


def _is_stale(path: Path, repository: str) -> bool:
    cells = notebooks.load(path)["cells"]
    texts = [notebooks.source_of(cell) for cell in cells[:1]]
    texts += [notebooks.source_of(cell) for cell in cells if cell["cell_type"] == "code"][:1]
    return texts != [notebooks.badge(path.name, repository), bootstrap(repository)]


def refresh(root: Path) -> list[Path]:
    """Rewrite the stale openings and return the notebooks that changed."""
    changed = stale(root)
    for path in changed:
        fresh = with_opening(notebooks.load(path), path.name, notebooks.repository(root))
        outputs.store(canonical.canonical(fresh), path)
    return changed


def create(name: str, root: Path) -> Path:
    """Write a new notebook with the standard cells, and return its path.

    Raises UsageError for a name that is not like 17_new_topic, or that is taken.
    """
    if not NAME.fullmatch(name):
        raise notebooks.UsageError(
            f"{name!r} is no name for a notebook; take two digits and words, like 17_new_topic"
        )
    path = root / "notebooks" / f"{name}.ipynb"
    taken = [other.stem for other in notebooks.all_notebooks(root) if other.stem[:2] == name[:2]]
    if taken:
        raise notebooks.UsageError(f"number {name[:2]} is taken by {taken[0]}; take another")
    title = name[3:].replace("_", " ").capitalize()
    standard = scaffold.cells(name[:2], title)
    cells = [new_cell(kind, id, text, tagged) for kind, id, tagged, text in standard]
    empty = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    fresh = with_opening(empty, path.name, notebooks.repository(root))
    outputs.store(canonical.canonical(fresh), path)
    return path
