"""Plausible wrong versions of course_utils.runner.records."""

from __future__ import annotations

import json

from planting import Bug, originals

right = originals("runner.records")


def read_as_new(root, path):
    """A record is taken for today's code's, whatever it is of."""
    record = right["read"](root, path)
    return record and record | {"old": False}


def read_wherever(root, path):
    """The folder is taken to be there."""
    record = json.loads(right["file_of"](root, path.stem).read_text())
    return record | {"old": False}


def must_hold_always(claim):
    return True


def must_hold_but_for_time(claim):
    """Undecided claims are taken for promises."""
    return claim["kind"] != "here"


def admitted_by_share(claim):
    """95 of 100 is the rule, and 10 runs cannot show it."""
    return claim["held"] >= 0.9 * claim["runs"]


def admitted_always_but_one(claim):
    return claim["held"] >= claim["runs"] - 1


def total_with_checks(record):
    """What follows from a theorem swells the count."""
    claims = record["claims"].values() if record else ()
    sums = {key: sum(claim[key] for claim in claims) for key in ("held", "runs")}
    return right["held_of_runs"](sums | {"old": record["old"]}) if record else right["NONE"]


def held_of_runs_of_any_age(claim):
    return right["held_of_runs"](claim and claim | {"old": False})


BUGS = [
    Bug("read", "is never old", read_as_new, tests="other_code"),
    Bug("read", "needs the file", read_wherever, tests="without_records"),
    Bug("must_hold", "holds all to it", must_hold_always, tests="measured_claims_alone"),
    Bug("must_hold", "counts undecided", must_hold_but_for_time, tests="measured_claims_alone"),
    Bug("admitted", "takes 9 of 10", admitted_by_share, tests="ten_of_ten"),
    Bug("admitted", "takes all but one", admitted_always_but_one, tests="ten_of_ten"),
    Bug("total", "counts checks", total_with_checks, tests="measured_claims_alone"),
    Bug("held_of_runs", "hides the age", held_of_runs_of_any_age, tests="other_code"),
]
