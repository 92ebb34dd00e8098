"""The sizes of a Llama that is as small as grouped heads allow."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig


def llama_sizes(**more: Any) -> LlamaConfig:
    """30 tokens, width 16, two blocks, four heads in two groups; `more` goes to transformers."""
    return LlamaConfig(
        vocab_size=30,
        hidden_size=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        num_hidden_layers=2,
        intermediate_size=24,
        **more,
    )
