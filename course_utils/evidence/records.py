"""Records: how often a claim held over seeds and machines, from data/replications."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from course_utils.assets.catalogue import data_folder
from course_utils.showing import masked


def records_folder() -> Path:
    """Return where records are stored, among the course's own data."""
    return data_folder() / "replications"


@lru_cache(maxsize=1)
def records() -> dict[str, dict[str, Any]]:
    """Claim id → its record, from data/replications: how often it held, and what was measured."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(records_folder().glob("*.json")):
        found |= json.loads(file.read_text(encoding="utf-8"))["claims"]
    return found


def record_of(id: str) -> str:
    """What the box says of earlier runs, masked: storing a record changes no compared output."""
    if (record := records().get(id)) is None:
        return masked("no recorded runs yet")
    text = f"it held in {record['held']} of {record['runs']} recorded runs"
    spans = record.get("values", {}).values()
    if spans and all(low == high for low, _, high in spans):
        text += ", the same in all runs"
    return masked(text)
