"""What a planted bug is: a plausible wrong version, which the tests must reject."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bug:
    """One wrong version of a module's `function`, in tests/planted/<part>/<module>.py.

    `tests` is the pytest -k expression of the tests that must notice, by default the function's
    name; `where` the module whose tests these are, by default its own. Tests on real models are
    left out: those here must notice within a second or so.
    `exercise` is the id of an exercise whose check must reject the wrong version too, or "".
    """

    function: str
    description: str
    wrong: Callable[..., Any]
    tests: str = ""
    where: str = ""
    exercise: str = ""

    @property
    def selection(self) -> str:
        return self.tests or self.function.lower().strip("_")


def originals(*modules: str) -> dict[str, Any]:
    """Name → what it is before any bug is planted, of modules of course_utils together."""
    right: dict[str, Any] = {}
    for module in modules:
        home = vars(importlib.import_module(f"course_utils.{module}"))
        right |= {name: value for name, value in home.items() if not name.startswith("__")}
    return right
