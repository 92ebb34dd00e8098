"""Running notebooks, each in a worker process of its own, some at once, with limits."""

from __future__ import annotations

import json
import os
import platform
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil

from course_utils.profiles import threads
from course_utils.runner import home
from course_utils.runner.ledger import claims_of, unreached
from course_utils.runner.notebooks import code_cells, exempt_cells, source_of
from course_utils.runner.outputs import dump, is_remote, read_notebook, write_text
from course_utils.runner.results import Failure, Result, locate_failure, mark_stopped_cell

GRACE = 10.0  # seconds between a notebook's time limit and killing its processes
TICK = 0.2  # seconds between two looks at memory and time
SHARED = 2.0  # seconds between two looks at what processes share, which walks all their pages
TIME_LIMITS = {"cpu": 1800.0, "gpu": 6 * 3600.0}  # seconds for one notebook
ARCHITECTURES = {"x86_64": "x86-64", "amd64": "x86-64", "aarch64": "arm64"}
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "RAYON_NUM_THREADS",
)


@dataclass
class Job:
    """One notebook to run: where it is, where its output goes, and what it is run with."""

    name: str
    path: Path
    output: str
    notebook: dict
    key: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def cells(self) -> int:
        """Code cells that will run, the one papermill injects among them."""
        return sum(bool(source_of(c).strip()) for c in code_cells(self.notebook)) + bool(
            self.parameters
        )

    @property
    def scratch(self) -> str:
        """Where papermill writes while the notebook runs: a finished output is never half one."""
        if is_remote(self.output):
            return self.output
        return self.output.removesuffix(".ipynb") + ".partial.ipynb"


class Progress(Protocol):
    """Who shows what is going on."""

    def started(self, job: Job) -> None: ...

    def moved(self, job: Job, cell: int, seconds: float) -> None: ...

    def finished(self, job: Job, result: Result) -> None: ...


class Interrupts:
    """Within it, the first SIGINT or SIGTERM raises KeyboardInterrupt and later ones are ignored.

    `signum` is then the signal's number. Only the main thread can do this; others do nothing. A
    signal that was ignored before stays so: a shell starts what it runs in the background with
    SIGINT ignored, lest a Ctrl-C that is meant for another program ends it. SIGTERM still does.
    """

    WATCHED = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signum: int | None = None
        self.before: dict[signal.Signals, Any] = {}

    def _interrupt(self, signum: int, frame: object) -> None:
        for each in self.WATCHED:
            signal.signal(each, signal.SIG_IGN)
        self.signum = signum
        raise KeyboardInterrupt

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            heard = [s for s in self.WATCHED if signal.getsignal(s) is not signal.SIG_IGN]
            self.before = {each: signal.signal(each, self._interrupt) for each in heard}
        return self

    def __exit__(self, *error: object) -> None:
        for each, handler in self.before.items():
            signal.signal(each, handler)


def kernel_environment(jobs: int) -> dict[str, str]:
    """The environment for kernels when `jobs` of them run at once: they share the cores.

    One kernel keeps the libraries' own number of threads. A thread that waits for the others sleeps
    (OMP_WAIT_POLICY, unless it is set): spinning, the default, gains nothing on free cores, and on
    busy ones costs several times the run's own time. MPLBACKEND is dropped: kernels draw inline.
    Raises UsageError when there is no home folder: no kernel starts without.
    """
    home.require()
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    environment.setdefault("OMP_WAIT_POLICY", "passive")
    if jobs > 1:
        share = str(max(1, threads() // jobs))
        environment |= dict.fromkeys(THREAD_VARIABLES, share)
    return environment


class Worker:
    """A running worker process: its events, its kernel's memory, its end."""

    def __init__(
        self, job: Job, timeout: float, environment: dict[str, str], events: queue.Queue
    ) -> None:
        self.job, self.timeout = job, timeout
        self.started = time.monotonic()
        self.cell = 0  # code cells begun
        self.index: int | None = None  # position of the running cell in the output notebook
        self.end: dict[str, Any] = {}
        self.peak_bytes, self.shared_at = 0, 0.0
        self.measured = 0.0
        self.tree: set[psutil.Process] = set()
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.process = subprocess.Popen(
            # -P: a module beside the notebooks must not shadow one of the runner's.
            [sys.executable, "-P", "-m", "course_utils.runner.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            encoding="utf-8",
            env=environment | job.environment,
            start_new_session=True,  # Ctrl-C is for the runner; it ends its workers itself
        )
        self._send()
        self.listener = threading.Thread(target=self._listen, args=(events,), daemon=True)
        self.listener.start()

    def _send(self) -> None:
        order = {
            "source": str(self.job.path),
            "output": self.job.scratch,
            "folder": str(self.job.path.parent),
            "parameters": self.job.parameters,
            "timeout": self.timeout,
        }
        with suppress(BrokenPipeError):  # it died at once: its log says why
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()

    def _listen(self, events: queue.Queue) -> None:
        for line in self.process.stdout:
            events.put((self, json.loads(line)))
        events.put((self, {"event": "gone"}))

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def measure(self) -> None:
        """Note the kernel's processes and their memory; a page that n of them share counts 1/n."""
        if time.monotonic() - self.measured < TICK / 2:
            return
        self.measured = time.monotonic()
        try:
            tree = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return
        self.tree.update(tree)
        held = sum(_rss(process) for process in tree)
        if len(tree) > 1:
            if held <= self.peak_bytes or self.measured <= self.shared_at + SHARED:
                return
            self.shared_at = self.measured
            held = sum(_pss(process) for process in tree)
        self.peak_bytes = max(self.peak_bytes, held)

    def kill(self) -> None:
        """Kill the worker, its kernel and whatever that started."""
        self.measured = 0.0
        self.measure()
        for process in (*self.tree, self.process):
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.kill()
        self.process.wait()
        self.listener.join()

    def close(self) -> None:
        """Close the pipes and the log of a killed worker."""
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.log.close()

    def last_words(self) -> str:
        """The last line that the worker wrote to standard error."""
        self.log.seek(0)
        lines = self.log.read().strip().splitlines()
        return lines[-1] if lines else "no message"


def _rss(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def _pss(process: psutil.Process) -> int:
    """Bytes that a process holds, its part of what it shares; RSS where no system tells (Linux)."""
    try:
        held = process.memory_full_info()
    except psutil.Error:
        return 0
    return getattr(held, "pss", held.rss)


def run(jobs: list[Job], workers: int, timeout: float, progress: Progress) -> list[Result]:
    """Run the jobs, `workers` at a time, and return a result for each, in the jobs' order.

    A notebook that raises, takes longer than `timeout` seconds or loses its kernel does not stop
    the others. After KeyboardInterrupt what runs is killed and the rest is not run; their results
    say so.
    """
    events: queue.Queue = queue.Queue()
    waiting = list(jobs)
    running: dict[str, Worker] = {}
    results: dict[str, Result] = {}
    environment = kernel_environment(min(workers, len(jobs)))
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                progress.started(job)
                running[job.name] = Worker(job, timeout, environment, events)
            for worker in _advance(running, events, progress):
                job = worker.job
                results[job.name] = _conclude(worker)
                del running[job.name]
                progress.finished(job, results[job.name])
    except KeyboardInterrupt:
        for worker in running.values():
            worker.kill()
            results[worker.job.name] = _interrupted(worker)
    return [results.get(job.name) or Result(job.name, "not run") for job in jobs]


def _advance(running: dict[str, Worker], events: queue.Queue, progress: Progress) -> list[Worker]:
    """Wait a tick for events, look after limits, and return the workers that are gone."""
    gone = []
    try:
        worker, event = events.get(timeout=TICK)
    except queue.Empty:
        worker, event = None, {}
    if event.get("event") == "cell":
        worker.cell, worker.index = worker.cell + 1, event["index"]
    elif event.get("event") == "end":
        worker.end = event
    elif event.get("event") == "gone":
        gone.append(worker)
    for each in running.values():
        each.measure()
        progress.moved(each.job, each.cell, each.seconds)
        if each.seconds > each.timeout + GRACE and not each.end:
            each.end = {"status": "timed out"}
            each.kill()
    return gone


def _conclude(worker: Worker) -> Result:
    """Turn a finished worker into a result, and its scratch output into the final one."""
    worker.kill()  # processes that a notebook left behind, too
    job, end = worker.job, worker.end
    status = end.get("status", "failed")
    message = end.get("error", "")
    if not end:
        message = f"its worker process ended unexpectedly ({worker.last_words()})"
    if status == "timed out":
        message = (
            f"still running after {worker.timeout:g} s, the limit for one notebook; "
            "raise it with --timeout if it only needs longer"
        )
    notebook = read_notebook(job.scratch)
    if status != "ok" and notebook and worker.index is not None:
        mark_stopped_cell(notebook, worker.index, _error_name(status), message)
    result = _result(worker, status, notebook)
    if status != "ok":
        result.failure = locate_failure(notebook, message)
    _store(job, notebook, result)
    worker.close()
    return result


def _error_name(status: str) -> str:
    return {"kernel died": "KernelDied", "timed out": "TimedOut"}.get(status, "WorkerFailed")


def _result(worker: Worker, status: str, notebook: dict | None) -> Result:
    peak = max(worker.peak_bytes / 1e6, worker.end.get("peak_mb", 0.0))
    claims = claims_of(notebook, worker.job.name) if notebook else []
    if status != "ok":
        claims += unreached(worker.job.notebook, worker.job.name, claims)
    exempt = exempt_cells(worker.job.notebook)
    seconds, peak = round(worker.seconds, 1), round(peak)
    return Result(worker.job.name, status, seconds, peak, claims, exempt)


def _store(job: Job, notebook: dict | None, result: Result) -> None:
    """Write the final output with what the run measured, and remove the scratch one."""
    if notebook is None:
        return
    notebook["metadata"]["course_run"] = {
        "key": job.key,
        "status": result.status,
        "seconds": result.seconds,
        "peak_mb": result.peak_mb,
        "parameters": job.parameters,
    }
    try:
        write_text(dump(notebook), job.output)
    except Exception as error:  # a full disk, or whatever a remote store raises
        result.status = "failed"
        result.failure = Failure(
            f"can't write {job.output} ({error}); make room, or give another folder with --out"
        )
        return
    if job.scratch != job.output:
        Path(job.scratch).unlink(missing_ok=True)


def _interrupted(worker: Worker) -> Result:
    """A killed worker's result: what it had done stays in its .partial.ipynb."""
    worker.close()
    result = _result(worker, "interrupted", read_notebook(worker.job.scratch))
    cells = worker.job.cells
    result.failure = Failure(f"interrupted in code cell {worker.cell} of {cells}")
    return result


def machine(profile: str) -> str:
    """The hardware in words: "2 CPU cores (x86-64)", and the GPUs for the gpu profile."""
    architecture = platform.machine().lower()
    cores = f"{threads()} CPU cores ({ARCHITECTURES.get(architecture, architecture)})"
    tool = shutil.which("nvidia-smi")
    if profile == "cpu" or not tool:
        return cores
    query = [tool, "--query-gpu=name", "--format=csv,noheader"]
    names = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
    return ", ".join([cores, *names])
