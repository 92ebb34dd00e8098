"""Which notebooks there are, what they are called, and the parameters each declares."""

from __future__ import annotations

import ast
import difflib
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path

# Cells that papermill adds to an executed notebook: they have no counterpart in its source.
ERROR_TAG = "papermill-error-cell-tag"  # where a notebook stopped, and a banner above all cells
ADDED_TAGS = {"injected-parameters", ERROR_TAG}
BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{repository}/blob/main/notebooks/{file})"
)


class UsageError(ValueError):
    """A wrong name on the command line: one sentence that lists the choices."""


def find_root(start: Path | None = None) -> Path:
    """Return the course's root: the nearest folder upwards whose pyproject.toml has [tool.course].

    Searches from `start` (default: the working folder), then from the installed package.
    Raises UsageError when neither lies in a checkout.
    """
    for origin in (start or Path.cwd(), Path(__file__)):
        for folder in (origin.resolve(), *origin.resolve().parents):
            if is_root(folder / "pyproject.toml"):
                return folder
    raise UsageError(
        f"no course here: neither {Path.cwd()} nor a folder above it holds the course's "
        "pyproject.toml. Change into a checkout of the course and try again."
    )


def is_root(path: Path) -> bool:
    """Whether this pyproject.toml is there and is a course's: it has [tool.course]."""
    return path.is_file() and "course" in settings(path).get("tool", {})


def settings(path: Path) -> dict:
    """Return the contents of pyproject.toml."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def repository(root: Path) -> str:
    """Return owner/name from [tool.course] in pyproject.toml."""
    return settings(root / "pyproject.toml")["tool"]["course"]["repository"]


def badge(file: str, repository: str) -> str:
    """The markdown of a notebook's badge."""
    return BADGE.format(repository=repository, file=file)


def all_notebooks(root: Path) -> list[Path]:
    """Return the course's notebooks in order."""
    return sorted((root / "notebooks").glob("*.ipynb"))


def select(names: Iterable[str], root: Path) -> list[Path]:
    """Return the notebooks that `names` mean: 09, 9, 09_decoding, a path; all for no names.

    Raises UsageError for an unknown name, naming the choices and the nearest one.
    """
    available = all_notebooks(root)
    found = [_find(name, available) for name in names] or available
    chosen = list(dict.fromkeys(found))
    stems = [path.stem for path in chosen]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise UsageError(
            f"two different notebooks are called {twice[0]!r}; their outputs would overwrite each "
            "other. Run them one after the other with different --out folders."
        )
    return chosen


def _find(name: str, available: list[Path]) -> Path:
    if name.endswith(".ipynb") and Path(name).is_file():
        return Path(name).resolve()
    wanted = Path(name).name.removesuffix(".ipynb")
    wanted = wanted.zfill(2) if wanted.isdigit() else wanted
    matches = [path for path in available if wanted and path.stem.startswith(wanted)]
    exact = [path for path in matches if path.stem == wanted]
    if len(exact or matches) == 1:
        return (exact or matches)[0]
    raise UsageError(unknown("notebook", name, [path.stem for path in matches or available]))


def unknown(kind: str, name: str, choices: Iterable[str]) -> str:
    """One sentence: what was not found, the nearest choice, and all of them."""
    choices = list(choices)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.4)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    listed = ", ".join(choices) if choices else "there are none"
    return f"no {kind} {name!r}.{guess} Choices: {listed}."


def load(path: Path) -> dict:
    """Read a notebook as plain JSON. Raises UsageError when it is not one."""
    remedy = "Restore it from version control."
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read as a notebook ({error}). {remedy}") from error
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise UsageError(f"{path} is no notebook: it has no list of cells. {remedy}")
    return notebook


def joined(notebook: dict) -> dict:
    """Return a copy in which texts stored as lists of lines are strings."""
    import nbformat
    from nbformat.v4.rwbase import rejoin_lines

    return rejoin_lines(nbformat.from_dict(notebook))


def source_of(cell: dict) -> str:
    """Return a cell's source as one string."""
    source = cell["source"]
    return source if isinstance(source, str) else "".join(source)


def tags_of(cell: dict) -> list[str]:
    """Return a cell's tags."""
    return cell.get("metadata", {}).get("tags", [])


def tagged(notebook: dict, tag: str) -> dict | None:
    """Return the first cell with `tag`, or None."""
    return next((cell for cell in notebook["cells"] if tag in tags_of(cell)), None)


def code_cells(notebook: dict) -> list[dict]:
    """Return the code cells in order."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def title_of(notebook: dict, default: str = "") -> str:
    """Return the text of the first level-one heading."""
    for cell in notebook["cells"]:
        for line in source_of(cell).splitlines() if cell["cell_type"] == "markdown" else ():
            if line.startswith("# "):
                return line[2:].strip()
    return default


def exempt_cells(notebook: dict) -> int:
    """Count the code cells whose output the guard does not compare."""
    return sum("nbval-ignore-output" in tags_of(cell) for cell in code_cells(notebook))


def parameters_of(notebook: dict) -> list[str]:
    """Return the names assigned in the cell tagged `parameters`."""
    cell = tagged(notebook, "parameters")
    targets: list[ast.expr] = []
    for statement in ast.parse(source_of(cell)).body if cell else ():
        if isinstance(statement, ast.Assign):
            targets += statement.targets
        elif isinstance(statement, ast.AnnAssign):
            targets.append(statement.target)
    return [target.id for target in targets if isinstance(target, ast.Name)]


def parse_value(text: str) -> object:
    """Read `-p NAME VALUE`'s value: a Python literal (3, 0.5, True, None, [1, 2]) or the text.

    What JSON can't hold (..., 1j, b"x", {1, 2}) is text, too: so is a parameter stored and sent.
    """
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return value if _is_json(value) else text


def _is_json(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(each) for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_json, value))
    return value is None or isinstance(value, (bool, int, float, str))


def parameters_for(notebooks: dict[str, dict], given: dict[str, object]) -> dict[str, dict]:
    """Deal the given parameters out: each notebook gets those that it declares.

    Raises UsageError for a name that none of the notebooks declares.
    """
    declared = {name: parameters_of(notebook) for name, notebook in notebooks.items()}
    known = list(dict.fromkeys(p for names in declared.values() for p in names))
    for name in given:
        if name not in known:
            raise UsageError(unknown("parameter", name, known))
    return {
        notebook: {name: value for name, value in given.items() if name in names}
        for notebook, names in declared.items()
    }
