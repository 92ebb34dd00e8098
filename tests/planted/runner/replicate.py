"""Plausible wrong versions of course_utils.runner.replicate."""

from __future__ import annotations

import dataclasses
import statistics

from planting import Bug, originals

right = originals("runner.replicate")
Run = right["Run"]


def parse_seeds_without_the_last(text):
    """A range ends before its last number, as Python's."""
    seeds = right["parse_seeds"](text)
    return seeds[:-1] if "-" in text and len(seeds) > 1 else seeds


def plan_with_one_other(seeds, isas):
    """Odd seeds always take the second instruction set; a third is never tried."""
    return [Run(seed, isas[0] if seed % 2 == 0 else isas[1 % len(isas)]) for seed in seeds]


def plan_of_the_best(seeds, isas):
    return [Run(seed, isas[0]) for seed in seeds]


def of_claim_where_it_was_reached(entries):
    """A run that stopped before the claim is left out instead of counting as not held."""
    return right["_of_claim"]([entry for entry in entries if entry])


def of_claim_by_means(entries):
    """The mean in place of the median: one odd run moves it."""
    record = right["_of_claim"](entries)
    for name, span in record["values"].items():
        found = [e["values"][name] for e in entries if e and name in e["values"]]
        if found and not isinstance(found[0], list):
            span[1] = statistics.mean(found)
    return record


def failed_once_or_more(record):
    """More runs are spent where no number of them could still admit the claim."""
    must_hold = right["records"].must_hold
    return any(c["runs"] > c["held"] for c in record["claims"].values() if must_hold(c))


def all_admitted_although_it_stopped(record):
    return right["_all_admitted"](record | {"runs": []})


def job_of_any_machine(source, folder, run):
    """The instruction set is left out of the key: another machine's run is kept in its place."""
    job = right["_job"](source, folder, run)
    return dataclasses.replace(job, key=right["key_of"](source.shown, job.parameters))


def job_of_all_threads(source, folder, run):
    job = right["_job"](source, folder, run)
    threads = right["execution"].THREAD_VARIABLES
    environment = {k: v for k, v in job.environment.items() if k not in threads}
    return dataclasses.replace(job, environment=environment)


def job_strict(source, folder, run):
    """A claim that does not hold stops the run, and those after it are never measured."""
    job = right["_job"](source, folder, run)
    return dataclasses.replace(job, environment=job.environment | {"COURSE_STRICT": "1"})


def strip_of_those_that_held(outcomes):
    return right["HELD"] * sum(outcomes)


BUGS = [
    Bug("parse_seeds", "leaves out the last", parse_seeds_without_the_last, tests="are_ranges"),
    Bug("plan", "tries one other set", plan_with_one_other, tests="half_of_the_plan"),
    Bug("plan", "tries the best alone", plan_of_the_best, tests="half_of_the_plan"),
    Bug(
        "_of_claim",
        "leaves out stopped runs",
        of_claim_where_it_was_reached,
        tests="stopped_run_is_no",
    ),
    Bug("_of_claim", "takes means", of_claim_by_means, tests="lowest_median"),
    Bug("_failed_once", "always goes on", failed_once_or_more, tests="goes_on_to_twenty"),
    Bug(
        "_all_admitted",
        "overlooks stops",
        all_admitted_although_it_stopped,
        tests="stopped_run_is_no",
    ),
    Bug("_job", "keys no machine", job_of_any_machine, tests="other_instructions"),
    Bug("_job", "takes all threads", job_of_all_threads, tests="one_thread"),
    Bug("_job", "is strict", job_strict, tests="one_thread"),
    Bug("strip", "shows what held", strip_of_those_that_held, tests="strip"),
]
