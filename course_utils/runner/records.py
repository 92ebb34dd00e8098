"""Records of claims over seeds and machines, data/replications/NN.json, as people read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from course_utils.runner.fingerprint import fingerprint
from course_utils.runner.notebooks import all_notebooks, load

RUNS, RUNS_AFTER_A_FAILURE = 10, 20
NONE, OLD = "–", "old"


def file_of(root: Path, stem: str) -> Path:
    """Where the record of a notebook ("09_decoding") is stored."""
    return root / "data" / "replications" / f"{stem[:2]}.json"


def read(root: Path, path: Path) -> dict[str, Any] | None:
    """Return a notebook's record, or None; `old` says that its code has changed since."""
    file = file_of(root, path.stem)
    if not file.is_file():
        return None
    record = json.loads(file.read_text(encoding="utf-8"))
    return record | {"old": record["code"] != fingerprint(load(path), path.stem)}


def by_claim(root: Path) -> dict[str, dict[str, Any]]:
    """Return claim id → its record, of every notebook that has one; each says if it is `old`."""
    found: dict[str, dict[str, Any]] = {}
    for path in all_notebooks(root):
        record = read(root, path) or {"claims": {}}
        found |= {id: claim | {"old": record["old"]} for id, claim in record["claims"].items()}
    return found


def must_hold(claim: dict[str, Any]) -> bool:
    """Whether a claim is a promise: not those of this machine's time, nor the undecided ones."""
    return claim["kind"] != "here" and claim["verdict"] != "undecided here"


def admitted(claim: dict[str, Any]) -> bool:
    """10 of 10, or 19 of 20: held in every run, or in all but one of twenty."""
    missed = claim["runs"] - claim["held"]
    return missed == 0 or (missed == 1 and claim["runs"] >= RUNS_AFTER_A_FAILURE)


def held_of_runs(claim: dict[str, Any] | None) -> str:
    """How often one claim held: "19 / 20", with "old" where the code has changed since; or –."""
    if not claim:
        return NONE
    return f"{claim['held']} / {claim['runs']}" + (f", {OLD}" if claim.get("old") else "")


def total(record: dict[str, Any] | None) -> str:
    """How often a notebook's measured claims held, all together, as `held_of_runs`.

    Checks (`follows`) can only fail through a bug, so they are not counted.
    """
    if not record:
        return NONE
    claims = record["claims"].values()
    counted = [claim for claim in claims if must_hold(claim) and claim["kind"] != "follows"]
    sums = {key: sum(claim[key] for claim in counted) for key in ("held", "runs")}
    return held_of_runs(sums | {"old": record["old"]}) if counted else NONE
