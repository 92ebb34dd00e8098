"""Scripts in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap


def run_python(code, **variables):
    """Run a script in a process of its own, with both of its streams captured."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | variables,
    )
