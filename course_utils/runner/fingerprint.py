"""What a notebook's outputs depend on, as one hash: its code, the package's under it, and its data.

Hashed are the code cells and, of the package, the definitions that they reach (see `reach`): the
code alone of most, comments and docstrings too of those that the notebook shows. Code that only
shows (boxes, plots, …) or looks at a learner's answers (an exercise's cases and likely mistakes) is
followed but not hashed, nor is the code that fetches: what it fetches is known by its hash. A data
set, a checkpoint or an asset counts when its name is a text in what is reached.
"""

from __future__ import annotations

import ast
import hashlib
import json
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from course_utils.checks import MODULES
from course_utils.runner import reach
from course_utils.runner.notebooks import code_cells, source_of, tags_of

PACKAGE = Path(__file__).resolve().parents[1]
DISPLAY = {
    "claims.py",
    "evidence/box.py",
    "evidence/records.py",
    "exercises.py",
    "plots.py",
    "showing.py",
}  # beside the drawings.py of each part, and the exercises in checks/
# Of the folders of data: one that holds folders, and the records, which grow while others run.
NO_DATA = {"checkpoints", "replications"}
DESCRIPTIVE = {"description", "licence", "citation", "source"}  # of an asset; they change no number


def fingerprint(
    notebook: dict, name: str = "", package: Path = PACKAGE, *, display: bool = False
) -> str:
    """Hash what a notebook computes with; `display`: and what it shows that with.

    `name` is the notebook's ("09_decoding"): exercises are looked up by its number when the
    notebook runs. Markdown cells do not count, nor does the cell that installs the course on Colab.
    """
    cells = (cell for cell in code_cells(notebook) if "bootstrap" not in tags_of(cell))
    sources = [source_of(cell) for cell in cells]
    reached = _reached(sources, name, package)
    shown = reach.named(sources, package, inside="show_source")
    digest = hashlib.sha256(json.dumps(sources).encode())
    counted = [each for each in sorted(reached) if _counts(each.path, package, display)]
    for each in counted:
        text = reach.text_of(each, package)
        text = text if each in shown else reach.code_of(text)
        digest.update(
            f"{each.path.relative_to(package).as_posix()}\0{each.name}\0{text}\0".encode()
        )
    for part in _data(sources, counted, package):
        digest.update(part)
    return digest.hexdigest()[:16]


def run_key(notebook: dict, name: str, parameters: dict) -> str:
    """Hash what a run's outputs depend on: the fingerprint, what shows them, and the parameters."""
    return key_of(fingerprint(notebook, name, display=True), parameters)


def key_of(shown: str, parameters: dict) -> str:
    """`run_key` of a notebook whose fingerprint with what shows its outputs is known: `shown`."""
    text = shown + json.dumps(parameters, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _reached(sources: list[str], name: str, package: Path) -> set[reach.Definition]:
    """What the cells reach, and with the exercises those of this notebook's number."""
    found = reach.reached(sources, package)
    checks = package / "checks" / f"{MODULES.get(name[:2])}.py"
    if package / "exercises.py" in {each.path for each in found} and checks.is_file():
        found |= reach.reached([], package, [reach.Definition(checks, "EXERCISES")])
    return found


def _counts(path: Path, package: Path, display: bool) -> bool:
    """Whether a module's code can change what is computed (or, with `display`, what is shown)."""
    place = path.relative_to(package).as_posix()
    if place.startswith("assets/") or place == "checks/__init__.py":  # the table grows
        return False
    only_shows = place in DISPLAY or path.name == "drawings.py" or place.startswith("checks/")
    return display or not only_shows


def _data(sources: list[str], reached: list[reach.Definition], package: Path) -> Iterator[bytes]:
    """Names and contents of the course's own data that are named, and of the assets' entries."""
    words = {word for source in sources for word in _words(reach.parse(source))}
    words |= {word for each in reached for word in _words_of(reach.text_of(each, package))}
    data = package / "_data" if (package / "_data").is_dir() else package.parent / "data"
    for folder in sorted([*data.glob("*"), *data.glob("checkpoints/*")]):
        if folder.name in words - NO_DATA:
            files = (path for path in folder.rglob("*.*") if path.suffix != ".md")
            for path in sorted(files):
                yield path.relative_to(data).as_posix().encode() + b"\0" + path.read_bytes()
    for name, entry in _assets(data / "assets.toml").items():
        if name in words:
            yield json.dumps([name, entry], sort_keys=True).encode()


def _assets(catalogue: Path) -> dict[str, dict]:
    """What the catalogue says of each asset, but for what only describes it."""
    text = catalogue.read_text(encoding="utf-8") if catalogue.is_file() else ""
    tables = {name: t for name, t in tomllib.loads(text).items() if isinstance(t, dict)}
    return {
        name: {key: value for key, value in table.items() if key not in DESCRIPTIVE}
        for name, table in sorted(tables.items())
    }


@cache
def _words_of(text: str) -> frozenset[str]:
    return frozenset(_words(ast.parse(text)))


def _words(tree: ast.AST) -> Iterator[str]:
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    yield from (value for value in constants if isinstance(value, str))
