"""The ledger of claims, gathered from notebooks or from the outputs of a run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from course_utils.runner.notebooks import UsageError, all_notebooks, load
from course_utils.runner.readme import by_id
from course_utils.runner.results import claims_of


def gather(root: Path, folder: str | None = None) -> list[dict]:
    """Return all claims, by id: of the committed notebooks, or of the outputs under `folder`.

    Raises UsageError when `folder` holds no executed notebook.
    """
    paths = all_notebooks(root)
    if folder:
        paths = sorted(p for p in Path(folder).rglob("*.ipynb") if _is_output(p))
        if not paths:
            raise UsageError(f"no executed notebooks in {folder}; make some with course run")
    found = [claim for path in paths for claim in claims_of(load(path), path.stem)]
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
