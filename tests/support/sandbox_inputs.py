"""What the tests of the sandbox share."""

from __future__ import annotations

import psutil
import pytest

from course_utils.prompting import sandbox

OUTSIDE_PYTHON = tuple(layer for layer in sandbox.LAYERS if layer not in ("language", "audit"))
KERNEL = sandbox.guarantees().level == "kernel"
needs_kernel = pytest.mark.skipif(not KERNEL, reason="no system call filter on this machine")
MARKER = 918_273_645  # a seed that stands in the command line of our children and of their children
MARKED = f'"seed": {MARKER}'


def leftovers() -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if MARKED in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found
