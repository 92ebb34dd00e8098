"""The ledger of claims, gathered from notebooks or from the outputs of a run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from course_utils.claims import ledger
from course_utils.runner import records
from course_utils.runner.notebooks import UsageError, all_notebooks, load


def gather(root: Path, folder: str | None = None) -> list[dict]:
    """Return all claims, by id: of the committed notebooks, or of the outputs under `folder`.

    A claim's record over seeds and machines stands under `record`, or None. Raises UsageError when
    `folder` holds no executed notebook.
    """
    paths = all_notebooks(root)
    if folder:
        paths = sorted(p for p in Path(folder).rglob("*.ipynb") if _is_output(p))
        if not paths:
            raise UsageError(f"no executed notebooks in {folder}; make some with course run")
    found = [claim for path in paths for claim in claims_of(load(path), path.stem)]
    recorded = records.by_claim(root)
    found = [claim | {"record": recorded.get(claim["id"])} for claim in found]
    return sorted(found, key=lambda claim: by_id(claim["id"]))


def _is_output(path: Path) -> bool:
    return not path.name.endswith(".partial.ipynb") and ".ipynb_checkpoints" not in path.parts


def twice(claims: list[dict]) -> list[str]:
    """Return a sentence for each id that was measured more than once."""
    counts = Counter(claim["id"] for claim in claims)
    sentences = []
    for id, count in counts.items():
        if count > 1:
            where = ", ".join(claim["notebook"] for claim in claims if claim["id"] == id)
            sentences.append(f"{id} stands {count} times ({where}); give each part a suffix")
    return sentences


def claims_of(notebook: dict, name: str) -> list[dict]:
    """Return the claims in a notebook's outputs; one that failed is there with holds = False."""
    found = []
    for cell in notebook["cells"]:
        outputs = cell.get("outputs", [])
        found += [{"notebook": name, **entry} for entry in ledger(outputs)]
        found += [_failed_claim(name, output) for output in outputs if _is_failed_claim(output)]
    return found


NOT_REACHED = "not reached"


def unreached(stored: dict, name: str, reached: list[dict]) -> list[dict]:
    """Return the claims of a notebook that stopped before them: they count as not held.

    Which there are is known from its stored outputs.
    """
    there = {claim["id"] for claim in reached}
    return [
        claim | {"holds": False, "free": False, "verdict": NOT_REACHED, "values": {}, "null": {}}
        for claim in claims_of(stored, name)
        if claim["id"] not in there
    ]


def _is_failed_claim(output: dict) -> bool:
    return output.get("output_type") == "error" and output["ename"] == "ClaimFailed"


def _failed_claim(name: str, output: dict) -> dict:
    text = output["evalue"]
    return {
        "notebook": name,
        "id": text.split(" ", 1)[0],
        "text": text,
        "holds": False,
        "verdict": "does not hold",
        "values": {},
    }


def by_id(id: str) -> tuple[str, int, str]:
    """Sort key for claim ids: A2 before A10, I8a before I8b."""
    digits = "".join(character for character in id if character.isdigit())
    return id[:1], int(digits or 0), id


def kind_of(claim: dict) -> str:
    """A claim's kind: measured, follows or here; – where its notebook stopped at it."""
    return claim.get("kind", "–")


def failed(claim: dict) -> bool:
    """Whether a claim was measured and did not hold; some are free: of time, or undecided."""
    return not claim["holds"] and not claim.get("free", False)


def verdict_of(claim: dict) -> str:
    """A claim's verdict with its condition, or that another machine's time was needed for it."""
    verdict = f"{claim['verdict']} {claim.get('condition', '')}".strip()
    missed = kind_of(claim) == "here" and not claim["holds"]
    return f"not on this machine; elsewhere: {verdict}" if missed else verdict


def held(claims: list[dict]) -> str:
    """Claims that held, of those that were measured; those about time apart: "7/7, timing 1/2"."""
    timing = [claim["holds"] for claim in claims if kind_of(claim) == "here"]
    others = [claim["holds"] for claim in claims if kind_of(claim) != "here"]
    parts = [f"{sum(others)}/{len(others)}"] if others else []
    parts += [f"timing {sum(timing)}/{len(timing)}"] if timing else []
    return ", ".join(parts) or "–"
