"""Rows of a grid of trainings on the disk: how they are written and read again.

A recipe's rows are NamedTuples of texts and numbers; `runs.json` holds their columns, a row a line,
and the facts of how they were made.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from course_utils.assets.catalogue import AssetError, data_folder
from course_utils.profiles import threads

RUNS = "runs.json"


def folder_of(name: str) -> Path:
    """data/checkpoints/NAME; AssetError, with the command that makes it, where it has no rows."""
    folder = data_folder() / "checkpoints" / name
    if not (folder / RUNS).is_file():
        raise AssetError(
            f"there are no stored runs {name!r} in {folder.parent}; restore them from the "
            f"repository, or make them with `course train {name}`"
        )
    return folder


def facts_now(
    profile: str, seed: int, device: torch.device | str, **sizes: object
) -> dict[str, Any]:
    """How rows are made: the profile, the seed, this machine, and the sizes of the trainings.

    A tuple becomes a text, as it is read from the file again.

    >>> facts = facts_now("cpu", 0, "cpu", stops=(0, 15), batch=12)
    >>> facts["profile"], facts["stops"], facts["batch"]
    ('cpu', '0, 15', 12)
    """
    return {
        "profile": profile,
        "seed": seed,
        "threads": threads(),
        "device": str(device),
        "machine": platform.machine(),
        "torch": torch.__version__,
        **{name: _listed(value) for name, value in sizes.items()},
    }


def _listed(value: object) -> object:
    return ", ".join(f"{x:g}" for x in value) if isinstance(value, tuple) else value


def write_rows(folder: Path, rows: Sequence[Any], facts: dict) -> None:
    """Write rows (NamedTuples of one kind) and facts; floats keep five digits.

    ValueError when there is no row.
    """
    if not rows:
        raise ValueError("there is no row to store; the grid is empty")
    stored = {"facts": facts, "columns": rows[0]._fields, "runs": [_rounded(row) for row in rows]}
    lines = json.dumps(stored, ensure_ascii=False).replace("], [", "],\n[")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RUNS).write_text(lines + "\n", encoding="utf-8")


def _rounded(row: Any) -> list:
    """Five digits of a float, so that rates of 1e-5 survive."""
    return [float(f"{value:.5g}") if isinstance(value, float) else value for value in row]


def read_rows(folder: Path, kind: type) -> list[Any]:
    """The rows again, as `kind`; ValueError when they have other columns."""
    stored = json.loads((folder / RUNS).read_text(encoding="utf-8"))
    if tuple(stored["columns"]) != kind._fields:
        raise ValueError(
            f"{folder / RUNS} has the columns {stored['columns']}, not {list(kind._fields)}; "
            "restore it, or make it again"
        )
    return [kind(*row) for row in stored["runs"]]


def read_facts(folder: Path) -> dict:
    """How the rows were made."""
    return json.loads((folder / RUNS).read_text(encoding="utf-8"))["facts"]


def rows_so_far(folder: Path, kind: type, facts: dict) -> list[Any]:
    """The rows of a recipe that was stopped, or none; ValueError where they were made otherwise."""
    if not (folder / RUNS).is_file():
        return []
    if (found := read_facts(folder)) != facts:
        odd = sorted(k for k in found.keys() | facts if found.get(k) != facts.get(k))
        raise ValueError(
            f"{folder} was made with another {', '.join(odd)}; remove it to begin anew"
        )
    return read_rows(folder, kind)


class Grid:
    """The rows of a recipe that can be stopped: those so far, and new ones, written one by one.

    `out` is the folder, or data/checkpoints/NAME. ValueError where rows are there that were made
    otherwise than `facts` say.
    """

    def __init__(self, name: str, kind: type, facts: dict, out: Path | None = None) -> None:
        self.folder = Path(out) if out else data_folder() / "checkpoints" / name
        self.facts, self.rows = facts, rows_so_far(self.folder, kind, facts)

    def add(self, *rows: Any) -> None:
        """Keep rows, on the disk too."""
        self.rows += rows
        write_rows(self.folder, self.rows, self.facts)

    def finish(self, card: str, *, seconds: float | None = None, **known: object) -> Path:
        """Write the card, a text with fields, and return the folder.

        Its fields: n (rows), minutes (of `seconds`, or of all rows'), the facts, and what is known.
        """
        spent = sum(row.seconds for row in self.rows) if seconds is None else seconds
        fields = {"n": len(self.rows), "minutes": round(spent / 60, 1), **self.facts, **known}
        (self.folder / "README.md").write_text(card.format(**fields), encoding="utf-8")
        return self.folder
