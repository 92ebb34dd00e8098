"""Where pip would look for packages: its configuration files and variables, read by its own rules.

An empty value is no value; lists are separated by white space; `~` is the home folder in paths.
"""

from __future__ import annotations

import ast
import math
import optparse
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

from course_utils.assets.catalogue import AssetError

SECTIONS = ("global.", "install.", "download.", ":env:.")  # later ones win, as in pip
ANOTHER_NAME = {"default-timeout": "timeout"}
TRUE, FALSE = {"y", "yes", "t", "true", "on", "1"}, {"n", "no", "f", "false", "off", "0"}
NOT_PIPS_OWN = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")  # pip reads these where `cert` is not set


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
    timeout: float | None = 15.0  # seconds; None: no limit
    retries: int = 2

    @property
    def sources(self) -> list[dict[str, list[str]]]:
        """Arguments for one PackageFinder per place to look at, in order."""
        places = [{"find_links": [link]} for link in self.find_links]
        if not self.no_index:
            places.append({"index_urls": [self.index_url]} if self.index_url else {})
            places += [{"index_urls": [url]} for url in self.extra_index_urls]
        return places


# ── what is set, as text ────────────────────────────────────────────────────────────────────────


def _from_variables() -> dict[str, str]:
    """Return the PIP_* variables under the keys that `pip config list` gives them."""
    return {
        f":env:.{key[4:].lower().replace('_', '-')}": value
        for key, value in os.environ.items()
        if key.startswith("PIP_")
    }


def _from_files() -> dict[str, str]:
    """Return what pip's configuration files say, by `pip config list`; nothing where pip is absent.

    The other PIP_* variables are kept from that pip: they can silence, redirect or stop it.
    """
    keep = {k: v for k, v in os.environ.items() if k[:4] != "PIP_" or k == "PIP_CONFIG_FILE"}
    environment = keep | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONIOENCODING": "utf-8"}
    for pip in ([sys.executable, "-m", "pip"], [shutil.which("pip") or "pip"]):
        try:
            done = subprocess.run(
                [*pip, "config", "list"], env=environment, capture_output=True, encoding="utf-8"
            )
        except OSError:
            continue
        if done.returncode == 0:
            rows = re.findall(r"^([\w:-]+\.[\w-]+)=(['\"].*['\"])$", done.stdout, re.MULTILINE)
            return {k: ast.literal_eval(value) for k, value in rows if not k.startswith(":env:")}
        if not re.search(r"Traceback|No module named pip", done.stderr):
            told = (done.stdout + done.stderr).strip().splitlines()[-1:]
            raise AssetError(f"pip cannot read its settings ({' '.join(told)}); correct that file")
    return {}


# ── what it means ───────────────────────────────────────────────────────────────────────────────


def _wrong(key: str, value: str, wanted: str) -> AssetError:
    variable = f"PIP_{key.upper().replace('-', '_')}"
    return AssetError(
        f"pip's setting {key} is {value!r}, which is not {wanted}; correct it where "
        f"`pip config list` shows it, or unset {variable}"
    )


def _flag(merged: dict[str, str], key: str) -> bool:
    value = merged.get(key, "no")
    if value.lower() not in TRUE | FALSE:
        raise _wrong(key, value, "yes or no, true or false, 1 or 0")
    return value.lower() in TRUE


def _number(merged: dict[str, str], key: str, kind: str, default: float) -> Any:
    """Return a number as pip's own option parser, which is optparse, reads it."""
    value = merged.get(key, str(default))
    try:
        number = optparse.Option(f"--{key}", type=kind).check_value(key, value)
    except optparse.OptionValueError:
        number = math.nan
    if not math.isfinite(number) or (key == "timeout" and number < 0):
        raise _wrong(key, value, "a whole number" if kind == "int" else "a number from 0 on")
    return number


def _path(merged: dict[str, str], key: str) -> str | None:
    return os.path.expanduser(merged[key]) if key in merged else None


def _link(place: str) -> str:
    """Expand `~` in a find-links entry where that leads somewhere, as pip does."""
    expanded = os.path.realpath(os.path.expanduser(place))
    return expanded if place.startswith("~") and os.path.exists(expanded) else place


def _merged() -> dict[str, str]:
    """Return option → text; an empty value does not count, so it can't hide one from a file."""
    raw, merged = _from_files() | _from_variables(), {}
    for section in SECTIONS:
        rows = {k.removeprefix(section): raw[k] for k in raw if k.startswith(section)}
        merged |= {ANOTHER_NAME.get(key, key): value for key, value in rows.items() if value}
    return merged


def read() -> PipSettings:
    """Read pip's settings: its configuration files and the PIP_* variables.

    Raises AssetError for a value that pip would refuse too.
    """
    merged = _merged()
    elsewhere = [os.environ[name] for name in NOT_PIPS_OWN if os.environ.get(name)]
    return PipSettings(
        find_links=[_link(place) for place in merged.get("find-links", "").split()],
        index_url=merged.get("index-url"),
        extra_index_urls=merged.get("extra-index-url", "").split(),
        no_index=_flag(merged, "no-index"),
        trusted_hosts=merged.get("trusted-host", "").split(),
        cert=_path(merged, "cert") or (elsewhere[0] if elsewhere else None),
        client_cert=_path(merged, "client-cert"),
        proxy=merged.get("proxy"),
        timeout=_number(merged, "timeout", "float", 15) or None,  # pip: 0 is no limit
        retries=max(0, _number(merged, "retries", "int", 2)),
    )
