"""The one writer of the sets that the course authored: write their files, or compare them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def as_lines(rows: Iterable[Any]) -> str:
    """Rows as lines of JSON, the form of every split in data/."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_or_compare(folder: Path, files: Mapping[str, str], arguments: list[str]) -> int:
    """Write name → text into `folder`, or with --check compare; return 1 when a file differs."""
    stale = []
    for name, text in files.items():
        file = folder / name
        if "--check" not in arguments:
            file.write_bytes(text.encode())
        elif not file.is_file() or file.read_bytes() != text.encode():
            stale.append(name)
    for name in stale:
        print(f"{name} is not what the generator writes; run it without --check")
    return int(bool(stale))
