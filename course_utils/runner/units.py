"""Durations and sizes in words."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """7.2 → "7 s", 84 → "1.4 min", 5400 → "1.5 h"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def memory(mb: float) -> str:
    """340 → "340 MB", 2100 → "2.1 GB"."""
    return f"{mb:.0f} MB" if mb < 1000 else f"{mb / 1000:.1f} GB"
