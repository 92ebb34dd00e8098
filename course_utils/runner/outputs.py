"""Where outputs go and come from: local files, or papermill's remote addresses."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from course_utils.runner.notebooks import UsageError


def is_remote(address: str | Path) -> bool:
    """Whether an output address is one of papermill's remote ones (s3://, gs://, https://, …)."""
    return "://" in str(address)


def join(folder: str | Path, name: str) -> str:
    """Address of a file in an output folder, local or remote."""
    return f"{str(folder).rstrip('/')}/{name}" if is_remote(folder) else str(Path(folder) / name)


def require_store(address: str) -> None:
    """Raise UsageError when papermill has no store for a remote address, naming those it has."""
    from papermill.iorw import LocalHandler, papermill_io

    if isinstance(papermill_io.get_handler(address), LocalHandler):
        known = ", ".join(scheme for scheme, _ in papermill_io._handlers if "://" in scheme)
        raise UsageError(f"papermill has no store for {address}; it has {known}")


def read_text(address: str) -> str:
    """Read a local file, or a remote one through papermill. Raises OSError or the store's own."""
    if not is_remote(address):
        return Path(address).read_text(encoding="utf-8")
    from papermill.iorw import papermill_io

    return papermill_io.read(address, [".ipynb", ".json", ".html"])


def write_text(text: str, address: str) -> None:
    """Write a local file in one step, or a remote one through papermill."""
    if is_remote(address):
        from papermill.iorw import papermill_io

        papermill_io.write(text, address, [".ipynb", ".json", ".html"])
        return
    path = Path(address)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8", errors="replace")
    os.replace(temporary, path)


def store(text: str, path: Path) -> None:
    """Write one of the course's own files. Raises UsageError when that can't be done."""
    try:
        write_text(text, str(path))
    except OSError as error:
        raise _unwritable(path, error) from error


def require_writable(folder: Path) -> None:
    """Raise UsageError when nothing can be written into one of the course's own folders."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"can't write {path} ({error.strerror}); make it writable, or work in a copy of the course"
    )


def read_notebook(address: str) -> dict | None:
    """Return an executed notebook, or None when there is none or it is cut short."""
    try:
        return json.loads(read_text(address))
    except Exception:  # every remote store has its own error for a missing object
        return None


def dump(notebook: dict) -> str:
    """A notebook as text, in the form that nbformat writes."""
    import nbformat

    return nbformat.writes(nbformat.from_dict(notebook), version=nbformat.NO_CONVERT) + "\n"
