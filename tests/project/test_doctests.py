"""The worked numbers in the docstrings of course_utils come out."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import course_utils

PACKAGE = Path(course_utils.__file__).parent
WITH_EXAMPLES = [
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    for file in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in file.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples(module: str) -> None:
    """`pytest --doctest-modules course_utils` runs the same; here no module is imported twice."""
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert tried, f"{module} holds >>> outside of docstrings"
    assert not failed, "what was expected and what came out is printed above"
