"""What a planted bug is: a plausible wrong version, which the tests must reject."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from course_utils import checks


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


def refusing(right: Callable[..., Any], wrong: Callable[..., Any]) -> Callable[..., Any]:
    """`wrong`, but it refuses what `right` refuses: only its values can give it away."""

    @functools.wraps(right)
    def both(*arguments: Any, **options: Any) -> Any:
        arguments = tuple(list(a) if isinstance(a, Iterator) else a for a in arguments)
        right(*arguments, **options)
        return wrong(*arguments, **options)

    return both


def exercises() -> dict[str, Any]:
    """Id → exercise, of all notebooks."""
    return {
        f"{number}.{name}": exercise
        for number, module in checks.MODULES.items()
        for name, exercise in _checks(module).EXERCISES.items()
    }


def _checks(module: str) -> Any:
    return importlib.import_module(f"{checks.__name__}.{module}")


def home_of(exercise: Any) -> str:
    """The module that holds the exercise's reference, or "" where only the exercise has it."""
    module = exercise.reference.__module__.removeprefix("course_utils.")
    return "" if module.startswith("checks.") else module


def mistakes(exercise: Any, tests: str = "") -> list[Bug]:
    """An exercise's mistakes as bugs of its reference: each is written once, in the exercise."""
    right = exercise.reference
    versions = {
        sentence: wrong if isinstance(wrong, type) else refusing(right, wrong)
        for sentence, wrong in exercise.mistakes.items()
    }
    return [
        Bug(right.__name__, f"has it that {sentence}", wrong, tests)
        for sentence, wrong in versions.items()
    ]


def originals(*modules: str) -> dict[str, Any]:
    """Name → what it is before any bug is planted, of modules of course_utils together."""
    right: dict[str, Any] = {}
    for module in modules:
        home = vars(importlib.import_module(f"course_utils.{module}"))
        right |= {name: value for name, value in home.items() if not name.startswith("__")}
    return right
