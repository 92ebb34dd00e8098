"""The box of a claim: what it says in a notebook, and the metadata that the ledger gathers."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from course_utils.evidence.judging import Line
from course_utils.showing import Measured, masked, measured, plain_value, show

COLOURS = {"held": "#0072B2", "failed": "#E69F00", "neutral": "#7F7F7F"}
seen: dict[str, tuple[str, ...]] = {}  # the claims of this kernel, a row each


class ClaimFailed(AssertionError):  # noqa: N818  the name says what happened
    """A claim did not hold for the numbers measured in this run."""


def is_strict() -> bool:
    """Whether a claim that does not hold is an error: COURSE_STRICT is set and not 0."""
    return os.environ.get("COURSE_STRICT", "0") not in ("", "0")


@dataclass(frozen=True)
class Box:
    """All that a claim's box says, of any kind. `free`: nothing that comes out is an error.

    `decided`: an undecided claim's interval left out 0 in this run; None where there is none.
    """

    id: str
    kind: str
    sentence: str
    verdict: str
    lines: list[Line]
    holds: bool
    free: bool = False
    notes: str = ""
    scope: str = ""
    because: str = ""
    record: str = ""
    decided: bool | None = None

    @property
    def failed(self) -> bool:
        return not self.holds and not self.free

    @property
    def says(self) -> str:
        """What became of the sentence, in a word or two."""
        if self.kind == "measured" and self.free:
            decided = not self.holds if self.decided is None else self.decided
            return masked("decided in this run" if decided else self.verdict)
        return "did not come out in this run" if self.failed else self.verdict

    @property
    def title(self) -> str:
        """Our sentence; a verdict on another one, the notes', is not said beside it."""
        judges_the_notes = self.notes and not self.failed and not self.free
        return self.sentence if judges_the_notes else f"{self.sentence} — {self.says}"

    def rows(self) -> list[str]:
        """The lines under the sentence, each a text."""
        verdict = "" if self.free else f": {self.verdict}"
        said = [f"course notes say “{self.notes}”{verdict}"] if self.notes else []
        said += [self._measurement(line) for line in self.lines]
        said += [self.because] if self.because else []
        said += [f"scope: {self.scope}"] if self.scope else []
        return said + ([self.record] if self.record else [])

    def _measurement(self, line: Line) -> str:
        values = " · ".join(
            f"{name} {_shown(value, line.always_masked)}" for name, value in line.values.items()
        )
        true_of_a_null = not line.wanted and not line.right and not self.free
        word = ": the sentence is true there too" if true_of_a_null else ""
        return f"{line.name}{word} · {values}"

    def metadata(self) -> dict[str, Any]:
        """What the ledger gathers from an executed notebook: `values` were measured."""
        found = {line.name: _json_safe(line.values) for line in self.lines}
        return {
            "id": self.id,
            "kind": self.kind,
            "text": self.sentence,
            "notes": self.notes,
            "verdict": (self.because or "here") if self.kind == "here" else self.verdict,
            "scope": self.scope,
            "holds": self.holds,
            "free": self.free,
            "values": found.get("found", found.get("timed", {})),
            "null": {name: found[name] for name in found if name not in ("found", "timed")},
        }


def conclude(box: Box) -> None:
    """Show the box; raise ClaimFailed where a claim that does not hold is an error."""
    rows = box.rows()
    if box.failed and (box.kind != "measured" or is_strict()):
        raise ClaimFailed(f"{box.id} does not hold: {box.sentence}. {'; '.join(rows)}")
    colour = COLOURS["failed" if box.failed else "neutral" if box.free else "held"]
    page = (
        f'<div style="border-left:4px solid {colour};padding:.35em .8em;margin:.4em 0">'
        f"<b>{box.id}</b> {html.escape(box.title)}<br>"
        f'<span style="font-size:92%">{"<br>".join(map(html.escape, rows))}</span></div>'
    )
    plain = "\n    ".join([f"{box.id}  {box.title}", *rows])
    show(page, plain, claim=box.metadata())
    seen[box.id] = (box.id, box.sentence, box.says, " · ".join(rows[:2]), box.record or "–")


def _json_safe(value: Any) -> Any:
    """Plain values that JSON can hold: no NaN and no infinity, those become text."""
    if isinstance(value, Mapping):
        return {name: _json_safe(plain_value(inner)) for name, inner in value.items()}
    if isinstance(value, list):
        return [_json_safe(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _shown(value: Any, always_masked: bool) -> str:
    """Exact values as they are; floats, and lists that hold one, between the brackets."""
    if isinstance(value, Measured):
        return str(value)
    plain = plain_value(value)
    items = plain if isinstance(plain, list) else [plain]
    if len(items) > 8 and all(isinstance(item, (int, float)) for item in items):
        return f"{len(items)} numbers, {measured(min(items))} to {measured(max(items))}"
    if always_masked or any(isinstance(item, float) for item in items):
        return str(measured(plain))
    return ", ".join(str(item) for item in items)
