"""Plausible wrong versions of course_utils.parallel.launch.

Those that would leave processes behind cannot be planted: they would outlive the tests.
"""

from __future__ import annotations

import cloudpickle
from planting import Bug, originals

right = originals("parallel.launch")


class NamesTheFirstHeard(right["_Watch"]):
    """A neighbour's "connection closed" is taken for the cause."""

    def _cause(self):
        rank = next(iter(self.died), None)
        if rank is None:
            rank = next(iter(self.failed))
            failure = self.failed[rank]
            said = f"raised {failure.type}: {failure.text}"
            return self._error(rank, "raised", said, failure.traceback)
        return self._error(rank, "died", self.died[rank], "")


class ForgetsTheLastWords(right["_Watch"]):
    def _error(self, rank, kind, what, traceback):
        return super()._error(rank, kind, what, "" if kind == "died" else traceback)


def cells_unknown():
    return {}


def waits_for_others_never(stack):
    return False


def pickled_by_name(function, arguments, options):
    right["_pickled"](function, arguments, options)
    return cloudpickle.dumps((function, arguments, {}))  # and without its options


BUGS = [
    Bug("_Watch", "names the first heard", NamesTheFirstHeard, "the_cause or fail_alike"),
    Bug("_Watch", "forgets a rank's last words", ForgetsTheLastWords, "that_dies"),
    Bug("_cells", "does not tell of cells", cells_unknown, "lines_of_a_cell"),
    Bug("_waits_for_others", "blames rank 0", waits_for_others_never, "hangs"),
    Bug("_pickled", "drops the options", pickled_by_name, "results_come"),
]
