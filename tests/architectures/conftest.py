"""Fixtures of these tests."""

from __future__ import annotations

import pytest
import torch

from course_utils.architectures.decoder import Decoder
from course_utils.architectures.encoder import Encoder
from course_utils.architectures.pretrained import (
    bert_config,
    llama_config,
    load_bert_weights,
    load_llama_weights,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def our_minilm(minilm):
    theirs, _ = minilm
    ours = Encoder(bert_config(theirs.config.to_dict())).eval()
    load_bert_weights(ours, theirs.state_dict())
    return ours


@pytest.fixture(scope="session")
def our_smollm2(smollm2):
    theirs, _ = smollm2
    ours = Decoder(llama_config(theirs.config.to_dict())).eval()
    load_llama_weights(ours, theirs.state_dict())
    return ours
