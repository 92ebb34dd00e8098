"""Real processes from a notebook: run a function on N ranks and bring back what became of it.

Notebook 04. A pool is started once and fed functions over pipes: new processes for each
call would import torch each time, 5 to 10 s for four. They are forked from a server that has
imported torch. Each call has a `torch.distributed` group of its own, whose ranks find each other
through a file: no port, so no two notebooks can want the same.
"""

from __future__ import annotations

import contextlib
import importlib.util
import linecache
import os
import shutil
import signal
import sys
import tempfile
import time
import types
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import connection, get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import cloudpickle

from course_utils.parallel import worker
from course_utils.parallel.worker import Failure, Job, report

__all__ = ["Pool", "RankError", "report", "run"]

SETTLE = 0.5  # seconds after the first failure in which other ranks may name its cause
STACKS = 0.3  # seconds in which hung ranks write down where they are
LEAVE = 10.0  # seconds in which all ranks must have left a group that worked

# What the server imports once for all workers. The first optimizer of a process imports
# torch._dynamo, which takes each a few seconds where it is not there already.
PRELOADED = ["torch._dynamo", worker.__name__]

# A socket of this machine alone: the host's own name need not resolve, nor a firewall agree.
LOOPBACK = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)


class RankError(RuntimeError):
    """A run ended by one of its ranks.

    `rank` is the one that caused it, `kind` "raised", "died" or "hung"; `traceback` is that rank's
    own, or for a rank that hangs the stack of where it waits.
    """

    def __init__(self, message: str, rank: int, kind: str, traceback: str) -> None:
        super().__init__(message)
        self.rank, self.kind, self.traceback = rank, kind, traceback


def run(function: Callable[..., Any], world_size: int, *arguments: Any, **options: Any) -> list:
    """`Pool.run` on a pool of its own, which is started and closed again (about 2 s)."""
    with Pool(world_size) as pool:
        return pool.run(function, *arguments, **options)


class Pool:
    """`size` worker processes, each with one thread, that wait for functions.

    Use it as a context, or `close` it; it also ends when it is forgotten, and when this process
    ends or is killed. A function may come from a cell: it travels by value (cloudpickle), with what
    it refers to. Its modules travel by name.
    """

    def __init__(self, size: int) -> None:
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"size is {size!r}; a pool has at least one worker")
        self.size = size
        self.printed: list[str] = []  # what each rank of the last run wrote
        self._folder = Path(tempfile.mkdtemp(prefix="ranks-"))
        self._runs = 0
        self._workers: list[_Worker] = []
        self._finalizer = weakref.finalize(self, _close, self._workers, self._folder)
        self._workers += [_Worker(self._folder / f"{i}.log") for i in range(size)]

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """End all workers. A second time does nothing."""
        self._finalizer()

    @property
    def pids(self) -> list[int]:
        """The workers' process numbers, by rank."""
        return [w.process.pid for w in self._workers]

    def run(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        world_size: int | None = None,
        limit: float = 60.0,
        progress: Callable[[int, Any], object] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> list[Any]:
        """Call `function(*arguments, **options)` on ranks 0 … world_size − 1 -> results by rank.

        Inside, `torch.distributed` is set up with gloo, and torch's random state starts from
        `seed` on every rank. `progress(rank, value)` is called for each `report(value)`.
        Raises RankError with the traceback of the rank that is the cause when one raises or dies,
        and after `limit` seconds with the stacks of those that hang. Either way all ranks of the
        run are replaced: the pool can be used again.
        """
        world_size = self.size if world_size is None else world_size
        self._check(world_size, limit)
        payload, cells = _pickled(function, arguments, options), _cells()
        self._runs += 1
        store = self._folder / f"{self._runs}.store"
        ranks = self._workers[:world_size]
        starts = [w.written() for w in ranks]
        try:
            for rank, w in enumerate(ranks):
                w.send(Job(payload, str(store), rank, world_size, limit, seed, cells))
            values = _Watch(ranks, starts, limit, progress).values()
            _leave(ranks)
        except BaseException:  # an interrupt too
            self._replace(world_size)
            raise
        finally:
            self.printed = [w.text(start) for w, start in zip(ranks, starts, strict=True)]
            store.unlink(missing_ok=True)
        return values

    def _check(self, world_size: int, limit: float) -> None:
        if not self._finalizer.alive:
            raise ValueError("the pool is closed; start another one")
        if not isinstance(world_size, int) or not 1 <= world_size <= self.size:
            raise ValueError(
                f"world_size is {world_size!r}; this pool has {self.size} workers: "
                f"ask for 1 to {self.size}, or start a larger pool"
            )
        if not limit > 0:
            raise ValueError(f"limit is {limit} seconds; give the run some time")

    def _replace(self, world_size: int) -> None:
        for i in range(world_size):
            self._workers[i].kill()
            self._workers[i] = _Worker(self._workers[i].log)


class _Worker:
    """The caller's end of one worker: its process, its pipe, the file it writes into."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.context = _context()
        self.pipe, theirs = self.context.Pipe()
        variables = {"GLOO_SOCKET_IFNAME": LOOPBACK} if LOOPBACK else {}
        self.process = self.context.Process(
            target=worker.serve, args=(theirs, str(log), variables | _threads()), daemon=False
        )
        with _without_main():
            self.process.start()
        theirs.close()

    def send(self, job: Job) -> None:
        with contextlib.suppress(OSError):  # it died meanwhile: its pipe tells at once
            self.pipe.send(job)

    def written(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def text(self, start: int) -> str:
        """What was written since `start`."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(start)
            return file.read().decode("utf-8", "replace")

    def kill(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


class _Watch:
    """One run as the caller sees it: who has answered, and who is the cause when it fails."""

    def __init__(
        self,
        workers: list[_Worker],
        starts: list[int],
        limit: float,
        progress: Callable[[int, Any], object] | None,
    ) -> None:
        self.workers, self.starts, self.progress = workers, starts, progress
        self.limit, self.deadline = limit, time.monotonic() + limit
        self.done: dict[int, Any] = {}
        self.failed: dict[int, Failure] = {}
        self.died: dict[int, str] = {}

    def values(self) -> list[Any]:
        while len(self.done) < len(self.workers):
            if not self._hear(self.deadline):
                raise self._hung()
            if self.died or self.failed:
                raise self._cause()
        return [self.done[rank] for rank in range(len(self.workers))]

    def _waiting(self) -> list[int]:
        ended = self.done.keys() | self.failed.keys() | self.died.keys()
        return [rank for rank in range(len(self.workers)) if rank not in ended]

    def _hear(self, until: float) -> bool:
        """Take in one message of each rank that has one; False where none came in time."""
        pipes = {self.workers[rank].pipe: rank for rank in self._waiting()}
        ready = connection.wait(list(pipes), max(0.0, until - time.monotonic()))
        for pipe in ready:
            self._take(pipes[pipe], pipe)
        return bool(ready)

    def _take(self, rank: int, pipe: Any) -> None:
        try:
            kind, value = cloudpickle.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            self.died[rank] = self._end_of(rank)
            return
        if kind == "done":
            self.done[rank] = value
        elif kind == "failed":
            self.failed[rank] = value
        elif self.progress is not None:
            self.progress(rank, value)

    def _end_of(self, rank: int) -> str:
        process = self.workers[rank].process
        process.join(5)
        code = process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            memory = "; the system kills so when memory runs out" if name == "SIGKILL" else ""
            return f"was killed by {name}{memory}"
        return f"ended with exit code {code}"

    def _cause(self) -> RankError:
        """The cause by kind, then by rank, not by time: a dead rank's neighbours may be heard
        before it, and where all ranks fail alike the first is named in every run.
        """
        until = time.monotonic() + SETTLE
        while self._waiting() and self._hear(until):
            pass
        if self.died:
            rank = min(self.died)
            return self._error(
                rank, "died", self.died[rank], self.workers[rank].text(self.starts[rank])
            )
        rank = min(self.failed, key=lambda r: (self.failed[r].follows, r))
        failure = self.failed[rank]
        return self._error(
            rank, "raised", f"raised {failure.type}: {failure.text}", failure.traceback
        )

    def _hung(self) -> RankError:
        hung = self._waiting()
        starts = {rank: self.workers[rank].written() for rank in hung}
        for rank in hung if worker.SHOW_STACK is not None else []:
            os.kill(self.workers[rank].process.pid, worker.SHOW_STACK)
        time.sleep(STACKS)
        stacks = {rank: _inner(self.workers[rank].text(starts[rank])) for rank in hung}
        hung.sort(key=lambda rank: _waits_for_others(stacks[rank]))
        text = "\n".join(f"rank {rank} is here:\n{stacks[rank]}" for rank in hung)
        others = sorted(self.done)
        finished = f"; finished: rank {', '.join(map(str, others))}" if others else ""
        what = f"did not answer within {self.limit:g} s (limit){finished}"
        return self._error(hung[0], "hung", what, text)

    def _error(self, rank: int, kind: str, what: str, traceback: str) -> RankError:
        message = f"rank {rank} of {len(self.workers)} {what}"
        if traceback.strip():
            message = f"{message}\n\n{traceback.rstrip()}"
        return RankError(message, rank, kind, traceback)


def _inner(stack: str) -> str:
    """A stack, innermost call first, down to the function that was to be run."""
    return stack.partition(f'  File "{worker.__file__}"')[0]


def _waits_for_others(stack: str) -> bool:
    """Whether the innermost call is one of torch.distributed: the cause is then elsewhere."""
    calls = [line for line in stack.splitlines() if line.startswith("  File ")]
    return bool(calls) and "distributed" in Path(calls[0].split('"')[1]).parts


def _leave(workers: list[_Worker]) -> None:
    """All have answered: let every rank leave the group, and wait until it has."""
    for w in workers:
        with contextlib.suppress(OSError):
            w.pipe.send("leave")
    for rank, w in enumerate(workers):
        try:
            if w.pipe.poll(LEAVE):
                w.pipe.recv_bytes()
                continue
        except (EOFError, OSError):
            pass
        raise RankError(f"rank {rank} answered, but did not leave the group", rank, "hung", "")


def _close(workers: list[_Worker], folder: Path) -> None:
    for w in workers:
        w.kill()
    shutil.rmtree(folder, ignore_errors=True)


def _pickled(function: Callable[..., Any], arguments: tuple, options: dict) -> bytes:
    """The call as bytes; a function of a module that workers cannot import travels by value."""
    if not callable(function):
        raise TypeError(f"function is {function!r}; give something that can be called")
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    by_value = module is not None and module.__name__ != "__main__" and not _importable(module)
    if by_value:
        cloudpickle.register_pickle_by_value(module)
    try:
        return cloudpickle.dumps((function, arguments, options))
    except Exception as error:
        raise ValueError(
            f"{getattr(function, '__name__', function)} or its arguments cannot be sent to another "
            f"process ({error}); make what it needs inside of it"
        ) from error
    finally:
        if by_value:
            cloudpickle.unregister_pickle_by_value(module)


def _cells() -> dict[str, list[str]]:
    """What Python knows of sources that are no files, as cells: a traceback shows their lines."""
    known = {name: entry[2] for name, entry in linecache.cache.items() if len(entry) == 4}
    return {name: lines for name, lines in known.items() if not os.path.exists(name)}


def _importable(module: types.ModuleType) -> bool:
    try:
        return importlib.util.find_spec(module.__name__.partition(".")[0]) is not None and (
            "." not in module.__name__
            or module.__name__.startswith("course_utils.")
            or importlib.util.find_spec(module.__name__) is not None
        )
    except (ImportError, ValueError):
        return False


def _context() -> Any:
    method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
    context = get_context(method)
    if method == "forkserver":  # has no effect once the server runs
        context.set_forkserver_preload(PRELOADED)
    return context


def _threads() -> dict[str, str]:
    """Small products on several threads each, N processes at once, are many times slower."""
    return {"OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """A worker would import the caller's script anew, and start a pool of its own; functions of
    the script travel by value and do not need it.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
