"""What all tests share: no hub, no window, and the two packaged models, loaded once."""

from __future__ import annotations

import os

# Set before anything imports these libraries.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"

import sys

import pytest

from course_utils import models

ON_REQUEST = {
    "network": "needs a package index: run it with `pytest -m network`",
    "slow": "takes more than a minute: run it with `pytest -m slow`",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what a plain run should not need, and say how to run it."""
    for item in items:
        for marker, reason in ON_REQUEST.items():
            if item.get_closest_marker(marker) and marker not in config.getoption("-m"):
                item.add_marker(pytest.mark.skip(reason=reason))
        if item.get_closest_marker("gpu"):
            import torch

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    """Close what a test has drawn: pyplot keeps every figure, and warns of more than twenty."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct: (model, tokenizer), fp32 on the CPU. Leave its weights as they are."""
    return models.load_decoder("smollm2")


@pytest.fixture(scope="session")
def minilm():
    """all-MiniLM-L6-v2: (model, tokenizer), fp32 on the CPU. Leave its weights as they are."""
    return models.load_encoder("minilm")


@pytest.fixture
def shown(monkeypatch):
    """Everything that is displayed in a test."""
    outputs = []
    monkeypatch.setattr("IPython.display.display", lambda data, **kwargs: outputs.append(data))
    return outputs
