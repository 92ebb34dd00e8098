"""The decoder: every token sees those before it (Llama; Touvron et al. 2023). Notebook 03.

Shapes: B sequences, T tokens, D = d_model, V = vocab_size. A `mask` (B, T) is 1 where a token is
real, 0 where it is padding; None means that all are real.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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
from course_utils.architectures.kv_cache import KVCache
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
    """Normalise first, then attend and feed forward, each added to its input (pre-norm)."""

    def __init__(self, sizes: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(sizes.d_model, sizes.eps)
        self.attention = MultiHeadAttention(
            sizes.d_model,
            sizes.n_heads,
            n_kv_heads=sizes.n_kv_heads,
            d_head=sizes.d_head,
            bias=False,
        )
        self.feed_forward_norm = RMSNorm(sizes.d_model, sizes.eps)
        self.feed_forward = GatedFeedForward(sizes.d_model, sizes.d_ff)

    def forward(self, x: Tensor, **seen: Any) -> Tensor:
        """`seen`: mask, causal, rotary and cache, as in `MultiHeadAttention`."""
        x = x + self.attention(self.attention_norm(x), **seen)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Decoder(nn.Module):
    """Llama: ids in, logits of the next token out, rotary positions, grouped heads, SwiGLU."""

    def __init__(self, sizes: DecoderConfig) -> None:
        super().__init__()
        self.sizes = sizes
        self.tokens = nn.Embedding(sizes.vocab_size, sizes.d_model)
        self.blocks = nn.ModuleList(DecoderBlock(sizes) for _ in range(sizes.n_layers))
        self.norm = RMSNorm(sizes.d_model, sizes.eps)
        self.out = nn.Linear(sizes.d_model, sizes.vocab_size, bias=False)
        init_weights(self, std=0.02)
        for block in self.blocks:  # keeps the sum of the blocks' outputs near 1: GPT-2, §2.3
            for last in (block.attention.out, block.feed_forward.down):
                nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * sizes.n_layers))
        if sizes.tied:
            self.out.weight = self.tokens.weight
        frequencies, self.angle_scale = self._frequencies(length=0)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def _frequencies(self, length: int) -> tuple[Tensor, float]:
        sizes, d_head = self.sizes, self.blocks[0].attention.d_head
        longest = sizes.max_positions
        return scaled_frequencies(
            d_head, sizes.theta, sizes.scaling, length=length, max_positions=longest
        )

    def rotary(self, positions: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions (B or 1, T) in a text of `length` tokens."""
        grows = (self.sizes.scaling or {}).get("rope_type") == "dynamic"
        if length > self.sizes.max_positions and not grows:
            remedy = "shorten it, or give sizes with a scaling rule and more max_positions"
            check_length(length, self.sizes.max_positions, remedy)
        frequencies = self.frequencies
        if length > self.sizes.max_positions:
            frequencies = self._frequencies(length)[0].to(positions.device)
        cos, sin = rotary_angles(positions, frequencies, self.angle_scale)
        return cos.to(self.tokens.weight.dtype), sin.to(self.tokens.weight.dtype)

    def hidden(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        *,
        all_layers: bool = False,
    ) -> Tensor | list[Tensor]:
        """ids (B, T) -> normalised (B, T, D), or with `all_layers` the embedding and each block.

        With a cache, `ids` are the tokens after those in it, and the mask covers both. Padding does
        not count as a position. The last of `all_layers` is normalised, as in transformers.
        """
        check_ids(ids, self.sizes.vocab_size)
        if cache is not None and not self.sizes.causal:
            raise ValueError("a cache needs causal sizes: else a new token changes all before it")
        past = 0 if cache is None else cache.length
        length = past + ids.shape[1]
        check_mask(mask, ids, past)
        if mask is None:
            positions = torch.arange(past, length, device=ids.device).unsqueeze(0)  # (1, T)
        else:
            positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, past:]  # (B, T)
        rotary = self.rotary(positions, length)
        visible, causal = None if mask is None else padding_mask(mask), self.sizes.causal
        hidden = [self.tokens(ids)]
        for i, block in enumerate(self.blocks):
            layer = None if cache is None else cache.layers[i]
            x = block(hidden[-1], mask=visible, causal=causal, rotary=rotary, cache=layer)
            hidden = [*hidden, x] if all_layers else [x]
        hidden[-1] = self.norm(hidden[-1])
        return hidden if all_layers else hidden[-1]

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
            steps, seen = (KVCache(self.sizes.n_layers), mask) if cache is None else cache
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
