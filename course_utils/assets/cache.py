"""A folder of verified files, or none: unpack, check, seal, lock.

The named members of an archive are unpacked and checked one by one in a scratch folder, a manifest
is written last, and only then does the folder get its name. Whatever interrupts this leaves the old
state, or a scratch folder that the next run removes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from course_utils.assets.catalogue import Asset, AssetError, Member

MANIFEST = ".complete.json"
CHUNK = 1 << 20
PATIENCE = 3600.0  # seconds to wait for another process that fetches the same asset
FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}
Report = Callable[[str, int, int], None]  # step, bytes done, bytes in all
OpenMember = Callable[[str], BinaryIO]


# ── unpack ──────────────────────────────────────────────────────────────────────────────────────


def _regular(member: tarfile.TarInfo) -> tarfile.TarInfo:
    if not member.isreg():
        raise AssetError(
            f"the archive member {member.name!r} is a link or a device, not a file; nothing was "
            "unpacked, and the archive should not be trusted"
        )
    return member


@contextmanager
def _opened(archive: Path) -> Iterator[OpenMember]:
    """Open a zip or tar archive; yields a function from a member's path to its stream.

    Nothing is extracted by the archive's own names, so these can't lead out of the cache.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                yield lambda path: zipped.open(path)
        else:
            with tarfile.open(archive) as tarred:
                yield lambda path: tarred.extractfile(_regular(tarred.getmember(path)))
    except KeyError as error:
        raise AssetError(
            f"{archive.name} has no member as named in assets.toml ({error.args[0]}); correct the "
            "catalogue"
        ) from error
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise AssetError(
            f"{archive.name} cannot be read as an archive ({str(error).splitlines()[0]}), although "
            "it is what assets.toml names; correct the catalogue"
        ) from error


def _copy(stream: BinaryIO, target: Path, member: Member, step: Callable[[int], None]) -> None:
    """Write one member to `target`, at most its own size, and check its sha256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sha256, written = hashlib.sha256(), 0
    with target.open("xb") as file:
        while chunk := stream.read(CHUNK):
            written += len(chunk)
            if written > member.size:
                break
            sha256.update(chunk)
            file.write(chunk)
            step(len(chunk))
    if written != member.size or sha256.hexdigest() != member.sha256:
        more = "more than " if written > member.size else ""
        raise AssetError(
            f"the archive member {member.path!r} is not what assets.toml says ({more}"
            f"{min(written, member.size):,} bytes of {member.size:,}, sha256 "
            f"{sha256.hexdigest()}, not {member.sha256}); nothing was kept, update the course"
        )


def unpack(archive: Path, asset: Asset, folder: Path, report: Report) -> None:
    """Write the asset's members, and nothing else, from its archive into `folder`.

    Raises AssetError when a member is missing, is not a plain file, or has another size or sha256.
    """
    done = 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        report("unpack", done, asset.unpacked_size)

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        if asset.inner:
            inner = Path(scratch) / "inner"
            with _opened(archive) as member:
                _copy(member(asset.inner.path), inner, asset.inner, lambda _: None)
            archive = inner
        with _opened(archive) as member:
            for wanted in asset.members:
                with member(wanted.path) as stream:
                    _copy(stream, folder / wanted.name, wanted, step)


# ── keep: scratch folder, manifest, final name ──────────────────────────────────────────────────


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def seal(folder: Path, digest: str) -> None:
    """Write the manifest of a finished folder: the last file, and what makes it count as whole.

    Everything is on the disk before the manifest is: a power cut can't leave a manifest that lies.
    """
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        path.chmod(0o644)  # some writers leave 0600, and a cache may be shared
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        status = path.stat()
        name = path.relative_to(folder).as_posix()
        # Whole seconds, because archives and copies of a cache keep no more than these.
        files[name] = [status.st_size, int(status.st_mtime), sha256_of(path)]
    _write_synced(folder / MANIFEST, json.dumps({"digest": digest, "files": files}, indent=1))


def _manifest(folder: Path) -> dict | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return manifest if isinstance(manifest["files"], dict) and manifest["digest"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def problems(folder: Path, digest: str, *, full: bool = False) -> list[str]:
    """Say what is wrong with a cached folder: one sentence each, none when it is sound.

    The quick check compares sizes and times, and reads a file only when its time has changed;
    `full` reads and hashes every file. `digest` is what the folder must have been made from.
    """
    manifest = _manifest(folder)
    if manifest is None:
        there = os.path.exists(folder)  # unlike Path's, no error where one may not look
        return ["it is half-written" if there else "it has not been fetched"]
    if manifest["digest"] != digest:
        return ["the catalogue assets.toml names another version of it"]
    wrong = []
    for name, (size, mtime, sha256) in manifest["files"].items():
        try:
            status = (folder / name).stat()
        except OSError:
            wrong.append(f"its file {name} is missing")
            continue
        if status.st_size != size:
            wrong.append(f"its file {name} has {status.st_size:,} bytes instead of {size:,}")
        elif (full or int(status.st_mtime) != mtime) and sha256_of(folder / name) != sha256:
            wrong.append(f"its file {name} has changed (another sha256)")
    return wrong


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _swap(scratch: Path, folder: Path, old: Path) -> None:
    """Give the finished scratch folder its name; a previous folder of that name goes away."""
    if folder.exists():
        os.replace(folder, old)
    os.replace(scratch, folder)
    _remove(old)


def storage_error(error: Exception, name: str, cache: Path) -> AssetError | None:
    """Turn an error of the file system, also one told by a Rust library, into a clear sentence.

    Returns None for any other error.
    """
    told = re.search(r"os error (\d+)", str(error))
    number = error.errno if isinstance(error, OSError) else told and int(told[1])
    if not number:
        return None
    if number in FULL:
        what = "the disk is full: free some space there, or"
    elif number in FORBIDDEN:
        what = f"this folder cannot be written to ({os.strerror(number)}):"
    else:
        what = f"the file system says: {os.strerror(number)}; look at the disk, or"
    return AssetError(
        f"could not store {name!r} in {cache}; {what} set COURSE_CACHE to a folder with room that "
        "you can write to, and run `course fetch` again; nothing half-made was kept"
    )


@contextmanager
def _locked(cache: Path, name: str, report: Report) -> Iterator[None]:
    """Hold the asset's lock; the operating system frees it when its holder dies."""
    from filelock import FileLock, Timeout

    lock = FileLock(cache / f".{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report("wait for another fetch", 0, 0)
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout as error:
            raise AssetError(
                f"another process has been fetching {name!r} into {cache} for an hour; stop it, "
                "then run `course fetch` again"
            ) from error
    try:
        yield
    finally:
        lock.release()


def _build(
    cache: Path, name: str, digest: str, build: Callable[[Path, Report], None], report: Report
) -> None:
    """Fill a scratch folder, seal it and give it its name; whatever happens, clear the scratch."""
    scratch, old = cache / f".{name}.partial", cache / f".{name}.old"
    for leftover in (scratch, old):  # of a run that was killed
        _remove(leftover)
    try:
        scratch.mkdir()
        build(scratch, report)
        seal(scratch, digest)
        _swap(scratch, cache / name, old)
    finally:
        _remove(scratch)


def install(
    cache: Path,
    name: str,
    digest: str,
    build: Callable[[Path, Report], None],
    report: Report,
    *,
    full: bool = False,
) -> Path:
    """Return the sound folder `cache/name`; if there is none, have `build` fill one.

    `build(scratch, report)` gets an empty folder beside the final one. One process builds, others
    wait and take its result. Raises AssetError; whatever is raised, no half-made folder is left.
    """
    folder = cache / name
    wrong = problems(folder, digest, full=full)
    if not wrong:
        return folder  # without the lock, so that a read-only cache can be used
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache, name, report):
            if wrong := problems(folder, digest, full=full):
                _build(cache, name, digest, build, report)
    except AssetError as error:
        if not os.path.exists(folder):
            raise
        raise AssetError(f"the cached {folder} can't be used ({wrong[0]}), and {error}") from error
    except Exception as error:
        if sentence := storage_error(error, name, cache):
            raise sentence from error
        raise
    return folder
