"""A made-up package, its catalogue, and an index of files or a loopback server that offers it.

It stands for the real assets, so that no test of what can go wrong needs a network.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from course_utils import models
from course_utils.assets import catalogue, fetching
from course_utils.assets.cache import MANIFEST
from course_utils.assets.catalogue import AssetError, describe

DATA = bytes(range(256)) * 4096  # 1 MiB: several chunks on every way it takes
EXTRA = b"a second member\n"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wheel(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def tar(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return buffer.getvalue()


MEMBERS = {"toy/big.bin": DATA, "toy/sub/note.txt": EXTRA, "toy/__init__.py": b"raise SystemExit"}
WHEEL = wheel(MEMBERS)


class World:
    """A cache, a catalogue with one asset called toy, and a package index of files."""

    def __init__(self, root: Path) -> None:
        self.cache, self.index, self.catalogue = root / "cache", root / "simple", root / "toy.toml"
        (self.index / "toy").mkdir(parents=True)
        self.publish(WHEEL)
        self.describe(WHEEL)

    def publish(
        self, archive: bytes, name: str = "toy-1.0-py3-none-any.whl", hint: str = ""
    ) -> None:
        """Put an archive on the index; `hint` is the sha256 that its page shows, if any."""
        (self.index / "toy" / name).write_bytes(archive)
        link = f'<a href="{name}{"#sha256=" + hint if hint else ""}">{name}</a>'
        (self.index / "toy" / "index.html").write_text(link)

    def describe(
        self,
        archive: bytes,
        name: str = "toy-1.0-py3-none-any.whl",
        members: dict[str, tuple[str, bytes]] | None = None,
        inner: tuple[str, bytes] | None = None,
    ) -> None:
        """Write the catalogue: members are name in the cache → (path in the archive, content)."""
        members = members or {
            "big.bin": ("toy/big.bin", DATA),
            "sub/note.txt": ("toy/sub/note.txt", EXTRA),
        }

        def row(path: str, data: bytes) -> list[str]:
            return [f"path = '{path}'", f"size = {len(data)}", f"sha256 = '{sha256(data)}'"]

        lines = ["version = 1", "[toy]"]
        texts = {"package": "toy", "version": "1.0", "archive": name, "sha256": sha256(archive)}
        for key in ("description", "role", "kind", "licence", "citation", "source"):
            texts[key] = "for tests"
        lines += [f"{key} = '{value}'" for key, value in texts.items()]
        lines += [f"size = {len(archive)}"]
        if inner:
            lines += ["[toy.inner]", *row(*inner)]
        for target, (path, data) in members.items():
            lines += ["[[toy.members]]", f"name = '{target}'", *row(path, data)]
        self.catalogue.write_text("\n".join(lines))
        catalogue._read_catalogue.cache_clear()

    def left(self) -> list[str]:
        """Return what is in the cache, locks aside."""
        if not self.cache.is_dir():
            return []
        return sorted(p.name for p in self.cache.iterdir() if not p.name.endswith(".lock"))

    def whole(self) -> bool:
        """Whether the asset, and nothing else, is there with the right content."""
        folder = self.cache / "toy"
        files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        return (
            self.left() == ["toy"]
            and files == {"big.bin", "sub/note.txt", MANIFEST}
            and (folder / "big.bin").read_bytes() == DATA
            and (folder / "sub" / "note.txt").read_bytes() == EXTRA
            and models.verify(describe("toy")) == []
        )


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves an index; counts the archives sent, and can send them slowly or break off."""

    def do_GET(self) -> None:
        if not self.path.endswith((".whl", ".gz")):
            return super().do_GET()
        self.server.sent += 1
        data = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        time.sleep(self.server.delay)
        if self.server.sent <= self.server.broken:
            data = data[: len(data) // 2]
        self.wfile.write(data)
        return None

    def log_message(self, *args) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client that was killed
            super().handle()


def silent(*args) -> None:
    pass


def python(code: str, **kwargs) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code], text=True, stdout=-1, stderr=-1, **kwargs)


def refused(world: World, *words: str) -> str:
    """Fetch, and return the message of the AssetError after looking for words in it."""
    with pytest.raises(AssetError) as caught:
        fetching.fetch(describe("toy"), silent)
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message
    return message


FETCH = """
from course_utils.assets.catalogue import describe
from course_utils.assets.fetching import fetch
fetch(describe("toy"))
"""
