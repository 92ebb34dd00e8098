"""One worker of a pool, seen from inside: it waits for a function and runs it. Notebook 04.

The pool (`launch`) speaks with it over a pipe; nothing here is called by a learner but `report`.
"""

from __future__ import annotations

import faulthandler
import linecache
import os
import signal
import sys
import threading
import traceback
from datetime import timedelta
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import cloudpickle
import torch
import torch.distributed as dist

# Where a stack can be asked for from outside. Windows has no such signal.
SHOW_STACK = getattr(signal, "SIGUSR1", None)
BROKEN = (  # what gloo says when the other side has gone: a consequence, never the cause
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "application timeout caused pair closure",
    "timed out waiting",
)


class Job(NamedTuple):
    """What a worker is told to do: a pickled (function, arguments) and its place in the group."""

    payload: bytes
    store: str
    rank: int
    world_size: int
    limit: float
    seed: int
    cells: dict[str, list[str]]  # file that is none → its lines, for tracebacks


class Failure(NamedTuple):
    """What one rank says of its own end."""

    type: str
    text: str
    traceback: str
    follows: bool  # from another rank's end


_to_caller: Connection | None = None


def report(value: Any) -> None:
    """Show the caller how far this rank is: `value` goes to the `progress` of `Pool.run`.

    Outside of a worker it does nothing, so that a function can be tried without a pool.

    >>> report("half way")
    """
    if _to_caller is not None:
        _to_caller.send_bytes(cloudpickle.dumps(("progress", value)))


def serve(pipe: Connection, log: str, variables: dict[str, str]) -> None:
    """Run one job after another until the caller closes the pipe or dies."""
    global _to_caller
    _to_caller = pipe
    _prepare(log, variables)
    while True:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            return
        answer = _answer(message)
        sys.stdout.flush()
        sys.stderr.flush()
        pipe.send_bytes(answer)
        # The group lives until every rank has answered: one that leaves earlier would close the
        # connections that others still read from.
        try:
            pipe.recv()
        except (EOFError, OSError):
            return
        if dist.is_initialized():
            dist.destroy_process_group()
        pipe.send_bytes(cloudpickle.dumps(("left", None)))


def _prepare(log: str, variables: dict[str, str]) -> None:
    """Output into a file, one thread, no interrupts, an end when the caller ends."""
    os.environ.update(variables)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's; it ends the workers
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):  # what C++ writes is caught too
        os.dup2(file, stream)
    sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    if SHOW_STACK is not None:
        faulthandler.register(SHOW_STACK, file=sys.stderr, all_threads=False)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_the_caller, daemon=True).start()


def _end_with_the_caller() -> None:
    """A killed notebook cannot close its workers, and one inside a collective reads no pipe."""
    caller = parent_process()
    if caller is not None:
        caller.join()
        os._exit(1)


def _answer(job: Job) -> bytes:
    try:
        torch.manual_seed(job.seed)
        for name, lines in job.cells.items():
            linecache.cache[name] = (sum(map(len, lines)), None, lines, name)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{job.store}",  # a file, not a port: nothing can be in use
            rank=job.rank,
            world_size=job.world_size,
            timeout=timedelta(seconds=job.limit + 60),  # the caller's limit comes first
        )
        function, arguments, options = cloudpickle.loads(job.payload)
        return cloudpickle.dumps(("done", function(*arguments, **options)))
    except BaseException as error:  # SystemExit too: the caller is to hear of it
        return cloudpickle.dumps(("failed", _described(error)))


def _described(error: BaseException) -> Failure:
    lines = traceback.format_exception(error.with_traceback(_without_ours(error.__traceback__)))
    text = str(error)
    follows = any(sign in text.lower() for sign in BROKEN)
    return Failure(type(error).__name__, text, "".join(lines), follows)


def _without_ours(trace: Any) -> Any:
    """The traceback from the learner's function on; whole where the error is not in it."""
    return trace.tb_next if trace is not None and trace.tb_next is not None else trace
