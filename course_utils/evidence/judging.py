"""What a claim's test says of one measurement: where it must be true, and where it must not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from course_utils.metrics import Paired
from course_utils.showing import measured, plain_value

Test = Callable[[Any], Any]  # one measurement -> whether the sentence is true of it

BY_CHANCE = 0.05  # a test on pairs may be true of so large a share of random sign flips


@dataclass(frozen=True)
class Line:
    """One measurement, what the test said of it, and what it should say."""

    name: str
    values: dict[str, Any]
    outcome: bool
    wanted: bool
    always_masked: bool = False

    @property
    def right(self) -> bool:
        return self.outcome == self.wanted


def judge(name: str, test: Test, found: Any, wanted: bool) -> Line:
    """Apply the test to one measurement; ValueError when it does not answer with a boolean."""
    outcome = plain_value(test(found))
    if not isinstance(outcome, bool):
        raise ValueError(f"the test says {outcome!r} of {name}; it must say one boolean")
    return Line(name, named_values(found), outcome, wanted)


def judge_by_chance(test: Test, found: Paired) -> Line:
    """The null of pairs: how often the test is true when signs are flipped at random."""
    outcomes = [bool(test(world)) for world in found.by_chance()]
    share = sum(outcomes) / len(outcomes)
    return Line(
        "null: signs of the pairs flipped", {"true in": measured(share, ".1%")},
        share > BY_CHANCE, False,
    )  # fmt: skip


def named_values(found: Any) -> dict[str, Any]:
    """Name → value of a measurement: a number, dict, namespace, dataclass or pairs.

    >>> named_values({"radius 0.9": 0.5, "steps": 3})
    {'radius 0.9': 0.5, 'steps': 3}
    """
    if isinstance(found, Paired):
        interval = measured([found.low, found.high])
        return {
            "difference": found.difference,
            "interval": interval,
            "p": found.p_value,
            "pairs": found.n,
        }
    if isinstance(found, Mapping):
        return {str(name): value for name, value in found.items()}
    if is_dataclass(found):
        return {f.name: getattr(found, f.name) for f in fields(found) if f.repr}
    if hasattr(found, "_asdict"):
        return found._asdict()
    if hasattr(found, "__dict__") and not hasattr(found, "tolist"):
        return vars(found)
    return {"measured": found}
