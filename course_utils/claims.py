"""Claims: statements that a notebook measures, and that stop it when they do not hold."""

from __future__ import annotations

import html
import math
import re
from typing import Any

from course_utils.showing import Measured, masked, measured, plain_value, show, table

VERDICTS = ("holds", "holds if", "corrected")
_ID = re.compile(r"[A-Z]\d+[a-z]?")


class ClaimFailed(AssertionError):  # noqa: N818  the name says what happened
    """A claim's predicate was false for the numbers measured in this run."""


def _shown(value: Any) -> str:
    """Exact values as they are; floats, and lists that hold one, between the brackets."""
    if isinstance(value, Measured):
        return str(value)
    plain = plain_value(value)
    items = plain if isinstance(plain, list) else [plain]
    if any(isinstance(item, float) for item in items):
        return str(measured(plain))
    return ", ".join(str(item) for item in items)


def _as_measured(value: Any) -> str:
    return str(value) if isinstance(value, Measured) else str(measured(value))


def claim(
    id: str,
    text: str,
    /,
    *,
    holds: Any,
    verdict: str = "holds",
    condition: str = "",
    timing: bool = False,
    **values: Any,
) -> None:
    """State one claim of the ledger with the numbers it was measured by, or stop the notebook.

    `holds` is the predicate's outcome (a bool, or a numpy/torch bool of one element), `verdict`
    says what became of the course notes' sentence: "holds", "holds if" (name the `condition`) or
    "corrected". Floats among `values` are shown as measured, integers and strings exactly.
    `timing`: the predicate compares times, which another machine measures otherwise. Verdict and
    values are then all shown as measured, and the notebook goes on whatever came out.
    Raises ClaimFailed with the numbers when `holds` is false, ValueError for a malformed claim.
    """
    outcome = _checked(id, holds, verdict, condition, values)
    shown = _as_measured if timing else _shown
    rows = {name.replace("_", " "): shown(value) for name, value in values.items()}
    if not outcome and not timing:
        numbers_ = "; ".join(f"{name} = {value}" for name, value in rows.items())
        raise ClaimFailed(f"{id} does not hold: {text}. Measured: {numbers_}")
    says = _says(outcome, verdict, condition, timing)
    metadata = {
        "id": id,
        "text": text,
        "holds": outcome,
        "timing": timing,
        "verdict": verdict,
        "condition": condition,
        "values": {name: _json_safe(plain_value(value)) for name, value in values.items()},
    }
    _display(id, text, says, rows, metadata)
    _seen[id] = (id, text, says, ", ".join(f"{k} {v}" for k, v in rows.items()))


def _checked(id: str, holds: Any, verdict: str, condition: str, values: dict) -> bool:
    """The predicate's outcome as a bool; ValueError when any part of the claim is malformed."""
    if not _ID.fullmatch(id):
        raise ValueError(f"claim id {id!r} is not a capital letter, digits, and maybe a suffix")
    if verdict not in VERDICTS:
        raise ValueError(f"verdict is {verdict!r}; it must be one of {', '.join(VERDICTS)}")
    if verdict == "holds if" and not condition:
        raise ValueError(f"claim {id} holds if … what? Give condition='…'")
    if not values:
        raise ValueError(f"claim {id} shows no measured value; nothing is asserted unmeasured")
    outcome = plain_value(holds)
    if not isinstance(outcome, bool):
        raise ValueError(f"claim {id}: holds is {holds!r}; it must be one boolean")
    return outcome


def _says(outcome: bool, verdict: str, condition: str, timing: bool) -> str:
    says = f"holds if {condition}" if verdict == "holds if" else verdict
    if not timing:
        return says
    return masked(says if outcome else f"not on this machine; elsewhere: {says}")


def _json_safe(value: Any) -> Any:
    """JSON knows no NaN and no infinity: those become text."""
    if isinstance(value, list):
        return [_json_safe(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _display(id: str, text: str, verdict: str, rows: dict[str, str], metadata: dict) -> None:
    shown = " · ".join(f"{name} {value}" for name, value in rows.items())
    cells = " · ".join(
        f"{html.escape(name)}&nbsp;<b>{html.escape(value)}</b>" for name, value in rows.items()
    )
    row = (
        '<div style="border-left:4px solid #0072B2;padding:.35em .8em;margin:.4em 0">'
        f"<b>{id}</b> {html.escape(text)} <i>— {html.escape(verdict)}</i><br>"
        f'<span style="font-size:92%">{cells}</span></div>'
    )
    plain = f"{id}  {text} — {verdict}\n    {shown}"
    show(row, plain, claim=metadata)


def ledger(outputs: list[dict]) -> list[dict]:
    """Return the claims that stand in a list of notebook outputs (nbformat dictionaries)."""
    found = (output.get("metadata", {}).get("claim") for output in outputs)
    return [entry for entry in found if entry]


def claims_table() -> None:
    """Show every claim measured so far in this kernel, one row each: a notebook's closing."""
    if not _seen:
        raise ValueError("no claim was measured in this kernel yet; run the cells above first")
    table(("claim", "statement", "verdict", "measured"), list(_seen.values()))


_seen: dict[str, tuple[str, str, str, str]] = {}
