"""The README's table of notebooks, made from the notebooks."""

from __future__ import annotations

from pathlib import Path

from course_utils.runner import ledger, notebooks, outputs, records
from course_utils.runner.units import duration
from course_utils.showing import markdown_row

BEGIN, END = "<!-- notebooks: written by `course badges` -->", "<!-- end of notebooks -->"


HEADINGS = ("notebook", "time on two cores", "claims", "held / runs", "cells not compared", "")


def table(root: Path) -> str:
    """Return the table as markdown: title, minutes, claims, their record, exempt cells, badge."""
    owner = notebooks.repository(root)
    rows = [_row(root, path, owner) for path in notebooks.all_notebooks(root)]
    head = [markdown_row(HEADINGS), "|" + "---|" * len(HEADINGS)]
    return "\n".join([*head, *rows])


def _row(root: Path, path: Path, owner: str) -> str:
    notebook = notebooks.load(path)
    seconds = notebook["metadata"].get("course", {}).get("seconds")
    ids = {claim["id"] for claim in ledger.claims_of(notebook, path.stem)}
    title = notebooks.title_of(notebook, path.stem)
    code = len(notebooks.code_cells(notebook))
    cells = (
        f"[{path.stem[:2]} {title}](notebooks/{path.name})",
        duration(seconds) if seconds else "not recorded",
        " ".join(sorted(ids, key=ledger.by_id)) or "–",
        records.total(records.read(root, path)),
        f"{notebooks.exempt_cells(notebook)} of {code}",
        notebooks.badge(path.name, owner),
    )
    return markdown_row(cells)


def refreshed(root: Path) -> tuple[str, str] | None:
    """Return README.md as it is and as it should be; None when it has no place for the table."""
    path = root / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if BEGIN not in text or END not in text:
        return None
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    return text, f"{before}{BEGIN}\n{table(root)}\n{END}{after}"


def is_stale(root: Path) -> bool:
    """Whether README.md has a table and it is not the current one."""
    texts = refreshed(root)
    return texts is not None and texts[0] != texts[1]


def refresh(root: Path) -> bool:
    """Rewrite the README's table if it is stale; return whether it was."""
    stale = is_stale(root)
    if stale:
        outputs.store(refreshed(root)[1], root / "README.md")
    return stale
