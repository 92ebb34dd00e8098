"""What the tests of figures share."""

from __future__ import annotations

from typing import Any


def is_picture(output: Any) -> bool:
    """Whether an output is a PNG that says in words what it shows."""
    return output.data.startswith(b"\x89PNG") and bool(alt_text_of(output))


def alt_text_of(output: Any) -> str:
    """What a shown picture says in words, where a notebook keeps it."""
    _, metadata = output._repr_png_()
    return metadata["alt"]
