"""`course check`: committed outputs against a fresh run, by nbval and the guard's plugin."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from course_utils.runner.execution import kernel_environment
from course_utils.runner.fingerprint import fingerprint
from course_utils.runner.notebooks import find_root, load, select


def check(names: Sequence[str] = (), *, jobs: int = 1, root: Path | None = None) -> int:
    """Run nbval over notebooks, `jobs` at a time, and return pytest's exit status.

    Says at the end which were recorded with other code; that alone is no failure.
    """
    root = root or find_root()
    paths = select(names, root)
    if not paths:
        print("no notebooks to check")
        return 0
    jobs = min(jobs, len(paths))
    command = [sys.executable, "-m", "pytest", "--nbval", "--quiet"]
    # Named, because a package installed before its entry point was written does not offer it.
    command += ["-p", "course_utils.runner.guard_plugin"]
    # It would write into the checkout, which may be read-only.
    command += ["-p", "no:cacheprovider"]
    # Named, because for a notebook elsewhere pytest would look for settings there.
    command += ["--config-file", str(root / "pyproject.toml")]
    command += ["--numprocesses", str(jobs), "--dist", "loadfile"] if jobs > 1 else []
    command += [] if sys.stdout.isatty() else ["--color=no"]
    environment = kernel_environment(jobs) | {"COURSE_STRICT": "1"}
    status = subprocess.run([*command, *map(str, paths)], cwd=root, env=environment).returncode
    for path in filter(is_stale, paths):
        print(f"{path.stem}: recorded with other code; course record {path.stem} stores it anew")
    return status


def is_stale(path: Path) -> bool:
    """Whether what a recorded notebook computes with is not what it was recorded with."""
    notebook = load(path)
    recorded = notebook["metadata"].get("course", {}).get("fingerprint")
    return recorded not in (None, fingerprint(notebook, path.stem))
