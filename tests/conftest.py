"""What all tests share: no hub, no window, and the two packaged models, loaded once."""

from __future__ import annotations

import os

# Set before anything imports these libraries.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"

import pytest

from course_utils import assets


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct: (model, tokenizer), fp32 on the CPU. Leave its weights as they are."""
    return assets.load_decoder("smollm2")


@pytest.fixture(scope="session")
def minilm():
    """all-MiniLM-L6-v2: (model, tokenizer), fp32 on the CPU. Leave its weights as they are."""
    return assets.load_encoder("minilm")
