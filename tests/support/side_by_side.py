"""Two implementations timed in turns: rows, a table, and an exit status.

The two sides run one after the other, the order alternating, and a ratio is the median over the
pairs: above one, ours is faster. Floors are held in processor time on one thread, since on a loaded
machine a side that waits for a core looks many times slower on the clock than it is. On a quiet
machine `--clock` adds the ratio on the clock with all threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

from course_utils.metrics import timed_in_turns

Call = Callable[[], object]
PATIENCE = 20.0  # seconds on the clock for one comparison, so that it ends whatever the load


@dataclass(frozen=True)
class Row:
    """One comparison: medians in milliseconds of processor time, and ratios theirs/ours."""

    name: str
    ours_ms: float
    theirs_ms: float
    ratio: float
    low: float
    high: float
    floor: float | None
    clock_ratio: float | None = None

    @property
    def missed(self) -> bool:
        """Whether the floor lies above the whole range: within it, the pairs do not tell."""
        return self.floor is not None and self.high < self.floor


@contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pairs(
    ours: Call, theirs: Call, repeats: int, clock: Callable[[], float]
) -> list[tuple[float, float]]:
    """Seconds of both sides in turns: `repeats` pairs, or as many as PATIENCE allows, one at least.

    The first pair warms up; where it alone takes so long that no other has room, it is the result.
    """
    start = time.perf_counter()
    first = timed_in_turns(ours, theirs, 1, warmup=0, clock=clock)
    patient = int(PATIENCE / (time.perf_counter() - start)) - 1
    if patient < 1:
        return first
    return timed_in_turns(ours, theirs, min(repeats, patient), warmup=0, clock=clock)


def compare(
    name: str,
    ours: Call,
    theirs: Call,
    *,
    floor: float | None = None,
    repeats: int = 7,
    clock: bool = False,
) -> Row:
    """Time both sides, print the ratio at once, and return it all.

    `floor` is the least ratio that is promised, None where nothing is.
    """
    with threads(1):
        found = pairs(ours, theirs, repeats, time.process_time)
    ratios = [their_time / our_time for our_time, their_time in found]
    our_ms, their_ms = (1e3 * statistics.median(side) for side in zip(*found, strict=True))
    clocked = pairs(ours, theirs, repeats, time.perf_counter) if clock else []
    clock_ratio = statistics.median(theirs / ours for ours, theirs in clocked) if clock else None
    middle = statistics.median(ratios)
    row = Row(name, our_ms, their_ms, middle, min(ratios), max(ratios), floor, clock_ratio)
    print(f"{row.ratio:.2f}×  {row.name}{'  MISSED' if row.missed else ''}", flush=True)
    return row


def table(title: str, rows: list[Row]) -> Table:
    shown = Table(title=title)
    all_threads = f"{torch.get_num_threads()} threads"
    for column in ("", "ours ms", "theirs ms", "ratio", "range", "floor", all_threads):
        shown.add_column(column, justify="right" if column else "left")
    for row in rows:
        floor = "" if row.floor is None else f"{row.floor:.1f} {'missed' if row.missed else 'met'}"
        spread = f"{row.low:.2f} – {row.high:.2f}"
        clock = "" if row.clock_ratio is None else f"{row.clock_ratio:.2f}×"
        cells = f"{row.ours_ms:.1f}", f"{row.theirs_ms:.1f}", f"{row.ratio:.2f}×", spread, floor
        shown.add_row(row.name, *cells, clock, style="red" if row.missed else None)
    return shown


def hold(title: str, rows: list[Row]) -> None:
    """Print the table, and fail where a floor is missed."""
    Console(width=120).print(table(title, rows))
    missed = [f"{row.name}: at most {row.high:.2f} < {row.floor}" for row in rows if row.missed]
    assert not missed, "; ".join(missed)


def main(title: str, measure: Callable[[Callable[..., Row]], list[Row]], description: str) -> int:
    """Print what `measure(compare)` finds; return 1 when a floor is missed."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", metavar="FILE", help="write the rows there too")
    parser.add_argument("--clock", action="store_true", help="also by the clock, all threads")
    arguments = parser.parse_args()
    rows = measure(partial(compare, clock=arguments.clock))
    Console(width=120).print(table(title, rows))
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump([asdict(row) for row in rows], file, indent=2)
    return int(any(row.missed for row in rows))
