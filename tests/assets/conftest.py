"""What the tests of assets share: a world with one made-up asset, and its index on a server."""

from __future__ import annotations

import functools
import http.server
import os
import threading

import pytest
from toy_index import Handler, World

from course_utils.assets import fetching, pip_settings


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    for name in list(os.environ):
        if name.startswith("PIP_") or name in (*pip_settings.NOT_PIPS_OWN, *fetching.READ_BY_HTTP):
            monkeypatch.delenv(name)
    world = World(tmp_path)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", world.index.as_uri())
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # Starting pip takes most of a second; the tests of the settings and all subprocesses do it.
    monkeypatch.setattr(pip_settings, "_from_files", dict)
    monkeypatch.setenv("COURSE_CACHE", str(world.cache))
    monkeypatch.setenv("COURSE_ASSETS", str(world.catalogue))
    return world


@pytest.fixture
def server(world, monkeypatch):
    """The index of `world` on a loopback server."""
    handler = functools.partial(Handler, directory=str(world.index.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.sent, server.delay, server.broken = 0, 0.0, 0
        server.directory = str(world.index.parent)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple/")
        yield server
        server.shutdown()
        thread.join()
