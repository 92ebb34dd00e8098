"""What the tests of parallel share: one pool of four ranks a process, and planted bugs on them.

A planted bug replaces a function in this process only; the ranks are others. So each call takes
along what differs here from the package as it was imported, and puts it in place there, by value.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from unittest import mock

import cloudpickle
from planting import originals

from course_utils.parallel.launch import Pool, RankError

SIZES = (1, 2, 3, 4)
ON_RANKS = ("collectives", "data_parallel", "sharding", "units")
ON_RANKS += ("checkpoints", "strategies", "train")
HOMES = {name: importlib.import_module(f"course_utils.parallel.{name}") for name in ON_RANKS}
RIGHT = {name: originals(f"parallel.{name}") for name in ON_RANKS}


@functools.cache
def pool() -> Pool:
    return Pool(max(SIZES))


def planted():
    """(module, name) → the wrong version that stands there now."""
    return {
        (home, name): vars(HOMES[home])[name]
        for home, right in RIGHT.items()
        for name, value in right.items()
        if vars(HOMES[home])[name] is not value
    }


def as_bytes(wrong):
    """Made while the right versions stand: what a wrong one takes from them travels by name."""
    with contextlib.ExitStack() as stack:
        for home, name in wrong:
            stack.enter_context(mock.patch.object(HOMES[home], name, RIGHT[home][name]))
        return cloudpickle.dumps(wrong)


def with_planted(wrong, function, arguments, options):
    """On a rank: `function` with the wrong versions in place, in every module that knows them."""
    patches = []
    for (home, name), value in cloudpickle.loads(wrong).items():
        right = vars(importlib.import_module(f"course_utils.parallel.{home}"))[name]
        for module in ON_RANKS:
            known = sys.modules.get(f"course_utils.parallel.{module}")
            if known is not None and vars(known).get(name) is right:
                patches.append(mock.patch.object(known, name, value))
    for patch in patches:
        patch.start()
    try:
        return function(*arguments, **options)
    finally:
        for patch in reversed(patches):  # each puts back what it found
            patch.stop()


DOES_NOT_RUN = (TypeError, NameError, AttributeError, ImportError)


@contextlib.contextmanager
def by_value(module):
    """What `module` defines travels whole, as from a cell: the ranks cannot import a test file."""
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def on_ranks(function, *arguments, world_size, limit=20.0, **options):
    """`function(*arguments, **options)` on ranks of the shared pool -> results by rank."""
    home, wrong = sys.modules[function.__module__], planted()
    with by_value(home):
        call = (with_planted, as_bytes(wrong), function, arguments, options)
        try:
            return pool().run(*call, world_size=world_size, limit=limit)
        except RankError as error:
            for kind in DOES_NOT_RUN if wrong else ():  # a planted bug must run to count as found
                if f"raised {kind.__name__}:" in str(error):
                    raise kind(str(error)) from None
            raise
