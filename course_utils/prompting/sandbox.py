"""Run a program that a model wrote, in a process that can only compute and answer. Notebook 11.

`run(source)` starts a fresh interpreter (`sandbox_child`), which gives up files, network, other
processes, its user and nearly all system calls before it parses the program, checks it against an
allow-list and runs it under limits of CPU time, memory and output. The parent only ever sees text:
nothing of the program is parsed, compiled or unpickled here.

What holds depends on the machine; `guarantees()` tries it and says so. Never guaranteed: that a
program's value is true, that its text is harmless to whatever displays it (escape it), and safety
from bugs in the kernel or from what a shared processor leaks through time.
"""

from __future__ import annotations

import functools
import json
import operator
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from fractions import Fraction
from typing import Any

from course_utils.prompting import sandbox_child

LAYERS = sandbox_child.LAYERS
MODULES = tuple(sandbox_child.MODULES)
MAX_SOURCE = 100_000


# What a child is told, beside the two ends it answers to; `layers` and `load` (modules a program
# may import without the language layer) change only where layers are tried one by one.
_SETTINGS = dict(
    entry="", seconds=2.0, memory_mb=256, output_limit=20_000, seed=0, layers=LAYERS, load=()
)
# -S -s -P: no site packages and nothing of the current folder; the environment is ours alone, and
# a fixed hash seed makes the order of sets repeatable.
_COMMAND = (
    "import sys; sys.path.append({folder!r}); import sandbox_child; sys.path.pop(); "
    "sandbox_child.main(sys.argv[1])"
)
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONIOENCODING": "utf-8:backslashreplace"}
_KEPT = ("LD_LIBRARY_PATH",)  # some interpreters do not start without it
# Only Linux bounds the address space; elsewhere the parent watches the process's size.
_KERNEL_BOUNDS_MEMORY = sys.platform == "linux"


class SandboxError(RuntimeError):
    """The sandbox itself cannot run here, or not at the level that was asked for."""


@dataclass(frozen=True)
class Result:
    """What became of one program: its value, or the name of the error that ended it.

    `error` is None, a Python exception's name, or one of the sandbox's own: Refused (not on the
    allow-list), TimeLimit, MemoryLimit, OutputLimit, NoValue, Crashed. `held` names the layers
    that were in force, as the child reported them.
    """

    value: Any
    output: str
    error: str | None
    message: str
    line: int | None
    seconds: float
    cpu_seconds: float
    held: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return self.error is None

    def __str__(self) -> str:
        if self.ok:
            return repr(self.value)
        return f"{self.error}{f' in line {self.line}' if self.line else ''}: {self.message}"


def run(
    source: str,
    *,
    entry: str | None = None,
    seconds: float = 2.0,
    wall_seconds: float | None = None,
    memory_mb: int = 256,
    output_limit: int = 20_000,
    seed: int = 0,
    require: str = "limits",
) -> Result:
    """Run `source` in a process of its own and return its value or a named error.

    The value is that of the last line if it is an expression, or of `entry`: a variable, or a
    function called without arguments. `seconds` is CPU time, `wall_seconds` (default three times
    that and 2 s more) the time on the clock, `output_limit` bounds what is printed (bytes) and
    the value (characters), `seed` seeds `random`. `require="kernel"` raises SandboxError where
    the kernel does not filter system calls. ValueError for a limit that makes no sense; whatever
    the program itself does ends in the Result, never in an exception.
    """
    if require not in ("kernel", "limits"):
        raise ValueError(f"require is {require!r}; it must be 'kernel' or 'limits'")
    if require == "kernel" and (level := guarantees().level) != "kernel":
        raise SandboxError(
            f"this machine offers level {level!r}, without a filter of system calls; accept that "
            "with require='limits', or run on Linux with seccomp"
        )
    wall = 3 * seconds + 2 if wall_seconds is None else wall_seconds
    _check_arguments(source, entry, seconds, wall, memory_mb, output_limit)
    if len(source) > MAX_SOURCE:
        message = f"the program has {len(source):,} characters; {MAX_SOURCE:,} are allowed"
        return Result(None, "", "Refused", message, None, 0.0, 0.0, ())
    limits = dict(seconds=float(seconds), memory_mb=int(memory_mb), output_limit=int(output_limit))
    return _run(source, wall, entry=entry or "", seed=operator.index(seed), **limits)


def _run(source: str, wall: float = 8.0, **changed: Any) -> Result:
    """Start a child with `_SETTINGS`, some of them changed, and say what became of it."""
    settings = _SETTINGS | changed
    reading, writing = os.pipe()
    try:
        child = _start({**settings, "answer": writing, "parent": os.getpid()})
    except OSError as error:
        os.close(reading)
        raise SandboxError(f"cannot start {sys.executable}: {error}") from error
    finally:
        os.close(writing)
    return _Watch(child, reading, source.encode("utf-8", "surrogatepass"), wall, settings).result()


def _check_arguments(
    source: str, entry: str, seconds: float, wall: float, memory_mb: int, output_limit: int
) -> None:
    if os.name != "posix":
        raise SandboxError("the sandbox needs Linux or macOS; on Windows run the course in WSL")
    if not isinstance(source, str):
        raise ValueError(f"source is a {type(source).__name__}; it must be the program's text")
    if entry and (not entry.isidentifier() or entry.startswith("__")):
        raise ValueError(f"entry is {entry!r}; it must name a variable or function of the program")
    limits = dict(
        seconds=seconds, wall_seconds=wall, output_limit=output_limit, memory_mb=memory_mb
    )
    for name, value in limits.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} is {value}; it must be a positive number")
    if memory_mb < 64:
        raise ValueError(f"memory_mb is {memory_mb}; the interpreter itself needs 64")


def _start(settings: dict[str, Any]) -> subprocess.Popen:
    command = _COMMAND.format(folder=os.path.dirname(sandbox_child.__file__))
    return subprocess.Popen(
        [sys.executable, "-S", "-s", "-P", "-c", command, json.dumps(settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=(settings["answer"],),
        env=_ENVIRONMENT | {name: os.environ[name] for name in _KEPT if name in os.environ},
        cwd="/",
        start_new_session=True,  # one group, so that one signal ends it all
    )


class _Watch:
    """One running child: feeds it, collects what it sends, and kills it at a limit."""

    def __init__(
        self,
        child: subprocess.Popen,
        reading: int,
        text: bytes,
        wall: float,
        settings: dict[str, Any],
    ) -> None:
        self.child, self.reading, self.text = child, reading, text
        self.wall, self.started, self.settings = wall, time.monotonic(), settings
        self.output, self.answer = bytearray(), bytearray()
        self.output_limit: int = settings["output_limit"]
        self.stopped: tuple[str, str] | None = None

    def result(self) -> Result:
        """Wait for the child and say what became of it; it is dead afterwards in any case."""
        try:
            self._collect()
        finally:
            status, usage = self._end()
        cpu = usage.ru_utime + usage.ru_stime
        return Result(
            **self._fields(status, cpu),
            output=bytes(self.output[: self.output_limit]).decode("utf-8", "replace"),
            seconds=time.monotonic() - self.started,
            cpu_seconds=cpu,
        )

    def _collect(self) -> None:
        with selectors.DefaultSelector() as waiting:
            self._register(waiting)
            while waiting.get_map() and not self.stopped and b"\n" not in self.answer:
                left = self.wall - (time.monotonic() - self.started)
                if left <= 0:
                    self.stopped = "TimeLimit", f"it still ran after {self.wall:g} s on the clock"
                    return
                for key, _ in waiting.select(min(left, 0.05) if self._watches() else left):
                    if not key.data(key.fd):
                        waiting.unregister(key.fd)
            self._drain()

    def _register(self, waiting: selectors.BaseSelector) -> None:
        feeding, printed = self.child.stdin.fileno(), self.child.stdout.fileno()
        for end in (feeding, printed, self.reading):
            os.set_blocking(end, False)
            events = selectors.EVENT_WRITE if end == feeding else selectors.EVENT_READ
            waiting.register(end, events, self._feed if end == feeding else self._read)

    def _feed(self, end: int) -> bool:
        """Send what fits of the program; False when all is sent."""
        try:
            self.text = self.text[os.write(end, self.text) :]
        except BrokenPipeError:  # the child died early; its status will say why
            self.text = b""
        if not self.text:
            self.child.stdin.close()
        return bool(self.text)

    def _read(self, end: int) -> bool:
        """Take what is there; False at the end of the stream."""
        try:
            part = os.read(end, 1 << 16)
        except BlockingIOError:
            return True
        into = self.answer if end == self.reading else self.output
        into += part
        if len(self.output) > self.output_limit:
            self.stopped = "OutputLimit", f"it printed more than {self.output_limit:,} bytes"
        elif len(self.answer) > 10 * self.output_limit + 10_000:
            self.stopped = "OutputLimit", "it sent an answer beyond every limit"
        return bool(part)

    def _drain(self) -> None:
        """What was printed before the answer is in the pipe already."""
        while not self.stopped and len(self.output) <= self.output_limit:
            before = len(self.output)
            self._read(self.child.stdout.fileno())
            if len(self.output) == before:
                return

    def _watches(self) -> bool:
        if _KERNEL_BOUNDS_MEMORY:
            return False
        if _resident_mb(self.child.pid) > self.settings["memory_mb"]:
            self.stopped = "MemoryLimit", f"it held more than {self.settings['memory_mb']} MB"
        return True

    def _end(self) -> tuple[int, Any]:
        """Kill the whole group, reap the child, close every end."""
        try:
            os.killpg(self.child.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # macOS: EPERM for a group of the dead
            self.child.kill()
        _, status, usage = os.wait4(self.child.pid, 0)
        self.child.returncode = os.waitstatus_to_exitcode(status)
        self.child.stdout.close()
        self.child.stdin.close()
        os.close(self.reading)
        return self.child.returncode, usage

    def _fields(self, status: int, cpu: float) -> dict[str, Any]:
        line, complete, _ = bytes(self.answer).partition(b"\n")
        if self.stopped:
            error, message = self.stopped
        elif not complete:
            error, message = _cause_of_death(status, cpu, self.settings["seconds"])
        else:
            try:
                return _read_answer(line)
            except Exception:  # it may be forged in any way
                error, message = "Crashed", "it sent an answer that is none"
        return {"value": None, "error": error, "message": message, "line": None, "held": ()}


def _cause_of_death(status: int, cpu: float, seconds: float) -> tuple[str, str]:
    timer = status in (-signal.SIGPROF, -signal.SIGXCPU)
    if timer or (status == -signal.SIGKILL and cpu > 0.9 * seconds):
        return "TimeLimit", f"it used more than {seconds:g} s of processor time"
    if status < 0:
        return "Crashed", f"the process died of signal {-status} ({signal.strsignal(-status)})"
    return "Crashed", f"the process ended with status {status} and no answer"


def _resident_mb(pid: int) -> float:
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, check=False)
    return int(shown.stdout.strip() or 0) / 1024


# ── reading an answer ─────────────────────────────────────────────────────────────────────────

_READERS = {
    "float": float,
    "complex": complex,
    "Decimal": Decimal,
    "Fraction": lambda of: Fraction(*map(int, of.split("/"))),  # never Fraction("1e999999999")
    "date": date.fromisoformat,
    "datetime": datetime.fromisoformat,
    "time": time_of_day.fromisoformat,
    "timedelta": lambda of: timedelta(*map(int, of)),
    "bytes": bytes.fromhex,
    "tuple": lambda of: tuple(map(_decode, of)),
    "set": lambda of: set(map(_decode, of)),
    "frozenset": lambda of: frozenset(map(_decode, of)),
    "dict": lambda of: dict(zip(*[iter(map(_decode, of))] * 2, strict=True)),
}


def _read_answer(line: bytes) -> dict[str, Any]:
    """Return the fields of an answer; every part of it may be forged, so each is converted."""
    answer = json.loads(line)
    at, held = answer.get("line"), str(answer.get("held", "")).split(",")
    return {
        "value": _decode(answer["value"]),
        "error": None if answer.get("error") is None else _clean(str(answer["error"]))[:100],
        "message": _clean(str(answer.get("message", ""))),
        "line": at if isinstance(at, int) else None,
        "held": tuple(name for name in LAYERS if name in held),
    }


def _decode(value: Any) -> Any:
    """Undo `sandbox_child.encode`: plain data only, whatever was sent."""
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return _READERS[value["type"]](value["of"]) if isinstance(value, dict) else value


def _clean(text: str) -> str:
    """Replace lone surrogates, which no terminal or notebook can show."""
    return text.encode("utf-8", "replace").decode()


# ── what holds on this machine ────────────────────────────────────────────────────────────────

_PROBE = """
import ctypes, mmap, os, signal, socket, subprocess, threading
ran = lambda: None
tries = {
    "read a file": lambda: open("/etc/passwd").read(),
    "list a folder": lambda: os.listdir("/"),
    "write a file": lambda: open("/tmp/sandbox-probe", "w"),
    "delete or rename a file": lambda: os.rename("/sandbox-probe", "/sandbox-probe"),
    "open a socket": lambda: socket.socket(),
    "start a process": lambda: os._exit(0) if os.fork() == 0 else None,
    "run another program": lambda: os.execv("/sandbox-probe", ["x"]),
    "start a thread": lambda: threading.Thread(target=ran).start(),
    "signal another process": lambda: os.kill(os.getppid(), 0),
    "make memory executable": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
}
found = {}
for name, attempt in tries.items():
    try:
        attempt()
        found[name] = "done"
    except FileNotFoundError:
        found[name] = "done"  # the kernel looked the path up
    except Exception as error:
        found[name] = type(error).__name__
found["see the environment"] = "done" if set(os.environ) - {KNOWN} else "nothing there"
found
"""


_PROBE_WALL = 20.0  # seconds in which a loaded machine, too, computes for 0.2
_PROBE_MODULES = ("ctypes", "mmap", "os", "signal", "socket", "subprocess", "threading")


@dataclass(frozen=True)
class Guarantees:
    """What the operating system refuses a program here, were the language layer broken.

    `level` is "kernel" (system calls are filtered) or "limits" (only resource limits and the
    layers inside Python). `refused` maps each deed, tried on this machine with full Python, to
    whether it failed. `layers` are those that took effect.
    """

    level: str
    refused: dict[str, bool]
    layers: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"level: {self.level} (layers in force: {', '.join(self.layers)})"]
        lines += [
            f"  {'refused' if refused else 'NOT REFUSED by the system, only by Python'}: {deed}"
            for deed, refused in self.refused.items()
        ]
        return "\n".join([*lines, *(f"  not guaranteed: {text}" for text in NOT_GUARANTEED)])


NOT_GUARANTEED = (
    "that a value is true, or that text is harmless to what displays it",
    "safety from bugs in the kernel, or from what a shared processor leaks through time",
    "that many programs at once leave the machine idle: each may use its full limits",
)


@functools.cache
def guarantees() -> Guarantees:
    """Try, with the language layer off, what a program must not do, and report what failed.

    Takes about a second, once per process. Raises SandboxError when no child can be started.
    """
    outside = tuple(layer for layer in LAYERS if layer not in ("language", "audit"))
    known = repr({*_ENVIRONMENT, *_KEPT} | {"LC_CTYPE", "__CF_USER_TEXT_ENCODING"})[1:-1]
    probe = _PROBE.replace("KNOWN", known)
    tried = _run(probe, layers=outside, load=_PROBE_MODULES)
    if not tried.ok:
        raise SandboxError(f"the sandbox cannot be tried on this machine: {tried}")
    refused = {deed: outcome != "done" for deed, outcome in tried.value.items()}
    refused |= dict(_probe_limits(outside))
    level = "kernel" if "seccomp" in tried.held else "limits"
    return Guarantees(level, refused, ("language", "audit", *tried.held))


def _probe_limits(layers: tuple[str, ...]) -> Iterator[tuple[str, bool]]:
    spin = _run("while True: pass", _PROBE_WALL, seconds=0.2, layers=layers)
    yield "use more processor time than allowed", "processor" in spin.message
    fill = _run("len(bytearray(2 * 10**8))", memory_mb=128, layers=layers)
    yield "use more memory than allowed", fill.error == "MemoryLimit"
    flood = _run("while True: print('x' * 1000)", output_limit=5000, layers=layers)
    yield "print more than allowed", flood.error == "OutputLimit"
