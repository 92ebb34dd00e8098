"""Fixtures of these tests: small nets with the same weights on both sides."""

from __future__ import annotations

import pytest
import torch
from tiny_llama import llama_sizes
from torch import nn
from transformers import LlamaForCausalLM

from course_utils.architectures.decoder import Decoder, DecoderConfig
from course_utils.architectures.pretrained import llama_config, load_llama_weights


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def decoder():
    """Two blocks of width 16, four heads that share two key heads; nothing tied, nothing random."""
    sizes = {"d_model": 16, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "d_ff": 24}
    return Decoder(DecoderConfig(vocab_size=30, tied=False, **sizes)).eval()


@pytest.fixture
def net():
    """Layers that are not square, with and without a bias."""
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8, bias=False))


@pytest.fixture
def llama():
    """transformers' Llama, tiny."""
    return LlamaForCausalLM(llama_sizes()).eval()


@pytest.fixture
def ours(llama):
    """The course's decoder with the same weights."""
    model = Decoder(llama_config(llama.config.to_dict())).eval()
    load_llama_weights(model, llama.state_dict())
    return model
