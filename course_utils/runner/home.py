"""The home folder, where Jupyter keeps what its kernels are reached by."""

from __future__ import annotations

from pathlib import Path

from course_utils.runner.notebooks import UsageError

MISSING = "none: HOME is not set, and the system does not know this user"
REMEDY = "set HOME to a folder that you may write to"


def folder() -> Path | None:
    """The user's home folder; None without HOME where the system does not know the user."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def require() -> None:
    """Raise UsageError when there is no home folder: no kernel starts without one."""
    if folder() is None:
        raise UsageError(f"Jupyter needs a home folder and found {MISSING}; {REMEDY}")
