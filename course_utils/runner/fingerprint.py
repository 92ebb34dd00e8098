"""What a notebook's outputs depend on, as one hash: its code and the package's code under it."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from course_utils.runner.notebooks import code_cells, source_of, tags_of

PACKAGE = Path(__file__).resolve().parents[1]


def fingerprint(notebook: dict, name: str = "", package: Path = PACKAGE) -> str:
    """Hash the code cells and every module of the package that they import, however indirectly.

    `name` is the notebook's ("09_decoding"): exercise checks are looked up by its number at run
    time, so `checks/nb09.py` counts as imported. Markdown cells do not count, nor does the cell
    that installs the course on Colab.
    """
    cells = (cell for cell in code_cells(notebook) if "bootstrap" not in tags_of(cell))
    sources = [source_of(cell) for cell in cells]
    modules = _closure(sources, package)
    checks = package / "checks" / f"nb{name[:2]}.py"
    if package / "exercises.py" in modules and checks.is_file():
        modules |= {checks} | _closure([_read(checks)], package)
    if package / "assets.py" in modules:
        modules |= _own_data(package)
    digest = hashlib.sha256(json.dumps(sources).encode())
    for path in sorted(modules):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def run_key(notebook: dict, name: str, parameters: dict) -> str:
    """Hash what a run's outputs depend on: the fingerprint and the parameters."""
    text = fingerprint(notebook, name) + json.dumps(parameters, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _own_data(package: Path) -> set[Path]:
    """Data and checkpoints of the course: beside a checkout's package, inside an installed one."""
    folders = (package.parent / "data", package / "_data")
    files = (path for folder in folders for path in folder.rglob("*.*") if path.is_file())
    return {path for path in files if path.suffix not in {".md", ".py", ".pyc"}}


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _parse(source: str) -> ast.Module:
    """Parse Python or a cell; IPython's own lines (%magic, !command) become calls."""
    try:
        return ast.parse(source)
    except SyntaxError:
        from IPython.core.inputtransformer2 import TransformerManager

        try:
            return ast.parse(TransformerManager().transform_cell(source))
        except SyntaxError:  # the notebook will say so itself, in the cell that has it
            return ast.Module([], [])


def _closure(sources: list[str], package: Path) -> set[Path]:
    """Files of the package's modules that `sources` import, and that those import in turn."""
    found: set[Path] = set()
    waiting = [path for source in sources for path in _imports(source, package)]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imports(_read(path), package, path)
    return found


def _imports(source: str, package: Path, path: Path | None = None) -> list[Path]:
    """Files of the package named by the import statements of one module or cell."""
    names = (name for node in ast.walk(_parse(source)) for name in _imported(node, package, path))
    return [file for name in names if (file := _file_of(name, package))]


def _imported(node: ast.AST, package: Path, path: Path | None) -> Iterator[str]:
    """Absolute dotted names that one import statement may load as modules."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level and path:
            parts = (package.name, *path.relative_to(package).with_suffix("").parts)
            base = ".".join([*parts[: len(parts) - node.level], *filter(None, [node.module])])
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)


def _file_of(name: str, package: Path) -> Path | None:
    """`course_utils.metrics` → its file; None for what is no module of the package."""
    first, *rest = name.split(".")
    if first != package.name:
        return None
    place = package.joinpath(*rest)
    files = (place / "__init__.py", place.with_suffix(".py"))
    return next((file for file in files if file.is_file()), None)
