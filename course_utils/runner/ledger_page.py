"""The ledger of claims as a page of the web site, gathered when the site is built."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

from course_utils.runner import ledger, records
from course_utils.runner.display import measured_values, null_values

INTRODUCTION = """\
# Ledger of claims

Each claim as it came out in the run whose outputs these pages show. *Measured* claims were decided
by data, training or sampling, and carry a null, a world in which the same test must be false;
*follows* marks what a theorem, a construction or a count makes true; *here* depends on the machine.
“Held / runs” is the record over seeds and instruction sets; “old” says that the notebook's code has
changed since.
"""


def page(root: Path, course: Path | None = None) -> str:
    """Return the page in Markdown: a section a notebook of `root`, a paragraph a claim.

    Records are read under `course`, the checkout, where `root` is a copy made for the site.
    """
    claims = ledger.gather(root)
    recorded = records.by_claim(course or root)
    parts = [INTRODUCTION]
    by_notebook = sorted(claims, key=lambda claim: claim["notebook"])
    for name, group in groupby(by_notebook, key=lambda claim: claim["notebook"]):
        parts.append(f"## [{_plain(name)}](notebooks/{name}.ipynb)\n")
        parts += [_paragraph(claim | {"record": recorded.get(claim["id"])}) for claim in group]
    return "\n".join(parts)


def _paragraph(claim: dict) -> str:
    """One claim: its sentence, then a line for each thing that is known of it."""
    values = " · ".join(f"{name} {value}" for name, value in measured_values(claim))
    said = {
        "kind": ledger.kind_of(claim),
        "course notes say": f"“{claim['notes']}”" if claim.get("notes") else "",
        "verdict": ledger.verdict_of(claim),
        "held / runs": records.held_of_runs(claim["record"]),
        "measured": values,
        **dict(null_values(claim)),
        "scope": claim.get("scope", ""),
    }
    lines = [f"- {_plain(name)}: {_plain(text)}" for name, text in said.items() if text]
    return "\n".join([f"**{claim['id']}** {_plain(claim['text'])}\n", *lines, ""])


def _plain(text: str) -> str:
    """Text in which nothing is markup: no formula, no emphasis, no link, no tag."""
    return re.sub(r"([\\`*_$<>\[\]{}|#~^])", r"\\\1", " ".join(text.split()))
