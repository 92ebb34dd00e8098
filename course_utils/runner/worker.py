"""One notebook in a process of its own: papermill around a kernel of this interpreter.

Started by `execution.start` as `python -m course_utils.runner.worker`. Reads one job as a line of
JSON from standard input and writes events as lines of JSON to standard output:
`{"event": "cell", "index": 4}` before each code cell, `{"event": "end", "status": …}` at the end.
When standard input closes, whoever started it is gone: it kills its kernel and exits.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from typing import IO, Any

from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from traitlets import default


class OwnInterpreter(KernelSpecManager):
    """Every kernel name means this interpreter, whatever kernelspecs the machine has."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        kernel = get_kernel_dict()
        kernel["argv"].append("--Session.packer=course_utils.runner.packing.pack")
        return KernelSpec(resource_dir=RESOURCES, **kernel)


class OwnKernel(AsyncKernelManager):
    """A kernel manager for OwnInterpreter that remembers the exit code of a kernel that died."""

    exit_code: int | None = None

    @default("kernel_spec_manager")
    def _own_interpreter(self) -> KernelSpecManager:
        return OwnInterpreter(parent=self)

    async def _async_is_alive(self) -> bool:
        if self.provisioner and (code := await self.provisioner.poll()) is not None:
            OwnKernel.exit_code = code
        return await super()._async_is_alive()


def execute(job: dict[str, Any], report: Any) -> dict[str, Any]:
    """Run one job; return its end event. `report(**event)` is called before each code cell.

    A job has source and output (paths or papermill addresses), folder (the kernel's working
    folder), parameters (None or {} injects nothing) and timeout (seconds for the whole notebook).
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    deadline = time.monotonic() + job["timeout"]
    try:
        papermill.execute_notebook(
            job["source"],
            job["output"],
            parameters=job["parameters"] or None,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            cwd=job["folder"],
            kernel_manager_class=OwnKernel,
            shutdown_kernel="immediate",
            coalesce_streams=True,
            autosave_cell_every=30 if "://" in job["output"] else 5,  # seconds
            iopub_timeout=60,
            # An interrupt shows in the output where the cell hung.
            timeout_func=lambda cell: max(1, deadline - time.monotonic()),
            interrupt_on_timeout=True,
            on_cell_execute=lambda cell, cell_index: report(event="cell", index=cell_index),
        )
    except DeadKernelError:
        return {"status": "kernel died", "error": _death(OwnKernel.exit_code)}
    except (papermill.PapermillExecutionError, CellTimeoutError):
        return {"status": "timed out" if time.monotonic() >= deadline else "failed"}
    return {"status": "ok"}


def _death(exit_code: int | None) -> str:
    """Say how a kernel died, and what that mostly means."""
    if exit_code is None:
        return "the kernel died"
    if exit_code >= 0:
        return f"the kernel exited by itself with status {exit_code}"
    text = f"the kernel was killed by {signal.Signals(-exit_code).name}"
    if exit_code == -signal.SIGKILL:
        text += "; the system may have run out of memory: close other programs, or use --jobs 1"
    return text


def _peak_mb() -> float:
    """Largest resident memory that any of the finished children had, in MB (10^6 bytes).

    0 where the system does not say (Windows): then only what the runner saw itself counts.
    """
    try:
        import resource
    except ImportError:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e6


def _die_with_parent(commands: IO[str]) -> None:
    import psutil

    commands.read()
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(1)


def _private_stdout() -> IO[str]:
    """Keep standard output for events; whatever else prints goes to standard error."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return events


def main() -> None:
    """Run the job given on standard input."""
    events = _private_stdout()

    def report(**event: Any) -> None:
        print(json.dumps(event), file=events, flush=True)

    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_parent, args=(sys.stdin,), daemon=True).start()
    try:
        end = execute(job, report)
    except Exception as error:  # whatever papermill met: an output it can't write, no kernel
        end = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    report(event="end", peak_mb=_peak_mb(), **end)


if __name__ == "__main__":
    main()
