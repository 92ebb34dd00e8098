"""What models and data there are, and where they are kept: `data/assets.toml` and the cache."""

from __future__ import annotations

import hashlib
import os
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any


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


# ── the catalogue and the cache ─────────────────────────────────────────────────────────────────


def cache_folder() -> Path:
    """Return the folder that assets are kept in: COURSE_CACHE, or the user's cache folder.

    Raises AssetError where neither is known, as for a user without a home folder.
    """
    folder = os.path.expanduser(os.environ.get("COURSE_CACHE") or _users_cache())
    if folder.startswith("~"):  # it could not be expanded
        raise AssetError(
            f"there is no folder to keep models and data in (no home folder is known for {folder});"
            " set COURSE_CACHE to the full path of a folder that you can write to"
        )
    return Path(folder).absolute()


def _users_cache() -> str:
    import platformdirs

    try:
        return platformdirs.user_cache_dir("llms-measured", appauthor=False)
    except RuntimeError:  # newer versions refuse where older ones leave the ~ in place
        return "~"


def data_folder() -> Path:
    """Return the folder of what the course authored: the installed package's, or the checkout's."""
    package = Path(__file__).parents[1]
    installed = package / "_data"
    return installed if installed.exists() else package.parent / "data"


def _catalogue_file() -> Path:
    """Return the catalogue: COURSE_ASSETS, or the one among the course's own data."""
    if chosen := os.environ.get("COURSE_ASSETS"):
        return Path(os.path.expanduser(chosen))
    return data_folder() / "assets.toml"


def _asset(name: str, table: dict[str, Any]) -> Asset:
    members = tuple(Member(**member) for member in table.pop("members"))
    inner = Member(**table.pop("inner")) if "inner" in table else None
    return Asset(name=name, members=members, inner=inner, **table)


@lru_cache(maxsize=8)
def _read_catalogue(file: Path) -> dict[str, Asset]:
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
        if (version := tables.pop("version")) != 1:
            raise AssetError(
                f"{file} is of format {version}, this course reads format 1; update the course"
            )
        return {name: _asset(name, table) for name, table in tables.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AssetError(
            f"the catalogue {file} cannot be read ({error}); restore data/assets.toml"
        ) from error


def catalogue() -> dict[str, Asset]:
    """Return name → asset, in the order in which they are fetched."""
    return _read_catalogue(_catalogue_file())


def names() -> list[str]:
    """Return the names of all assets, in the order in which they are fetched."""
    return list(catalogue())


def describe(name: str) -> Asset:
    """Return an asset's row of the catalogue: package, version, licence, citation, sizes.

    Raises AssetError for an unknown name.
    """
    try:
        return catalogue()[name]
    except KeyError:
        raise AssetError(
            f"there is no asset {name!r}; the course has {', '.join(names())}"
        ) from None


def with_role(role: str) -> list[str]:
    """Return the names of the assets that are a decoder, an encoder, or of another role."""
    return [asset.name for asset in catalogue().values() if asset.role == role]
