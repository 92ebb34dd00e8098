"""What every notebook opens with: a Colab badge and a cell that installs the course on Colab.

Both texts have their one home here; `course badges` writes them into the notebooks.
"""

from __future__ import annotations

import re
from pathlib import Path

from course_utils.runner import canonical, notebooks, outputs

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
# Below the parameters of every notebook: what the brackets and the boxes mean.
STANDARD = """\
`PROFILE` chooses the size of the experiments and `SEED` the random numbers. Numbers between ⟨ and
⟩ depend on the machine or on floating-point arithmetic; every other text comes out exactly as
printed.

Boxes with a coloured edge are **claims**: a sentence, what this very run measured, where its test
must come out true, and a *null*, a world in which it must come out false. An amber edge says that
it did not come out in this run, and how often it does; the notebook goes on. Where course notes
have a sentence of their own, the verdict is on that one: it *holds*, *holds if* a condition is
met, is *corrected*, or stays *undecided here*.
"""
# The cells between them in a new notebook: kind, id, whether the id is a tag, text.
SCAFFOLD = (
    (
        "markdown",
        "title",
        False,
        "# {title}\n\n*Which question does this notebook answer?*\n\n"
        "**You will be able to** … (three to five verbs)\n\n"
        '**Before this** … (links) · **Hardware** two CPU cores; a GPU for `PROFILE = "gpu"`',
    ),
    ("markdown", "cost", True, "**Cost** is written here by `course record`."),
    ("code", "parameters", True, 'PROFILE = "cpu"\nSEED = 0'),
    (
        "code",
        "setup",
        False,
        "from course_utils.claims import claims_table\n"
        "from course_utils.profiles import for_profile, seed_everything\n\n"
        "budget = for_profile(PROFILE, cpu=dict(steps=300), gpu=dict(steps=20_000))\n"
        "generator = seed_everything(SEED)",
    ),
    ("markdown", "measured", False, "## What was measured"),
    ("code", "claims", False, "claims_table()"),
    ("markdown", "exercises", False, "## Exercises"),
    ("markdown", "reading", False, "## Further reading"),
)
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
    """Write a new notebook with the standard opening and closing cells, and return its path.

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
    cells = [new_cell(kind, id, text.format(title=title), tag) for kind, id, tag, text in SCAFFOLD]
    empty = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    fresh = with_opening(empty, path.name, notebooks.repository(root))
    outputs.store(canonical.canonical(fresh), path)
    return path
