"""What can go wrong with content, processes and disks: a clear sentence, nothing left behind."""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_index import (
    DATA,
    EXTRA,
    FETCH,
    MEMBERS,
    WHEEL,
    python,
    refused,
    sha256,
    silent,
    tar,
    wheel,
)

from course_utils import models
from course_utils.assets import cache, catalogue, fetching
from course_utils.assets.cache import MANIFEST
from course_utils.assets.catalogue import AssetError, describe

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
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
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


# ── a disk that does not take it ────────────────────────────────────────────────────────────────


def test_unwritable_cache(world, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    # Below a file nobody may write, root neither.
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "file" / "cache"))
    refused(world, "cannot be written to", "COURSE_CACHE", str(tmp_path / "file" / "cache"))


def test_a_cache_that_one_may_not_look_into(world, monkeypatch):
    """As /root/cache is for everybody else; the tests may run as root, whom nothing stops."""

    def denied(path, *args, _real, **kwargs):
        if str(path).startswith(str(world.cache)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return _real(path, *args, **kwargs)

    for name in ("stat", "mkdir"):
        monkeypatch.setattr(os, name, functools.partial(denied, _real=getattr(os, name)))
    refused(world, "cannot be written to (Permission denied)", "COURSE_CACHE")


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
