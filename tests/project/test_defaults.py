"""Every default of the package's public functions, pinned: another default gives other numbers.

Where a change is meant, write the table anew: `python tests/project/test_defaults.py`.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import course_utils

TABLE = Path(__file__).with_name("defaults.toml")
HEAD = "# Every default of course_utils, one function a line. Written by test_defaults.py.\n"


def modules() -> Iterator[Any]:
    for found in pkgutil.walk_packages(course_utils.__path__, "course_utils."):
        yield importlib.import_module(found.name)


def callables(module: Any) -> Iterator[tuple[str, Any]]:
    """The module's own public functions and classes, and the methods of these."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", "") != module.__name__:
            continue
        if inspect.isfunction(value):
            yield name, value
        if inspect.isclass(value) and not issubclass(value, BaseException | str):
            yield name, value
            for method, body in vars(value).items():
                if inspect.isfunction(body) and (method == "__call__" or method[0] != "_"):
                    yield f"{name}.{method}", body


def shown(default: Any) -> str:
    """A default as text that is the same in every folder and every process."""
    if isinstance(default, Path):
        return "a path"
    if callable(default):
        return getattr(default, "__qualname__", type(default).__name__)
    return repr(default)


def defaults(function: Any) -> str:
    found = inspect.signature(function).parameters.values()
    given = (p for p in found if p.default is not p.empty)
    return ", ".join(f"{p.name}={shown(p.default)}" for p in given)


def today() -> dict[str, dict[str, str]]:
    table = {}
    for module in modules():
        lines = {name: text for name, value in callables(module) if (text := defaults(value))}
        if lines:
            table[module.__name__.removeprefix("course_utils.")] = dict(sorted(lines.items()))
    return dict(sorted(table.items()))


def as_toml(table: dict[str, dict[str, str]]) -> str:
    lines = [HEAD]
    for module, functions in table.items():
        lines.append(f"[{json.dumps(module)}]\n")
        for name, text in functions.items():
            lines.append(f"{json.dumps(name)} = {json.dumps(text, ensure_ascii=False)}\n")
        lines.append("\n")
    return "".join(lines).rstrip() + "\n"


def changes(stored: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """One sentence for each function whose defaults are others than those in the table."""
    said = []
    for module in sorted(stored.keys() | found.keys()):
        old, new = stored.get(module, {}), found.get(module, {})
        said += [
            f"{module}.{name}: {new.get(name, 'no default')}, stored {old.get(name, 'no default')}"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
        ]
    return said


def test_no_default_has_changed() -> None:
    stored = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    changed = "\n".join(changes(stored, today()))
    assert not changed, f"{changed}\nif it is meant: python tests/project/test_defaults.py"


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"m": {"f": "k=2"}}, ["m.f: k=2, stored k=1"]),
        ({"m": {}}, ["m.f: no default, stored k=1"]),
        ({"m": {"f": "k=1", "g": "n=None"}}, ["m.g: n=None, stored no default"]),
        ({"m": {"f": "k=1"}}, []),
    ],
)
def test_a_change_is_named(found: dict, said: list[str]) -> None:
    assert changes({"m": {"f": "k=1"}}, found) == said


def test_defaults_of_every_kind_are_seen() -> None:
    class Kind:
        def __call__(self, a: int, b: float = 0.5, *, c: Any = len, d: Any = Path("x")) -> None: ...

        def _hidden(self, e: int = 1) -> None: ...

    Kind.__module__ = "kind"
    module = type("Module", (), {"__name__": "kind", "Kind": Kind})()
    module.Kind = Kind
    found = {name: defaults(value) for name, value in callables(module)}
    assert found == {"Kind": "", "Kind.__call__": "b=0.5, c=len, d=a path"}


if __name__ == "__main__":
    TABLE.write_text(as_toml(today()), encoding="utf-8")
    print("written:", TABLE)
