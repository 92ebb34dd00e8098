"""What the tests of figures share."""

from __future__ import annotations

from typing import Any


def is_picture(output: Any) -> bool:
    """Whether an output is a PNG."""
    return output.data.startswith(b"\x89PNG")
