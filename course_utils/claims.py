"""Claims: sentences that a notebook tests on what it measured, and on worlds where they are false.

    claim("A11c", "A trained head is four times as sharp as an untrained one", sharp, trained,
          null={"random weights": untrained}, scope="every head of MiniLM, 60 texts")
    claim("P5", "A program beats a chain on the same problems", ahead, paired(program, chain), …)
    follows("I2a", "Entropy rises with temperature", rises, entropies, because="dH/dT = Var/T³ ≥ 0")
    here("A5", "An LSTM costs less per token", ratio < 1, count={"calls in a row": (1024, 12)}, …)
    finding("Greedy repeats itself in {greedy:.0%} of windows, people in {people:.0%}", …)

A test is a function of one measurement. It must be true of what was measured and false of every
null. What does not come out stops a notebook only where COURSE_STRICT is set (recording, checking);
a reader's notebook goes on, with the box in amber.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from course_utils.evidence.box import Box, ClaimFailed, conclude, is_strict, seen
from course_utils.evidence.judging import Line, Test, judge, judge_by_chance
from course_utils.evidence.records import record_of
from course_utils.metrics import Paired, paired
from course_utils.showing import Measured, masked, measured, plain_value, table

__all__ = [
    "ClaimFailed",
    "claim",
    "claims_table",
    "finding",
    "follows",
    "here",
    "is_strict",
    "ledger",
    "paired",
]

VERDICTS = ("holds", "holds if", "corrected", "undecided here")
_ID = re.compile(r"[A-Z]\d+([a-z]\d*)?")


# ── the three kinds ─────────────────────────────────────────────────────────────────────────────


def claim(
    id: str,
    sentence: str,
    test: Test,
    found: Any,
    /,
    *,
    null: Mapping[str, Any] | None = None,
    otherwise: Mapping[str, Any] | None = None,
    condition: str = "",
    verdict: str = "holds",
    decided_by: str = "",
    notes: str = "",
    scope: str = "",
) -> None:
    """State what data, training or sampling decided: kind *measured*.

    `test` is applied to `found` (a number, dict, namespace, dataclass or `metrics.paired`), where
    it must be true, and to each named measurement of `null`, where it must be false. Pairs bring
    their own null: their signs flipped at random, of which the test may be true in 5 %.
    `verdict` judges the sentence of the course `notes`: "holds", "holds if" (the other side of the
    `condition` is a measurement of `otherwise`, false there), "corrected", or "undecided here" (the
    interval covers both answers; `decided_by` says what would settle it). `scope` says what was
    looked at. Raises ValueError for a malformed claim, and where COURSE_STRICT is set ClaimFailed
    when it does not hold.
    """
    _check_id(id)
    _check_measured(id, test, found, null, otherwise, condition, verdict, decided_by, scope)
    judged = [judge("found", test, found, True)]
    undecided = verdict == "undecided here"
    if null is None and isinstance(found, Paired) and not undecided:
        judged.append(judge_by_chance(test, found))
    judged += [judge(f"null: {name}", test, value, False) for name, value in (null or {}).items()]
    others = (otherwise or {}).items()
    judged += [judge(f"otherwise: {name}", test, value, False) for name, value in others]
    conclude(
        Box(
            id=id,
            kind="measured",
            sentence=sentence,
            verdict=f"holds if {condition}" if verdict == "holds if" else verdict,
            lines=judged,
            holds=all(line.right for line in judged),
            free=undecided,
            notes=notes,
            scope=scope,
            because=f"it would be decided by {decided_by}" if undecided else "",
            record=record_of(id),
            decided=not found.low <= 0 <= found.high if isinstance(found, Paired) else None,
        )
    )


def follows(
    id: str,
    sentence: str,
    test: Test,
    found: Any,
    /,
    *,
    because: str,
    notes: str = "",
    verdict: str = "",
) -> None:
    """State what a theorem, a construction or a count makes true: a check, which only a bug fails.

    `because` names the reason. `verdict` judges the sentence of the course `notes`, where they have
    one: "holds" or "corrected". Raises ClaimFailed whenever `test` is false of `found`.
    """
    _check_id(id)
    _check_test(id, test)
    if not because:
        raise ValueError(f"{id} follows from what? Give because='…', or make it a claim")
    if bool(notes) != bool(verdict) or verdict not in ("", "holds", "corrected"):
        raise ValueError(
            f"{id}: notes {notes!r} and verdict {verdict!r}; a check says of the notes' sentence "
            "that it 'holds' or is 'corrected', and of none where there is none"
        )
    line = judge("found", test, found, True)
    conclude(
        Box(
            id=id,
            kind="follows",
            sentence=sentence,
            verdict=verdict or "follows",
            lines=[line],
            holds=line.right,
            notes=notes,
            because=f"because {because}",
        )
    )


def here(
    id: str,
    sentence: str,
    holds: Any,
    /,
    *,
    count: Mapping[str, Any] | None = None,
    notes: str = "",
    verdict: str = "",
    **times: Any,
) -> None:
    """State what depends on this machine's speed or memory; it never stops a notebook.

    `holds` is what came out here. All `times` are shown as measured; `count` holds exact numbers
    that carry the point on every machine. `verdict` judges the notes' sentence, if anything does:
    a time alone corrects nothing. Raises ValueError when nothing was timed, or a number comes as
    text, which the guard would compare.
    """
    _check_id(id)
    outcome = plain_value(holds)
    if not isinstance(outcome, bool):
        raise ValueError(f"{id}: what came out is {holds!r}; it must be one boolean")
    if not times:
        raise ValueError(f"{id} is about this machine; give what was timed, such as seconds=…")
    for name, value in times.items():
        if isinstance(value, str) and not isinstance(value, Measured) and re.search(r"\d", value):
            raise ValueError(f"{id}: {name} is the text {value!r}; give the number itself")
    values = {name.replace("_", " "): value for name, value in times.items()}
    line = Line("timed", values, outcome, True, always_masked=True)
    counts = [Line("counted", dict(count), True, True)] if count else []
    conclude(
        Box(
            id=id,
            kind="here",
            sentence=sentence,
            verdict=masked("so it is here" if outcome else "not on this machine"),
            lines=[line, *counts],
            holds=outcome,
            free=True,
            notes=notes,
            because=verdict,
        )
    )


def finding(template: str, /, **values: Any) -> None:
    """Show a sentence with this run's numbers in it, each between ⟨ and ⟩.

    `template` has a field for each value, with a format specification where it helps:
    `finding("{share:.0%} of the windows repeat", share=0.089)` → ⟨9%⟩ of the windows repeat.
    Raises ValueError for a field without a value, or a value without a field.
    """
    from IPython.display import Markdown, display

    named = set(re.findall(r"(?<!\{)\{(\w+)", template))
    if odd := named ^ values.keys():
        raise ValueError(f"{', '.join(sorted(odd))}: each field of a finding needs one value")
    text = template.format(**{name: _Field(value) for name, value in values.items()})
    display(Markdown(text))


class _Field:
    """A value that a format specification turns into masked text."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __format__(self, spec: str) -> str:
        return str(self.value if isinstance(self.value, Measured) else measured(self.value, spec))


# ── checks of what was given ────────────────────────────────────────────────────────────────────


def _check_id(id: str) -> None:
    if not _ID.fullmatch(id):
        raise ValueError(f"claim id {id!r} is not a capital letter, digits, and maybe a suffix")


def _check_test(id: str, test: Any) -> None:
    if not callable(test):
        raise ValueError(
            f"{id}: the test is {test!r}; give a function of one measurement, so that it can be "
            "tried on the null too"
        )


def _check_measured(
    id: str,
    test: Any,
    found: Any,
    null: Any,
    otherwise: Any,
    condition: str,
    verdict: str,
    decided_by: str,
    scope: str,
) -> None:
    """ValueError that names the first thing missing from a claim of kind *measured*."""
    _check_test(id, test)
    undecided, conditional = verdict == "undecided here", verdict == "holds if"
    missing = {
        f"verdict is {verdict!r}; it must be one of {', '.join(VERDICTS)}": verdict not in VERDICTS,
        "it says nothing of its scope; give scope='…', what was looked at": not scope,
        "it has no null; give null={'a world where it is false': its measurement}": not (
            null or undecided or isinstance(found, Paired)
        ),
        "it holds if … what? Give condition='…'": conditional and not condition,
        "its condition has no other side; give otherwise={'name': its measurement}": conditional
        and not otherwise,
        "it is undecided; say what would settle it, decided_by='…'": undecided and not decided_by,
    }
    for complaint, so_it_is in missing.items():
        if so_it_is:
            raise ValueError(f"claim {id}: {complaint}")


# ── what was stated so far ──────────────────────────────────────────────────────────────────────


def ledger(outputs: list[dict]) -> list[dict]:
    """Return the claims that stand in a list of notebook outputs (nbformat dictionaries)."""
    found = (output.get("metadata", {}).get("claim") for output in outputs)
    return [entry for entry in found if entry]


def claims_table() -> None:
    """Show every claim of this kernel so far, one row each: a notebook's closing."""
    if not seen:
        raise ValueError("no claim was measured in this kernel yet; run the cells above first")
    table(("claim", "statement", "verdict", "measured", "record"), list(seen.values()))
