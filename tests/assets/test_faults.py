"""What can go wrong while an asset is fetched: each fault gets a clear sentence and leaves no mess.

A made-up package stands for the real ones, on a package index made of files or on a loopback
server, so nothing here needs a network.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest

from course_utils import models
from course_utils.assets import cache, catalogue, fetching
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
PIP_CONFIGURATION = fetching._pip_configuration


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


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    world = World(tmp_path)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", world.index.as_uri())
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # Starting pip takes most of a second; the tests of the settings and all subprocesses do it.
    monkeypatch.setattr(fetching, "_pip_configuration", fetching._pip_variables)
    monkeypatch.setenv("COURSE_CACHE", str(world.cache))
    monkeypatch.setenv("COURSE_ASSETS", str(world.catalogue))
    return world


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


@pytest.fixture
def server(world, monkeypatch):
    """The index of `world` on a loopback server."""
    handler = functools.partial(Handler, directory=str(world.index.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.sent, server.delay, server.broken = 0, 0.0, 0
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple/")
        yield server
        server.shutdown()
        thread.join()


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


# ── the plain case, on each way ─────────────────────────────────────────────────────────────────


def test_fetches_from_an_index_of_files(world):
    folder = fetching.fetch(describe("toy"), silent)
    assert folder == world.cache / "toy"
    assert world.whole()


def test_fetches_from_a_server_once_and_reports_progress(world, server):
    seen = []
    fetching.fetch(describe("toy"), lambda *row: seen.append(row))
    fetching.fetch(describe("toy"), lambda *row: pytest.fail("a second fetch has nothing to do"))
    assert world.whole()
    assert server.sent == 1
    downloaded = [done for _, step, done, _ in seen if step == "download"]
    assert downloaded == sorted(downloaded)
    assert len(set(downloaded)) > 3
    assert ("toy", "download", len(WHEEL), len(WHEEL)) in seen
    total = len(DATA) + len(EXTRA)
    assert seen[-1] == ("toy", "unpack", total, total)


def test_fetches_from_find_links_where_no_index_is_allowed(world, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(world.index / "toy"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/never-asked/")
    fetching.fetch(describe("toy"), silent)
    assert world.whole()


def test_progress_is_shown_without_a_terminal_too(world):
    process = python(FETCH)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out == ""
    assert "toy: download" in error
    assert "toy: unpack" in error


def test_source_archives_are_unpacked_without_running_them(world, tmp_path):
    ran = tmp_path / "ran"
    setup = f"open({str(ran)!r}, 'w')".encode()
    inner = tar({"data/big.bin": DATA})
    archive = tar({"toy-1.0/setup.py": setup, "toy-1.0/inner.tar.gz": inner})
    world.publish(archive, "toy-1.0.tar.gz")
    world.describe(
        archive,
        "toy-1.0.tar.gz",
        {"big.bin": ("data/big.bin", DATA)},
        ("toy-1.0/inner.tar.gz", inner),
    )
    folder = fetching.fetch(describe("toy"), silent)
    assert sorted(p.name for p in folder.iterdir()) == [MANIFEST, "big.bin"]
    assert (folder / "big.bin").read_bytes() == DATA
    assert not ran.exists()


# ── pip's settings ──────────────────────────────────────────────────────────────────────────────


def test_pip_settings_come_from_files_and_variables(world, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "_pip_configuration", PIP_CONFIGURATION)
    file = tmp_path / "pip.conf"
    file.write_text(
        "[global]\nindex-url = https://one.example/simple\ntimeout = 7\n"
        "find-links =\n    /a\n    /b\n"
        "[install]\nextra-index-url = https://two.example https://three.example\n"
        "trusted-host = two.example\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.setenv("PIP_INDEX_URL", "https://four.example/simple")
    monkeypatch.setenv("PIP_QUIET", "3")  # must not silence the settings themselves
    settings = fetching.pip_settings()
    assert settings.index_url == "https://four.example/simple"  # the variable wins
    assert settings.extra_index_urls == ["https://two.example", "https://three.example"]
    assert settings.find_links == ["/a", "/b"]
    assert settings.trusted_hosts == ["two.example"]
    assert settings.timeout == 7
    assert [list(source.values()) for source in settings.sources] == [
        [["/a"]],
        [["/b"]],
        [["https://four.example/simple"]],
        [["https://two.example"]],
        [["https://three.example"]],
    ]


def test_without_pip_the_variables_alone_count(world, monkeypatch):
    monkeypatch.setattr(fetching, "_pip_configuration", PIP_CONFIGURATION)

    def no_pip(*args, **kwargs):
        return subprocess.CompletedProcess(args, 1, "", "No module named pip")

    monkeypatch.setattr(fetching.subprocess, "run", no_pip)
    monkeypatch.setenv("PIP_NO_INDEX", "true")
    settings = fetching.pip_settings()
    assert settings.index_url == world.index.as_uri()
    assert settings.sources == []


def test_the_default_index_is_asked_where_none_is_set(world, monkeypatch):
    monkeypatch.delenv("PIP_INDEX_URL")
    assert fetching.pip_settings().sources == [{}]


def test_a_missing_certificate_is_named(world, monkeypatch):
    monkeypatch.setenv("PIP_CERT", "/nowhere/ca.pem")
    refused(world, "/nowhere/ca.pem", "pip config list")
    assert world.left() == []


# ── sources that do not deliver ─────────────────────────────────────────────────────────────────


def test_no_network(world, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://ann:secret@127.0.0.1:9/simple/")
    message = refused(world, "127.0.0.1", "run `course fetch` once with a network")
    assert "secret" not in message
    assert world.left() == []


def test_an_index_that_fails_is_not_taken_for_one_without_the_package(world, server, monkeypatch):
    shutil.rmtree(world.index / "toy")
    refused(world, "it is not there", "PIP_FIND_LINKS")
    monkeypatch.setattr(Handler, "send_head", lambda self: self.send_error(503))
    refused(world, "503", "with a network")
    assert world.left() == []


def test_index_without_the_package(world):
    shutil.rmtree(world.index / "toy")
    refused(world, "toy 1.0", "it is not there", "pip config set global.index-url")
    assert world.left() == []


def test_index_with_another_version_only(world):
    (world.index / "toy" / "index.html").write_text('<a href="toy-2.0-py3-none-any.whl">toy</a>')
    refused(world, "toy-1.0-py3-none-any.whl", "it is not there")


def test_find_links_folder_that_does_not_exist_is_passed_over(world, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere/wheels")
    fetching.fetch(describe("toy"), silent)
    assert world.whole()


def test_no_source_at_all(world, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    refused(world, "name no source at all", "PIP_FIND_LINKS")


def test_the_next_index_is_asked_when_one_is_down(world, monkeypatch):
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", world.index.as_uri())
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    fetching.fetch(describe("toy"), silent)
    assert world.whole()


def test_a_download_that_breaks_off_is_tried_again(world, server, monkeypatch):
    server.broken = 1
    monkeypatch.setenv("PIP_RETRIES", "1")
    fetching.fetch(describe("toy"), silent)
    assert server.sent == 2
    assert world.whole()


def test_a_download_that_always_breaks_off(world, server):
    server.broken = 99
    refused(world, "with a network")
    assert world.left() == []


# ── content that is not what it should be ───────────────────────────────────────────────────────


@pytest.mark.parametrize("hint", ["", "right", "wrong"], ids=["no hint", "lying hint", "other"])
@pytest.mark.parametrize("served", [False, True], ids=["files", "server"])
def test_wrong_sha256(world, request, hint, served):
    if served:
        request.getfixturevalue("server")
    other = WHEEL[:-1] + b"?"
    hints = {"": "", "right": sha256(WHEEL), "wrong": sha256(other)}
    world.publish(other, hint=hints[hint])
    refused(world, "sha256", "nothing of it was kept", "pip config list")
    assert world.left() == []


def test_a_larger_archive_is_broken_off(world, server):
    world.publish(WHEEL + bytes(10_000_000))
    seen = []
    with pytest.raises(AssetError, match="larger than the expected"):
        fetching.fetch(describe("toy"), lambda *row: seen.append(row[2]))
    assert max(seen) <= len(WHEEL)
    assert world.left() == []


def test_a_good_source_after_a_bad_one_is_used(world, tmp_path, monkeypatch):
    good = tmp_path / "wheels"
    good.mkdir()
    (good / "toy-1.0-py3-none-any.whl").write_bytes(WHEEL)
    world.publish(WHEEL[:-1] + b"?")
    monkeypatch.setenv("PIP_FIND_LINKS", f"{world.index / 'toy'} {good}")
    fetching.fetch(describe("toy"), silent)
    assert world.whole()


@pytest.mark.parametrize("content", [DATA + b"!", DATA[:-1], DATA[:-1] + b"!"])
def test_a_member_that_differs_from_the_catalogue(world, content):
    archive = wheel({**MEMBERS, "toy/big.bin": content})
    world.publish(archive)
    world.describe(archive)
    refused(world, "toy/big.bin", "is not what assets.toml says", "update the course")
    assert world.left() == []


def test_a_member_is_never_written_beyond_its_size(world):
    archive = wheel({**MEMBERS, "toy/big.bin": bytes(50_000_000)})
    world.publish(archive)
    world.describe(archive)
    seen = []
    with pytest.raises(AssetError, match="more than"):
        fetching.fetch(describe("toy"), lambda name, step, done, total: seen.append((step, done)))
    assert max(done for step, done in seen if step == "unpack") <= len(DATA)


def test_a_missing_member(world):
    archive = wheel({"toy/big.bin": DATA})
    world.publish(archive)
    world.describe(archive)
    refused(world, "no member", "toy/sub/note.txt", "catalogue")
    assert world.left() == []


@pytest.mark.parametrize("target", ["../evil", "/tmp/evil", "a/../../evil", "..\\evil", "C:\\evil"])
def test_the_catalogue_cannot_lead_out_of_the_cache(world, target):
    world.describe(WHEEL, members={target: ("toy/big.bin", DATA)})
    refused(world, "leaves its folder", "assets.toml")
    assert world.left() == []


def test_members_that_are_not_asked_for_are_never_written(world, tmp_path):
    evil = {"../../evil": b"x", str(tmp_path / "evil"): b"x", "toy/../../../evil": b"x"}
    archive = wheel({**MEMBERS, **evil})
    world.publish(archive)
    world.describe(archive)
    fetching.fetch(describe("toy"), silent)
    assert world.whole()
    assert list(tmp_path.rglob("evil*")) == []
    assert not (tmp_path.parent / "evil").exists()


def test_a_link_in_an_archive_is_refused(world, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(DATA)
    archive = tar({}, {"toy-1.0/big.bin": str(secret)})
    world.publish(archive, "toy-1.0.tar.gz")
    world.describe(archive, "toy-1.0.tar.gz", {"big.bin": ("toy-1.0/big.bin", DATA)})
    refused(world, "toy-1.0/big.bin", "link", "should not be trusted")
    assert world.left() == []


def test_an_archive_that_is_none(world):
    world.publish(b"not an archive at all")
    world.describe(b"not an archive at all")
    refused(world, "cannot be read as an archive", "assets.toml")
    assert world.left() == []


# ── killed, interrupted, two at once ────────────────────────────────────────────────────────────

KILL = """
import os, signal
from course_utils.assets import cache as store
from course_utils.assets.catalogue import AssetError, cache_folder, describe
from course_utils.assets.fetching import fetch
def progress(name, step, done, total):
    if step == {step!r} and 0 < done < total:
        os.kill(os.getpid(), signal.{signal})
fetch(describe("toy"), progress)
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is a POSIX affair")
@pytest.mark.parametrize("step", ["download", "unpack"])
def test_killed_half_way_then_repeated(world, server, step):
    process = python(KILL.format(step=step, signal="SIGKILL"))
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert world.left() == [".toy.partial"]
    assert any((world.cache / ".toy.partial").iterdir()), "it was killed before it had written"
    assert models.verify(describe("toy")) == ["it has not been fetched"]
    fetching.fetch(describe("toy"), silent)
    assert world.whole()


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_interrupted_half_way_leaves_nothing(world, server):
    process = python(KILL.format(step="download", signal="SIGINT"))
    _, error = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in error
    assert world.left() == []


def test_two_fetches_at_once_download_once(world, server):
    server.delay = 1.0
    processes = [python(FETCH) for _ in range(2)]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert server.sent == 1
    assert sum("wait for another fetch" in error for error in errors) == 1
    assert world.whole()


def test_a_fetch_that_never_ends_is_not_waited_for_forever(world, monkeypatch):
    from filelock import FileLock

    monkeypatch.setattr(cache, "PATIENCE", 0.1)
    world.cache.mkdir()
    with FileLock(world.cache / ".toy.lock", is_singleton=False):
        refused(world, "another process", "stop it")


# ── a cache that is damaged ─────────────────────────────────────────────────────────────────────


def later(path: Path) -> None:
    """Give a file another time, as every real change does."""
    os.utime(path, (time.time() + 60, time.time() + 60))


def flip(folder: Path) -> None:
    data = bytearray((folder / "big.bin").read_bytes())
    data[1000] ^= 1
    (folder / "big.bin").write_bytes(data)
    later(folder / "big.bin")


DAMAGES = {
    "one bit": (flip, "big.bin has changed"),
    "truncated": (lambda f: os.truncate(f / "big.bin", 1000), "big.bin has 1,000 bytes"),
    "removed": (lambda f: (f / "sub" / "note.txt").unlink(), "note.txt is missing"),
    "no manifest": (lambda f: (f / MANIFEST).unlink(), "half-written"),
    "half a manifest": (lambda f: os.truncate(f / MANIFEST, 40), "half-written"),
    "empty manifest": (lambda f: (f / MANIFEST).write_text("{}"), "half-written"),
    "odd manifest": (lambda f: (f / MANIFEST).write_text("[]"), "half-written"),
    "listless": (
        lambda f: (f / MANIFEST).write_text('{"digest": "x", "files": []}'),
        "half-written",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_fetched_again(world, damage):
    harm, _ = DAMAGES[damage]
    harm(fetching.fetch(describe("toy"), silent))
    assert not world.whole()
    fetching.fetch(describe("toy"), silent)
    assert world.whole()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_never_used_offline(world, monkeypatch, damage):
    harm, word = DAMAGES[damage]
    harm(fetching.fetch(describe("toy"), silent))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    refused(world, word, "can't be used", "with a network")


def test_verify_finds_what_the_quick_check_cannot(world):
    folder = fetching.fetch(describe("toy"), silent)
    status = (folder / "big.bin").stat()
    flip(folder)
    os.utime(folder / "big.bin", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (
        fetching.fetch(describe("toy"), silent) == folder
    )  # same size, same time: bit rot looks like this
    (problem,) = models.verify(describe("toy"))
    assert "big.bin has changed" in problem
    models.fetch_all(["toy"], silent, verify=True)
    assert world.whole()


def test_a_copied_cache_is_hashed_and_used(world, monkeypatch):
    folder = fetching.fetch(describe("toy"), silent)
    later(folder / "big.bin")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    assert fetching.fetch(describe("toy"), silent) == folder


def test_another_hash_in_the_catalogue_invalidates_the_copy(world):
    fetching.fetch(describe("toy"), silent)
    archive = wheel({**MEMBERS, "toy/sub/note.txt": b"another edition\n"})
    world.publish(archive)
    new = {"big.bin": ("toy/big.bin", DATA), "note.txt": ("toy/sub/note.txt", b"another edition\n")}
    world.describe(archive, members=new)
    assert "another version" in models.verify(describe("toy"))[0]
    folder = fetching.fetch(describe("toy"), silent)
    assert (folder / "note.txt").read_bytes() == b"another edition\n"
    assert not (folder / "sub").exists()
    assert world.left() == ["toy"]


def test_the_manifest_says_what_was_kept(world):
    manifest = json.loads((fetching.fetch(describe("toy"), silent) / MANIFEST).read_text())
    assert manifest["digest"] == catalogue.describe("toy").digest
    assert {name: row[2] for name, row in manifest["files"].items()} == {
        "big.bin": sha256(DATA),
        "sub/note.txt": sha256(EXTRA),
    }


def test_a_catalogue_that_cannot_be_read(world):
    for text, word in (("version = 2", "format 2"), ("[toy", "cannot be read"), ("", "version")):
        world.catalogue.write_text(text)
        catalogue._read_catalogue.cache_clear()
        with pytest.raises(AssetError, match=word):
            catalogue.names()
    world.catalogue.unlink()
    catalogue._read_catalogue.cache_clear()
    with pytest.raises(AssetError, match=r"restore data/assets\.toml"):
        catalogue.names()


# ── a disk that does not take it ────────────────────────────────────────────────────────────────


def test_unwritable_cache(world, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    # Below a file nobody may write, root neither.
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "file" / "cache"))
    refused(world, "cannot be written to", "COURSE_CACHE", str(tmp_path / "file" / "cache"))


def in_a_mount(options: str, code: str) -> subprocess.CompletedProcess:
    """Run Python with a tmpfs of its own over the cache; skip where no namespace can be had."""
    cache = os.environ["COURSE_CACHE"]
    Path(cache).mkdir(exist_ok=True)
    shell = f'mount -t tmpfs -o {options} tmpfs "{cache}" && exec "$@"'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", shell, "sh"]
    if not shutil.which("unshare"):
        pytest.skip("needs unshare(1) to mount a small disk that nobody else sees")
    probe = subprocess.run([*command, "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"no private mount here: {probe.stderr.strip()}")
    return subprocess.run([*command, sys.executable, "-c", code], capture_output=True, text=True)


SHOW = """
import os
from course_utils.assets import cache as store
from course_utils.assets.catalogue import AssetError, cache_folder, describe
from course_utils.assets.fetching import fetch
try:
    fetch(describe("toy"), lambda *row: None)
except AssetError as error:
    print(error)
cache = cache_folder()
print(sorted(n for n in os.listdir(cache) if not n.endswith(".lock")))
"""


@pytest.mark.parametrize("size", ["600k", "1500k"], ids=["at the download", "at unpacking"])
def test_disk_full(world, server, size):
    done = in_a_mount(f"size={size}", SHOW)
    message, left = done.stdout.splitlines()
    assert "the disk is full" in message
    assert "COURSE_CACHE" in message
    assert left == "[]"


def test_read_only_disk(world):
    done = in_a_mount("ro", SHOW)
    message, left = done.stdout.splitlines()
    assert "cannot be written to (Read-only file system)" in message
    assert left == "[]"


def test_a_sound_cache_on_a_read_only_disk_is_used(world):
    code = """
import subprocess
from course_utils.assets import cache as store
from course_utils.assets.catalogue import AssetError, cache_folder, describe
from course_utils.assets.fetching import fetch
fetch(describe("toy"), lambda *row: None)
subprocess.run(["mount", "-o", "remount,ro", str(cache_folder())], check=True)
print((fetch(describe("toy")) / "sub" / "note.txt").read_text())
"""
    done = in_a_mount("size=8m", code)
    assert done.stdout.strip() == EXTRA.decode().strip(), done.stderr


def test_file_size_limit(world, server):
    pytest.importorskip("resource", reason="file size limits are a POSIX affair")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))"
    process = python(limit + SHOW)
    message, left = process.communicate(timeout=60)[0].splitlines()
    assert "the disk is full" in message
    assert left == "[]"


def test_disk_full_while_converting(world):
    code = """
import os
import numpy as np
from safetensors.numpy import save_file
from course_utils.assets import cache as store
from course_utils.assets.catalogue import AssetError, cache_folder, describe
from course_utils.assets.fetching import fetch
def build(scratch, report):
    save_file({"w": np.zeros(1_000_000, np.float32)}, scratch / "model.safetensors")
cache = cache_folder()
try:
    store.install(cache, "toy-transformers", "digest", build, lambda *row: None)
except AssetError as error:
    print(error)
print(sorted(n for n in os.listdir(cache) if not n.endswith(".lock")))
"""
    message, left = in_a_mount("size=1m", code).stdout.splitlines()
    assert "the disk is full" in message
    assert left == "[]"


def test_other_errors_keep_their_own_words(world, monkeypatch):
    def broken(*args):
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr(cache, "unpack", broken)
    with pytest.raises(ZeroDivisionError, match="a mistake of ours"):
        fetching.fetch(describe("toy"), silent)
    assert world.left() == []
