"""Whether the code that runs is that of the checkout one stands in."""

from __future__ import annotations

import os
from pathlib import Path

import course_utils

REMEDY = "run `make install` in this checkout, or `pip install -e .` in an environment of your own"


def other_code(root: Path) -> str:
    """Say whose code runs where it is not the checkout's own; nothing where all is well.

    An installation names the absolute folder of its checkout: a copied one runs the original's.
    """
    own, running = root / "course_utils", Path(course_utils.__file__).parent
    if not own.is_dir() or os.path.samefile(own, running):
        return ""
    return f"the code in {running} runs, not that of this checkout in {own}"


def require_own_code() -> None:
    """Refuse to run another checkout's code on this one's notebooks.

    Raises UsageError with the remedy; outside of a checkout there is nothing to compare.
    """
    from course_utils.runner.notebooks import UsageError, find_root

    try:
        root = find_root()
    except UsageError:
        return
    if told := other_code(root):
        raise UsageError(f"{told}; {REMEDY}")
