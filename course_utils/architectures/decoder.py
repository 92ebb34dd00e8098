"""The decoder: every token sees those before it (Llama; Touvron et al. 2023). Notebook 03.

Shapes: B sequences, T tokens, D = d_model, V = vocab_size. A `mask` (B, T) is 1 where a token is
real, 0 where it is padding; None means that all are real.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.architectures.attention import MultiHeadAttention, padding_mask
from course_utils.architectures.blocks import (
    GatedFeedForward,
    RMSNorm,
    check_length,
    check_mask,
    init_weights,
)
from course_utils.architectures.kv_cache import KVCache, LayerCache
from course_utils.architectures.layers import check_ids, check_one_prompt, one_each
from course_utils.architectures.positions import rotary_angles, scaled_frequencies

# ── decoder ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class DecoderConfig:
    """The numbers that make a `Decoder`. `scaling` is a rule of `scaled_frequencies`.

    Without `causal` the triangle is gone: the same network, in which every token sees every other.
    """

    vocab_size: int
    d_model: int
    n_heads: int
    n_layers: int
    d_ff: int
    n_kv_heads: int | None = None
    d_head: int | None = None
    max_positions: int = 2048
    theta: float = 10_000.0
    scaling: Mapping[str, Any] | None = None
    eps: float = 1e-5
    tied: bool = True
    causal: bool = True


class DecoderBlock(nn.Module):
    """Normalise first, then attend and feed forward, each added to its input (pre-norm).

    >>> config = DecoderConfig(vocab_size=9, d_model=4, n_heads=1, n_layers=1, d_ff=4)
    >>> block, x = DecoderBlock(config), torch.randn(1, 3, 4)
    >>> changed = x + torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1)  # the last token
    >>> (block(changed) != block(x)).any(dim=-1)  # is seen by the last alone
    tensor([[False, False,  True]])
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model, config.eps)
        self.attention = MultiHeadAttention(
            config.d_model,
            config.n_heads,
            n_kv_heads=config.n_kv_heads,
            d_head=config.d_head,
            bias=False,
        )
        self.feed_forward_norm = RMSNorm(config.d_model, config.eps)
        self.feed_forward = GatedFeedForward(config.d_model, config.d_ff)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        causal: bool = True,
        rotary: tuple[Tensor, Tensor] | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D); the rest as in `MultiHeadAttention`."""
        attended = self.attention(
            self.attention_norm(x), mask=mask, causal=causal, rotary=rotary, cache=cache
        )
        x = x + attended
        return x + self.feed_forward(self.feed_forward_norm(x))


class Decoder(nn.Module):
    """Llama: ids in, logits of the next token out, rotary positions, grouped heads, SwiGLU."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.eps)
        self.out = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self._init_weights()
        if config.tied:
            self.out.weight = self.token_embedding.weight
        frequencies, self.angle_scale = self._frequencies(length=0)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def _init_weights(self) -> None:
        """Deviation 0.02, less where blocks add up, which keeps their sum near 1: GPT-2, §2.3."""
        init_weights(self, std=0.02)
        for block in self.blocks:
            for last in (block.attention.out, block.feed_forward.down):
                nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * self.config.n_layers))

    def _frequencies(self, length: int) -> tuple[Tensor, float]:
        return scaled_frequencies(
            self.blocks[0].attention.d_head,
            self.config.theta,
            self.config.scaling,
            length=length,
            max_positions=self.config.max_positions,
        )

    def positions(self, ids: Tensor, mask: Tensor | None, past: int) -> Tensor:
        """Where ids (B, T) stand after `past` tokens: (1, T), or (B, T) if padding is left out."""
        if mask is None:
            return torch.arange(past, past + ids.shape[1], device=ids.device).unsqueeze(0)
        counted = mask.long().cumsum(dim=1) - 1  # (B, past + T)
        return counted.clamp(min=0)[:, past:]

    def rotary(self, positions: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions (B or 1, T) in a text of `length` tokens."""
        limit = self.config.max_positions
        frequencies = self.frequencies
        if length > limit:
            if (self.config.scaling or {}).get("rope_type") != "dynamic":
                remedy = "shorten it, or configure a scaling rule and more max_positions"
                check_length(length, limit, remedy)
            frequencies = self._frequencies(length)[0].to(positions.device)
        cos, sin = rotary_angles(positions, frequencies, self.angle_scale)
        dtype = self.token_embedding.weight.dtype
        return cos.to(dtype), sin.to(dtype)

    def _each_layer(
        self, ids: Tensor, mask: Tensor | None, cache: KVCache | None
    ) -> Iterator[Tensor]:
        """ids (B, T) -> the embedding, then each block's output (B, T, D)."""
        check_ids(ids, self.config.vocab_size)
        if cache is not None and not self.config.causal:
            raise ValueError(
                "a cache needs a causal configuration: else a new token changes all before it"
            )
        past = 0 if cache is None else cache.length
        check_mask(mask, ids, past)
        rotary = self.rotary(self.positions(ids, mask, past), past + ids.shape[1])
        visible = None if mask is None else padding_mask(mask)
        x = self.token_embedding(ids)
        yield x
        for i, block in enumerate(self.blocks):
            layer = None if cache is None else cache.layers[i]
            x = block(x, mask=visible, causal=self.config.causal, rotary=rotary, cache=layer)
            yield x

    def hidden(
        self, ids: Tensor, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """ids (B, T) -> the last block's output, normalised (B, T, D).

        With a cache, `ids` are the tokens after those in it, and the mask covers both. Padding does
        not count as a position.
        """
        for x in self._each_layer(ids, mask, cache):
            last = x
        return self.norm(last)

    def hidden_states(self, ids: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """ids (B, T) -> the embedding and each block's output (B, T, D).

        The last is normalised, as in transformers.
        """
        *before, last = self._each_layer(ids, mask, None)
        return [*before, self.norm(last)]

    def forward(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        *,
        last_only: bool = False,
    ) -> Tensor:
        """ids (B, T) -> logits (B, T, V), or (B, 1, V) with `last_only`. See `hidden`."""
        hidden = self.hidden(ids, mask, cache)
        return self.out(hidden[:, -1:] if last_only else hidden)

    def read_and_reorder(self, mask: Tensor | None = None) -> tuple[Callable, Callable]:
        """Two callables with which a decoding loop continues prompts that have this mask (B, T).

        `read(ids, cache)` takes ids (B, T) that follow those in the cache, None at first, and gives
        the logits (B, V) of the next token, and the cache. `reorder(cache, rows)` keeps these rows.
        Prompts of different lengths are padded on the left; what is written after them is real.
        """

        def read(ids: Tensor, cache: tuple | None) -> tuple[Tensor, tuple]:
            steps, seen = (KVCache(self.config.n_layers), mask) if cache is None else cache
            if seen is not None:
                new = steps.length + ids.shape[1] - seen.shape[1]
                seen = F.pad(one_each(seen, len(ids), "masks"), (0, max(new, 0)), value=1)
            with torch.inference_mode():
                logits = self(ids, seen, steps, last_only=True)[:, -1]
            return logits.clone(), (steps, seen)  # a clone: the caller may be out of that mode

        def reorder(cache: tuple, rows: Tensor) -> tuple:
            steps, seen = cache
            if mask is not None:
                check_one_prompt(mask)
                seen = seen[rows]
            steps.select(rows)
            return steps, seen

        return read, reorder


def count_weights(config: DecoderConfig) -> int:
    """How many numbers a tied `Decoder` learns, from its sizes alone.

    >>> config = DecoderConfig(10, d_model=4, n_heads=2, n_layers=1, d_ff=3, n_kv_heads=1)
    >>> count_weights(config), sum(p.numel() for p in Decoder(config).parameters())
    (136, 136)
    """
    d, d_ff = config.d_model, config.d_ff
    d_head = d // config.n_heads if config.d_head is None else config.d_head
    n_kv_heads = config.n_heads if config.n_kv_heads is None else config.n_kv_heads
    attention = 2 * d * config.n_heads * d_head + 2 * d * n_kv_heads * d_head
    block = attention + 3 * d * d_ff + 2 * d  # gate, up, down; two norms
    return config.vocab_size * d + config.n_layers * block + d
